"""What `mmlg demo` shows: progress bars, accuracy curves, the closing table."""

import os
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from transformers import TrainerCallback

from ..errors import require
from ..saving import whole_file

Figure = require("matplotlib.figure", "demo").Figure  # now, not when everything is trained


class DemoProgress(Progress):
    """One progress bar for each model that is trained, and one line for each other stage."""

    def __init__(self, console: Console) -> None:
        columns = (
            TextColumn("{task.description:<24}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
        )
        super().__init__(*columns, console=console)

    def stage(self, description: str) -> None:
        """Show a stage that has no steps to count."""
        self.add_task(description, total=1, completed=1, note="")

    def training(self, description: str, steps: int) -> "TrainingBar":
        """Show a model's training, step by step."""
        return TrainingBar(self, self.add_task(description, total=steps, note=""))


class TrainingBar(TrainerCallback):
    """Advance a progress bar with the Trainer, and note the validation accuracy beside it."""

    def __init__(self, progress: Progress, task: Any) -> None:
        self._progress, self._task = progress, task

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._progress.update(self._task, completed=state.global_step)

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        if "eval_accuracy" in metrics:
            self._progress.update(self._task, note=f"validation {metrics['eval_accuracy']:.1%}")

    def finish(self, accuracy: float) -> None:
        """Note the accuracy on the test images and stop the clock."""
        self._progress.update(self._task, note=f"test {accuracy:.1%}")
        self._progress.stop_task(self._task)


def plot_curves(results: dict[str, Any], path: str | os.PathLike) -> None:
    """Draw validation accuracy against steps, one panel for each size, with the final test accuracy as a star."""
    rows, data = results["classifiers"], results["data"]
    figure = Figure(figsize=(3.4 * len(rows), 3.4), dpi=130, layout="constrained")
    panels = figure.subplots(1, len(rows), sharey=True, squeeze=False)[0]
    for panel, row in zip(panels, rows, strict=True):
        for start, color, label in (("gene", "C0", "from the gene"), ("scratch", "C7", "from scratch")):
            curve = next(c for c in results["curves"] if (c["name"], c["start"]) == (row["name"], start))
            accuracies = [100 * accuracy for accuracy in curve["validation_accuracy"]]
            panel.plot(curve["steps"], accuracies, "o-", color=color, markersize=3.5, label=label)
            final = 100 * row[f"accuracy_{start}"]
            panel.plot(row["steps"], final, "*", color=color, markersize=11, clip_on=False, zorder=3)
            panel.annotate(
                f"{final:.1f}", (row["steps"], final), (-6, -15), textcoords="offset points", ha="right", color=color
            )
        panel.axhline(10, color="0.6", linewidth=0.8, linestyle=":", label="chance")
        millions = row["parameters"] / 1e6
        panel.set(title=f"{row['depth']} layers x {row['width']} ({millions:.2f} M)", xlabel="fine-tuning steps")
        panel.set(xlim=(0, None), ylim=(0, 100))
        panel.grid(alpha=0.3)
    panels[0].set_ylabel(f"accuracy (%), {data['validation']} held-out digits")
    panels[0].legend(loc="lower right", fontsize="small")
    figure.suptitle(
        f"Digit classifiers fine-tuned on {data['train']} images; stars: accuracy on {data['test']:,} test images",
        fontsize="medium",
    )
    with whole_file(path) as partial:
        figure.savefig(partial, format="png", metadata={"Software": None})


def print_report(results: dict[str, Any], output: Path, console: Console) -> None:
    """Print the closing table, the zero-shot figures, the pipeline's predictions and where everything is."""
    data = results["data"]
    table = Table(title=f"Accuracy on {data['test']:,} held-out digits, {data['train']} training images")
    table.add_column("classifier")
    for title in ("parameters", "steps", "from the gene", "from scratch", "margin"):
        table.add_column(title, justify="right")
    for row in results["classifiers"]:
        margin = row["accuracy_gene"] - row["accuracy_scratch"]
        table.add_row(
            f"{row['depth']} layers x {row['width']}",
            f"{row['parameters']:,}",
            str(row["steps"]),
            f"{row['accuracy_gene']:.1%}",
            f"{row['accuracy_scratch']:.1%}",
            f"{100 * margin:+.1f}",
        )
    console.print(table)
    clip = results["multimodal"]
    console.print(
        f"{clip['name']}: zero-shot accuracy {clip['zero_shot_before']:.1%} as grown, {clip['zero_shot_after']:.1%} "
        f"after {clip['steps']} contrastive steps",
        highlight=False,
    )
    predictions = results["predictions"]
    shown = ", ".join(f"{row['digit']} → {row['predicted']} ({row['score']:.0%})" for row in predictions["rows"])
    console.print(f"{predictions['model']}, reloaded in the image-classification pipeline: {shown}", highlight=False)
    console.print(
        f"{results['seconds']:.0f} s on {results['hardware']}. In {output}: results.json, accuracy.png, models/",
        highlight=False,
        soft_wrap=True,
    )
