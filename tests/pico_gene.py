"""A tiny gene of random weights built on the spot, with the pico processor, so that no test needs a download."""

from pathlib import Path

import torch
from pico import pico_clip, pico_processor

from mmlg_hf import LearngeneConfig, LearngeneModel


def pico_gene(depth: int = 2, **config_kwargs) -> LearngeneModel:
    """A gene for 16-pixel images: heads of size 8, widths 32 (images) and 16 (texts), every weight random."""
    clip = pico_clip(vision_depth=depth, text_depth=depth, text_width=16).config
    config = LearngeneConfig(
        vision_config=clip.vision_config.to_dict(),
        text_config=clip.text_config.to_dict(),
        projection_dim=clip.projection_dim,
        ancestor={"id": "pico/ancestor", "parameters": 100_000},
        **config_kwargs,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        gene = LearngeneModel(config).eval()
        for parameter in gene.parameters():
            parameter.data += 0.05 * torch.randn_like(parameter)
    gene.processor = pico_processor()
    return gene


def save_pico_gene(folder: Path, **config_kwargs) -> Path:
    """Save a `pico_gene` and return the folder."""
    pico_gene(**config_kwargs).save_pretrained(folder)
    return folder
