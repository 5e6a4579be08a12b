"""What a thing is, as a hash of all that makes it. Kept outputs, and runs that go on, are known by these."""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any

import numpy as np
import torch
from datasets import Dataset, IterableDataset

from .errors import LearngeneError

# Raised whenever our own code makes other tensors of the same data, so that kept ones are not used again.
PROCESSING_VERSION = 2
_STREAMED_ROWS = 8
_BATCH = 256
# Fields of a config that do not change what its model computes.
_NOT_COMPUTED = (
    "_name_or_path", "_commit_hash", "transformers_version", "architectures", "torch_dtype", "dtype",
    "_attn_implementation",
)  # fmt: skip


def fingerprint_model(model: torch.nn.Module) -> str:
    """Hash every value of a model's weights, and its config: 32 hexadecimal digits."""
    digest = hashlib.sha256()
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
    return config


def fingerprint_data(dataset: Any, columns: Iterable[str] | None = None) -> str:
    """Hash the content of rows, pictures by their bytes and not by where they lie: 32 hexadecimal digits.

    Args:
        dataset: a `Dataset`, whatever its format; of an `IterableDataset` only the first 8 rows are read.
        columns: the columns that count; None takes all.
    """
    from .data.pictures import undecoded  # the package of data names what it makes by this module

    names = sorted(set(getattr(dataset, "column_names", None) or () if columns is None else columns))
    digest = hashlib.sha256(json.dumps(names).encode())
    if isinstance(dataset, Dataset):
        digest.update(f"{len(dataset)}".encode())
        for batch in dataset.select_columns(names).with_format("arrow").iter(_BATCH):
            for name in names:
                _update_column(digest, batch[name], dataset.features[name])
    else:
        stream = undecoded(dataset) if isinstance(dataset, IterableDataset) else dataset
        for row in islice(stream, _STREAMED_ROWS):
            _update(digest, {name: row.get(name) for name in names} if names else row)
    return digest.hexdigest()[:32]


def _update_column(digest: Any, column: Any, feature: Any) -> None:
    """Add a column of an Arrow table to a hash."""
    if type(feature).__name__.startswith("Array"):
        # Pixels: nested lists of them would take longer than making them.
        arrays = [chunk.to_numpy(zero_copy_only=False) for chunk in column.chunks]
        _update(digest, np.concatenate(arrays) if arrays else None)  # however the table is cut
    else:
        _update(digest, column.to_pylist())


def _update(digest: Any, value: Any) -> None:
    """Add a value to a hash, with its kind and length, so that no two values look alike."""
    if isinstance(value, Mapping):
        _update_mapping(digest, value)
    elif isinstance(value, (list, tuple)):
        digest.update(f"l{len(value)}".encode())
        for item in value:
            _update(digest, item)
    elif isinstance(value, (bytes, bytearray)):
        digest.update(f"b{len(value)}".encode())
        digest.update(value)
    elif isinstance(value, (np.ndarray, torch.Tensor)):
        array = np.ascontiguousarray(value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else value)
        if array.dtype == object:
            _update(digest, array.tolist())
        else:
            digest.update(f"a{array.dtype}{array.shape}".encode())
            digest.update(array.tobytes())
    elif hasattr(value, "tobytes") and hasattr(value, "mode"):  # a decoded picture
        digest.update(f"p{value.mode}{value.size}".encode())
        digest.update(value.tobytes())
    else:
        text = repr(value)
        digest.update(f"{type(value).__name__}{len(text)}:{text}".encode(errors="surrogatepass"))


def _update_mapping(digest: Any, value: Mapping[str, Any]) -> None:
    if value and set(value) <= {"bytes", "path"}:
        from .data.pictures import stored_bytes

        try:
            value = {"bytes": stored_bytes(dict(value))}
        except OSError:  # a file that is not there: where it should be is all that there is
            value = {"path": value.get("path")}
    digest.update(f"m{len(value)}".encode())
    for key in sorted(value):
        digest.update(f"k{len(key)}:{key}".encode())
        _update(digest, value[key])


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
