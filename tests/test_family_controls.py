"""The study's controls of 2026: FRONT, CLIP-Map and students without a gene, each by what algebra says of it."""

import math

import pytest
import torch
from pico import pico_clip

from benchmarks.family.front import by_low_frequencies, cosines, resize
from benchmarks.family.starts import STARTS, Sources, turned_ancestor


def inputs(rows=8):
    generator = torch.Generator().manual_seed(1)
    return {
        "pixel_values": torch.randn(rows, 3, 16, 16, generator=generator),
        "input_ids": torch.randint(0, 300, (rows, 6), generator=generator),
        "attention_mask": torch.ones(rows, 6, dtype=torch.long),
    }


@pytest.fixture(scope="module")
def sources():
    ancestor = pico_clip(vision_depth=4, text_depth=4, vision_width=32, text_width=16, seed=3).eval()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in ancestor.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return Sources(ancestor, turned_ancestor(ancestor, [inputs()]))


def weight(model, layer, name="mlp.fc1.weight"):
    return model.get_parameter(f"vision_model.encoder.layers.{layer}.{name}")


@pytest.mark.parametrize("size", [1, 2, 7, 32])
def test_the_cosines_are_orthonormal_and_rise_in_frequency(size):
    matrix = cosines(size)
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(size).double())
    turns = [int((row[1:] * row[:-1] < 0).sum()) for row in matrix]
    assert turns == list(range(size))


def test_low_frequencies_at_the_ancestors_own_size_give_its_weights_back(sources):
    small = STARTS["FRONT"](sources, 4, 32, 0)
    for name, own in sources.ancestor.named_parameters():
        torch.testing.assert_close(small.get_parameter(name), own)


@pytest.mark.parametrize("shape", [(8, 16), (8, 64), (16, 64), (40, 16)])
def test_a_weight_there_and_back_again_is_the_same(shape):
    """Through a larger size nothing is lost; through a smaller one what has only low frequencies is kept."""
    low = torch.randn(8, 16, generator=torch.Generator().manual_seed(0)).double()
    smooth = resize(low, (16, 32))
    torch.testing.assert_close(resize(resize(smooth, shape), (16, 32)), smooth)


def test_a_smooth_weight_that_all_layers_share_keeps_its_mean_and_spread_at_half_size():
    ancestor = pico_clip(vision_depth=4, text_depth=4, vision_width=32, text_width=16)
    wave = [torch.cos(math.pi * (torch.arange(size) + 0.5) / size) for size in (128, 32, 64, 16)]
    with torch.no_grad():
        for layer in range(4):
            weight(ancestor, layer).copy_(3 + 0.7 * torch.outer(wave[0], wave[1]))
    small = by_low_frequencies(ancestor, Sources(ancestor, ancestor).config(2, 16))
    # The product of two half waves: no mean, and half a wave's spread along both axes.
    for layer in range(2):
        resized = weight(small, layer).detach()
        torch.testing.assert_close(resized, 3 + 0.7 * torch.outer(wave[2], wave[3]))
        assert resized.mean().item() == pytest.approx(3, abs=1e-6)
        assert resized.std(correction=0).item() == pytest.approx(0.35, rel=1e-5)


def test_norms_that_are_ones_stay_ones():
    ancestor = pico_clip(vision_depth=4, text_depth=4, vision_width=32, text_width=16)
    small = by_low_frequencies(ancestor, Sources(ancestor, ancestor).config(2, 16))
    assert torch.equal(weight(small, 0, "layer_norm1.weight"), torch.ones(16))
    assert torch.equal(weight(small, 1, "layer_norm2.bias"), torch.zeros(16))
    torch.testing.assert_close(small.logit_scale, ancestor.logit_scale)
    assert all(torch.isfinite(parameter).all() for parameter in small.parameters())
