"""`mmlg align` and the example run from folders to a pair that loads again."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from pico import pico_pairs, pico_processor
from pico_encoders import make_encoder
from safetensors.torch import load_file
from transformers import AutoModel, AutoProcessor
from typer.testing import CliRunner

from mmlg_hf.alignment.cli import align
from mmlg_hf.errors import LearngeneError
from mmlg_hf.evaluation import evaluate_retrieval

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def data(tmp_path):
    from datasets import DatasetDict

    folder = tmp_path / "pairs"
    DatasetDict({"train": pico_pairs(16), "test": pico_pairs(8)}).save_to_disk(folder)
    return folder


def run(*words):
    app = typer.Typer()
    app.command()(align)
    return CliRunner().invoke(app, list(map(str, words)))


def test_align_trains_a_pair_and_writes_trained_part_processor_and_card(saved, data, tmp_path):
    pair = tmp_path / "pair"
    words = (saved("clip-vision"), saved("clip-text"), "--data", data, "--output", pair, "--eval-split", "test")
    result = run(*words, "--batch-size", 8, "--max-steps", 3)
    assert result.exit_code == 0, (result.output, result.exception)
    assert "projections and temperature" in result.output
    assert "text_to_image_R@1" in result.output
    model, processor = AutoModel.from_pretrained(pair), AutoProcessor.from_pretrained(pair)
    assert set(load_file(pair / "model.safetensors")) == {
        name for name, parameter in model.named_parameters() if parameter.requires_grad
    }
    assert 0 <= evaluate_retrieval(model, pico_pairs(8), processor)["mean_R@1"] <= 1
    assert "pipeline_tag: zero-shot-image-classification" in (pair / "README.md").read_text()
    again = run(*words, "--batch-size", 8, "--max-steps", 3, "--whole")
    assert again.exit_code == 0
    assert set(load_file(pair / "model.safetensors")) == set(model.state_dict())


@pytest.mark.slow
def test_the_example_aligns_two_folders_and_loads_the_result(saved, tmp_path):
    pico_pairs(520).to_parquet(tmp_path / "data" / "train.parquet")
    arguments = ["--vision", saved("vit"), "--text", saved("clip-text"), "--data", tmp_path / "data", "--steps", 2]
    command = [sys.executable, ROOT / "examples" / "alignment.py", *arguments, "--batch-size", 8]
    done = subprocess.run(
        [*map(str, command), "--output", str(tmp_path / "pair")],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "R@1 among 500" in done.stdout
    assert "DualEncoderModel loaded again" in done.stdout


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A folder with two encoders, data whose titles are its captions, and the pair that one step made of them."""
    folder = tmp_path_factory.mktemp("begun")
    for kind in ("clip-vision", "clip-text"):
        make_encoder(kind).save_pretrained(folder / kind)
        pico_processor().save_pretrained(folder / kind)
    pairs = pico_pairs(16)
    pairs.add_column("title", pairs["caption"]).save_to_disk(folder / "titled")
    words = ("--data", folder / "titled", "--batch-size", 8, "--max-steps", 1, "--output", folder / "pair")
    result = run(folder / "clip-vision", folder / "clip-text", *words)
    assert result.exit_code == 0, (result.output, result.exception)
    return folder


def change_data(folder):
    pairs = pico_pairs(16)
    pairs = pairs.map(lambda row, index: {"caption": "a photo" if index == 9 else row["caption"]}, with_indices=True)
    pairs.save_to_disk(folder / "others")
    return {"--data": folder / "others"}


def change_encoder(folder):
    model = AutoModel.from_pretrained(folder / "clip-text")
    model.embeddings.token_embedding.weight.data[-1, -1] += 0.1
    model.save_pretrained(folder / "clip-text")


def change_activation(folder):
    config = folder / "clip-text" / "config.json"
    config.write_text(config.read_text().replace('"quick_gelu"', '"gelu"'))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (change_data, "a run with data"),
        (change_encoder, "a run with text encoder"),
        (change_activation, "a run with text encoder"),
        ({"--recipe": "lit"}, "a run with recipe 'lilt', now it is 'lit'"),
        ({"--projection-dim": 8}, "a run with projection dim 256, now it is 8"),
        ({"--text-pooling": "mean"}, "a run with text pooling 'end', now it is 'mean'"),
        ({"--limit": 8}, "a run with pairs 16, now it is 8"),
        ({"--text-column": "title"}, "a run with text column 'caption', now it is 'title'"),
        ({"--learning-rate": 0.1}, r"a run with learning rate 0\.001, now it is 0\.1"),
        ({"--seed": 1}, "a run with seed 42, now it is 1"),
        ("lose", "align.json, which says what it was begun with, is missing"),
        ("cut", "align.json, which says what it was begun with, cannot be read"),
    ],
)
def test_going_on_in_the_folder_of_another_run_is_refused_by_the_first_setting_that_differs(
    change, told, begun, tmp_path
):
    folder = shutil.copytree(begun, tmp_path / "copy")
    words = {"--data": folder / "titled", "--batch-size": 8, "--max-steps": 1}
    if change == "lose":
        (folder / "pair" / "align.json").unlink()
    elif change == "cut":
        (folder / "pair" / "align.json").write_text("{")
    else:
        words |= (change(folder) if callable(change) else change) or {}
    weights = (folder / "pair" / "model.safetensors").read_bytes()
    pair = ("--output", folder / "pair")
    result = run(folder / "clip-vision", folder / "clip-text", *sum(words.items(), ()), *pair)
    assert isinstance(result.exception, LearngeneError)
    assert re.search(told, str(result.exception))
    assert (folder / "pair" / "model.safetensors").read_bytes() == weights


def test_a_folder_of_a_run_that_left_no_checkpoint_is_begun_anew(saved, data, tmp_path):
    folders, pair = (saved("clip-vision"), saved("clip-text")), tmp_path / "pair"
    words = ("--data", data, "--batch-size", 8, "--max-steps", 1, "--output", pair)
    assert run(*folders, *words).exit_code == 0
    for checkpoint in pair.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    assert run(*folders, *words, "--recipe", "lit").exit_code == 0
    assert AutoModel.from_pretrained(pair).config.recipe == "lit"


def test_align_takes_a_head_a_regulariser_and_the_layers_that_are_most_alike(saved, data, tmp_path):
    pair = tmp_path / "pair"
    words = (saved("clip-vision"), saved("clip-text"), "--data", data, "--output", pair, "--eval-split", "test")
    options = ("--recipe", "projections", "--head", "glu", "--structure-weight", 10, "--best-layers")
    result = run(*words, *options, "--batch-size", 8, "--epochs", 3)
    assert result.exit_code == 0, (result.output, result.exception)
    layers = re.search(r"most alike: (\d) of the image encoder and (\d) of the text encoder", result.output)
    config = AutoModel.from_pretrained(pair).config
    assert (config.projection_head, config.structure_weight) == ("glu", 10.0)
    found = (config.vision_config.num_hidden_layers, config.text_config.num_hidden_layers)
    assert found == tuple(map(int, layers.groups()))


def test_layers_that_are_given_and_chosen_are_refused(saved, data, tmp_path):
    words = (saved("clip-vision"), saved("clip-text"), "--data", data, "--output", tmp_path / "pair")
    result = run(*words, "--best-layers", "--text-layers", 1)
    assert "--best-layers chooses both" in str(result.exception)
    assert not (tmp_path / "pair").exists()
