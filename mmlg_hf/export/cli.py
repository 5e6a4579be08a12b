"""`mmlg export` and `mmlg compare`: files that other runtimes take, and the table that chooses a size."""

import json
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..errors import LearngeneError
from ..shell.options import Revision, parse_size

EXPORT_EPILOG = "Example: mmlg export mmlg-fashion-48 --depth 3 --width 96 --to onnx --int8 --output exported"
COMPARE_EPILOG = "Example: mmlg compare mmlg-fashion-48@2x64 mmlg-fashion-48@3x96 mmlg-fashion-48@6x192 --output sizes"


class Format(str, Enum):
    """What runs the files."""

    onnx = "onnx"
    torch = "torch"
    executorch = "executorch"
    openvino = "openvino"


def export(
    model: Annotated[
        str, typer.Argument(help="A model or gene: a Hub id, a folder, or a gene's name; a gene's size is NAME@3x96.")
    ],
    output: Annotated[Path, typer.Option(help="Folder to write; it must not exist, or be empty.")],
    to: Annotated[Format, typer.Option(help="What shall run the files.")] = Format.onnx,
    int8: Annotated[bool, typer.Option("--int8", help="Write files in int8 as well (ONNX).")] = False,
    calibration: Annotated[
        Path | None,
        typer.Option(help="Folder of pictures like those to come, for static int8.", show_default="dynamic int8"),
    ] = None,
    whole: Annotated[
        bool, typer.Option("--whole", help="One file that compares pictures with texts, not one for each encoder.")
    ] = False,
    raw: Annotated[
        bool, typer.Option("--raw", help="Embeddings as the model gives them, not brought to length 1.")
    ] = False,
    depth: Annotated[
        Any, typer.Option(parser=parse_size, metavar="LAYERS", help="Layers that a gene grows, N or VISION,TEXT.")
    ] = None,
    width: Annotated[
        Any, typer.Option(parser=parse_size, metavar="SIZE", help="hidden_size that a gene grows, N or VISION,TEXT.")
    ] = None,
    modality: Annotated[
        str | None, typer.Option(help="image or text: this encoder alone.", show_default="all that there is")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON in place of the table.")] = False,
    revision: Revision = None,
) -> None:
    """Export a model to files that phones, browsers and servers run, and see that they compute the same."""
    from .exporting import EXPORT_FILE, export_model

    hub = {} if revision is None else {"revision": revision}
    _check_modality(modality)
    record = export_model(
        model,
        output,
        to.value,
        depth=depth,
        width=width,
        modality=modality,
        whole=whole,
        normalised=not raw,
        int8=int8,
        calibration=calibration,
        **hub,
    )
    if as_json:
        typer.echo(json.dumps(record, indent=2))
    else:
        _show_export(record)
        Console().print(Text(f"{output} holds the files, their processor and {EXPORT_FILE}, which describes them."))
    differing = [file["file"] for file in record["files"] if not file["verified"]]
    if differing:
        sentence = f"Error: {', '.join(differing)} in {output} does not compute what the model does: see its figures"
        Console(stderr=True).print(Text(sentence, style="red"), soft_wrap=True)
        raise typer.Exit(1)


def _check_modality(modality: str | None) -> None:
    if modality not in (None, "multimodal", "image", "text"):
        raise LearngeneError(f"modality is {modality!r}: choose multimodal, image or text")


def _show_export(record: dict[str, Any]) -> None:
    from .card import table_rows

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), caption=f"ms for one input, on {record['machine']}")
    table.add_column("file", no_wrap=True)
    table.add_column("weights")
    for title in ("MB", "ms", "ms in\ntorch", "greatest\ndifference", "least\ncosine"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("agrees")
    for row in table_rows(record):
        table.add_row(*row)
    Console().print(table)


def compare(
    models: Annotated[
        list[str], typer.Argument(help="Models or genes: Hub ids, folders, names; a gene's size is NAME@DEPTHxWIDTH.")
    ],
    data: Annotated[
        str | None, typer.Option(help="Dataset to measure on: a Hub id, or a folder in datasets format.")
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="What to measure on it: retrieval, zero-shot or classification.")
    ] = None,
    split: Annotated[str, typer.Option(help="Split of the dataset.")] = "test",
    image_column: Annotated[str | None, typer.Option(help="Image column; found by itself if left out.")] = None,
    text_column: Annotated[str | None, typer.Option(help="Text column; found by itself if left out.")] = None,
    label_column: Annotated[str | None, typer.Option(help="Label column; found by itself if left out.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Measure only this many rows, from the first.")] = None,
    to: Annotated[
        Format | None, typer.Option(help="Export each as well, and time its files.", show_default="torch alone")
    ] = None,
    int8: Annotated[bool, typer.Option("--int8", help="Export in int8 as well (with --to onnx).")] = False,
    output: Annotated[
        Path | None,
        typer.Option(help="Folder for comparison.json and comparison.png; it must not exist, or be empty."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON in place of the table.")] = False,
) -> None:
    """Compare what models cost and, with data, how good they are: the table and the plot that choose a size."""
    from ..saving import whole_folder, write_json
    from .comparing import compare_models
    from .exporting import check_empty

    if output is not None:
        from ..errors import require

        require("matplotlib.figure", "demo")  # now, not when everything is measured
        check_empty(output)
    rows: Any = None
    columns: dict[str, str] = {}
    if data is not None:
        from ..data import load_image_text

        rows = load_image_text(data, split)
        rows = rows if limit is None else rows.select(range(min(limit, len(rows))))
        named = {"image_column": image_column, "text_column": text_column, "label_column": label_column}
        wrong = "label_column" if task == "retrieval" else "text_column" if task == "zero-shot" else ""
        columns = {name: column for name, column in named.items() if column is not None and name != wrong}
    chosen = None if to is None else to.value
    record = compare_models(models, rows, task, to=chosen, int8=int8, **columns)
    record |= {"data": None if data is None else {"dataset": data, "split": split, "rows": len(rows)}}
    if output is not None:
        from .plots import plot_comparison

        with whole_folder(output) as folder:
            write_json(folder / "comparison.json", record)
            plot_comparison(record, folder / "comparison.png")
    if as_json:
        typer.echo(json.dumps(record, indent=2))
        return
    _show_comparison(record)
    if output is not None:
        Console().print(Text(f"{output} holds comparison.json and comparison.png."))


def _show_comparison(record: dict[str, Any]) -> None:
    from .comparing import SHOWN, megabytes_of

    shown = SHOWN[record["task"]] if record["task"] else ()
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), caption=f"ms for one input, on {record['machine']}")
    table.add_column("model")
    for title in ("parameters", "MB", "ms a\npicture", "ms a\ntext"):
        table.add_column(title, justify="right", no_wrap=True)
    exported = sorted({file["weights"] for row in record["models"] for file in row["files"]})
    for weights in exported:
        table.add_column(f"exported\n{weights}", justify="right", no_wrap=True)
    for name in shown:
        table.add_column(name.replace("image_to_text_R@", "R@"), justify="right", no_wrap=True)
    for row in record["models"]:
        table.add_row(
            row["name"],
            f"{row['parameters']:,}",
            f"{row['megabytes']:.1f}",
            *(_number(row[key]) for key in ("milliseconds_picture", "milliseconds_text")),
            *(f"{_number(megabytes_of(row, weights))} MB, {_times(row, weights)} ms" for weights in exported),
            *(f"{row['figures'][name]:.1%}" for name in shown),
        )
    Console().print(table)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _times(row: dict[str, Any], weights: str) -> str:
    return " + ".join(_number(file["milliseconds"]) for file in row["files"] if file["weights"] == weights)
