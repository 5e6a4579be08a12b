"""Finding the image and the text column, by features where there are some, else by many rows and never by one."""

from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any, TypeAlias

import numpy as np
import torch
from datasets import DatasetDict, Features, Image, IterableDatasetDict, LargeList, List, Value
from PIL import Image as PILImage

from ..errors import LearngeneError
from .loading import AnyDataset, check_dataset, is_transformed, rows_of

# Looked for in this order when the caller names no text column.
TEXT_COLUMN_NAMES = (
    "text",
    "caption",
    "captions",
    "title",
    "sentences",
    "productDisplayName",
    "description",
    "alt_text",
    "txt",
)
IMAGE_COLUMN_NAMES = ("image", "images", "img", "photo", "picture", "jpg", "jpeg", "png", "webp")

# Rows that are looked at where there are no features: a row may lack a column, or hold None in it.
_ROWS_LOOKED_AT = 32
# What a column holds. Bytes and arrays may be pictures, and "empty" columns anything.
_KINDS = ("image", "text", "array", "other", "empty")

Described: TypeAlias = AnyDataset | Features | Mapping[str, Any]


def find_columns(
    dataset: Described | Iterable[Mapping[str, Any]], image_column: str | None = None, text_column: str | None = None
) -> tuple[str, str]:
    """Name the image and the text column of a dataset.

    Args:
        dataset: a dataset, its `Features`, one row of it, or a list of rows. Of a stream without features, the first
            32 rows are looked at.
        image_column: the image column's name; None finds it by feature type, then by name.
        text_column: the text column's name; None finds it by name, then takes the only string column there is.

    Raises:
        LearngeneError: naming the columns there are, if one is missing or more than one would do. A column that is
            empty in all rows would do: what it holds elsewhere is not known.
    """
    kinds = _column_kinds(dataset)
    return (
        _pick_column("image", image_column, kinds, IMAGE_COLUMN_NAMES),
        _pick_column("text", text_column, kinds, TEXT_COLUMN_NAMES),
    )


def find_image_column(dataset: Described | Iterable[Mapping[str, Any]], image_column: str | None = None) -> str:
    """Name the image column of a dataset, as `find_columns` does, where no texts are needed."""
    return _pick_column("image", image_column, _column_kinds(dataset), IMAGE_COLUMN_NAMES)


def column_names(dataset: AnyDataset) -> list[str]:
    """Return the columns of a dataset; of a stream without features, those of its first 32 rows."""
    return list(dataset.column_names or _column_kinds(dataset))


def _column_kinds(dataset: Any) -> dict[str, str]:
    """Map each column to one of `_KINDS`."""
    if isinstance(dataset, Features):
        return {name: _kind_of_feature(feature) for name, feature in dataset.items()}
    if isinstance(dataset, (list, tuple)) and all(isinstance(row, Mapping) for row in dataset):
        return _kinds_of_rows(dataset)
    if isinstance(dataset, Mapping) and not isinstance(dataset, (DatasetDict, IterableDatasetDict)):
        return _kinds_of_rows([dataset])
    dataset = check_dataset(dataset)
    if dataset.features is not None and not is_transformed(dataset):
        return _column_kinds(dataset.features)
    rows = list(islice(rows_of(dataset), _ROWS_LOOKED_AT))
    if not rows:
        raise LearngeneError("the dataset is empty (0 rows): there is nothing to train or measure on")
    return _kinds_of_rows(rows)


def _kinds_of_rows(rows: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    found: dict[str, set[str]] = {}
    for row in rows:
        for name, value in row.items():
            found.setdefault(name, {"empty"}).add(_kind_of_value(value))
    return {name: next(kind for kind in _KINDS if kind in kinds) for name, kinds in found.items()}


def _kind_of_feature(feature: Any) -> str:
    if isinstance(feature, Image) or (isinstance(feature, dict) and feature and set(feature) <= {"bytes", "path"}):
        return "image"
    if isinstance(feature, (List, LargeList)) or (isinstance(feature, list) and feature):
        inner = _kind_of_feature(feature[0] if isinstance(feature, list) else feature.feature)
        return inner if inner in ("text", "empty") else "other"
    dtype = feature.dtype if isinstance(feature, Value) else ""
    if dtype in ("string", "large_string", "string_view"):
        return "text"
    return {"binary": "array", "large_binary": "array", "null": "empty"}.get(dtype, "other")


def _kind_of_value(value: Any) -> str:
    if value is None:
        return "empty"
    if isinstance(value, PILImage.Image) or (isinstance(value, dict) and value and set(value) <= {"bytes", "path"}):
        return "image"
    if isinstance(value, str):
        return "text"
    if isinstance(value, (bytes, bytearray)):
        return "array"
    if isinstance(value, (np.ndarray, torch.Tensor)) and value.ndim in (2, 3):
        return "array"
    if isinstance(value, (list, tuple)) or (isinstance(value, np.ndarray) and value.ndim == 1):
        kinds = {_kind_of_value(item) for item in value} - {"empty"}
        return "empty" if not kinds else "text" if "text" in kinds else "other"
    return "other"


def _pick_column(kind: str, wanted: str | None, kinds: dict[str, str], names: tuple[str, ...]) -> str:
    have = ", ".join(f"{name!r}" for name in kinds) or "none"
    if wanted is not None:
        if wanted not in kinds:
            raise LearngeneError(f"the dataset has no {kind} column {wanted!r}: its columns are {have}")
        return wanted
    # Names such as webdataset's __key__ and __url__ are the format's own.
    open_to = {name: found for name, found in kinds.items() if not (name.startswith("__") and name.endswith("__"))}
    candidates = [name for name, found in open_to.items() if found in (kind, "empty")]
    if kind == "image" and not any(open_to[name] == kind for name in candidates):
        candidates = [name for name, found in open_to.items() if found in ("array", "empty")]
    known = [name for name in names if name in candidates]
    if known:
        return known[0]
    misfits = [name for name in names if name in open_to]
    if len(candidates) == 1 and not misfits:
        return candidates[0]
    trouble = "no" if not candidates else f"more than one possible ({', '.join(candidates)})"
    if len(candidates) == 1:
        # What is called "caption" and holds no strings makes any other string column a guess.
        trouble = f"no certain {kind} column, since {misfits[0]!r} holds none and {candidates[0]!r} may be another"
        raise LearngeneError(f"the dataset has {trouble}: name one of {have} with {kind}_column")
    raise LearngeneError(
        f"the dataset has {trouble} {kind} column: its columns are {have}. Name one with {kind}_column"
    )
