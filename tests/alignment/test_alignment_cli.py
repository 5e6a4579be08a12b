"""`mmlg align` and the example run from folders to a pair that loads again."""

import subprocess
import sys
from pathlib import Path

import pytest
import typer
from pico import pico_pairs
from safetensors.torch import load_file
from transformers import AutoModel, AutoProcessor
from typer.testing import CliRunner

from mmlg_hf.alignment.cli import align
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
