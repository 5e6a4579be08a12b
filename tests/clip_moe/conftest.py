"""Fixtures of the CLIP-MoE tests: a dense base, experts that differ from it in their MLPs, and the mixture of both."""

import pytest
import torch
from moe_parts import perturbed_mlps


@pytest.fixture
def base():
    """A pico CLIP of unequal encoders (vision 3 layers x 32, text 2 x 16), all biases off zero."""
    from pico import pico_clip

    model = pico_clip(vision_depth=3, text_width=16).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


@pytest.fixture
def experts(base):
    """Three experts of the base."""
    return [perturbed_mlps(base, seed) for seed in range(3)]


@pytest.fixture
def mixture(base, experts):
    """The mixture of the base and its three experts, with routers far from uniform."""
    from mmlg_hf.clip_moe import upcycle

    model = upcycle(base, experts)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".router." in name:
                parameter *= 20
    return model


@pytest.fixture
def inputs():
    """Three pairs, two of them padded: input_ids and attention_mask [3, 6], pixel_values [3, 3, 16, 16]."""
    from pico import pico_pairs, pico_processor

    from mmlg_hf.training import ImageTextCollator

    rows = list(pico_pairs(3))
    rows[0]["caption"], rows[1]["caption"] = "a square", "red square on blue"
    batch = ImageTextCollator(pico_processor())(rows)
    batch.pop("return_loss")
    return batch
