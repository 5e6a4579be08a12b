"""The program as a user runs it, on simulated events and on both kinds of files, with a gene of two tiny layers."""

import json

import numpy as np
import pytest
import train as program
import typer
from simulate import simulate_events
from tasks import file_task, one_against_rest, simulated_task
from transformers import pipeline
from typer.testing import CliRunner

from mmlg_hf import LearngeneConfig, LearngeneModel
from mmlg_hf.errors import LearngeneError

COMMON = ["--steps", "2", "--train-events", "24"]


@pytest.fixture(scope="module")
def app():
    cli = typer.Typer()
    cli.command()(program.main)
    return cli


@pytest.fixture(scope="module")
def gene(tmp_path_factory):
    encoder = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    vision = encoder | {"image_size": 16, "patch_size": 4}
    text = encoder | {"vocab_size": 20, "max_position_embeddings": 8, "eos_token_id": 2}
    folder = tmp_path_factory.mktemp("gene")
    LearngeneModel(LearngeneConfig(vision_config=vision, text_config=text, projection_dim=8)).save_pretrained(folder)
    return str(folder)


def save_clouds(path, count=40):
    """Simulated events as a public release stores them: the label in its own column of every point."""
    clouds, labels = simulate_events(count, seed=7)
    np.save(path, np.concatenate([clouds, np.repeat(labels[:, None, None], clouds.shape[1], axis=1)], axis=2))


@pytest.mark.slow
def test_simulated_events_give_a_model_that_the_pipeline_loads_with_figures_and_scores(app, gene, tmp_path):
    out = tmp_path / "out"
    result = CliRunner().invoke(app, [*COMMON, "--learngene", gene, "--output-dir", str(out)])
    assert result.exit_code == 0, result.output
    record = json.loads((out / "results.json").read_text())
    assert set(record["tests"]) == {"simulated", "real_like"}
    assert record["train_events"] == 24
    assert np.sum(record["tests"]["real_like"]["confusion"]) == 600
    for name in ("events", "confusion_simulated", "confusion_real_like", "errors_simulated", "errors_real_like"):
        assert (out / f"{name}.png").stat().st_size > 1000
    from PIL import Image

    answer = pipeline("image-classification", str(out / "model"))(Image.new("RGB", (48, 48), "white"))
    assert {row["label"] for row in answer} == {"proton", "carbon", "noise"}


@pytest.mark.slow
def test_voxels_and_clouds_from_files_are_classified(app, gene, tmp_path):
    rng = np.random.default_rng(0)
    voxels, labels = rng.random((30, 5, 5, 5)).astype(np.float16), np.arange(30) % 2
    np.savez(tmp_path / "v.npz", train_charge=voxels, train_label=labels, test_charge=voxels, test_label=labels)
    save_clouds(tmp_path / "c.npy")
    arguments = ["--learngene", gene, *COMMON]
    files = {"v.npz": ["--classes", "beam,reaction"], "c.npy": ["--label-column", "4", "--positive", "class 1"]}
    for name, more in files.items():
        out = tmp_path / f"out-{name}"
        result = CliRunner().invoke(app, [*arguments, "--data", str(tmp_path / name), *more, "--output-dir", str(out)])
        assert result.exit_code == 0, result.output
        record = json.loads((out / "results.json").read_text())
        assert record["positive"] == {"v.npz": "reaction", "c.npy": "class 1"}[name]


def test_bad_input_ends_with_one_sentence_and_writes_nothing(app, gene, tmp_path):
    voxels = np.ones((6, 3, 3, 3), dtype=np.float16)
    one_class = {"train_charge": voxels, "train_label": np.zeros(6), "test_charge": voxels, "test_label": np.zeros(6)}
    np.savez(tmp_path / "one.npz", **one_class)
    empty = voxels.copy()
    empty[2] = 0
    np.savez(tmp_path / "empty.npz", **one_class | {"train_charge": empty, "train_label": np.arange(6) % 2})
    for name, said in {"one.npz": "at least two classes", "empty.npz": "have no charge", "no.npy": "no file"}.items():
        out = tmp_path / "out"
        result = CliRunner().invoke(
            app, ["--learngene", gene, "--data", str(tmp_path / name), "--output-dir", str(out)], terminal_width=400
        )
        assert result.exit_code == 2
        assert said in " ".join(result.output.split())
        assert not out.exists()


def test_a_cloud_file_is_split_class_by_class_without_overlap(tmp_path):
    save_clouds(tmp_path / "c.npy", 40)
    task = file_task(tmp_path / "c.npy", label_column=4, test_share=0.25)
    (train, train_labels), (test, test_labels) = task.train, task.tests["test"]
    assert np.bincount(test_labels).tolist() == [3, 2, 6]
    assert len(train_labels) + len(test_labels) == 40
    assert not any((event == train).all(axis=(1, 2)).any() for event in test)


def test_one_against_rest_asks_for_one_class():
    task = one_against_rest(simulated_task(20, 10), "carbon")
    assert task.classes == ("other", "carbon")
    assert task.train[1].sum() == 3
    assert task.positive == 1
    with pytest.raises(LearngeneError, match="the classes are proton, carbon, noise"):
        one_against_rest(simulated_task(20, 10), "alpha")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"train_events": 0}, "train_events is 0"),
        ({"train_events": 99}, "train_events is 99; the file has 31"),
        ({"test_share": 1.0}, "test_share is 1.0"),
        ({"classes": ["a", "b"]}, "labels up to 2, but 2 names"),
    ],
)
def test_impossible_tasks_are_refused(tmp_path, arguments, said):
    save_clouds(tmp_path / "c.npy", 40)
    with pytest.raises(LearngeneError, match=said):
        file_task(tmp_path / "c.npy", label_column=4, **arguments)
