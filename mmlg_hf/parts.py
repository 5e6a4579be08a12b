"""A gene's weights as files by part, so that an image descendant needs no byte of the text side and the reverse."""

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file

WEIGHTS, WEIGHTS_INDEX = "model.safetensors", "model.safetensors.index.json"
SHARED = "shared"
# The first component of a tensor's name, without its last word, tells its part; all else is shared.
_PART_OF_PREFIX = {"vision": "image", "visual": "image", "classifier": "image", "text": "text"}


def part_of(name: str) -> str:
    """The part that a tensor of a gene belongs to: "image", "text" or "shared"."""
    return _PART_OF_PREFIX.get(name.partition(".")[0].partition("_")[0], SHARED)


def is_needed(modality: str | None) -> Callable[[str], bool]:
    """A test of tensor names: whether a descendant of this modality is made from the tensor; None is "multimodal"."""
    parts = {SHARED, modality} if modality in ("image", "text") else {SHARED, "image", "text"}
    return lambda name: part_of(name) in parts


def split_by_part(folder: str | os.PathLike) -> list[str]:
    """Replace a gene's `model.safetensors` by one file for each part and the usual index; return their names.

    A gene with one part, or one that is in several files already, is left as it is. Until the last step the single
    file is complete, and it is the one that loaders prefer.
    """
    folder = Path(folder)
    single = folder / WEIGHTS
    if not single.is_file():
        return []
    files: dict[str, dict] = {}
    with safe_open(single, framework="pt") as tensors:
        for name in sorted(tensors.keys()):
            files.setdefault(f"model-{part_of(name)}.safetensors", {})[name] = tensors.get_tensor(name)
        metadata = tensors.metadata() or {"format": "pt"}
    if {SHARED, "image", "text"} - {part_of(name) for part in files.values() for name in part}:
        return []
    sizes = [tensor.numel() * tensor.element_size() for part in files.values() for tensor in part.values()]
    weight_map = {name: file for file, part in files.items() for name in part}
    index = {"metadata": {"total_size": sum(sizes)}, "weight_map": dict(sorted(weight_map.items()))}
    with tempfile.TemporaryDirectory(dir=folder, prefix=".parts-") as temporary:
        for file, part in files.items():
            save_file(part, Path(temporary) / file, metadata=metadata)
        (Path(temporary) / WEIGHTS_INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
        for file in [*files, WEIGHTS_INDEX]:
            os.replace(Path(temporary) / file, folder / file)
    single.unlink()
    return sorted(files)
