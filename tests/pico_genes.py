"""Tiny genes built on the spot, every tensor perturbed, so that a re-initialised one cannot pass for a loaded one."""

from __future__ import annotations

from typing import Any

import torch
from pico import IMAGE_SIZE, MAX_LENGTH, pico_tokenizer
from torch import Tensor, nn

from mmlg_hf.configuration_learngene import LearngeneConfig
from mmlg_hf.modeling_learngene import LearngeneForImageClassification, LearngeneModel

HEAD_SIZE = 8


def gene_config(
    *,
    vision_depth: int = 3,
    text_depth: int = 2,
    vision_width: int = 32,
    text_width: int = 16,
    image_only: bool = False,
    projection_dim: int = 12,
    **kwargs: Any,
) -> LearngeneConfig:
    """A gene's config for the pico processor; `image_only` leaves the text side out."""
    vision = {
        "hidden_size": vision_width,
        "intermediate_size": 4 * vision_width,
        "num_hidden_layers": vision_depth,
        "num_attention_heads": vision_width // HEAD_SIZE,
        "image_size": IMAGE_SIZE,
        "patch_size": 8,
    }
    tokenizer = pico_tokenizer()
    text = {
        "hidden_size": text_width,
        "intermediate_size": 4 * text_width,
        "num_hidden_layers": text_depth,
        "num_attention_heads": text_width // HEAD_SIZE,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": MAX_LENGTH,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    return LearngeneConfig(
        vision_config=vision, text_config=None if image_only else text, projection_dim=projection_dim, **kwargs
    )


def perturb(model: nn.Module, seed: int = 1, scale: float = 0.2) -> Any:
    """Move every parameter away from its initialisation, by noise that depends on the seed alone."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_((scale * noise).to(parameter.dtype))
    return model


def multimodal_gene(seed: int = 1, **kwargs: Any) -> LearngeneModel:
    """A multimodal gene in evaluation mode; keywords are those of `gene_config`."""
    return perturb(LearngeneModel(gene_config(**kwargs)), seed).eval()


def image_gene(seed: int = 1, num_labels: int = 5, **kwargs: Any) -> LearngeneForImageClassification:
    """TLEG's gene in evaluation mode: images only, two blocks, linear mixing, a classifier."""
    settings = {"image_only": True, "num_multimodal_blocks": 0, "num_unimodal_blocks": 2, "mixing": "linear"}
    config = gene_config(num_labels=num_labels, **{**settings, **kwargs})
    return perturb(LearngeneForImageClassification(config), seed).eval()


def pair_inputs(batch: int = 3) -> dict[str, Tensor]:
    """`pixel_values`, `input_ids` and an `attention_mask` with padding, for `batch` pairs."""
    texts = ["a red square on blue", "pink", "a photo of a brown square on green"]
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(batch, 3, IMAGE_SIZE, IMAGE_SIZE, generator=generator)
    tokens = pico_tokenizer()([texts[index % 3] for index in range(batch)], padding=True, return_tensors="pt")
    return {"pixel_values": pixels, "input_ids": tokens["input_ids"], "attention_mask": tokens["attention_mask"]}
