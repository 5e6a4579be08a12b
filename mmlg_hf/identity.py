"""What a thing is, as a hash of all that makes it. Kept outputs, and runs that go on, are known by these."""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Array2D, Array3D, Array4D, Array5D, Dataset, Image, IterableDataset

from .errors import LearngeneError

# Raised whenever our own code makes other tensors of the same data, so that kept ones are not used again.
PROCESSING_VERSION = 2
_STREAMED_ROWS = 8
_ARRAYS = (Array2D, Array3D, Array4D, Array5D)
# Fields of a config that do not change what its model computes.
_NOT_COMPUTED = (
    "_name_or_path", "_commit_hash", "transformers_version", "architectures", "torch_dtype", "dtype",
    "_attn_implementation",
)  # fmt: skip


def fingerprint_model(model: torch.nn.Module) -> str:
    """Hash every value of a model's weights, its class and its config: 32 hexadecimal digits.

    The same for a model in memory and one that was saved and loaded; what a config says of names, versions and files
    does not count.
    """
    digest = hashlib.sha256(type(model).__name__.encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    config: Any = getattr(model, "config", None)
    if config is not None:
        digest.update(json.dumps(_computed(config.to_dict()), sort_keys=True, default=str).encode())
    return digest.hexdigest()[:32]


def _computed(config: Any) -> Any:
    if isinstance(config, Mapping):
        return {str(key): _computed(value) for key, value in config.items() if key not in _NOT_COMPUTED}
    if isinstance(config, (list, tuple)):
        return [_computed(value) for value in config]
    return config


def fingerprint_data(dataset: Any, columns: Iterable[str] | None = None) -> str:
    """Hash the content of rows, pictures by their bytes: 32 hexadecimal digits.

    Args:
        dataset: a `Dataset`; of an `IterableDataset` only the first rows are read, and the columns' names.
        columns: the columns that count; None takes all.
    """
    digest = hashlib.sha256()
    names = sorted(dataset.column_names or [] if columns is None else columns)
    digest.update(json.dumps(names).encode())
    if isinstance(dataset, Dataset):
        digest.update(str(len(dataset)).encode())
        dataset = dataset.select_columns(names) if names else dataset
    if isinstance(dataset, (Dataset, IterableDataset)) and dataset.features is not None:
        for name, feature in dataset.features.items():
            if isinstance(feature, Image):
                dataset = dataset.cast_column(name, Image(decode=False))
    rows = _plain_rows(dataset) if isinstance(dataset, Dataset) else islice(iter(dataset), _STREAMED_ROWS)
    for row in rows:
        _update(digest, {name: row.get(name) for name in names} if names else row)
    return digest.hexdigest()[:32]


def _plain_rows(dataset: Dataset) -> Dataset:
    """Rows as Python values, whatever their format; pixels as arrays, since as lists they take a thousand times."""
    arrays = [name for name, feature in dataset.features.items() if isinstance(feature, _ARRAYS)]
    if not arrays:
        return dataset.with_format(None)
    return dataset.with_format("numpy", columns=arrays, output_all_columns=True)


def _update(digest: Any, value: Any) -> None:
    """Add a value to a hash, with its kind and length, so that no two values look alike."""
    if isinstance(value, Mapping):
        if value.get("bytes") is None and isinstance(value.get("path"), str) and os.path.isfile(value["path"]):
            value = {"bytes": Path(value["path"]).read_bytes()}  # the picture, not where it lies
        elif value.get("bytes") is not None:
            value = {"bytes": value["bytes"]}
        for key in sorted(value):
            digest.update(f"k{key}".encode())
            _update(digest, value[key])
    elif isinstance(value, (list, tuple)):
        digest.update(f"l{len(value)}".encode())
        for item in value:
            _update(digest, item)
    elif isinstance(value, (bytes, bytearray)):
        digest.update(f"b{len(value)}".encode())
        digest.update(value)
    elif isinstance(value, (np.ndarray, torch.Tensor)):
        array = np.ascontiguousarray(value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else value)
        digest.update(f"a{array.dtype}{array.shape}".encode())
        digest.update(array.tobytes())
    elif hasattr(value, "tobytes") and hasattr(value, "mode"):  # a decoded picture
        digest.update(f"p{value.mode}{value.size}".encode())
        digest.update(value.tobytes())
    else:
        digest.update(f"{type(value).__name__}{value!r}".encode())


def check_same_run(begun: Mapping[str, Any], now: Mapping[str, Any], folder: str | os.PathLike) -> None:
    """Refuse to go on with a run in `folder` that was begun with other settings, naming the first that differs.

    Args:
        begun: what the run was begun with, as it was written down.
        now: the same of what is asked for now; a setting that only one of the two knows is no difference.

    Raises:
        LearngeneError: naming the setting, and both values.
    """
    for name, value in json.loads(json.dumps(now, default=str)).items():
        if name in begun and begun[name] != value:
            raise LearngeneError(
                f"{os.fspath(folder)!r} holds a run with {name.replace('_', ' ')} {begun[name]!r}, now it is "
                f"{value!r}: go on with the same settings, or give another output folder"
            )
