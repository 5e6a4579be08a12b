"""The demo's comparison over three seeds: accuracy from the gene and from scratch, and the margins between them.

    python -m benchmarks.demo_seeds [--learngene GENE] [--seeds 0 1 2]

Prints a table and writes `benchmarks/results/demo_seeds.json` and `.png`. Resumes after the last finished seed. The
learning rates are those of `benchmarks.demo_tuning`, which used another seed and validation images only.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from benchmarks.fashion import environment
from mmlg_hf.demo import STARTS, DemoSettings, compare_classifiers, load_digits_for, load_gene
from mmlg_hf.demo_report import DemoProgress
from mmlg_hf.model_loading import quiet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--learngene", help="Hub id, folder or bundled name; the bundled one if left out")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/demo_seeds.json"))
    options = parser.parse_args()

    gene, settings, console = load_gene(options.learngene), DemoSettings(), Console()
    # The recipe too: the bundled gene keeps its name when it is rebuilt.
    about = {"learngene": Path(gene.name_or_path).name, "recipe": gene.config.recipe, "settings": asdict(settings)}
    shared = json.loads(json.dumps(about))
    runs = finished_runs(options.output, shared)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    with quiet():
        _, tensors = load_digits_for(gene, settings)
        for seed in options.seeds:
            if str(seed) in runs:
                continue
            with DemoProgress(console) as progress:
                progress.stage(f"seed {seed}")
                rows, curves, _ = compare_classifiers(gene, tensors, settings, seed, progress)
            runs[str(seed)] = {"classifiers": rows, "curves": curves}
            record = {"summary": summarise(runs), "runs": runs, **shared, **environment()}
            options.output.write_text(json.dumps(record, indent=2) + "\n")
    summary = summarise(runs)
    print_margins(summary, console)
    plot_margins(summary, options.output.with_suffix(".png"))


def finished_runs(path: Path, shared: dict[str, Any]) -> dict[str, Any]:
    """Return the seeds that are done with the same gene and settings."""
    if not path.exists():
        return {}
    record = json.loads(path.read_text())
    same = all(record.get(name) == value for name, value in shared.items())
    return record["runs"] if same else {}


def summarise(runs: dict[str, Any]) -> list[dict[str, Any]]:
    """Return for each size the mean, standard deviation and least of accuracies and margins over the seeds."""
    summary = []
    for rows in zip(*(run["classifiers"] for run in runs.values()), strict=True):
        values = {f"accuracy_{start}": [row[f"accuracy_{start}"] for row in rows] for start in STARTS}
        values["margin"] = [gene - scratch for gene, scratch in zip(*values.values(), strict=True)]
        spreads = {
            name: {
                "mean": mean(found),
                "std": stdev(found) if len(found) > 1 else 0.0,
                "min": min(found),
                "seeds": len(found),
            }
            for name, found in values.items()
        }
        summary.append({key: rows[0][key] for key in ("name", "depth", "width", "parameters", "steps")} | spreads)
    return summary


def print_margins(summary: list[dict[str, Any]], console: Console) -> None:
    table = Table(title=f"Digit classifiers over {summary[0]['margin']['seeds']} seeds: test accuracy (%), mean ± std")
    for title in ("classifier", "from the gene", "from scratch", "margin", "least margin"):
        table.add_column(title, justify="left" if title == "classifier" else "right")
    for row in summary:
        cells = [
            f"{100 * row[n]['mean']:.1f} ± {100 * row[n]['std']:.1f}" for n in ("accuracy_gene", "accuracy_scratch")
        ]
        margin = row["margin"]
        table.add_row(row["name"], *cells, f"{100 * margin['mean']:+.1f}", f"{100 * margin['min']:+.1f}")
    console.print(table)


def plot_margins(summary: list[dict[str, Any]], path: Path) -> None:
    figure = Figure(figsize=(5.2, 3.4), dpi=130, layout="constrained")
    panel = figure.subplots()
    for offset, (start, color, label) in enumerate(
        (("gene", "C0", "from the gene"), ("scratch", "C7", "from scratch"))
    ):
        spreads = [row[f"accuracy_{start}"] for row in summary]
        panel.bar(
            [index + 0.38 * (offset - 0.5) for index in range(len(summary))],
            [100 * spread["mean"] for spread in spreads],
            width=0.36,
            yerr=[100 * spread["std"] for spread in spreads],
            color=color,
            capsize=4,
            label=label,
        )
    panel.set_xticks(
        range(len(summary)), [f"{row['depth']} x {row['width']}\n{row['parameters'] / 1e6:.2f} M" for row in summary]
    )
    panel.set(ylim=(0, 100), ylabel="test accuracy (%)")
    panel.set_title(
        f"After {summary[0]['steps']} steps; mean and std of {summary[0]['margin']['seeds']} seeds", fontsize="medium"
    )
    panel.legend(loc="upper right", fontsize="small")
    panel.grid(axis="y", alpha=0.3)
    figure.savefig(path, metadata={"Software": None})


if __name__ == "__main__":
    main()
