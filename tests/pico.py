"""Tiny stock CLIP parts built on the spot, so that no test needs a download: model, processor, image-caption pairs."""

from __future__ import annotations

from typing import Any

import torch
from datasets import ClassLabel, Dataset, Features, Image, Value
from PIL import Image as PILImage
from PIL import ImageDraw
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    CLIPTokenizer,
    SiglipConfig,
    SiglipModel,
)

COLORS = {
    "red": (220, 30, 30),
    "green": (30, 180, 40),
    "blue": (40, 60, 220),
    "yellow": (240, 220, 40),
    "black": (10, 10, 10),
    "white": (245, 245, 245),
    "pink": (245, 130, 190),
    "brown": (120, 70, 30),
}
WORDS = ("a", "square", "on", "photo", "of", *COLORS)
IMAGE_SIZE = 16
MAX_LENGTH = 16


def pico_tokenizer() -> CLIPTokenizer:
    """CLIP's tokenizer over all bytes, with merges for a dozen words: any text can be encoded, ours shortly."""
    alphabet = sorted(ByteLevel.alphabet())
    tokens = [*alphabet, *(letter + "</w>" for letter in alphabet)]
    merges: list[tuple[str, str]] = []
    for word in WORDS:
        pieces = [*word[:-1], word[-1] + "</w>"]
        while len(pieces) > 1:
            pair = (pieces[0], pieces[1])
            merges += [] if pair in merges else [pair]
            tokens += [] if "".join(pair) in tokens else ["".join(pair)]
            pieces = ["".join(pair), *pieces[2:]]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocab = {token: index for index, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=MAX_LENGTH)


def pico_processor(image_size: int = IMAGE_SIZE) -> CLIPProcessor:
    """A CLIPProcessor for `image_size` pixels and texts of at most 16 tokens."""
    image_processor = CLIPImageProcessor(
        size={"shortest_edge": image_size}, crop_size={"height": image_size, "width": image_size}
    )
    return CLIPProcessor(image_processor=image_processor, tokenizer=pico_tokenizer())


def pico_clip(
    *,
    vision_depth: int = 2,
    text_depth: int = 2,
    vision_width: int = 32,
    text_width: int = 32,
    head_size: int = 8,
    projection_dim: int = 16,
    seed: int = 0,
    **config_kwargs: Any,
) -> CLIPModel:
    """A stock CLIPModel for 16-pixel images and the pico tokenizer; `config_kwargs` go to CLIPConfig.

    The weights depend on `seed` alone, and the global random state is left as it was.
    """
    tokenizer = pico_tokenizer()
    vision = {
        "hidden_size": vision_width,
        "intermediate_size": 4 * vision_width,
        "num_hidden_layers": vision_depth,
        "num_attention_heads": vision_width // head_size,
        "image_size": IMAGE_SIZE,
        "patch_size": 8,
        "projection_dim": projection_dim,
    }
    text = {
        "hidden_size": text_width,
        "intermediate_size": 4 * text_width,
        "num_hidden_layers": text_depth,
        "num_attention_heads": text_width // head_size,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": MAX_LENGTH,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "projection_dim": projection_dim,
    }
    config = CLIPConfig(vision_config=vision, text_config=text, projection_dim=projection_dim, **config_kwargs)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return CLIPModel(config)


def pico_siglip(*, width: int = 32, depth: int = 2, seed: int = 0) -> SiglipModel:
    """A stock SiglipModel for 16-pixel images and the pico tokenizer; the global random state is left as it was."""
    encoder = {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": depth}
    encoder["num_attention_heads"] = width // 8
    tokenizer = pico_tokenizer()
    text = encoder | {"vocab_size": len(tokenizer), "max_position_embeddings": MAX_LENGTH, "projection_size": width}
    text |= {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    text["bos_token_id"] = tokenizer.bos_token_id
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vision = encoder | {"image_size": IMAGE_SIZE, "patch_size": 8}
        return SiglipModel(SiglipConfig(vision_config=vision, text_config=text))


def pico_image(color: str, background: str, image_size: int = IMAGE_SIZE) -> PILImage.Image:
    """A square of one colour in the middle of another."""
    image = PILImage.new("RGB", (image_size, image_size), COLORS[background])
    quarter = image_size // 4
    ImageDraw.Draw(image).rectangle((quarter, quarter, 3 * quarter - 1, 3 * quarter - 1), fill=COLORS[color])
    return image


def pico_pairs(n: int = 16, *, labels: bool = False) -> Dataset:
    """`n` rows of `image` and `caption`, such as "a red square on blue"; the first 56 differ from each other.

    Args:
        labels: also give a ClassLabel column `label`, the square's colour.
    """
    names = list(COLORS)
    rows: dict[str, list] = {"image": [], "caption": [], "label": []}
    for index in range(n):
        color = index % len(names)
        background = (color + 1 + (index // len(names)) % (len(names) - 1)) % len(names)
        rows["image"].append(pico_image(names[color], names[background]))
        rows["caption"].append(f"a {names[color]} square on {names[background]}")
        rows["label"].append(color)
    features = {"image": Image(), "caption": Value("string")}
    if labels:
        features["label"] = ClassLabel(names=names)
    else:
        del rows["label"]
    return Dataset.from_dict(rows, features=Features(features))
