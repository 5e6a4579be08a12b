"""`mmlg moe diversify | upcycle | train-router` on pico data, and its errors."""

import json

import pytest
import torch
from pico import pico_clip, pico_pairs, pico_processor
from transformers import CLIPModel, CLIPProcessor
from typer.testing import CliRunner

from mmlg_hf.cli import app
from mmlg_hf.clip_moe import CLIPMoEModel, cli
from mmlg_hf.data import PictureRows


@pytest.fixture
def folder(tmp_path):
    """A folder with a base beside its processor, and pairs."""
    pico_clip().save_pretrained(tmp_path / "base")
    pico_processor().save_pretrained(tmp_path / "base")
    pico_pairs(40).save_to_disk(tmp_path / "pairs")
    return tmp_path


def mmlg_moe(*arguments):
    return CliRunner().invoke(app, ["moe", *map(str, arguments)])


def test_three_commands_make_a_trained_mixture(folder):
    base, pairs = folder / "base", folder / "pairs"
    stages = ["--num-experts", 3, "--num-clusters", 2, "--batch-size", 4, "--max-dropped", 0.9, "--limit", 32]
    done = mmlg_moe("diversify", base, "--data", pairs, "--output", folder / "experts", *stages)
    assert done.exit_code == 0, done.output
    assert "pairs dropped" in done.output
    done = mmlg_moe("upcycle", base, "--experts", folder / "experts", "--output", folder / "mixture")
    assert done.exit_code == 0, done.output
    assert "3 experts, 2 for each token" in done.output
    training = ["--data", pairs, "--batch-size", 8, "--max-steps", 2, "--learning-rate", 1e-3]
    done = mmlg_moe("train-router", folder / "mixture", *training, "--output", folder / "clip-moe")
    assert done.exit_code == 0, done.output
    assert CLIPMoEModel.from_pretrained(folder / "clip-moe").config.num_experts == 3
    assert CLIPProcessor.from_pretrained(folder / "clip-moe").tokenizer.model_max_length == 16


def test_the_rows_of_a_command_are_pictures_that_are_read_when_they_are_asked_for(folder):
    _, rows = cli._inputs(str(folder / "base"), str(folder / "pairs"), "train", None, None, 3)
    assert isinstance(rows, PictureRows)
    assert [row["pixel_values"].dtype for row in rows] == [torch.uint8] * 3


@pytest.mark.slow
def test_workers_change_nothing_of_an_expert(folder):
    common = ["--num-experts", 2, "--num-clusters", 1, "--batch-size", 4, "--max-steps", 2, "--learning-rate", 1e-3]
    found = []
    for workers in (0, 2):
        output = folder / str(workers)
        given = ["--data", folder / "pairs", "--output", output, *common, "--num-workers", workers]
        done = mmlg_moe("diversify", folder / "base", *given)
        assert done.exit_code == 0, done.output
        found.append(CLIPModel.from_pretrained(output / "stage-1" / "expert").state_dict())
    assert all(torch.equal(weight, found[1][name]) for name, weight in found[0].items())


def test_experts_can_be_named_one_by_one(folder):
    done = mmlg_moe("upcycle", folder / "base", "--expert", folder / "base", "--output", folder / "mixture")
    assert done.exit_code == 0, done.output
    assert CLIPMoEModel.from_pretrained(folder / "mixture").config.num_experts == 2


def test_a_mixture_is_made_of_clusters_and_trained_beside_its_base(folder):
    base, pairs, mixture = folder / "base", folder / "pairs", folder / "mixture"
    made = ["--clusters-of", pairs, "--num-experts", 3, "--expert-rank", 8, "--router-z-loss", 0.01, "--limit", 20]
    done = mmlg_moe("upcycle", base, *made, "--output", mixture)
    assert done.exit_code == 0, done.output
    assert "3 experts, 2 for each token" in done.output
    found = CLIPMoEModel.from_pretrained(mixture)
    assert (found.config.num_experts, found.config.router_z_loss_coef) == (3, 0.01)
    assert torch.linalg.matrix_rank(found.vision_model.encoder.layers[0].mlp.experts.up_proj[0]) == 8
    training = ["--data", pairs, "--batch-size", 8, "--max-steps", 2, "--train-all", "--ancestor", base]
    done = mmlg_moe("train-router", mixture, *training, "--feature-weight", 3, "--output", folder / "clip-moe")
    assert done.exit_code == 0, done.output
    assert json.loads((folder / "clip-moe" / "router.json").read_text())["feature_weight"] == 3.0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["upcycle", "{}/base", "--output", "{}/out"], "no expert was given"),
        (["upcycle", "{}/base", "--experts", "{}/pairs", "--output", "{}/out"], "no finished stage"),
        (
            ["upcycle", "{}/base", "--expert", "{}/base", "--num-experts-per-tok", "5", "--output", "{}/out"],
            "--num-experts-per-tok is 5",
        ),
        (
            ["upcycle", "{}/base", "--expert", "{}/base", "--clusters-of", "{}/pairs", "--output", "{}/out"],
            "--clusters-of were both given",
        ),
        (
            ["upcycle", "{}/base", "--expert", "{}/base", "--expert-rank", "4", "--output", "{}/out"],
            "--expert-rank goes with --clusters-of",
        ),
        (["diversify", "{}/bare", "--data", "{}/pairs", "--output", "{}/out"], "no processor"),
        (["diversify", "{}/base", "--data", "{}/nowhere", "--output", "{}/out"], "cannot load the dataset"),
        (["train-router", "{}/base", "--data", "{}/pairs", "--output", "{}/out"], "not a mixture"),
    ],
)
def test_bad_input_gets_one_sentence_exit_code_2_and_no_output(folder, arguments, said):
    CLIPModel.from_pretrained(folder / "base").save_pretrained(folder / "bare")
    done = mmlg_moe(*[argument.replace("{}", str(folder)) for argument in arguments])
    assert done.exit_code == 2
    assert said in done.stderr
    assert "Traceback" not in done.output
    assert not (folder / "out").exists()


@pytest.mark.parametrize("command", ["diversify", "upcycle", "train-router"])
def test_help_shows_an_example(command):
    done = mmlg_moe(command, "--help")
    assert done.exit_code == 0
    assert f"mmlg moe {command}" in done.output
