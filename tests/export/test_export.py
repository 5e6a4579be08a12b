"""Exported files: every kind of model, run where torch cannot be imported; what is refused, and how."""

import itertools
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from pico import COLORS, pico_image, pico_processor
from pico_exports import LABELS, MAKERS, save
from PIL import Image
from typer.testing import CliRunner

from mmlg_hf import LearngeneError
from mmlg_hf.cli import app
from mmlg_hf.export import export_model, load_exportable
from mmlg_hf.export import exporting as exporting_module
from mmlg_hf.export.exporting import normalisation
from mmlg_hf.export.formats import FORMATS, check_format, open_file
from mmlg_hf.export.inputs import Inputs, Pictures
from mmlg_hf.export.measures import verify
from mmlg_hf.export.parts import parts_of_model

# Runs every ONNX file of a folder on inputs from a file, where neither torch nor transformers can be imported.
WITHOUT_TORCH = """
import json, sys
from importlib.machinery import PathFinder
from pathlib import Path

class Others(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in {"torch", "transformers"} else super().find_spec(name, path, target)

sys.meta_path = [Others if finder is PathFinder else finder for finder in sys.meta_path]
import numpy as np
import onnxruntime

folder, inputs = Path(sys.argv[1]), dict(np.load(sys.argv[2]))
found = {}
for file in json.loads((folder / "export.json").read_text())["files"]:
    session = onnxruntime.InferenceSession(str(folder / file["file"]), providers=["CPUExecutionProvider"])
    feed = {given["name"]: inputs[given["name"]] for given in file["inputs"]}
    assert [given.name for given in session.get_inputs()] == list(feed)
    names = [output["name"] for output in file["outputs"]]
    found |= {f"{file['weights']} {name}": value for name, value in zip(names, session.run(names, feed))}
assert "torch" not in sys.modules and "transformers" not in sys.modules
np.savez(folder / "found.npz", **found)
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Folders of pico models by kind, made when asked for."""
    made = {}

    def folder(kind):
        if kind not in made:
            made[kind] = tmp_path_factory.mktemp("models") / kind
            save(kind, made[kind])
        return made[kind]

    return folder


def three_inputs(with_mask=True):
    """Three pictures and three texts of different lengths, as the processor makes them."""
    pictures = [pico_image("red", "blue"), pico_image("green", "white"), pico_image("pink", "black")]
    texts = ["a red square on blue", "green", "a photo of a pink square"]
    made = dict(pico_processor()(images=pictures, text=texts, padding=True, return_tensors="pt"))
    return {name: made[name] for name in ("input_ids", "attention_mask", "pixel_values")}


def run_without_torch(folder, inputs):
    """Run the files in `out` in a process that has no torch; return their outputs, by weights and name."""
    np.savez(folder / "inputs.npz", **{name: value.numpy() for name, value in inputs.items()})
    command = [sys.executable, "-c", WITHOUT_TORCH, str(folder / "out"), str(folder / "inputs.npz")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return np.load(folder / "out" / "found.npz")


def expected_of(kind, model, inputs, whole):
    """What the model itself computes, by the names of outputs."""
    images, texts = (
        {"pixel_values": inputs["pixel_values"]},
        {key: inputs[key] for key in ("input_ids", "attention_mask")},
    )
    with torch.no_grad():
        if kind in ("clip", "pair", "mixture"):
            outputs = model(**inputs)
            names = ("image_embeds", "text_embeds", *(("logits_per_image", "logits_per_text") if whole else ()))
            return {name: outputs[name] for name in names}
        outputs = model(**(images if kind.startswith("image") else texts))
        if "classifier" in kind:
            return {"logits": outputs.logits}
        name = "image_embeds" if kind.startswith("image") else "text_embeds"
        return {name: torch.nn.functional.normalize(outputs[name], dim=-1)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "whole"),
    [
        (kind, False)
        for kind in ("clip", "image_encoder", "text_encoder", "image_classifier", "text_classifier", "pair")
    ]
    + [("mixture", False), ("clip", True), ("pair", True)],
)
def test_onnx_files_compute_without_torch_what_the_model_computes(kind, whole, folders, tmp_path):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    record = export_model(folders(kind), tmp_path / "out", "onnx", whole=whole)
    assert record["verified"], record["files"]
    assert not list((tmp_path / "out").glob("*.data"))
    model = load_exportable(folders(kind)).model
    inputs = three_inputs()
    found = run_without_torch(tmp_path, inputs)
    expected = expected_of(kind, model, inputs, whole)
    assert {f"float32 {name}" for name in expected} == set(found)
    for name, value in expected.items():
        np.testing.assert_allclose(found[f"float32 {name}"], value.numpy(), atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_siglip_is_exported_at_its_one_length_of_texts(folders, tmp_path):
    pytest.importorskip("onnxscript")
    record = export_model(folders("siglip"), tmp_path / "out", "onnx")
    assert record["verified"]
    model = load_exportable(folders("siglip")).model
    ids = torch.randint(5, 60, (3, 16), generator=torch.Generator().manual_seed(0))
    inputs = {"input_ids": ids, "pixel_values": three_inputs()["pixel_values"]}
    found = run_without_torch(tmp_path, inputs)
    with torch.no_grad():
        outputs = model(**inputs)
    for name in ("image_embeds", "text_embeds"):
        np.testing.assert_allclose(found[f"float32 {name}"], outputs[name].numpy(), atol=1e-5, rtol=1e-5)
    (text,) = [file for file in record["files"] if file["part"] == "text"]
    assert [(given["name"], given["shape"]) for given in text["inputs"]] == [("input_ids", ["texts", 16])]
    assert record["logit_bias"] == load_exportable(folders("siglip")).model.logit_bias.item()


@pytest.mark.slow
def test_int8_files_lie_beside_and_are_smaller(tmp_path):
    pytest.importorskip("onnxscript")
    record = export_model("mmlg-fashion-48@2x64", tmp_path / "out", "onnx", modality="image", int8=True)
    whole, small = record["files"]
    assert (whole["weights"], small["weights"]) == ("float32", "int8")
    assert small["file"] == "vision_model_int8.onnx"
    assert small["megabytes"] < 0.7 * whole["megabytes"]
    assert small["least_cosine"] >= 0.999
    assert record["verified"]
    on_disk = {path.name: path.stat().st_size / 1e6 for path in (tmp_path / "out").glob("*.onnx")}
    assert on_disk == {file["file"]: file["megabytes"] for file in record["files"]}


@pytest.fixture
def photos(tmp_path):
    """A folder of twenty pictures."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for index, (colour, ground) in enumerate(itertools.islice(itertools.permutations(COLORS, 2), 20)):
        pico_image(colour, ground).resize((40, 40)).save(folder / f"{index:02}.png")
    return folder


def test_one_picture_in_four_is_held_out_of_calibrating(photos, folders):
    source = load_exportable(folders("image_encoder"))
    inputs = Inputs(source.model, source.processor)
    pictures = Pictures(photos, inputs)
    assert [path.name for path in pictures.held_out] == ["03.png", "07.png", "11.png", "15.png", "19.png"]
    assert len(pictures.used) == 15
    assert not set(pictures.used) & set(pictures.held_out)
    own = [Image.open(path) for path in pictures.held_out]
    (batch,) = pictures.batches()
    expected = source.processor(images=own, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(batch["pixel_values"], expected)
    assert len(list(pictures)) == len(list(pictures)) == 15  # can be read again


@pytest.mark.slow
def test_static_int8_is_calibrated_on_pictures_and_verified_on_others(photos, tmp_path):
    pytest.importorskip("onnxscript")
    onnx = pytest.importorskip("onnx")
    record = export_model("mmlg-fashion-48@1x32", tmp_path / "out", "onnx", int8=True, calibration=photos)
    told = {file["file"]: file.get("activations") for file in record["files"]}
    assert told == {
        "vision_model.onnx": None,
        "vision_model_int8.onnx": "static",
        "text_model.onnx": None,
        "text_model_int8.onnx": "dynamic",
    }
    kinds = {
        name: {node.op_type for node in onnx.load(tmp_path / "out" / name).graph.node}
        for name, how in told.items()
        if how
    }
    assert "DynamicQuantizeLinear" not in kinds["vision_model_int8.onnx"]
    assert "QuantizeLinear" in kinds["vision_model_int8.onnx"]
    assert "DynamicQuantizeLinear" in kinds["text_model_int8.onnx"]
    # The figures are those of the pictures that were held out.
    source = load_exportable("mmlg-fashion-48@1x32")
    inputs = Inputs(source.model, source.processor)
    (part,) = parts_of_model(source.model, inputs, modality="image")
    (batch,) = Pictures(photos, inputs).batches()
    with torch.no_grad():
        expected = part.module(**batch)["image_embeds"]
    found = open_file("onnx", tmp_path / "out" / "vision_model_int8.onnx", part)(batch)["image_embeds"]
    cosine = torch.nn.functional.cosine_similarity(expected, found).min().item()
    (static,) = [file for file in record["files"] if file.get("activations") == "static"]
    assert static["least_cosine"] == pytest.approx(cosine, abs=1e-6)
    assert static["verified"] == (cosine >= 0.999)
    assert cosine > 0.99


@pytest.mark.parametrize(
    ("kind", "settings", "sentence"),
    [
        ("clip", {"int8": False}, "calibration is of int8 files: ask for int8 as well"),
        ("clip", {"whole": True}, "export each encoder by itself, not whole"),
        ("text_encoder", {}, "this model takes texts"),
        ("clip", {"calibration": "nowhere"}, "'nowhere' is no folder"),
    ],
)
def test_what_cannot_be_calibrated_is_told_before_anything_is_written(
    kind, settings, sentence, photos, folders, tmp_path
):
    pytest.importorskip("onnxruntime")
    with pytest.raises(LearngeneError, match=sentence):
        export_model(folders(kind), tmp_path / "out", **{"int8": True, "calibration": photos, **settings})
    for path in sorted(photos.iterdir())[15:]:
        path.unlink()
    with pytest.raises(LearngeneError, match="has 15 pictures: calibrating takes 16 or more"):
        export_model(folders("image_encoder"), tmp_path / "out", int8=True, calibration=photos)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_torch_file_computes_what_the_model_computes_in_batches_of_any_size(folders, tmp_path):
    record = export_model(folders("image_classifier"), tmp_path / "out", "torch")
    assert record["verified"]
    assert record["labels"] == LABELS
    program = torch.export.load(tmp_path / "out" / "model.pt2").module()
    model = load_exportable(folders("image_classifier")).model
    for count in (1, 7):
        pixels = torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(count))
        with torch.no_grad():
            torch.testing.assert_close(program(pixel_values=pixels)["logits"], model(pixel_values=pixels).logits)


@pytest.mark.slow
def test_the_command_exports_a_size_of_a_gene_with_its_card(tmp_path):
    pytest.importorskip("onnxscript")
    folder = tmp_path / "out"
    words = ["export", "mmlg-fashion-48", "--depth", "2", "--width", "64", "--modality", "text", "--json"]
    done = CliRunner().invoke(app, [*words, "--output", str(folder)])
    assert done.exit_code == 0, done.output
    record = json.loads(done.stdout)
    assert record == json.loads((folder / "export.json").read_text())
    assert [file["file"] for file in record["files"]] == ["text_model.onnx"]
    (file,) = record["files"]
    assert (file["normalised"], file["projected"]) == (True, True)
    assert file["inputs"][0]["dynamic"] == {"0": "texts", "1": "tokens"}
    assert (record["source"]["depth"], record["source"]["width"]) == (2, 64)
    assert (folder / "tokenizer.json").is_file()
    assert (folder / "README.md").read_text().startswith("---\n")
    assert "library_name: onnx" in (folder / "README.md").read_text()


# --- without exporting -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", MAKERS)
def test_every_kind_is_loaded_and_its_parts_are_known(kind, folders):
    source = load_exportable(folders(kind))
    parts = parts_of_model(source.model, Inputs(source.model, source.processor))
    kinds = {"image_encoder": ["image"], "text_encoder": ["text"]}
    kinds |= {f"{name}_classifier": [f"{name}-classifier"] for name in ("image", "text")}
    assert [part.kind for part in parts] == kinds.get(kind, ["image", "text"])


def test_an_encoder_alone_gives_raw_embeddings_where_asked(folders):
    source = load_exportable(folders("clip"))
    inputs = Inputs(source.model, source.processor)
    pixels = inputs.pictures(2, seed=1)
    with torch.no_grad():
        own = source.model.get_image_features(**pixels).pooler_output
        for normalised, expected in ((False, own), (True, own / own.norm(dim=-1, keepdim=True))):
            (part,) = parts_of_model(source.model, inputs, modality="image", normalised=normalised)
            torch.testing.assert_close(part.module(**pixels)["image_embeds"], expected)
            assert part.about == {"normalised": normalised, "projected": True}


@pytest.mark.parametrize(("dtype", "passes"), [("float32", 1e-6), ("int8", 1e-3)])
def test_a_file_is_verified_by_its_difference_or_its_cosine(dtype, passes, folders):
    source = load_exportable(folders("image_classifier"))
    inputs = Inputs(source.model, source.processor)
    (part,) = parts_of_model(source.model, inputs)

    def off_by(share):
        def run(made):
            logits = part.module(**made)["logits"]
            turned = logits.roll(1, dims=-1) - logits * (logits.roll(1, -1) * logits).sum(-1, True) / (logits**2).sum(
                -1, True
            )
            return {
                "logits": logits
                + share * turned / turned.norm(dim=-1, keepdim=True) * logits.norm(dim=-1, keepdim=True)
            }

        return run

    assert verify(off_by(passes), part, inputs, dtype)["verified"]
    wrong = verify(off_by(100 * passes), part, inputs, dtype)
    assert not wrong["verified"]
    # A right-angled step of this share of the length turns a row by its arc tangent.
    assert wrong["least_cosine"] == pytest.approx(1 / (1 + (100 * passes) ** 2) ** 0.5, abs=1e-5)


def test_a_file_that_gives_nan_is_not_verified(folders):
    source = load_exportable(folders("image_classifier"))
    inputs = Inputs(source.model, source.processor)
    (part,) = parts_of_model(source.model, inputs)
    for dtype in ("float32", "int8"):
        found = verify(lambda made: {"logits": part.module(**made)["logits"] * float("nan")}, part, inputs, dtype)
        assert not found["verified"]


def test_a_file_that_differs_ends_the_command_with_1_and_is_named(monkeypatch, tmp_path):
    file = {"file": "model.onnx", "weights": "float32", "megabytes": 1.0, "milliseconds": 1.0}
    file |= {"milliseconds_torch": 1.0, "greatest_difference": 0.1, "least_cosine": 0.9, "verified": False}
    record = {"files": [file], "machine": "here", "verified": False}
    monkeypatch.setattr(exporting_module, "export_model", lambda *args, **kwargs: record)
    done = CliRunner().invoke(app, ["export", "any", "--output", str(tmp_path / "out")])
    assert done.exit_code == 1
    assert "model.onnx" in done.stderr
    assert "does not compute what the model does" in done.stderr


def test_nothing_is_left_of_an_export_that_fails(folders, tmp_path, monkeypatch):
    def fail(*args):
        raise LearngeneError("no room")

    monkeypatch.setattr(exporting_module, "write_part", fail)
    with pytest.raises(LearngeneError, match="no room"):
        export_model(folders("clip"), tmp_path / "out", "torch")
    assert not list(tmp_path.iterdir())


def test_normalisation_is_told_in_words():
    assert normalisation(pico_processor().image_processor) == {
        "convert_rgb": True,
        "size": {"shortest_edge": 16},
        "resample": "bicubic",
        "crop_size": {"height": 16, "width": 16},
        "rescale": 1 / 255,
        "mean": [0.48145466, 0.4578275, 0.40821073],
        "std": [0.26862954, 0.26130258, 0.27577711],
    }


@pytest.mark.parametrize(
    ("kind", "settings", "sentence"),
    [
        ("clip", {"depth": 2}, "depth and width are for genes"),
        ("image_encoder", {"modality": "text"}, "of the modality 'image', and 'text' was asked for"),
        ("image_encoder", {"whole": True}, "of a model with both encoders"),
        ("clip", {"whole": True, "modality": "image"}, "of a model with both encoders"),
        ("clip", {"int8": True, "to": "torch"}, "it takes the format 'onnx', not 'torch'"),
        ("clip", {"to": "tflite"}, "choose from onnx, torch, executorch, openvino"),
    ],
)
def test_what_cannot_be_exported_is_told_in_one_sentence(kind, settings, sentence, folders, tmp_path):
    with pytest.raises(LearngeneError, match=sentence):
        export_model(folders(kind), tmp_path / "out", **{"to": "torch", **settings})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "name", ["mmlg-fashion-48@", "mmlg-fashion-48@3", "mmlg-fashion-48@3x", "mmlg-fashion-48@ax9"]
)
def test_a_size_that_cannot_be_read_is_told(name):
    with pytest.raises(LearngeneError, match="write NAME@DEPTHxWIDTH"):
        load_exportable(name)


def test_a_size_is_given_once():
    with pytest.raises(LearngeneError, match="has a size of its own"):
        load_exportable("mmlg-fashion-48@3x96", depth=2)


def test_a_size_may_be_a_pair():
    source = load_exportable("mmlg-fashion-48@3,2x96,64")
    config = source.model.config
    assert (config.vision_config.num_hidden_layers, config.text_config.num_hidden_layers) == (3, 2)
    assert (config.vision_config.hidden_size, config.text_config.hidden_size) == (96, 64)
    assert source.title == "mmlg-fashion-48@3,2x96,64"


@pytest.mark.parametrize("name", ["executorch", "openvino"])
def test_a_missing_package_is_named_with_the_command_that_brings_it(name, monkeypatch):
    for package in FORMATS[name].packages:
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(LearngeneError, match=rf"needs {name}, which is not installed: pip install {name}"):
        check_format(name)


def test_a_folder_that_holds_something_is_left_alone(folders, tmp_path):
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(LearngeneError, match="exists and is no empty folder"):
        export_model(folders("clip"), tmp_path, "torch")
    assert [path.name for path in tmp_path.iterdir()] == ["notes"]


def test_a_model_without_a_processor_is_refused(folders, tmp_path):
    load_exportable(folders("clip")).model.save_pretrained(tmp_path / "bare")
    with pytest.raises(LearngeneError, match="has no processor stored with it"):
        export_model(tmp_path / "bare", tmp_path / "out", "torch")


def test_what_is_told_of_pictures_makes_them_ready_without_the_processor():
    source = load_exportable("mmlg-fashion-48@2x64", modality="image")
    processor = source.processor.image_processor
    steps = normalisation(processor)
    picture = Image.radial_gradient("L").convert("RGB")
    side = steps["size"]["height"]
    pixels = np.asarray(picture.resize((side, side), Image.Resampling[steps["resample"].upper()]))
    made = ((pixels * steps["rescale"] - steps["mean"]) / steps["std"]).transpose(2, 0, 1)
    expected = processor([picture], return_tensors="np")["pixel_values"][0]
    np.testing.assert_allclose(made, expected, atol=1e-5)
