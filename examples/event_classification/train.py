"""Classify detector events with a small descendant: grow it from a learngene, fine-tune it, score it, show its errors.

    python examples/event_classification/train.py --output-dir out
    python examples/event_classification/train.py --data mg22_alpha_voxels.npz --classes beam,reaction \
        --planes yz,xy,xz --charge-scale log --decades 4 --output-dir out
    python examples/event_classification/train.py --data O16_size512.npy --label-row -2 --output-dir out

The defaults are what the validation events of `benchmarks.events` chose at 200 events.
"""

import json
import time
from pathlib import Path
from typing import Annotated

import figures
import torch
import typer
from fine_tuning import check_labels, examples, fine_tune, freeze_layers, image_processor, scores
from rich.console import Console
from rich.table import Table
from tasks import Task, file_task, one_against_rest, simulated_task

from mmlg_hf import from_learngene
from mmlg_hf.errors import LearngeneError
from mmlg_hf.training import probe_head


def make_task(
    data: Path | None, positive: str | None, train_events: int | None, seed: int, reading: dict, drawing: dict
) -> Task:
    """The simulated task, or the file's; reduced to one class against the rest when `positive` names one."""
    if data is None:
        task = simulated_task(train_events or 400, seed=seed, **drawing)
    else:
        task = file_task(data, train_events=train_events, seed=seed, **reading, **drawing)
    check_labels(task.train[1], task.classes)
    return one_against_rest(task, positive) if positive else task


def classify(
    task: Task,
    output_dir: Path,
    *,
    learngene: str,
    depth: int | None,
    width: int | None,
    steps: int,
    learning_rate: float,
    frozen_layers: int,
    seed: int,
) -> dict:
    """Grow, fine-tune and score one descendant; write its folder, the figures and `results.json` to `output_dir`."""
    started = time.perf_counter()
    torch.manual_seed(seed)
    model = from_learngene(learngene, depth, width, "image", num_labels=len(task.classes))
    model.config.id2label = dict(enumerate(task.classes))
    model.config.label2id = {name: index for index, name in enumerate(task.classes)}
    processor = image_processor(model.config.vision_config.image_size)
    labels = task.train[1]
    train = examples(task.images(task.train[0]), labels, processor)
    probe_head(model, train, balanced=True)  # few events would be spoilt by a random head's gradients
    freeze_layers(model, frozen_layers)
    output_dir.mkdir(parents=True, exist_ok=True)
    trainer = fine_tune(
        model,
        train,
        task.classes,
        output_dir=output_dir / "model",
        steps=steps,
        learning_rate=learning_rate,
        seed=seed,
    )
    figures.draw_events(task.pictures(task.train[0]), labels, task.classes, output_dir / "events.png")
    results = {}
    for name, (events, truth) in task.tests.items():
        logits = trainer.predict(examples(task.images(events), truth, processor)).predictions
        results[name] = scores(logits, truth, task.classes, task.positive)
        title = f"{name}: F1 {results[name]['f1']:.3f}"
        figures.draw_confusion(results[name]["confusion"], task.classes, output_dir / f"confusion_{name}.png", title)
        figures.draw_errors(task.pictures(events), logits, truth, task.classes, output_dir / f"errors_{name}.png")
    trainer.save_model(output_dir / "model")
    processor.save_pretrained(output_dir / "model")
    drawing = {k: v.tolist() if hasattr(v, "tolist") else v for k, v in task.drawing.items()}
    record = {
        "learngene": learngene,
        "depth": model.config.vision_config.num_hidden_layers,
        "width": model.config.vision_config.hidden_size,
        "parameters": model.num_parameters(),
        "steps": steps,
        "learning_rate": learning_rate,
        "frozen_layers": frozen_layers,
        "seed": seed,
        "classes": list(task.classes),
        "positive": None if task.positive is None else task.classes[task.positive],
        "train_events": len(labels),
        "drawing": drawing,
        "seconds": round(time.perf_counter() - started, 1),
        "tests": results,
    }
    (output_dir / "results.json").write_text(json.dumps(record, indent=1) + "\n")
    return record


def print_table(record: dict) -> None:
    """One row per test set, and one per class below it."""
    table = Table("test set", "class", "precision", "recall", "F1", "events")
    for name, result in record["tests"].items():
        summary = "mean" if record["positive"] is None else record["positive"]
        table.add_row(
            name, f"[bold]{summary}", *(f"[bold]{result[key]:.3f}" for key in ("precision", "recall", "f1")), ""
        )
        for label, row in result["per_class"].items():
            table.add_row("", label, *(f"{row[key]:.3f}" for key in ("precision", "recall", "f1")), str(row["events"]))
    Console().print(table)


def main(
    output_dir: Annotated[Path, typer.Option(help="Where the model, figures and results.json go.")] = Path("out"),
    data: Annotated[Path | None, typer.Option(help=".npz of voxels or .npy of point clouds; none simulates.")] = None,
    classes: Annotated[str | None, typer.Option(help="Names of the file's labels, by commas, from label 0.")] = None,
    positive: Annotated[str | None, typer.Option(help="Binary task: this class against the rest.")] = None,
    columns: Annotated[str, typer.Option(help="Of a .npy: columns of x, y, z and charge.")] = "0,1,2,3",
    label_column: Annotated[int | None, typer.Option(help="Of a .npy: the column with the event's label.")] = None,
    label_row: Annotated[int | None, typer.Option(help="Of a .npy: the extra row with the label, as -2.")] = None,
    planes: Annotated[str, typer.Option(help="Projections in red, green and blue, or one.")] = "xy,zy,zx",
    bins: Annotated[int, typer.Option(help="Of point clouds: pixels per side, before the model's own size.")] = 12,
    charge_scale: Annotated[str, typer.Option(help="log, sqrt or linear.")] = "sqrt",
    decades: Annotated[float, typer.Option(help="Of the log scale.")] = 2.0,
    train_events: Annotated[
        int | None, typer.Option(help="Events to train on; 400 simulated, or all of a file.")
    ] = None,
    learngene: Annotated[str, typer.Option(help="Hub id, folder or bundled name.")] = "mmlg-fashion-48",
    depth: Annotated[int | None, typer.Option(help="Layers, any number: the gene grows to it.")] = 4,
    width: Annotated[int | None, typer.Option(help="Hidden size; the gene's own when left out.")] = None,
    steps: Annotated[
        int, typer.Option(help="Optimiser steps of 16 events after the head is set by a regression; 0 stops there.")
    ] = 0,
    learning_rate: float = 3e-4,
    frozen_layers: Annotated[int, typer.Option(help="Encoder layers left as the gene made them.")] = 0,
    seed: int = 0,
) -> None:
    """Fine-tune a descendant on detector events and print precision, recall and F1."""
    try:
        reading = {
            "classes": classes.split(",") if classes else None,
            "columns": [int(c) for c in columns.split(",")],
            "label_column": label_column,
            "label_row": label_row,
        }
        drawing = {
            "planes": tuple(planes.split(",")),
            "bins": bins,
            "charge_scale": charge_scale,
            "decades": decades,
        }
        task = make_task(data, positive, train_events, seed, reading, drawing)
        record = classify(
            task,
            output_dir,
            learngene=learngene,
            depth=depth,
            width=width,
            steps=steps,
            learning_rate=learning_rate,
            frozen_layers=frozen_layers,
            seed=seed,
        )
    except LearngeneError as error:
        raise typer.BadParameter(str(error)) from error
    print_table(record)
    Console().print(f"Model, figures and results.json are in {output_dir}")


if __name__ == "__main__":
    typer.run(main)
