"""`mmlg evaluate` and `mmlg demo`: what models reach."""

from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from ..saving import check_writable, write_json
from ..shell.devices import Device, find_device
from ..shell.options import Data, ImageColumn, Revision, TextColumn, given
from ..shell.printing import AsJson, console, print_json, say, stdout_for_json

EVALUATE_EPILOG = "Example: mmlg evaluate mmlg-fashion-48 --data photos --split test --task retrieval"
DEMO_EPILOG = "Example: mmlg demo --output-dir out"


class Task(str, Enum):
    """What a model is measured at."""

    retrieval = "retrieval"
    zero_shot = "zero-shot"
    classification = "classification"


def evaluate(
    model: Annotated[str, typer.Argument(help="A model or gene: a Hub id, a folder, or a bundled gene's name.")],
    data: Data,
    task: Annotated[Task, typer.Option(help="What to measure.")],
    split: Annotated[str, typer.Option(help="Split of the dataset.")] = "test",
    image_column: ImageColumn = None,
    text_column: TextColumn = None,
    label_column: Annotated[
        str | None, typer.Option(help="Label column; found by itself where one stands out.")
    ] = None,
    template: Annotated[
        list[str] | None,
        typer.Option(help='Prompt with "{}" for the class, zero-shot only; can be repeated, then averaged.'),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Measure only this many rows, from the first.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images or texts in one forward pass.")] = 64,
    device: Device = None,
    output: Annotated[Path | None, typer.Option(help="JSON file to write the figures to as well.")] = None,
    as_json: AsJson = False,
    revision: Revision = None,
) -> None:
    """Measure a model: image-text retrieval, zero-shot classification, or a classifier's accuracy."""
    if output is not None:
        check_writable(output)
    from ..data import load_image_text
    from ..evaluation.loading import load_classifier, load_dual_encoder

    place = find_device(device)
    rows: Any = load_image_text(data, split)
    if limit is not None:
        rows = rows.select(range(min(limit, len(rows))))
    columns: dict[str, Any] = {"image_column": image_column, "batch_size": batch_size}
    columns |= {"device": place, "progress": True}
    if task is Task.classification:
        from ..evaluation.classification import evaluate_classification

        loaded, processor = load_classifier(model, **given(revision=revision))
        figures = evaluate_classification(
            loaded, rows, processor, label_column=label_column, text_column=text_column, **columns
        )
    else:
        from ..evaluation.dual_encoders import DEFAULT_TEMPLATES, evaluate_retrieval, evaluate_zero_shot

        loaded, processor = load_dual_encoder(model, **given(revision=revision))
        if task is Task.zero_shot:
            templates = tuple(template or DEFAULT_TEMPLATES)
            figures = evaluate_zero_shot(
                loaded, rows, processor, label_column=label_column, templates=templates, **columns
            )
        else:
            figures = evaluate_retrieval(loaded, rows, processor, text_column=text_column, **columns)
    record = {"model": model, "data": data, "split": split, "rows": len(rows), "task": task.value, "figures": figures}
    if output is not None:
        write_json(output, record)
    if as_json:
        print_json(record)
        return
    say(f"{model}, {task.value} on {len(rows):,} rows of {data} ({split})")
    table = Table("figure")
    table.add_column("value", justify="right")
    for name, value in figures.items():
        table.add_row(name, f"{value:.1f}" if "rank" in name else f"{value:.2%}")
    console.print(table)


def demo(
    output_dir: Annotated[Path, typer.Option(help="Folder for results.json, the plot and the models.")],
    gene: Annotated[str | None, typer.Option(help="Gene to grow from.", show_default="the bundled one")] = None,
    seed: Annotated[int, typer.Option(help="Seeds the new heads, the models from scratch, and the batches.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Grow models from the bundled gene and fine-tune them beside models from scratch, offline, in under 3 minutes."""
    check_writable(output_dir)
    from ..demo.demo import run_demo

    with stdout_for_json(as_json):
        results = run_demo(output_dir, gene, seed=seed, console=console)
    if as_json:
        print_json(results)
