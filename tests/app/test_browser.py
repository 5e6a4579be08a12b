"""The page in a browser, as `mmlg app` serves it and as the Space's folder does: used as a person would."""

import base64
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from contextlib import closing

import pytest
from documents import ROOT
from pico import pico_image
from PIL import Image

from mmlg_hf.app.drawn import draw_examples
from mmlg_hf.app.page import LABELS
from mmlg_hf.app.pictures import Album
from mmlg_hf.app.sizes import Sizes, read_labels

pytestmark = pytest.mark.slow
pytest.importorskip("gradio", reason="gradio is not installed: pip install 'mmlg_hf[app]'")
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")

GENE = "mmlg-fashion-48"
SECONDS = 120  # for the page to answer, on a busy machine
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
DROP = """
([zone, name, content]) => {
    const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
    const dropped = new DataTransfer();
    dropped.items.add(new File([bytes], name, {type: "image/png"}));
    for (const kind of ["dragenter", "dragover", "drop"])
        zone.dispatchEvent(new DragEvent(kind, {dataTransfer: dropped, bubbles: true, cancelable: true}));
}
"""
# Costs that reach beyond their card when each is as long as costs get.
BEYOND_THEIR_CARD = """
() => [...document.querySelectorAll(".mmlg-facts b")].filter((cost) => {
    cost.textContent = "200.2 MB";
    const text = document.createRange();
    text.selectNodeContents(cost);
    return text.getBoundingClientRect().right > cost.closest(".mmlg-facts").getBoundingClientRect().right;
}).length
"""
# What can be seen or used and reaches beyond the sides of the window.
OUTSIDE = """
() => [...document.querySelectorAll("input, textarea, button, .mmlg-bar, .mmlg-facts b")].filter((part) => {
    const box = part.getBoundingClientRect();
    return box.width > 1 && box.height > 1 && (box.left < 0 || box.right > window.innerWidth);
}).map((part) => part.outerHTML.slice(0, 120))
"""


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        installed = next(filter(None, map(shutil.which, BROWSERS)), None)
        if installed is None and not os.path.exists(started.chromium.executable_path):
            pytest.skip("there is no Chromium: playwright install chromium brings it")
        # Chromium's own sandbox cannot be had as root, which containers of tests run as.
        yield started.chromium.launch(executable_path=installed, args=["--no-sandbox"])


@pytest.fixture(scope="module", params=["command", "space"])
def address(request, tmp_path_factory):
    """Serve the page by the command or by the program of the Space's folder, without network; its address."""
    if request.param == "command":
        command, folder = [sys.executable, "-m", "mmlg_hf", "app", GENE], tmp_path_factory.mktemp("here")
    else:
        from upload.manifest import read_manifest
        from upload.staging import stage

        manifest = read_manifest()
        (space,) = [artifact for artifact in manifest.artifacts if artifact.kind == "space"]
        folder = stage(space, manifest, tmp_path_factory.mktemp("space"), manifest.namespace)
        command = [sys.executable, "app.py"]
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = {"GRADIO_SERVER_PORT": str(port), "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    with (
        open(folder / "log.txt", "wb") as log,
        subprocess.Popen(command, cwd=folder, env=os.environ | settings, stdout=log, stderr=log) as served,
    ):
        try:
            deadline = time.monotonic() + 4 * SECONDS
            while b"The page is at" not in (folder / "log.txt").read_bytes():
                assert served.poll() is None, (folder / "log.txt").read_text()
                assert time.monotonic() < deadline, (folder / "log.txt").read_text()
                time.sleep(0.1)
            yield f"http://127.0.0.1:{port}"
        finally:
            served.terminate()


@pytest.fixture
def open_page(browser, address):
    """Open the page at a width of pixels; at the end nothing may have gone wrong, nor come from elsewhere."""
    contexts, faults, elsewhere = [], [], set()

    def opened(width, height):
        contexts.append(browser.new_context(viewport={"width": width, "height": height}))
        page = contexts[-1].new_page()
        page.set_default_timeout(1000 * SECONDS)
        page.on("console", lambda message: message.type == "error" and faults.append(message.text))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("request", lambda request: elsewhere.add(request.url))
        page.goto(address)
        page.wait_for_selector(".mmlg-bar")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert faults == []
    assert [url for url in elsewhere if not url.startswith((address, "data:", "blob:"))] == []


@pytest.fixture(scope="module")
def expected():
    return Sizes(GENE)


def drop(page, path):
    """Drop a file where a picture is shown, after taking that one away."""
    page.locator("#mmlg-picture button[aria-label*='lear' i], #mmlg-picture button[aria-label*='emove' i]").click()
    page.get_by_text("Drop a picture, or click on a drawn one.").wait_for()
    zone = page.locator("#mmlg-picture button").filter(has=page.locator("input[type=file]")).first
    zone.evaluate(
        f"(zone, file) => ({DROP})([zone, ...file])", [path.name, base64.b64encode(path.read_bytes()).decode()]
    )


def shown_shares(page):
    """The labels of the bars, best first, each with the two sizes' per cent."""
    read = "rows => rows.map(row => [...row.querySelectorAll('h3, span')].map(part => part.innerText))"
    return {label: tuple(values) for label, *values in page.locator(".mmlg-label").evaluate_all(read)}


def shares_of(expected, path, labels, *places):
    columns = [expected.shares(expected.grow(*place), path, labels) for place in places]
    rows = zip(labels, *columns, strict=True)
    return {label: tuple(f"{100 * share:.1f} %" for share in both) for label, *both in rows}


def wait_for_shares(page, shares):
    deadline = time.monotonic() + SECONDS
    while shown_shares(page) != shares:
        assert time.monotonic() < deadline, (shown_shares(page), shares)
        time.sleep(0.05)


def choose(page, name, side, value):
    """Type a number into a slider's box."""
    box = page.locator(f"#mmlg-{name}-{side} input[type=number]")
    box.fill(str(value))
    box.press("Enter")
    box.blur()


def test_a_dropped_picture_is_named_by_two_sizes_that_are_changed(open_page, expected, tmp_path):
    page, labels = open_page(1200, 900), read_labels(LABELS)
    shirt, shoe, watch, _ = draw_examples(tmp_path)
    wait_for_shares(page, shares_of(expected, shirt, labels, (3, 96), (6, 192)))
    drop(page, watch)
    wait_for_shares(page, shares_of(expected, watch, labels, (3, 96), (6, 192)))
    for name, side, value, place in (("width", "a", 64, (3, 64)), ("depth", "a", 2, (2, 64))):
        choose(page, name, side, value)
        page.locator(f"#mmlg-facts-{side}", has_text=f"{place[0]} layers, {place[1]} wide").wait_for()
    facts = page.locator("#mmlg-facts-a").inner_text()
    assert f"{expected.grow(2, 64).parameters / 1e6:.2f} M" in facts
    assert len(re.findall(r"[\d.]+ m?s\b", facts)) == 3  # a picture, a text, and the seconds of growing
    wait_for_shares(page, shares_of(expected, watch, labels, (2, 64), (6, 192)))
    # A slider moved by the keyboard, and a number between two sizes, which snaps.
    page.locator("#mmlg-depth-b input[type=range]").press("ArrowLeft")
    page.locator("#mmlg-facts-b", has_text="5 layers, 192 wide").wait_for()
    choose(page, "width", "b", 101)
    page.locator("#mmlg-facts-b", has_text="5 layers, 96 wide").wait_for()
    assert page.locator("#mmlg-width-b input[type=number]").input_value() == "96"
    page.locator("#mmlg-labels textarea").fill("a shoe, trousers")
    page.locator("#mmlg-drawn button").nth(1).click()
    wait_for_shares(page, shares_of(expected, shoe, ["a shoe", "trousers"], (2, 64), (5, 96)))


def test_what_is_wrong_is_told_on_the_page(open_page, tmp_path):
    page = open_page(1200, 900)
    alert = page.locator("#mmlg-shares [role=alert]")
    page.locator("#mmlg-labels textarea").fill(" ,")
    alert.filter(has_text="There are no labels: type two or more, with commas between them.").wait_for()
    page.locator("#mmlg-labels textarea").fill("shirt, <img src=x onerror=alert(1)>")
    page.locator(".mmlg-label", has_text="<img src=x onerror=alert(1)>").wait_for()
    (tmp_path / "broken.png").write_bytes(b"no picture")
    drop(page, tmp_path / "broken.png")
    alert.filter(has_text="broken.png cannot be read as a picture: its bytes are no image").wait_for()
    Image.new("1", (9000, 9000)).save(tmp_path / "huge.png")
    page.locator("#mmlg-picture button[aria-label*='lear' i], #mmlg-picture button[aria-label*='emove' i]").click()
    page.locator("#mmlg-picture input[type=file]").set_input_files(tmp_path / "huge.png")
    alert.filter(has_text="huge.png has 81 million pixels or more, and the page takes 50 million").wait_for()


def test_a_folder_is_searched_by_text_with_both_sizes(open_page, expected, tmp_path):
    page = open_page(1200, 900)
    page.get_by_role("tab", name="Search pictures").click()
    names = page.locator("#mmlg-found section >> nth=0 >> li")
    names.first.wait_for()
    assert page.locator("#mmlg-found img").count() == 8  # the four drawn ones, by each size
    shown = "sections => sections.map(s => s.querySelector('li').title)"
    page.locator("#mmlg-query textarea, #mmlg-query input").fill("a blue shirt")
    assert page.locator("#mmlg-found section").evaluate_all(shown) == ["shirt.png", "shirt.png"]
    draw_examples(tmp_path)
    for name in ("red", "blue"):
        pico_image(name, "white").save(tmp_path / f"{name}.png")
    (tmp_path / "notes.png").write_bytes(b"words")
    page.locator("#mmlg-folder").locator("xpath=..").locator("input[type=file]").first.set_input_files(tmp_path)
    page.locator("#mmlg-album", has_text="6 pictures; left out: notes.png cannot be read").wait_for()
    page.locator("#mmlg-found img >> nth=11").wait_for()
    page.locator("#mmlg-query textarea, #mmlg-query input").fill("a red handbag")
    album = Album(sorted(tmp_path.iterdir()))
    hits = [album.search(expected, expected.grow(*place), "a red handbag", 1)[0] for place in ((3, 96), (6, 192))]
    first = [album.names[index] for index, _ in hits]
    page.wait_for_function(
        f"names => JSON.stringify(({shown})([...document.querySelectorAll('#mmlg-found section')])) === names",
        arg=json.dumps(first, separators=(",", ":")),
    )
    page.locator("#mmlg-query textarea, #mmlg-query input").fill(" ")
    page.locator("#mmlg-found [role=alert]", has_text="There is nothing to search for: type a few words.").wait_for()


def test_it_is_used_on_a_phone(open_page, expected, tmp_path):
    page, labels = open_page(390, 844), read_labels(LABELS)
    shirt, *_ = draw_examples(tmp_path)
    choose(page, "depth", "a", 1)
    wait_for_shares(page, shares_of(expected, shirt, labels, (1, 96), (6, 192)))
    fits = "() => document.documentElement.scrollWidth <= window.innerWidth"
    assert page.evaluate(fits)
    assert page.evaluate(OUTSIDE) == []
    page.get_by_role("tab", name="Search pictures").click()
    page.locator("#mmlg-found img >> nth=7").wait_for()
    assert page.evaluate(fits)
    assert page.evaluate(OUTSIDE) == []


@pytest.mark.parametrize("width", [820, 1280])
def test_long_costs_stay_within_their_cards(open_page, width):
    assert open_page(width, 900).evaluate(BEYOND_THEIR_CARD) == 0
