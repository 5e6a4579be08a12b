"""What commands print: sentences and tables for people, or JSON alone on stdout for programs."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Annotated, Any

import typer
from rich.console import Console

console = Console()

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON in place of the table.")]


def say(text: str) -> None:
    """Print a sentence as it is: names in it may hold square brackets."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def print_json(content: Any) -> None:
    """Print a result for programs."""
    typer.echo(json.dumps(content, indent=2))


@contextmanager
def stdout_for_json(as_json: bool) -> Iterator[None]:
    """Where JSON is asked for, send all that is printed meanwhile, the Trainer's logs too, to stderr."""
    if not as_json:
        yield
        return
    with redirect_stdout(sys.stderr):
        yield
