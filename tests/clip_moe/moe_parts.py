"""What the CLIP-MoE tests share beside their fixtures."""

import copy
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]


def perturbed_mlps(base, seed, scale=0.05):
    """Copy a CLIP and add noise to its MLPs alone, as a fine-tune of them would."""
    expert = copy.deepcopy(base)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in expert.named_parameters():
            if ".mlp." in name:
                parameter += scale * torch.randn(parameter.shape, generator=generator)
    return expert
