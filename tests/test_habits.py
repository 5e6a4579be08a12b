"""Habits of a command line: the version, completion, JSON, errors that speak of options, and what Ctrl-C says."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from commands import commands, run, sentence, write_inputs
from pico_genes import multimodal_gene
from safetensors.torch import load_file
from typer.main import get_command

from mmlg_hf.cli import app
from mmlg_hf.extraction.trainer import ExtractionTrainer
from mmlg_hf.shell.failing import name_options

ROOT = Path(__file__).resolve().parent.parent
EXTRACTION = ("--use_cpu", "--report_to", "none", "--save_steps", "1", "--max-steps", "3", "--batch-size", "4")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return write_inputs(tmp_path_factory.mktemp("habits"))


def test_sentences_speak_of_options():
    options = {"num_labels": "--num-labels", "depth": "--depth", "data": "--data", "max_steps": "--max-steps"}
    told = {
        "num_labels is 0: it takes 1": "--num-labels is 0: it takes 1",
        "depth is 0: it takes 1, or None for the gene's own": "--depth is 0: it takes 1, or leave it out for the "
        "gene's own",
        "the data is a stream: set max_steps": "the data is a stream: set --max-steps",
        "there is no folder 'num_labels'": "there is no folder 'num_labels'",
        'rows, or pass on_bad_image="skip" to go on': "rows, or give --skip-bad-images to go on",
        "--max_steps is set": "--max_steps is set",
    }
    assert {said: name_options(said, options) for said in told} == told


def test_a_field_of_an_extraction_is_named_as_its_option(folders, tmp_path):
    words = (*commands(folders, tmp_path / "out")["extract"], "--use_cpu", "--report_to", "none")
    assert sentence(run(*words, "--num_unimodal_blocks", "-1"), 2).startswith("Error: --num_unimodal_blocks is -1")


def test_the_version_is_printed():
    result = run("--version")
    assert result.exit_code == 0
    assert re.match(r"mmlg_hf \d\S+ \(Python 3\.\d+\.\d+, transformers \d\S+, torch \d\S+\)$", result.stdout)


def test_shell_completion_can_be_shown():
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    command = [sys.executable, "-c", "from mmlg_hf.cli import main; main()", "--show-completion", "bash"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert "_MMLG_COMPLETE=complete_bash" in done.stdout, done.stderr


def test_evaluate_prints_json_alone(folders):
    result = run("evaluate", folders / "clip", "--data", folders / "pairs", "--task", "retrieval", "--json")
    assert json.loads(result.stdout)["rows"] == 16


def test_every_command_that_prints_figures_has_json():
    def all_of(command, name):
        below = getattr(command, "commands", {})
        yield from (found for word in below for found in all_of(below[word], f"{name} {word}".strip()))
        if not below:
            yield name, {option for parameter in command.params for option in parameter.opts}

    without = {name for name, options in all_of(get_command(app), "") if "--json" not in options}
    assert without == {"extract", "descend", "app"}  # these print a sentence, and the page's address


def test_growing_in_memory_prints_nothing(capfd):
    multimodal_gene().descendant(1, 16, "image", num_labels=2)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "command", ["extract", "align", "diversify", "upcycle", "train-router", "evaluate", "compare"]
)
def test_a_model_that_is_not_there_is_named_in_a_sentence_of_ours(folders, tmp_path, command):
    words = list(commands(folders, tmp_path / "out")[command])
    at = next(index for index, word in enumerate(words) if word == folders / "clip")
    words[at] = tmp_path / "nothing"
    told = sentence(run(*words), 2)
    assert re.fullmatch(rf"Error: there is no folder '{tmp_path}/nothing' to load the [a-z ]+ from", told), told


def test_a_value_that_transformers_refuses_is_named_with_its_option(folders, tmp_path):
    words = (*commands(folders, tmp_path / "out")["extract"], *EXTRACTION, "--lr_scheduler_type", "steep")
    told = sentence(run(*words), 2)
    assert told.startswith("Error: --lr_scheduler_type is 'steep': steep is not a valid SchedulerType")


# --- Ctrl-C ----------------------------------------------------------------------------------------------------------


def test_ctrl_c_in_the_middle_of_an_extraction_and_resume_give_the_undisturbed_gene(folders, tmp_path, monkeypatch):
    assert run(*commands(folders, tmp_path / "undisturbed")["extract"], *EXTRACTION).exit_code == 0
    step = ExtractionTrainer.training_step

    def stopped(self, *args, **kwargs):
        if self.state.global_step == 2:
            signal.raise_signal(signal.SIGINT)
        return step(self, *args, **kwargs)

    words = (*commands(folders, tmp_path / "stopped")["extract"], *EXTRACTION)
    # Where the tests run in the background of a shell, which has them ignore Ctrl-C, Python has no handler of it.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(ExtractionTrainer, "training_step", stopped)
            told = sentence(run(*words), 130)
    finally:
        signal.signal(signal.SIGINT, before)
    assert told.endswith("give the same command again with --resume, which goes on from the last checkpoint.")
    assert list((tmp_path / "stopped").glob("*.safetensors")) == []
    assert run(*words, "--resume").exit_code == 0
    for path in (tmp_path / "undisturbed").glob("*.safetensors"):
        want, got = load_file(path), load_file(tmp_path / "stopped" / path.name)
        assert all(torch.equal(tensor, got[name]) for name, tensor in want.items())
