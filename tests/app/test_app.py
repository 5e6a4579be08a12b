"""What the page does, without gradio: sizes grown and measured, labels read, pictures named and searched."""

import socket
import subprocess
import sys
import time
from contextlib import closing
from types import SimpleNamespace

import pytest
import torch
from documents import ROOT
from pico import pico_image, pico_processor
from pico_genes import image_gene, multimodal_gene
from PIL import Image
from transformers import SiglipConfig, SiglipModel, pipeline
from typer.testing import CliRunner

from mmlg_hf import LearngeneError, from_learngene
from mmlg_hf.app import drawn, html, page, pictures, sizes
from mmlg_hf.app.pictures import Album, read_picture, shrunk
from mmlg_hf.app.sizes import Sizes, read_labels, shares_of
from mmlg_hf.cli import app
from mmlg_hf.evaluation.dual_encoders import embed_images, embed_texts


@pytest.fixture(scope="module", autouse=True)
def timed_shortly():
    before, sizes._TIMED_SECONDS = sizes._TIMED_SECONDS, 0.0
    yield
    sizes._TIMED_SECONDS = before


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("gene")
    multimodal_gene().save_pretrained(path)
    pico_processor().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def pico(folder):
    return Sizes(folder)


@pytest.fixture
def files(tmp_path):
    """Pictures of squares in files, a file that is none, and a hidden one."""
    for name, colours in {"red.png": ("red", "white"), "blue.png": ("blue", "black")}.items():
        pico_image(*colours).save(tmp_path / name)
    (tmp_path / "broken.png").write_bytes(b"no picture")
    (tmp_path / ".hidden.png").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("words")
    return tmp_path


# --- sizes -----------------------------------------------------------------------------------------------------------


def test_the_sliders_snap_to_what_the_gene_grows(pico, folder):
    config = pico.gene.config
    head = config.widest.hidden_size // config.widest.num_attention_heads
    assert list(pico.depths) == list(range(1, config.vision_config.num_hidden_layers + 1))
    assert list(pico.widths) == [head * heads for heads in range(1, config.widest.num_attention_heads + 1)]
    assert pico.snap(1.4, head + 1) == (1, head)
    assert pico.snap(-3, 1e9) == (1, pico.widths[-1])
    for nothing in (None, "3", float("nan"), True):
        assert pico.snap(nothing, nothing) == (pico.depths[-1], pico.widths[-1])
    for depth in pico.depths:
        for width in pico.widths:
            from_learngene(folder, depth, width)  # all of them can be grown


def test_a_size_is_the_descendant_that_from_learngene_gives_with_its_costs(pico, folder):
    depth, width = pico.depths[0], pico.widths[1]
    grown, same = pico.grow(depth, width), from_learngene(folder, depth, width)
    weights = grown.model.state_dict()
    assert all(torch.equal(weights[name], tensor) for name, tensor in same.state_dict().items())
    assert grown.parameters == sum(tensor.numel() for tensor in same.parameters())
    assert grown.megabytes == 4 * grown.parameters / 1e6
    assert min(grown.seconds, grown.milliseconds_picture, grown.milliseconds_text) > 0
    assert pico.grow(depth, width) is grown  # kept


def test_sizes_are_kept_up_to_a_number(folder, monkeypatch):
    monkeypatch.setattr(sizes, "_KEPT", 2)
    own = Sizes(folder)
    first = own.grow(1, own.widths[0])
    own.grow(1, own.widths[1])
    assert own.grow(1, own.widths[0]) is first
    own.grow(2, own.widths[0])
    assert list(own._kept) == [(1, own.widths[0]), (2, own.widths[0])]


def test_shares_are_those_of_the_stock_pipeline(pico, tmp_path):
    grown = pico.grow(pico.depths[-1], pico.widths[-1])
    grown.model.save_pretrained(tmp_path)
    pico.processor.save_pretrained(tmp_path)
    labels, picture = ["red", "green", "blue"], pico_image("red", "white")
    stock = pipeline("zero-shot-image-classification", model=str(tmp_path))
    found = {row["label"]: row["score"] for row in stock(picture, labels, hypothesis_template="a photo of a {}.")}
    assert pico.shares(grown, picture, labels) == pytest.approx([found[label] for label in labels], abs=1e-5)


def test_a_siglip_judges_each_label_by_itself():
    layers = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    model = SiglipModel(SiglipConfig(text_config=layers, vision_config=layers | {"image_size": 16, "patch_size": 8}))
    with torch.no_grad():
        model.logit_scale.fill_(2.0)
        model.logit_bias.fill_(-1.0)
    found = shares_of(model, torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    torch.testing.assert_close(found, torch.sigmoid(torch.tensor([[torch.e**2 - 1.0, -1.0]])))


def test_the_bundled_gene_names_its_drawn_examples_and_grows_in_well_under_a_second(tmp_path):
    own = Sizes("mmlg-fashion-48")
    start = time.process_time()  # and not the wall clock's, which other processes slow down
    own.gene.descendant(6, 192)
    assert time.process_time() - start < 1
    grown = own.grow(6, 192)
    assert grown.parameters == 5_048_449
    labels = read_labels(page.LABELS)
    expected = {"shirt": "shirt", "shoe": "shoe", "watch": "watch", "bag": "handbag"}
    for path in drawn.draw_examples(tmp_path):
        shares = own.shares(grown, path, labels)
        assert sum(shares) == pytest.approx(1, abs=1e-5)
        assert labels[shares.index(max(shares))] == expected[path.stem]


def test_an_image_gene_is_refused_in_one_sentence(tmp_path):
    image_gene().save_pretrained(tmp_path)
    with pytest.raises(LearngeneError, match="is an image gene: the page compares pictures with texts"):
        Sizes(tmp_path)


# --- labels and pictures ---------------------------------------------------------------------------------------------


def test_labels_stand_between_commas_and_lines_each_once():
    assert read_labels(" a  red shoe, boot\nboot,, a hat ,") == ["a red shoe", "boot", "a hat"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "there are no labels: type two or more"),
        (None, "there are no labels"),
        (" , \n,", "there are no labels"),
        ("shoe, shoe", "'shoe' is the only label"),
        (", ".join(map(str, range(51))), "these are 51 labels: type 50 at most"),
    ],
)
def test_labels_that_name_nothing_are_told(text, told):
    with pytest.raises(LearngeneError, match=told):
        read_labels(text)


def test_a_file_that_is_no_picture_or_too_huge_a_one_is_told(tmp_path, monkeypatch):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(LearngeneError, match=r"^broken\.png cannot be read as a picture: its bytes are no image"):
        read_picture(tmp_path / "broken.png")
    Image.new("L", (40, 30)).save(tmp_path / "huge.png")
    for pixels, limit in ((1199, None), (1199, 500)):  # within and beyond what Pillow itself opens
        monkeypatch.setattr(pictures, "MOST_PIXELS", pixels if limit is None else 999)
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(LearngeneError, match=r"^huge\.png has 0 million pixels or more"):
            read_picture(tmp_path / "huge.png")
    monkeypatch.setattr(pictures, "MOST_PIXELS", 1200)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert read_picture(tmp_path / "huge.png").size == (40, 30)


def test_a_picture_is_shrunk_to_its_shorter_side_and_never_enlarged():
    assert shrunk(Image.new("RGB", (400, 100)), 50).size == (200, 50)
    assert shrunk(Image.new("RGB", (2, 4000)), 1).size == (1, 2000)
    small = Image.new("RGB", (40, 30))
    assert shrunk(small, 50) is small


def test_an_album_finds_what_the_embeddings_say_and_tells_what_it_left_out(pico, files):
    album = Album(sorted(files.iterdir()))
    assert album.names == ["blue.png", "red.png"]
    told = album.told()
    assert told.startswith("2 pictures; left out: broken.png cannot be read")
    assert "notes.txt" in told
    assert ".hidden" not in told
    grown = pico.grow(2, pico.widths[0])
    images = embed_images(grown.model, [files / "blue.png", files / "red.png"], pico.processor)
    cosines = (images @ embed_texts(grown.model, ["a red square"], pico.processor).T)[:, 0]
    found = album.search(pico, grown, " a red  square ", 5)
    assert found == [(place, cosines[place].item()) for place in cosines.argsort(descending=True).tolist()]
    assert len(album.search(pico, grown, "red", 1)) == 1
    with pytest.raises(LearngeneError, match="nothing to search for: type a few words"):
        album.search(pico, grown, "  ", 5)


def test_an_album_without_pictures_is_told(files, monkeypatch):
    with pytest.raises(LearngeneError, match="there are no pictures to search"):
        Album([files / ".hidden.png"])
    with pytest.raises(LearngeneError, match="none of these 1 files is a picture: notes.txt cannot be read"):
        Album([files / "notes.txt"])
    monkeypatch.setattr(pictures, "MOST_PICTURES", 1)
    with pytest.raises(LearngeneError, match="these are 2 files, and the page searches 1 at most"):
        Album([files / "red.png", files / "blue.png"])


# --- the page's parts ------------------------------------------------------------------------------------------------


def test_both_sizes_name_a_picture_side_by_side(pico, files):
    places = [1, pico.widths[0] + 1, 2, pico.widths[-1]]
    text = page.name_picture(pico, places, str(files / "red.png"), "red, <b>blue</b>")
    assert text.count("mmlg-bar mmlg-a") == text.count("mmlg-bar mmlg-b") == 2
    assert f"1 × {pico.widths[0]}<" in text
    assert "<b>blue" not in text  # what was typed stays text
    for grown in (pico.grow(1, pico.widths[0]), pico.grow(2, pico.widths[-1])):
        for share in pico.shares(grown, files / "red.png", ["red", "<b>blue</b>"]):
            assert f">{100 * share:.1f} %<" in text
    assert "Drop a picture" in page.name_picture(pico, places, None, "")


def test_both_sizes_search_an_album(pico, files):
    text = page.search_pictures(pico, Album([files / "red.png"]), [1, 8, 2, 16], "red")
    assert text.count("<img") == 2
    assert text.count("red.png</li>") == 2


def test_what_is_wrong_is_a_sentence_on_the_page():
    def fail():
        raise LearngeneError("the <label> is wrong")

    told = page._told(fail)
    assert 'role="alert"' in told
    assert "The &lt;label&gt; is wrong." in told


def test_bars_are_ordered_by_what_both_sizes_find_likeliest(pico):
    both = [pico.grow(1, pico.widths[0]), pico.grow(2, pico.widths[0])]
    text = html.bars(both, ["x", "y", "z"], [[0.2, 0.5, 0.3], [0.1, 0.2, 0.7]])
    assert [text.index(f"<h3>{label}</h3>") for label in "zyx"] == sorted(
        text.index(f"<h3>{label}</h3>") for label in "xyz"
    )
    assert text.count(" best") == 2


# --- the command -----------------------------------------------------------------------------------------------------

WITHOUT_GRADIO = """
import sys
from importlib.machinery import PathFinder

class Others(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] == "gradio" else super().find_spec(name, path, target)

sys.meta_path = [Others if finder is PathFinder else finder for finder in sys.meta_path]
from mmlg_hf.cli import main
sys.argv = ["mmlg", "app"]
main()
"""


@pytest.mark.slow
def test_a_missing_gradio_is_told_with_the_extra_that_brings_it(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_GRADIO], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr == "Error: This needs gradio, which is not installed: pip install 'mmlg_hf[app]' brings it\n"


@pytest.mark.slow
def test_a_port_that_is_taken_is_told(folder):
    pytest.importorskip("gradio", reason="gradio is not installed: pip install 'mmlg_hf[app]'")
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(LearngeneError, match=f"cannot be served at 127.0.0.1, port {port}: choose a port"):
            page.serve(folder, port=port)


def test_the_command_says_what_it_takes():
    told = CliRunner().invoke(app, ["app", "--help"])
    assert told.exit_code == 0
    assert "--pictures" in told.output


@pytest.mark.parametrize(
    ("milliseconds", "shown"), [(6.34, "6.3 ms"), (99.97, "100 ms"), (792, "792 ms"), (1512, "1.5 s")]
)
def test_times_are_short_enough_for_their_place_on_slow_machines_too(milliseconds, shown):
    grown = SimpleNamespace(parameters=1, megabytes=1, depth=1, width=32, seconds=1, milliseconds_text=1.0)
    grown.milliseconds_picture = milliseconds
    assert f"<b>{shown}</b><span>a picture</span>" in html.facts(grown)
