"""The Gradio page: two sizes of a gene side by side, naming a picture and searching pictures."""

import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..data import picture_files
from ..errors import LearngeneError, first_line, require
from ..shell.printing import say
from . import html
from .drawn import draw_examples
from .pictures import Album, read_picture
from .sizes import Grown, Sizes, read_labels

FOUND = 6  # pictures that each size shows
LARGEST_FILE = "40mb"
LABELS = "shirt, shoe, watch, handbag"
_FONTS = ["system-ui", "sans-serif"], ["ui-monospace", "monospace"]


def serve(
    gene: str | os.PathLike = "mmlg-fashion-48",
    *,
    pictures: str | os.PathLike | None = None,
    host: str | None = None,
    port: int | None = None,
    browser: bool = False,
    **hub_kwargs: Any,
) -> None:
    """Serve the page until it is stopped.

    Args:
        gene: a Hub id, a folder or a bundled name.
        pictures: a folder of pictures to search; None takes the drawn examples.
        host: address to listen at; None takes GRADIO_SERVER_NAME, or this machine alone.
        port: None takes GRADIO_SERVER_PORT, or the first that is free from 7860.
        browser: open the page in a browser.
        hub_kwargs: `revision`, `token`, `cache_dir`, `local_files_only`.

    Raises:
        LearngeneError: gradio is missing, the gene cannot be loaded or has but one encoder, the folder has no
            pictures, or the port is taken.
    """
    gradio: Any = _gradio()
    page = build_page(gene, pictures=pictures, **hub_kwargs)
    text, mono = _FONTS
    theme = gradio.themes.Default(primary_hue="teal", neutral_hue="slate", font=text, font_mono=mono)
    try:
        _, url, _ = page.launch(
            quiet=True,
            prevent_thread_lock=True,
            server_name=host,
            server_port=port,
            inbrowser=browser,
            share=False,
            ssr_mode=False,
            max_file_size=LARGEST_FILE,
            theme=theme,
            css=html.STYLE,
            footer_links=[],
        )
    except OSError as error:
        raise LearngeneError(f"the page cannot be served: {first_line(error)}") from error
    say(f"The page is at {url} until Ctrl-C stops it.")
    page.block_thread()


def build_page(gene: str | os.PathLike, *, pictures: str | os.PathLike | None = None, **hub_kwargs: Any) -> Any:
    """Return the page as `gradio.Blocks`, which `serve` launches.

    Args and errors as of `serve`.
    """
    gradio: Any = _gradio()
    sizes = Sizes(gene, **hub_kwargs)
    examples = draw_examples(Path(tempfile.mkdtemp(prefix="mmlg-")))
    album = Album(picture_files(pictures) if pictures is not None else examples, max(256, sizes.image_size))
    with gradio.Blocks(title=f"{sizes.name}: sizes side by side", analytics_enabled=False, delete_cache=_KEPT) as page:
        gradio.HTML(_head(sizes), elem_id="mmlg-head")
        with gradio.Row(equal_height=True):
            chosen = [_size_panel(gradio, sizes, side) for side in "ab"]
        sliders = [slider for depth, width, _ in chosen for slider in (depth, width)]
        with gradio.Tabs():
            with gradio.Tab("Name a picture"):
                naming = _naming_tab(gradio, sizes, sliders, examples)
            with gradio.Tab("Search pictures"):
                searching = _searching_tab(gradio, sizes, sliders, album)
        for depth, width, facts in chosen:
            for slider in (depth, width):
                event = slider.change(
                    lambda d, w: _grown(sizes, d, w), [depth, width], [depth, width, facts], **_QUIETLY
                )
                event.then(*naming, **_QUIETLY)
                event.then(*searching, **_QUIETLY)
        page.load(*naming, **_QUIETLY)
        page.load(*searching, **_QUIETLY)
    page.queue(max_size=64)
    return page


_KEPT = (3600, 7200)  # seconds: how often uploads are looked through, and how old they get
# Events that answer while a slider moves: the last position counts.
_QUIETLY: dict[str, Any] = {"show_progress": "hidden", "trigger_mode": "always_last", "api_visibility": "private"}


def _gradio() -> Any:
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    return require("gradio", "app")


def _head(sizes: Sizes) -> str:
    count = sizes.gene.num_parameters()
    return (
        "<h1>One gene, many sizes</h1><p>"
        f"{html.escape(sizes.name)} is a learngene of {count / 1e6:.2f} million parameters. Choose two sizes: each is "
        "grown from it at once, without training, as a stock CLIP. Then see what they make of pictures.</p>"
    )


def _size_panel(gradio: Any, sizes: Sizes, side: str) -> tuple[Any, Any, Any]:
    """Two sliders, and what the size costs."""
    depth, width = (sizes.depths[-1], sizes.widths[-1]) if side == "b" else _smaller(sizes)
    named = (("depth", sizes.depths, depth), ("width", sizes.widths, width))
    with gradio.Column(min_width=300, elem_classes=["mmlg-size", f"mmlg-{side}"]), gradio.Group():
        with gradio.Row():
            sliders = [
                gradio.Slider(
                    choices[0], choices[-1], start, step=choices.step, precision=0, label=name.capitalize(),
                    elem_id=f"mmlg-{name}-{side}", min_width=130, buttons=[],
                )
                for name, choices, start in named
            ]  # fmt: skip
        facts = gradio.HTML(html.facts(sizes.grow(depth, width)), elem_id=f"mmlg-facts-{side}", padding=True)
    return *sliders, facts


def _smaller(sizes: Sizes) -> tuple[int, int]:
    """About half the gene's own size."""
    return sizes.snap(sizes.depths[-1] / 2, sizes.widths[-1] / 2)


def _naming_tab(gradio: Any, sizes: Sizes, sliders: list[Any], examples: Sequence[Path]) -> tuple[Any, ...]:
    """The tab that names a picture; return what runs when a size changes: function, inputs, output."""
    with gradio.Row():
        with gradio.Column(min_width=280):
            picture = gradio.Image(
                type="filepath", image_mode=None, sources=["upload", "clipboard"], height=260, elem_id="mmlg-picture",
                label="Picture", show_label=False, value=str(examples[0]), buttons=[],
            )  # fmt: skip
            # A file that is no picture, or too huge a one, is told in our own words: gradio only opens the path.
            picture.preprocess = lambda payload: payload and payload.path
            labels = gradio.Textbox(
                LABELS, label="Labels, with commas between them", info='Each is read as "a photo of a ...".',
                elem_id="mmlg-labels", lines=2, max_length=5000,
            )  # fmt: skip
            gradio.Examples([[str(path)] for path in examples], picture, label="Drawn examples", elem_id="mmlg-drawn")
        with gradio.Column(min_width=280):
            shown = gradio.HTML(elem_id="mmlg-shares", padding=True)

    def name(*values: Any) -> str:
        *places, path, typed = values
        return _told(lambda: name_picture(sizes, places, path, typed))

    event = (name, [*sliders, picture, labels], shown)
    picture.change(*event, **_QUIETLY)
    labels.change(*event, **_QUIETLY)
    return event


def _searching_tab(gradio: Any, sizes: Sizes, sliders: list[Any], album: Album) -> tuple[Any, ...]:
    """The tab that searches pictures; return what runs when a size changes."""
    own = gradio.State(None, time_to_live=3600)
    with gradio.Row():
        text = gradio.Textbox(
            "a blue shirt", label="Find", placeholder="a blue shirt", elem_id="mmlg-query", max_length=500, scale=3,
            min_width=220,
        )  # fmt: skip
        folder = gradio.UploadButton(
            "Choose a folder", file_count="directory", elem_id="mmlg-folder", min_width=140, size="sm"
        )
        files = gradio.UploadButton(
            "Choose pictures",
            file_count="multiple",
            file_types=["image"],
            elem_id="mmlg-files",
            min_width=140,
            size="sm",
        )
    told = gradio.HTML(html.hint(album.told()), elem_id="mmlg-album", padding=True)
    shown = gradio.HTML(elem_id="mmlg-found", padding=True)

    def search(*values: Any) -> str:
        *places, mine, query = values
        return _told(lambda: search_pictures(sizes, mine or album, places, query))

    def choose(paths: list[str]) -> tuple[Any, str]:
        try:
            chosen = Album(paths or [], max(256, sizes.image_size))
        except LearngeneError as error:
            return None, html.sentence(error)
        return chosen, html.hint(chosen.told())

    event = (search, [*sliders, own, text], shown)
    text.change(*event, **_QUIETLY)
    for button in (folder, files):
        button.upload(choose, button, [own, told], api_visibility="private").then(*event, **_QUIETLY)
    return event


# --- what the page does, without gradio ------------------------------------------------------------------------------


def _grown(sizes: Sizes, depth: Any, width: Any) -> tuple[int, int, str]:
    """Where the sliders snap to, and what that size costs."""
    depth, width = sizes.snap(depth, width)
    return depth, width, _told(lambda: html.facts(sizes.grow(depth, width)))


def name_picture(sizes: Sizes, places: Sequence[Any], path: str | None, text: str) -> str:
    """The bars of two sizes for a picture and the labels that were typed.

    Args:
        places: where the sliders stand: depth, width, depth, width.
    """
    if path is None:
        return html.hint("Drop a picture, or click on a drawn one.")
    labels, picture, both = read_labels(text), read_picture(path), _both(sizes, places)
    return html.bars(both, labels, [sizes.shares(grown, picture, labels) for grown in both])


def search_pictures(sizes: Sizes, album: Album, places: Sequence[Any], text: str) -> str:
    """The pictures of an album that two sizes find nearest to a text; `places` as of `name_picture`."""
    both = _both(sizes, places)
    hits = [album.search(sizes, grown, text, FOUND) for grown in both]
    columns = [[(album.names[index], album.pictures[index], cosine) for index, cosine in column] for column in hits]
    return html.found(both, columns)


def _both(sizes: Sizes, places: Sequence[Any]) -> list[Grown]:
    return [sizes.grow(*sizes.snap(*places[first : first + 2])) for first in (0, 2)]


def _told(make: Callable[[], str]) -> str:
    """What is made, or the sentence that says why it is not."""
    try:
        return make()
    except LearngeneError as error:
        return html.sentence(error)
