"""Options that several commands have, so that they are named and read in one way."""

from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import LearngeneError


def parse_size(value: str) -> int | tuple[int, int]:
    """Read a depth or width: one number, or VISION,TEXT."""
    try:
        numbers = tuple(int(part) for part in value.split(","))
    except ValueError:
        raise typer.BadParameter(f"{value!r} is neither a number nor a pair VISION,TEXT") from None
    if len(numbers) > 2:
        raise typer.BadParameter(f"{value!r} has {len(numbers)} numbers: give one, or a pair VISION,TEXT")
    return numbers[0] if len(numbers) == 1 else (numbers[0], numbers[1])


Gene = Annotated[str, typer.Argument(help="The gene: a Hub id, a folder, or the name of a bundled one.")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit on the Hub.", show_default="main")]
Output = Annotated[Path, typer.Option(help="Folder to write; it must not exist, or be empty.")]
Data = Annotated[str, typer.Option(help="Dataset: a Hub id, or a folder in datasets format.")]
ImageColumn = Annotated[str | None, typer.Option(help="Image column; found by itself where one stands out.")]
TextColumn = Annotated[str | None, typer.Option(help="Text column; found by itself where one stands out.")]
Split = Annotated[str, typer.Option(help="Split of the dataset.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Use only this many rows, from the first.")]
BatchSize = Annotated[int, typer.Option(min=2, help="Pairs in one batch on each process.")]
NumWorkers = Annotated[int, typer.Option(min=0, help="Processes that read pictures beside the training.")]
Epochs = Annotated[float, typer.Option(min=0.0, help="Passes over the data.")]
MaxSteps = Annotated[int, typer.Option(help="Stop after this many steps; -1 goes by epochs.")]
LearningRate = Annotated[float, typer.Option(help="Peak learning rate.")]
Seed = Annotated[int, typer.Option(help="Seeds everything that is drawn.")]


def given(**kwargs: Any) -> dict[str, Any]:
    """Return the arguments that were given, without those that are None."""
    return {name: value for name, value in kwargs.items() if value is not None}


def check_empty(folder: Path, but: str | None = None) -> None:
    """Refuse a folder that holds anything, `but` for what is named."""
    if folder.exists() and (not folder.is_dir() or any(path.name != but for path in folder.iterdir())):
        raise LearngeneError(f"{str(folder)!r} exists and is no empty folder: choose another, or remove it first")
