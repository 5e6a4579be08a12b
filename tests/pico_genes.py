"""Tiny genes built on the spot, every tensor perturbed, so that a re-initialised one cannot pass for a loaded one."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from pico import IMAGE_SIZE, MAX_LENGTH, pico_tokenizer
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel

from mmlg_hf.configuration_learngene import LearngeneConfig
from mmlg_hf.expansion import LAYER_AXES
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


def new_gene(cls: Any, config: LearngeneConfig, seed: int) -> Any:
    """A gene whose weights depend on the seed alone; the global random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return perturb(cls(config), seed).eval()


def multimodal_gene(seed: int = 1, **kwargs: Any) -> LearngeneModel:
    """A multimodal gene in evaluation mode; keywords are those of `gene_config`."""
    return new_gene(LearngeneModel, gene_config(**kwargs), seed)


def image_gene(seed: int = 1, num_labels: int = 5, **kwargs: Any) -> LearngeneForImageClassification:
    """TLEG's gene in evaluation mode: images only, two blocks, linear mixing, a classifier."""
    settings = {"image_only": True, "num_multimodal_blocks": 0, "num_unimodal_blocks": 2, "mixing": "linear"}
    config = gene_config(num_labels=num_labels, **{**settings, **kwargs})
    return new_gene(LearngeneForImageClassification, config, seed)


def pair_inputs(batch: int = 3) -> dict[str, Tensor]:
    """`pixel_values`, `input_ids` and an `attention_mask` with padding, for `batch` pairs."""
    texts = ["a red square on blue", "pink", "a photo of a brown square on green"]
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(batch, 3, IMAGE_SIZE, IMAGE_SIZE, generator=generator)
    tokens = pico_tokenizer()([texts[index % 3] for index in range(batch)], padding=True, return_tensors="pt")
    return {"pixel_values": pixels, "input_ids": tokens["input_ids"], "attention_mask": tokens["attention_mask"]}


# Mixing settings and encoder widths (vision, text) that every claim about sizes is tested on.
MIXINGS = {
    "shared-slope": {"mixing": "shared-slope", "num_multimodal_blocks": 1, "num_unimodal_blocks": 1},
    "linear": {"mixing": "linear", "num_multimodal_blocks": 1, "num_unimodal_blocks": 1},
    "linear-unimodal": {"mixing": "linear", "num_multimodal_blocks": 0, "num_unimodal_blocks": 2},
    "linear-multimodal": {"mixing": "linear", "num_multimodal_blocks": 2, "num_unimodal_blocks": 0},
    "chebyshev": {"mixing": "chebyshev", "num_multimodal_blocks": 2, "num_unimodal_blocks": 3},
    "learned": {"mixing": "learned", "num_multimodal_blocks": 2, "num_unimodal_blocks": 1},
    "factored tokens": {"mixing": "linear", "num_multimodal_blocks": 1, "token_embedding_rank": 5},
    "scales": {"mixing": "shared-slope", "num_multimodal_blocks": 1, "num_unimodal_blocks": 1, "weight_scales": True},
}
WIDTHS = {"equal": (32, 32), "wide-vision": (32, 16), "wide-text": (16, 32)}


def coefficient(gene: Any, encoder: str, parameter: str, block: int, layer: int, depth: int) -> float:
    """The papers' coefficient of one block in one layer; blocks are counted from the multimodal ones on."""
    config = gene.config
    x = layer / depth
    if config.mixing == "learned":
        index = list(LAYER_AXES).index(parameter)
        learned = getattr(gene, f"{encoder}_coefficients")[:, index, block].tolist()
        return float(np.interp(x, np.arange(len(learned)) / len(learned), learned))
    if config.mixing == "shared-slope":
        return (x, 1.0)[block]
    order = block if block < config.num_multimodal_blocks else block - config.num_multimodal_blocks
    if config.num_multimodal_blocks and config.num_unimodal_blocks == 1 and block == config.num_multimodal_blocks:
        order = 1
    if config.mixing == "linear":
        return (1.0, x)[order]
    return math.cos(order * math.acos(x))


def factors(gene: Any, name: str, x: float) -> Tensor:
    """The factors of one side of a matrix [size], read at x = l/L between the gene's own layers."""
    own = gene.get_parameter(name).detach().numpy()
    known = np.arange(len(own)) / len(own)
    return torch.tensor(np.stack([np.interp(x, known, column) for column in own.T]), dtype=torch.float32)


def reference_clip(gene: Any, config: CLIPConfig | None = None) -> CLIPModel:
    """The stock CLIP of a gene's or a descendant's size, filled by a plain loop over layers, parameters and blocks."""
    if config is None:
        own = gene.config
        sides = {name: getattr(own, name).to_dict() for name in own.sub_configs}
        config = CLIPConfig(**sides, projection_dim=own.projection_dim)
    model = CLIPModel(config).to(gene.dtype).eval()
    filled = {}
    for name, tensor in model.state_dict().items():
        leading = tuple(slice(size) for size in tensor.shape)
        encoder, _, rest = name.partition("_model.encoder.layers.")
        if not rest:
            weight = gene.get_parameter(name).detach()
            if "token_embedding" in name and gene.config.token_embedding_rank:
                weight = weight @ gene.text_model.embeddings.token_projection.weight.detach().T
            filled[name] = weight[leading]
            continue
        layer, _, parameter = rest.partition(".")
        depth = getattr(config, f"{encoder}_config").num_hidden_layers
        blocks = [
            block[leading]
            for group in (gene.multimodal_blocks, getattr(gene, f"{encoder}_blocks"))
            if group is not None
            for block in group.get_parameter(parameter).detach()
        ]
        weights = [coefficient(gene, encoder, parameter, n, int(layer), depth) for n in range(len(blocks))]
        filled[name] = sum(weight * block for weight, block in zip(weights, blocks, strict=True))
        if gene.config.weight_scales and filled[name].dim() == 2:
            rows, columns = (
                factors(gene, f"{encoder}_scales.{parameter.removesuffix('.weight')}.{side}", int(layer) / depth)
                for side in ("rows", "columns")
            )
            filled[name] = rows[: leading[0].stop, None] * filled[name] * columns[: leading[1].stop]
    model.load_state_dict(filled)
    return model
