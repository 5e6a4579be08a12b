"""`mmlg app`: the page on which anyone tries the sizes of a gene."""

from pathlib import Path
from typing import Annotated

import typer

from ..shell.options import Revision

EPILOG = "Example: mmlg app mmlg-fashion-48 --pictures photos"


def app(
    gene: Annotated[
        str, typer.Argument(help="The gene: a Hub id, a folder, or the name of a bundled one.")
    ] = "mmlg-fashion-48",
    pictures: Annotated[
        Path | None, typer.Option(help="Folder of pictures to search.", show_default="drawn examples")
    ] = None,
    host: Annotated[
        str | None, typer.Option(help="Address to listen at; 0.0.0.0 is all.", show_default="this machine alone")
    ] = None,
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Port.", show_default="the first free from 7860")
    ] = None,
    browser: Annotated[bool, typer.Option("--browser", help="Open the page in a browser.")] = False,
    revision: Revision = None,
) -> None:
    """Serve a page that grows two sizes of a gene side by side: costs, zero-shot labels, and search by text."""
    from .page import serve

    hub = {} if revision is None else {"revision": revision}
    serve(gene, pictures=pictures, host=host, port=port, browser=browser, **hub)
