"""Several models side by side: what they cost, how good they are, and the picture of both."""

import json

import pytest
from pico import pico_pairs
from pico_exports import save
from PIL import Image
from typer.testing import CliRunner

from mmlg_hf import LearngeneError, evaluate_retrieval
from mmlg_hf.cli import app
from mmlg_hf.export import compare_models, load_exportable, plot_comparison
from mmlg_hf.export import measures as measures_module
from mmlg_hf.export.plots import _short_names


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "gene"
    save("gene", path)
    return path


@pytest.fixture(autouse=True)
def timed_shortly(monkeypatch):
    monkeypatch.setattr(measures_module, "_TIMED_SECONDS", 0.0)


def test_sizes_are_grown_and_counted(folder):
    record = compare_models([f"{folder}@2x16", f"{folder}@3x32"])
    small, large = record["models"]
    assert [row["name"] for row in (small, large)] == ["gene@2x16", "gene@3x32"]
    for row, name in ((small, f"{folder}@2x16"), (large, f"{folder}@3x32")):
        model = load_exportable(name).model
        assert row["parameters"] == sum(tensor.numel() for tensor in model.parameters())
        assert row["megabytes"] == 4 * row["parameters"] / 1e6
        assert row["milliseconds_picture"] > 0
        assert row["milliseconds_text"] > 0
        assert (row["files"], row["figures"]) == ([], {})
    assert small["parameters"] < large["parameters"]


def test_figures_are_those_of_the_evaluation(folder):
    rows = pico_pairs(16)
    record = compare_models([f"{folder}@2x16"], rows, "retrieval")
    source = load_exportable(f"{folder}@2x16")
    assert record["models"][0]["figures"] == evaluate_retrieval(source.model, rows, source.processor)


def test_a_model_of_one_encoder_has_no_time_for_the_other(tmp_path):
    save("text_encoder", tmp_path / "text")
    (row,) = compare_models([tmp_path / "text"])["models"]
    assert row["milliseconds_picture"] is None
    assert row["milliseconds_text"] > 0


def test_the_command_writes_the_table_and_the_plot(folder, tmp_path):
    pytest.importorskip("matplotlib")
    pico_pairs(12, labels=True).to_parquet(tmp_path / "data" / "test.parquet")
    words = ["compare", f"{folder}@2x16", f"{folder}@3x32", "--data", str(tmp_path / "data"), "--limit", "10"]
    out = tmp_path / "out"
    done = CliRunner().invoke(app, [*words, "--task", "zero-shot", "--output", str(out), "--json"])
    assert done.exit_code == 0, done.output
    record = json.loads(done.stdout)
    assert record == json.loads((out / "comparison.json").read_text())
    assert record["data"]["rows"] == 10
    assert all(0 <= row["figures"]["top1"] <= 1 for row in record["models"])
    assert Image.open(out / "comparison.png").width > 900
    shown = CliRunner().invoke(app, [*words, "--task", "zero-shot"]).stdout
    assert "gene@2x16" in shown
    assert "top1" in shown


def test_models_that_take_different_things_are_drawn_together(folder, tmp_path):
    pytest.importorskip("matplotlib")
    save("text_encoder", tmp_path / "text")
    save("image_encoder", tmp_path / "image")
    plot_comparison(compare_models([tmp_path / "text", tmp_path / "image", folder]), tmp_path / "plot.png")
    assert Image.open(tmp_path / "plot.png").format == "PNG"


@pytest.mark.parametrize(
    ("models", "settings", "sentence"),
    [
        ([], {}, "no models to compare"),
        (["a", "a"], {}, "'a' is given twice"),
        (["a"], {"task": "retrieval"}, "data and task go together"),
        (["a"], {"rows": [1], "task": "speed"}, "choose from retrieval, zero-shot, classification"),
        (["a"], {"int8": True}, "name a format as well"),
    ],
)
def test_what_cannot_be_compared_is_told_in_one_sentence(models, settings, sentence):
    with pytest.raises(LearngeneError, match=sentence):
        compare_models(models, **settings)


def test_a_classifier_has_no_recall(tmp_path):
    save("image_classifier", tmp_path / "classifier")
    with pytest.raises(LearngeneError, match="retrieval takes a model that embeds pictures and texts"):
        compare_models([tmp_path / "classifier"], pico_pairs(4), "retrieval")


def test_points_of_one_gene_are_named_by_their_sizes():
    assert _short_names(["zoo/gene@2x64", "zoo/gene@3x96"]) == (["2x64", "3x96"], "zoo/gene")
    assert _short_names(["gene@2x64", "other@3x96"]) == (["gene@2x64", "other@3x96"], None)
    assert _short_names(["one", "two"]) == (["one", "two"], None)
