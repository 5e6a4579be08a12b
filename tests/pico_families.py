"""Tiny ancestors of every family, with statistics as web checkpoints have them, and inputs for them."""

from __future__ import annotations

from typing import Any

import torch
from pico import IMAGE_SIZE, MAX_LENGTH, pico_clip, pico_tokenizer
from torch import Tensor
from transformers import MetaClip2Config, MetaClip2Model, SiglipConfig, SiglipModel

FAMILIES = ("clip", "metaclip_2", "siglip")


def pico_ancestor(family: str = "clip", seed: int = 0, **sizes: Any) -> Any:
    """A stock model of a family for 16-pixel images and the pico tokenizer; `sizes` are those of `pico_clip`."""
    clip = pico_clip(seed=seed, **sizes)
    if family == "clip":
        return clip
    encoders = {name: getattr(clip.config, name).to_dict() for name in ("vision_config", "text_config")}
    for fields in encoders.values():
        del fields["model_type"]
        for name in ("projection_dim", "hidden_act", "layer_norm_eps") if family == "siglip" else ():
            del fields[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if family == "metaclip_2":
            return MetaClip2Model(MetaClip2Config(**encoders, projection_dim=clip.config.projection_dim))
        encoders["text_config"]["projection_size"] = encoders["vision_config"]["hidden_size"]
        return SiglipModel(SiglipConfig(**encoders))


@torch.no_grad()
def make_hostile(model: Any, seed: int = 0) -> Any:
    """Give a model what web checkpoints have: outlier channels, norms of varying weight, large biases."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if "norm" in name and name.endswith("weight"):
            parameter.copy_(torch.exp(0.5 * noise))
        elif name.endswith("bias"):
            parameter.copy_(0.3 * noise)
        elif "position_embedding" in name or "probe" in name:
            parameter.copy_(0.1 * noise)
            parameter[..., 3] = 4.0
        elif "logit_scale" not in name:
            parameter.add_(0.05 * noise)
    return model.eval()


def decaying_map(width: int, rate: float, generator: torch.Generator) -> Tensor:
    """A map [width, width] whose directions, none of them a channel, are each `rate` times as strong as the last."""
    axes = torch.linalg.qr(torch.randn(width, width, generator=generator))[0]
    return axes @ torch.diag(rate ** torch.arange(width)) @ axes.T


def family_inputs(family: str, batch: int = 3) -> dict[str, Tensor]:
    """Images and texts for `batch` pairs: to one length without a mask for SigLIP, with a mask for the others."""
    generator = torch.Generator().manual_seed(5)
    inputs = {"pixel_values": torch.randn(batch, 3, IMAGE_SIZE, IMAGE_SIZE, generator=generator)}
    texts = ["a red square on blue", "pink", "a photo of a brown square on green"][:batch]
    if family == "siglip":
        tokens = pico_tokenizer()(texts, padding="max_length", max_length=MAX_LENGTH, return_tensors="pt")
        return {**inputs, "input_ids": tokens["input_ids"]}
    tokens = pico_tokenizer()(texts, padding=True, return_tensors="pt")
    return {**inputs, "input_ids": tokens["input_ids"], "attention_mask": tokens["attention_mask"]}
