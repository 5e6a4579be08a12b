"""Running two copies of a model on one fixed input and comparing what comes out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mmlg_hf.errors import LearngeneError

SEED = 0


def load_any(folder: Path) -> Any:
    """Load a staged or downloaded model through the class its config names, without code from its folder."""
    import transformers

    import mmlg_hf
    from mmlg_hf import alignment, clip_moe

    names = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("architectures") or []
    for name in names:
        model_class = next(
            (getattr(place, name) for place in (transformers, mmlg_hf, clip_moe, alignment) if name in dir(place)),
            None,
        )
        if model_class is not None:
            return model_class.from_pretrained(folder).eval()
    raise LearngeneError(
        f"{folder} holds a {names or 'model of unknown class'}, which is in neither transformers nor mmlg_hf"
    )


def fixed_input(config: Any) -> dict[str, Any]:
    """The same two images and two texts at every call, of the sizes that a CLIP-like config asks for."""
    import torch

    generator = torch.Generator().manual_seed(SEED)
    vision = getattr(config, "vision_config", None) or (config if hasattr(config, "patch_size") else None)
    text = getattr(config, "text_config", None) or (config if hasattr(config, "vocab_size") else None)
    inputs: dict[str, Any] = {}
    if text is not None:
        length = min(8, text.max_position_embeddings)
        inputs["input_ids"] = torch.randint(text.vocab_size, (2, length), generator=generator)
        inputs["input_ids"][:, -1] = min(text.eos_token_id, text.vocab_size - 1)
    if vision is not None:
        shape = (2, vision.num_channels, vision.image_size, vision.image_size)
        inputs["pixel_values"] = torch.rand(shape, generator=generator)
    return inputs


def compare_outputs(folder: Path, other: Path) -> list[str]:
    """Names of the outputs of the model in two folders, all of them equal bit by bit.

    Raises:
        LearngeneError: an output differs; the sentence says which and by how much.
    """
    import torch

    compared = []
    results = []
    for path in (folder, other):
        model = load_any(path)
        inputs = {name: value.to(model.dtype) if value.is_floating_point() else value
                  for name, value in fixed_input(model.config).items()}  # fmt: skip
        with torch.no_grad():
            results.append(model(**inputs))
    for name, value in results[0].items():
        if not isinstance(value, torch.Tensor):
            continue
        if not torch.equal(value, results[1][name]):
            gap = (value - results[1][name]).abs().max().item()
            raise LearngeneError(f"The output {name} differs by up to {gap:.3g} between {folder} and {other}")
        compared.append(name)
    return compared
