"""The ready configurations of accelerate: each extracts on two processes of this machine as it would on many GPUs."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from datasets import DatasetDict
from launching import launch
from pico import pico_clip, pico_pairs, pico_processor

from mmlg_hf import LearngeneModel

CONFIGS = sorted((Path(__file__).parent.parent / "examples" / "accelerate").glob("*.yaml"))
PROCESSES = {"eight_gpus": (1, 8), "eight_nodes": (8, 64)}


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_a_configuration_is_of_the_machines_that_its_name_says(config):
    settings = yaml.safe_load(config.read_text(encoding="utf-8"))
    assert (settings["num_machines"], settings["num_processes"]) == PROCESSES[config.stem]
    assert settings["mixed_precision"] == "bf16"


@pytest.mark.slow
@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_a_configuration_extracts_on_two_processes(config, tmp_path):
    settings = yaml.safe_load(config.read_text(encoding="utf-8"))
    # Two processes of this machine in place of all GPUs; all else is what is shipped.
    settings |= {"num_machines": 1, "num_processes": 2, "mixed_precision": "no", "main_process_port": 0}
    here = tmp_path / "here.yaml"
    here.write_text(yaml.safe_dump(settings))
    pico_clip().save_pretrained(tmp_path / "clip")
    pico_processor().save_pretrained(tmp_path / "clip")
    DatasetDict({"train": pico_pairs(16)}).save_to_disk(tmp_path / "pairs")
    words = ("extract", tmp_path / "clip", "--data", tmp_path / "pairs", "--output", tmp_path / "gene")
    options = ("--max-steps", 2, "--batch-size", 4, "--use_cpu", "--report_to", "none", "--seed", 3)
    launch("-m", "mmlg_hf", *words, *options, config=here)
    gene = LearngeneModel.from_pretrained(tmp_path / "gene")
    assert gene.config.recipe["steps"] == 2
    assert gene.config.recipe["batch_size"] == 8
    assert all(torch.isfinite(weight).all() for weight in gene.state_dict().values())
    assert json.loads((tmp_path / "gene" / "config.json").read_text())["recipe"]["rows"] == 16
