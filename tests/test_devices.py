"""`--device`: what it takes and refuses, and that commands compute where they are told; and the memory of ranks."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from pico import pico_clip, pico_pairs, pico_processor
from typer.testing import CliRunner

from mmlg_hf.cli import app
from mmlg_hf.errors import LearngeneError
from mmlg_hf.evaluation import dual_encoders
from mmlg_hf.evaluation.metrics import retrieval_results
from mmlg_hf.shell.devices import find_device, train_on


@pytest.fixture
def without_gpu(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)


@pytest.fixture
def two_gpus(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)


def test_a_gpu_is_taken_where_there_is_one(without_gpu):
    assert find_device(None) == find_device("cpu") == torch.device("cpu")


def test_a_gpu_is_found_by_its_number(two_gpus):
    assert find_device(None) == torch.device("cuda")
    assert find_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(LearngeneError, match="device is 'cuda:2', but this machine has cpu and cuda:0 to cuda:1"):
        find_device("cuda:2")


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("gpu", "device is 'gpu': give .cpu., or such as"),
        ("", "device is '': give"),
        ("cuda", "device is 'cuda', but this machine has cpu"),
        ("cpu:1", "device is 'cpu:1', but this machine has cpu"),
    ],
)
def test_what_is_no_device_of_this_machine_is_refused(without_gpu, name, sentence):
    for find in (find_device, train_on):
        with pytest.raises(LearngeneError, match=sentence):
            find(name)


def test_training_is_sent_to_the_cpu_or_to_one_gpu(two_gpus, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    assert train_on(None) == {}
    assert train_on("cpu") == {"use_cpu": True}
    assert train_on("cuda") == {}
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "4,7"
    assert train_on("cuda:1") == {}
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "7"


@pytest.mark.parametrize("before", [None, "2"])
def test_a_gpu_that_is_not_there_leaves_the_environment_as_it_was(without_gpu, monkeypatch, before):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if before is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", before)
    with pytest.raises(LearngeneError, match="device is 'cuda:3', but there is no such GPU on this machine"):
        train_on("cuda:3")
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == before


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("devices")
    pico_clip().save_pretrained(root / "clip")
    pico_processor().save_pretrained(root / "clip")
    pico_pairs(8).save_to_disk(root / "pairs")
    return root


def run(*words):
    return CliRunner().invoke(app, list(map(str, words)))


def test_evaluate_measures_on_the_device_that_it_is_given(folder, monkeypatch, without_gpu):
    seen, measure = [], dual_encoders.evaluate_retrieval

    def measured(*args, **kwargs):
        seen.append(kwargs["device"])
        return measure(*args, **kwargs)

    monkeypatch.setattr(dual_encoders, "evaluate_retrieval", measured)
    words = ("evaluate", folder / "clip", "--data", folder / "pairs", "--split", "train", "--task", "retrieval")
    for more in ((), ("--device", "cpu")):
        result = run(*words, *more)
        assert result.exit_code == 0, result.output
    assert seen == [torch.device("cpu")] * 2


@pytest.mark.parametrize(
    "words",
    [
        ("evaluate", "clip", "--data", "pairs", "--task", "retrieval"),
        ("align", "--vision", "clip", "--text", "clip", "--data", "pairs", "--output", "out"),
        ("moe", "diversify", "clip", "--data", "pairs", "--output", "out"),
        ("moe", "train-router", "clip", "--data", "pairs", "--output", "out"),
    ],
    ids=lambda words: " ".join(words[:2]),
)
def test_a_device_that_is_not_there_is_refused_in_one_sentence(words, folder, monkeypatch, without_gpu):
    monkeypatch.chdir(folder)
    command = words if words[0] != "align" else ("align", "clip", "clip", *words[5:])
    result = run(*command, "--device", "cuda")
    assert result.exit_code == 2, (result.output, result.exception)
    assert "device is 'cuda', but this machine has cpu" in result.stderr
    assert not (folder / "out").exists()


ITEMS, WIDTH = 12_000, 32


def rank_many():
    """Rank 12,000 texts and images, and print by how many MiB the process's largest size grew meanwhile."""
    generator = torch.Generator().manual_seed(0)
    images, texts = (torch.randn(ITEMS, WIDTH, generator=generator) for _ in range(2))
    retrieval_results(images[:100], texts[:100], torch.arange(100))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    results = retrieval_results(images, texts, torch.arange(ITEMS))
    assert 0.3 < results["text_to_image_median_rank"] / ITEMS < 0.7
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)


@pytest.mark.slow
def test_ranks_need_memory_by_the_rows_and_not_by_their_square():
    # All similarities would be 549 MiB. Of 100,000 by 100,000 there would be 37 GiB, and 0.3 are held at once.
    path = os.pathsep.join([str(Path(__file__).parent.parent), str(Path(__file__).parent)])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert float(done.stdout) < 120


if __name__ == "__main__":
    rank_many()
