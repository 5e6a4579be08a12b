"""The files of a gene, read and compared with its config before any weight is: shapes, types, and what is in which."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from transformers import initialization as init

from .checkpoints import damage_of
from .errors import LearngeneError, first_line
from .hub import PICKLED_WEIGHTS
from .parts import WEIGHTS, WEIGHTS_INDEX, read_index

# The types in which weights may be stored, as safetensors names them.
STORED_TYPES = ("F64", "F32", "F16", "BF16")


class Stored(NamedTuple):
    """Where a tensor is stored, its type as safetensors names it, and its shape."""

    file: Path
    type: str
    shape: tuple[int, ...]


def check_folder(folder: Path, name: str | None = None) -> None:
    """Refuse a folder that holds no gene in safetensors files; `name` is what the error calls the folder."""
    name = name or str(folder)
    try:
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    except FileNotFoundError:
        raise LearngeneError(f"{name} holds no model: it has no config.json") from None
    except (OSError, ValueError, AttributeError, RecursionError):
        raise LearngeneError(f"The config.json of {name} is not JSON") from None
    if kind != "learngene":
        raise LearngeneError(f"{name} holds a {kind!r} model, not a learngene: extract one from it first")
    if not (folder / WEIGHTS).is_file() and not (folder / WEIGHTS_INDEX).is_file():
        pickled = [file for file in PICKLED_WEIGHTS if (folder / file).is_file()]
        if pickled:
            raise LearngeneError(
                f"{name} has pickled weights only ({pickled[0]}), which can run code when they are opened: "
                "save the model as safetensors"
            )
        raise LearngeneError(f"{name} has no weights: it needs {WEIGHTS} or {WEIGHTS_INDEX}")


def read_stored(folder: Path, needed: Callable[[str], bool], name: str) -> dict[str, Stored]:
    """Read the headers of the files that hold needed tensors.

    Args:
        needed: whether a tensor of this name is needed; files that hold no such tensor need not be there.
        name: what an error calls the folder.

    Returns:
        the needed tensors that are stored.

    Raises:
        LearngeneError: a file is missing or damaged, or two hold the same tensor.
    """
    weight_map = _weight_map(folder, name)
    files = {file for tensor, file in weight_map.items() if needed(tensor)} if weight_map is not None else {WEIGHTS}
    absent = sorted(file for file in files if not (folder / file).is_file())
    if absent:
        raise LearngeneError(f"{name} lacks {', '.join(absent)}, which its {WEIGHTS_INDEX} names")
    stored: dict[str, Stored] = {}
    for file in sorted(files):
        for tensor, entry in _read_header(folder / file, name).items():
            if tensor in stored:
                raise LearngeneError(f"{tensor} of {name} is in both {stored[tensor].file.name} and {file}")
            stored[tensor] = entry
    return {tensor: entry for tensor, entry in stored.items() if needed(tensor)}


def _weight_map(folder: Path, name: str) -> dict[str, str] | None:
    """The index of a folder; None if its weights are in a single file."""
    return None if (folder / WEIGHTS).is_file() else read_index(folder / WEIGHTS_INDEX, name)


def check_index(folder: Path, stored: dict[str, Stored], needed: Callable[[str], bool], name: str) -> None:
    """Refuse an index that says of a needed tensor that it is in another file than it is in."""
    weight_map = _weight_map(folder, name)
    if weight_map is None:
        return
    found = {tensor: entry.file.name for tensor, entry in stored.items()}
    listed = {tensor: file for tensor, file in weight_map.items() if needed(tensor)}
    odd = sorted(tensor for tensor in found.keys() | listed.keys() if found.get(tensor) != listed.get(tensor))
    if odd:
        place, said = (files.get(odd[0], "no file") for files in (found, listed))
        more = f", and {len(odd) - 1} more are elsewhere" if len(odd) > 1 else ""
        raise LearngeneError(f"{odd[0]} of {name} is in {place}, where its {WEIGHTS_INDEX} says {said}{more}")


def _read_header(path: Path, name: str) -> dict[str, Stored]:
    try:
        with safe_open(path, framework="pt") as tensors:
            slices = {tensor: tensors.get_slice(tensor) for tensor in tensors.keys()}  # noqa: SIM118
            return {
                tensor: Stored(path, str(part.get_dtype()), tuple(part.get_shape())) for tensor, part in slices.items()
            }
    except (SafetensorError, OSError, ValueError) as error:
        raise LearngeneError(
            f"The weights of {name} are truncated or no safetensors file: "
            f"{damage_of(path) or f'{path.name}: {first_line(error)}'}"
        ) from None


def read_tensors(stored: dict[str, Stored]) -> dict[str, torch.Tensor]:
    """Read stored tensors into memory."""
    weights: dict[str, torch.Tensor] = {}
    for path in {entry.file for entry in stored.values()}:
        with safe_open(path, framework="pt") as tensors:
            weights |= {name: tensors.get_tensor(name) for name, entry in stored.items() if entry.file == path}
    return weights


def build_empty(cls: Any, config: Any, name: str) -> Any:
    """Build a gene without memory for its weights; what its config makes the classes raise is one sentence."""
    try:
        with torch.device("meta"), init.no_init_weights():
            return cls(config)
    except LearngeneError:
        raise
    except Exception as error:  # whatever a value that no check foresaw sets off
        raise LearngeneError(f"no gene can be built by the config of {name}: {first_line(error)}") from error


def check_fit(model: Any, stored: dict[str, Stored], needed: Callable[[str], bool], name: str) -> None:
    """Compare the tensors of an empty gene with the stored ones, and list all that do not fit.

    Before a byte is allocated: a config may ask for more than there is memory.
    """
    wanted = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items() if needed(key)}
    found = [f"missing {key}" for key in sorted(wanted.keys() - stored.keys())]
    found += [f"unexpected {key}" for key in sorted(stored.keys() - wanted.keys())]
    for key in sorted(stored.keys() & wanted.keys()):
        if stored[key].shape != wanted[key]:
            found.append(f"{key} is {list(stored[key].shape)} in place of {list(wanted[key])}")
        elif stored[key].type not in STORED_TYPES:
            found.append(f"{key} is stored as {stored[key].type} in place of {', '.join(STORED_TYPES)}")
    if found:
        raise LearngeneError(f"The tensors of {name} do not fit its config: {'; '.join(found)}")


def check_finite(model: Any, name: str) -> None:
    """Refuse a gene with values that are not finite."""
    for key, tensor in model.state_dict().items():
        if not tensor.is_meta and not torch.isfinite(tensor).all():
            raise LearngeneError(f"{key} of {name} is not finite: a gene with NaN or infinity is of no use")
