"""Probes of image encoders: the states are those of every layer, and what is there is found."""

import pytest
import torch
from pico import pico_clip

from benchmarks.common.training import Rows
from benchmarks.family import probes
from benchmarks.family.classifiers import Task
from benchmarks.family.probes import layer_states, probe, probe_layers


def pictures(count, seed):
    """Dark and light ones, so that every state knows which."""
    generator = torch.Generator().manual_seed(seed)
    labels = [row % 2 for row in range(count)]
    light = torch.tensor(labels).float().reshape(-1, 1, 1, 1)
    return Rows(pixel_values=0.1 * torch.randn(count, 3, 16, 16, generator=generator) + light, labels=labels)


def test_states_are_those_of_every_layer():
    model, rows = pico_clip(vision_depth=3).eval(), pictures(300, 0)
    found = layer_states(model, rows)
    pixels = rows.columns["pixel_values"]
    with torch.no_grad():
        states = model.vision_model(pixel_values=pixels, output_hidden_states=True).hidden_states
    assert len(states) == len(found["patches"]) == len(found["class token"]) == 4
    for layer, state in enumerate(states):
        torch.testing.assert_close(found["patches"][layer], state[:, 1:].mean(1))
        torch.testing.assert_close(found["class token"][layer], state[:, 0])


def test_a_probe_finds_what_is_there_after_which_layer():
    """Before the first layer the class token is the same for all pictures, so that it tells chance."""
    task = Task("image", {name: pictures(40, seed) for seed, name in enumerate(("train", "validation", "test"))}, [])
    found = probe_layers(pico_clip(vision_depth=2), task)
    assert found["patches"] == [1.0, 1.0, 1.0]
    assert found["class token"] == [0.5, 1.0, 1.0]


def test_a_probe_is_told_by_its_test_rows_alone():
    train = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 0.1], [1.0, 0.1]])
    labels = {name: [0, 1, 0, 1] for name in ("train", "validation", "test")}
    assert probe({"train": train, "validation": train, "test": train}, labels) == 1.0
    assert probe({"train": train, "validation": train, "test": 1 - train}, labels) == 0.0


def test_the_strength_of_a_probe_is_the_best_on_validation_rows(monkeypatch):
    """At 0.1 the made-up regression is right on 0.9 of validation and 0.3 of test, at 1.0 on 0.5 and 0.7."""
    tried = []

    class Regression:
        def __init__(self, C, max_iter):
            self.strength = C

        def fit(self, states, labels):
            tried.append(self.strength)

        def score(self, states, labels):
            return states[0, 0] * (self.strength == 0.1) + states[0, 1] * (self.strength == 1.0)

    monkeypatch.setattr(probes, "LogisticRegression", Regression)
    monkeypatch.setattr(probes, "make_pipeline", lambda scaler, regression: regression)
    states = {"train": torch.zeros(1, 2), "validation": torch.tensor([[0.9, 0.5]]), "test": torch.tensor([[0.3, 0.7]])}
    assert probe(states, {split: [0] for split in states}) == pytest.approx(0.3)
    assert tried == list(probes.STRENGTHS)
