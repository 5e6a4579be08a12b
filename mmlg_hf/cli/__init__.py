"""The command `mmlg`: extract a gene, inspect it, grow descendants, evaluate models, run the demo.

torch and transformers are imported when a command runs, so that `--help` answers at once.
"""

import platform
from typing import Annotated

import typer

from .. import __version__
from ..alignment.cli import EPILOG as ALIGN_EPILOG
from ..alignment.cli import align
from ..app.cli import EPILOG as APP_EPILOG
from ..app.cli import app as serve_page
from ..clip_moe.cli import app as clip_moe_app
from ..export.cli import COMPARE_EPILOG, EXPORT_EPILOG, compare, export
from ..shell.failing import ErrorsInOneSentence
from .extracting import EPILOG as EXTRACT_EPILOG
from .extracting import extract
from .growing import DESCEND_EPILOG, INSPECT_EPILOG, descend, inspect
from .measuring import DEMO_EPILOG, EVALUATE_EPILOG, demo, evaluate

app = typer.Typer(
    cls=ErrorsInOneSentence,
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        others = ", ".join(f"{name} {version(name)}" for name in ("transformers", "torch"))
        typer.echo(f"mmlg_hf {__version__} (Python {platform.python_version()}, {others})")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the versions and exit.")
    ] = False,
) -> None:
    """Extract a learngene from a CLIP once, grow CLIP models of any depth, width and modality from it."""


# Other fields of ExtractionArguments and TrainingArguments are options, too.
app.command(epilog=EXTRACT_EPILOG, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(
    extract
)
app.command(epilog=INSPECT_EPILOG)(inspect)
app.command(epilog=DESCEND_EPILOG)(descend)
app.command(epilog=EVALUATE_EPILOG)(evaluate)
app.command(epilog=DEMO_EPILOG)(demo)
app.command(epilog=ALIGN_EPILOG)(align)
app.command(epilog=EXPORT_EPILOG)(export)
app.command(epilog=COMPARE_EPILOG)(compare)
app.command("app", epilog=APP_EPILOG)(serve_page)
app.add_typer(clip_moe_app, name="moe")


def main() -> None:
    """Run the command `mmlg`."""
    app(prog_name="mmlg")
