"""Classifiers of the family study whose heads are probed first: what is measured when, and how runs are named."""

from argparse import Namespace

import numpy as np
import pytest
import torch
from pico import pico_clip
from transformers import Trainer, TrainingArguments

from benchmarks.common.results import Results
from benchmarks.common.training import Rows, training
from benchmarks.family import __main__ as program
from benchmarks.family import classifiers
from benchmarks.family.classifiers import Task, as_classifier, train_classifier
from mmlg_hf.training import probe_head


def task_of(modality):
    """Three classes, told by a level of grey, or by a token."""
    generator, splits = torch.Generator().manual_seed(0), {}
    for name in ("train", "validation", "test"):
        labels = [row % 3 for row in range(24)]
        levels = torch.tensor(labels)
        pixels = 0.1 * torch.randn(24, 3, 16, 16, generator=generator) + levels.float().reshape(-1, 1, 1, 1)
        eos = pico_clip().config.text_config.eos_token_id
        tokens = torch.stack([levels + 1, levels + 5, torch.full_like(levels, eos)], dim=1)
        texts = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
        columns = {"pixel_values": pixels} if modality == "image" else texts
        splits[name] = Rows(**columns, labels=labels)
    return Task(modality, splits, ["a", "b", "c"])


@pytest.mark.parametrize("modality", ["image", "text"])
def test_a_probed_classifier_is_measured_before_any_step_and_trained_as_one_whose_head_was_set(
    modality, tmp_path, monkeypatch
):
    task, arguments, states = task_of(modality), training(tmp_path, 2, 8, 1e-3), []
    measure = classifiers.measure

    def kept(trainer):
        states.append({name: tensor.clone() for name, tensor in trainer.model.state_dict().items()})
        return measure(trainer)

    monkeypatch.setattr(classifiers, "measure", kept)
    ancestor = pico_clip()
    for config in (ancestor.config.vision_config, ancestor.config.text_config):
        config.attention_dropout = 0.5  # so that training depends on the random state that it begins with
    found = train_classifier(ancestor, task, arguments, 3, "test", probed=True)
    expected = as_classifier(ancestor, modality, 3, 3)
    probe_head(expected, task.splits["train"])
    rows = task.splits["test"].columns
    with torch.no_grad():
        logits = expected.eval()(**{name: column for name, column in rows.items() if name != "labels"}).logits
    accuracy = (logits.argmax(-1) == torch.tensor(rows["labels"])).double().mean().item()
    assert len(states) == 2
    assert all(torch.equal(tensor, states[0][name]) for name, tensor in expected.state_dict().items())
    Trainer(expected, TrainingArguments(**arguments, seed=3), train_dataset=task.splits["train"]).train()
    for name, tensor in expected.state_dict().items():
        torch.testing.assert_close(tensor, states[1][name])
    assert list(found) == ["probe", "top1", "mean_per_class", "seconds"]
    assert found["probe"]["top1"] == found["probe"]["mean_per_class"] == pytest.approx(accuracy)
    assert accuracy > 0.5
    assert found["probe"]["seconds"] > 0


def test_an_unprobed_classifier_has_no_figures_before_its_steps(tmp_path):
    found = train_classifier(pico_clip(), task_of("image"), training(tmp_path, 1, 8, 1e-4), 0, "test")
    assert list(found) == ["top1", "mean_per_class", "seconds"]


@pytest.mark.parametrize(("parts", "named"), [(["encoders"], ["digits"]), (["heads"], ["digits-probed"])])
def test_runs_with_probed_heads_are_named_apart_and_tuned_alike(parts, named, tmp_path, monkeypatch):
    """A made-up classifier is best at 0.1, and at 0.3 with its head probed."""
    asked = []

    def made_up(model, task, arguments, seed, split, probed):
        asked.append((model, arguments, seed, split, probed))
        return {"top1": 1 - abs(arguments - (0.3 if probed else 0.1))}

    monkeypatch.setattr(program, "train_classifier", made_up)
    monkeypatch.setattr(program, "STARTS", {"scratch": lambda sources, depth, width, seed: (depth, width)})
    study = object.__new__(program.Study)
    study.results, study.tasks = Results(tmp_path / "family.json", {}), {"digits": None}
    study.arguments, study.sources = lambda steps, rate: rate, lambda seed: None
    study.describe, study.costs = lambda sources: None, dict
    study.options = Namespace(
        steps=1, long=None, curve_steps=1, sizes=[], untrained_sizes=[], curve_sizes=[], rates=[1]
    )
    study.options.__dict__ |= {"seeds": [0], "methods": ["scratch"], "parts": parts, "encoder_rates": [0.1, 0.3]}
    study.options.__dict__ |= {"tuning_sizes": [(3, 96)], "encoder_sizes": [(2, 64), (3, 96)], "encoder_steps": 5}
    study.run = lambda *args: {"curve": [{"mean_R@10": 0.0}]}
    study.run_all()
    runs, probed = study.results.found["runs"], parts == ["heads"]
    keys = [key for key in runs if not key.startswith("tuning/")]
    tuned = [f"tuning-{name}/scratch/3x96/{rate}" for name in named for rate in (0.1, 0.3)]
    assert keys == [*tuned, *(f"{name}/scratch/{size}/0" for name in named for size in ("2x64", "3x96"))]
    assert [call[2:] for call in asked] == [(100, "validation", probed)] * 2 + [(0, "test", probed)] * 2
    rates = {runs[f"{named[0]}/scratch/{size}/0"]["rate"] for size in ("2x64", "3x96")}
    assert rates == {0.3 if probed else 0.1}
    assert np.isclose(runs[keys[-1]]["top1"], 1.0)
