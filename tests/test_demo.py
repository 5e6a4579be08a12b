"""The demo, run whole on a tiny gene: its data, its comparison, and what it leaves behind."""

import json

import numpy as np
import pytest
import torch
from pico import pico_processor
from pico_genes import image_gene, multimodal_gene
from PIL import Image
from rich.console import Console
from transformers import AutoModelForImageClassification, CLIPModel, CLIPProcessor

# Not from `transformers` itself: in 5.15, without torchvision, that name is a stand-in that raises.
from transformers.models.auto.image_processing_auto import AutoImageProcessor
from typer.testing import CliRunner

from mmlg_hf import LearngeneError
from mmlg_hf.cli import app
from mmlg_hf.demo import DemoSettings, run_demo
from mmlg_hf.demo.demo import classifier_sizes, make_classifier
from mmlg_hf.demo.digits import DIGITS, digit_splits

SETTINGS = DemoSettings(
    train_images=40, validation_images=20, steps=4, batch_size=8, eval_every=2, contrastive_steps=2
)
KEYS = ["name", "depth", "width", "parameters", "steps", "accuracy_gene", "accuracy_scratch"]


@pytest.fixture(scope="module")
def gene():
    torch.manual_seed(0)
    gene = multimodal_gene(vision_depth=2)
    gene.processor = pico_processor()
    return gene


@pytest.fixture(scope="module")
def demo(gene, tmp_path_factory):
    """The output folder of a demo, what it returned, and what it printed."""
    output = tmp_path_factory.mktemp("demo") / "out"
    console = Console(record=True, width=120)
    results = run_demo(output, gene, settings=SETTINGS, console=console)
    return output, results, console.export_text()


@pytest.fixture(scope="module")
def splits():
    return digit_splits(16, 300, 200)


def test_the_digits_are_split_once_for_all_with_every_digit_in_its_share(splits):
    assert {name: len(split) for name, split in splits.items()} == {"train": 300, "validation": 200, "test": 1297}
    for split in splits.values():
        counts = np.bincount(split["label"][:])
        assert counts.max() - counts.min() <= 0.01 * len(split) + 1
    again = digit_splits(16, 300, 200)
    assert again["test"]["label"][:] == splits["test"]["label"][:]
    pixels = [np.asarray(image).tobytes() for split in splits.values() for image in split["image"]]
    assert len(pixels) == 1797


def test_a_digit_comes_with_its_caption(splits):
    row = splits["train"][0]
    assert row["caption"] == f"a handwritten {DIGITS[row['label']]}"
    assert splits["train"].features["label"].names == list(DIGITS)
    assert (row["image"].size, row["image"].mode) == ((16, 16), "RGB")


def test_digits_are_dark_on_white_unless_asked_otherwise(splits):
    paper = np.mean([np.asarray(image) for image in splits["train"]["image"]])
    night = np.mean([np.asarray(image) for image in digit_splits(16, 300, 200, dark_on_white=False)["train"]["image"]])
    assert night < 127 < paper
    assert paper + night == pytest.approx(255, abs=1)


def test_splits_that_do_not_fit_are_refused():
    with pytest.raises(LearngeneError, match="1790 training and 20 validation images do not split 1797 digits"):
        digit_splits(16, 1790, 20)


def test_the_sizes_halve_the_genes_depth_then_its_width(gene):
    assert classifier_sizes(gene.config) == [(2, 32), (1, 32), (1, 16)]


def test_from_scratch_is_the_same_model_without_the_genes_weights(gene):
    grown, scratch, again = (make_classifier(gene, 1, 16, start, seed=3) for start in ("gene", "scratch", "scratch"))
    assert type(grown) is type(scratch)
    shapes = [{name: weight.shape for name, weight in model.state_dict().items()} for model in (grown, scratch)]
    assert shapes[0] == shapes[1]
    name = "vision_model.encoder.layers.0.mlp.fc1.weight"
    assert not torch.equal(grown.state_dict()[name], scratch.state_dict()[name])
    assert torch.equal(again.state_dict()[name], scratch.state_dict()[name])
    # The gene's weights are far from transformers' initialisation here, whose biases are 0.
    assert scratch.vision_model.encoder.layers[0].mlp.fc1.bias.abs().max() == 0
    assert not hasattr(scratch.config, "learngene")


def test_results_hold_for_each_classifier_exactly_what_is_promised(demo):
    output, returned, _ = demo
    results = json.loads((output / "results.json").read_text())
    assert results == json.loads(json.dumps(returned))
    assert [list(row) for row in results["classifiers"]] == [KEYS] * 3
    assert [(row["name"], row["depth"], row["width"]) for row in results["classifiers"]] == [
        ("2x32", 2, 32),
        ("1x32", 1, 32),
        ("1x16", 1, 16),
    ]
    for row in results["classifiers"]:
        assert row["steps"] == 4
        assert 0 <= row["accuracy_gene"] <= 1
        assert 0 <= row["accuracy_scratch"] <= 1
    assert [(c["start"], c["steps"]) for c in results["curves"]] == [("gene", [2, 4]), ("scratch", [2, 4])] * 3
    assert set(results["versions"]) >= {"mmlg_hf", "torch", "transformers"}


def test_accuracies_are_those_of_the_saved_models(demo):
    output, results, _ = demo
    for row in results["classifiers"]:
        folder = output / "models" / row["name"]
        model, processor = (
            AutoModelForImageClassification.from_pretrained(folder),
            AutoImageProcessor.from_pretrained(folder),
        )
        test = digit_splits(16, SETTINGS.train_images, SETTINGS.validation_images)["test"]
        with torch.no_grad():
            logits = model(**processor(test["image"][:], return_tensors="pt")).logits
        accuracy = (logits.argmax(1) == torch.tensor(test["label"][:])).double().mean().item()
        assert row["accuracy_gene"] == pytest.approx(accuracy, abs=2 / len(test))
        assert row["parameters"] == model.num_parameters()


def test_the_clip_is_saved_as_a_stock_clip_with_its_processor(demo):
    output, results, _ = demo
    folder = output / "models" / results["multimodal"]["name"]
    model = CLIPModel.from_pretrained(folder)
    assert model.num_parameters() == results["multimodal"]["parameters"]
    assert CLIPProcessor.from_pretrained(folder).tokenizer("a handwritten seven")["input_ids"]
    assert {0 <= results["multimodal"][key] <= 1 for key in ("zero_shot_before", "zero_shot_after")} == {True}


def test_every_digit_is_predicted_by_a_reloaded_model_and_printed(demo):
    _, results, printed = demo
    rows = results["predictions"]["rows"]
    assert [row["digit"] for row in rows] == list(DIGITS)
    assert all(row["predicted"] in DIGITS for row in rows)
    words = " ".join(printed.split())
    assert f"nine → {rows[9]['predicted']}" in words
    assert "2 layers x 32" in words


def test_the_plot_is_a_picture_and_no_half_written_file_stays(demo):
    output, _, _ = demo
    with Image.open(output / "accuracy.png") as picture:
        assert picture.width > 800
    assert sorted(path.name for path in output.iterdir()) == ["accuracy.png", "models", "results.json"]


def test_an_output_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "out").write_text("mine")
    result = CliRunner().invoke(app, ["demo", "--output-dir", str(tmp_path / "out")])
    assert result.exit_code == 2
    assert "is a file" in result.stderr
    assert (tmp_path / "out").read_text() == "mine"


def test_a_gene_that_knows_no_texts_is_refused(tmp_path):
    with pytest.raises(LearngeneError, match="has no text side"):
        run_demo(tmp_path / "out", image_gene())
    assert list(tmp_path.iterdir()) == []
