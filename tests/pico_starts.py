"""What the tests of the family study start small CLIPs from: a pico ancestor, and a batch for it."""

import torch
from pico import pico_clip

from benchmarks.family.starts import Sources, turned_ancestor


def inputs(rows=8):
    """A batch of pixels and tokens, the same for the same number of rows."""
    generator = torch.Generator().manual_seed(1)
    return {
        "pixel_values": torch.randn(rows, 3, 16, 16, generator=generator),
        "input_ids": torch.randint(0, 300, (rows, 6), generator=generator),
        "attention_mask": torch.ones(rows, 6, dtype=torch.long),
    }


def pico_sources():
    """An ancestor of four layers, 32 and 16 wide, its weights random, and the same turned."""
    ancestor = pico_clip(vision_depth=4, text_depth=4, vision_width=32, text_width=16, seed=3).eval()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in ancestor.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
        ancestor.vision_model.pre_layrnorm.weight.fill_(1.0)  # which turns exactly
    return Sources(ancestor, turned_ancestor(ancestor, [inputs()]))


def weight(model, layer, name="mlp.fc1.weight"):
    """A parameter of a layer for images."""
    return model.get_parameter(f"vision_model.encoder.layers.{layer}.{name}")
