"""What a thing is, as a hash of all that makes it. Kept outputs, and runs that go on, are known by these."""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from datasets import Dataset, IterableDataset

from ..errors import LearngeneError, first_line
from ..saving import is_needed, write_json

# Raised whenever our own code makes other tensors of the same data, so that kept ones are not used again.
PROCESSING_VERSION = 2
_STREAMED_ROWS = 8
_BATCH = 256
# Fields of a config that do not change what its model computes.
_NOT_COMPUTED = (
    "_name_or_path", "_commit_hash", "transformers_version", "architectures", "torch_dtype", "dtype",
    "_attn_implementation",
)  # fmt: skip
# Fields of a gene's config, and of its encoders', that decide what layers its blocks give.
_MADE_BY = ("num_multimodal_blocks", "num_unimodal_blocks", "mixing", "scale_norms")
_MADE_FOR = ("hidden_size", "num_hidden_layers", "num_attention_heads", "hidden_act", "layer_norm_eps")


def fingerprint_model(model: torch.nn.Module) -> str:
    """Hash every value of a model's weights, its class and its config: 32 hexadecimal digits.

    The same for a model in memory and one that was saved and loaded; what a config says of names, versions and files
    does not count.
    """
    digest = hashlib.sha256(f"{type(model).__name__} {fingerprint_weights(model)}".encode())
    config: Any = getattr(model, "config", None)
    if config is not None:
        digest.update(json.dumps(computed_fields(config.to_dict()), sort_keys=True, default=str).encode())
    return digest.hexdigest()[:32]


def fingerprint_weights(
    model: torch.nn.Module, dtype: torch.dtype | None = None, counts: Callable[[str], bool] = lambda name: True
) -> str:
    """Hash every value of a model's weights, alike under every version of transformers: 32 hexadecimal digits.

    Args:
        dtype: floating-point tensors are hashed in this data type; None takes each in its own.
        counts: whether a tensor of this name counts. Those on the meta device, which have no values, do not.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if tensor.is_meta or not counts(name):
            continue
        if dtype is not None and tensor.is_floating_point():
            tensor = tensor.to(dtype)
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:32]


def fingerprint_gene(gene: torch.nn.Module, modality: str | None = None) -> str:
    """Hash what a gene's descendants are made from: alike in its stored precision and in float32.

    Args:
        modality: "image" or "text" takes what descendants of that modality are made from; None takes all.
    """
    digest = hashlib.sha256(fingerprint_weights(gene, torch.float32, is_needed(modality)).encode())
    config: Any = gene.config
    encoders = [encoder for encoder in (config.vision_config, config.text_config) if encoder is not None]
    fields = [getattr(config, name) for name in _MADE_BY]
    fields += [getattr(encoder, name) for encoder in encoders for name in _MADE_FOR]
    fields += [config.family] if config.family != "clip" else []  # a MetaCLIP 2's tensors read texts otherwise
    digest.update(json.dumps(fields).encode())
    return digest.hexdigest()[:32]


def computed_fields(config: Any) -> Any:
    """Return a config's dictionary without the fields, at any level, that do not change what its model computes."""
    if isinstance(config, Mapping):
        return {str(key): computed_fields(value) for key, value in config.items() if key not in _NOT_COMPUTED}
    if isinstance(config, (list, tuple)):
        return [computed_fields(value) for value in config]
    return config


def fingerprint_data(dataset: Any, columns: Iterable[str] | None = None) -> str:
    """Hash the content of rows, pictures by their bytes and not by where they lie: 32 hexadecimal digits.

    Args:
        dataset: a `Dataset`, whatever its format; rows with a `fingerprint` of their own; or anything else with a
            length and rows. Of a stream only the first 8 rows are read.
        columns: the columns that count; None takes all.
    """
    from .pictures import undecoded  # the package of data names what it makes by this module

    if hasattr(dataset, "fingerprint"):
        return dataset.fingerprint()
    names = sorted(set(getattr(dataset, "column_names", None) or () if columns is None else columns))
    digest = hashlib.sha256(json.dumps(names).encode())
    if isinstance(dataset, Dataset):
        digest.update(f"{len(dataset)}".encode())
        for batch in dataset.select_columns(names).with_format("arrow").iter(_BATCH):
            for name in names:
                _update_column(digest, batch[name], dataset.features[name])
    else:
        for row in _rows(undecoded(dataset) if isinstance(dataset, IterableDataset) else dataset):
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


def _rows(dataset: Any) -> Iterable[Any]:
    """All rows of what has a length, the first ones of a stream."""
    if hasattr(dataset, "__len__"):
        return (dataset[row] for row in range(len(dataset)))
    return islice(iter(dataset), _STREAMED_ROWS)


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
    elif isinstance(value, np.ndarray) and value.dtype == object:
        _update(digest, value.tolist())
    elif isinstance(value, (np.ndarray, torch.Tensor)):
        array = np.ascontiguousarray(value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else value)
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
        from .pictures import stored_bytes

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


def begin_run(record: str | os.PathLike, settings: Mapping[str, Any], *, goes_on: bool) -> None:
    """Write down what a run is made of, or refuse to go on with one that was begun with other settings.

    Args:
        record: the JSON file in the run's folder that holds the settings.
        settings: all that makes the run what it is.
        goes_on: whether the folder holds work (checkpoints, stages) that the run takes up.

    Raises:
        LearngeneError: naming the first setting that differs, or if nothing says what the work in the folder was
            begun with.
    """
    record = Path(record)
    if goes_on:
        check_same_run(read_run(record), settings, record.parent)
    state = PartialState()
    state.wait_for_everyone()
    if state.is_main_process:
        write_json(record, settings)


def read_run(record: str | os.PathLike) -> dict[str, Any]:
    """Read what a run was begun with.

    Raises:
        LearngeneError: if the file is missing or damaged.
    """
    record = Path(record)
    try:
        begun = json.loads(record.read_text(encoding="utf-8"))
        if not isinstance(begun, dict):
            raise ValueError(f"it holds a {type(begun).__name__}")
    except (OSError, ValueError) as error:
        trouble = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read ({first_line(error)})"
        raise LearngeneError(
            f"{str(record.parent)!r} holds a run, and {record.name}, which says what it was begun with, {trouble}: "
            "give another output folder, or remove this one"
        ) from error
    return begun
