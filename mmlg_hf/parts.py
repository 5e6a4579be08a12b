"""A gene's weights as files by part, so that an image descendant needs no byte of the text side and the reverse."""

import json
import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file

from .errors import LearngeneError

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


def read_index(path: Path, name: str) -> dict[str, str]:
    """Read which file each tensor is in; `name` is what the error calls the folder or repository.

    Raises:
        LearngeneError: it is no index, or names what is no plain name of a safetensors file.
    """
    try:
        weight_map = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        files = set(weight_map.values())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise LearngeneError(f"The {WEIGHTS_INDEX} of {name} is no index of weights") from None
    for file in sorted(files, key=repr):
        if not isinstance(file, str) or len(file) > 200 or not re.fullmatch(r"\w[\w.-]*\.safetensors", file):
            shown = repr(file) if len(repr(file)) < 80 else f"{repr(file)[:60]}... ({len(repr(file))} characters)"
            raise LearngeneError(f"{WEIGHTS_INDEX} of {name} names a shard {shown}, which is no plain file name")
    return weight_map


def weight_files(folder: str | os.PathLike) -> list[Path]:
    """The files that a folder's weights are in, as loaders take them: the single one, else those of the index."""
    folder = Path(folder)
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if not (folder / WEIGHTS_INDEX).is_file():
        return []
    return [folder / file for file in sorted(set(read_index(folder / WEIGHTS_INDEX, str(folder)).values()))]


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
