"""Loading one split of an image-text dataset, and splitting by hash."""

import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict
from datasets import load_dataset as _load_dataset
from datasets.exceptions import DatasetGenerationError, DatasetsError
from datasets.table import CastError

from ..errors import LearngeneError, first_line

AnyDataset: TypeAlias = Dataset | IterableDataset


def load_image_text(dataset: str | os.PathLike | AnyDataset, split: str | None = "train", **kwargs: Any) -> AnyDataset:
    """Return one split as a `Dataset` or `IterableDataset`.

    Args:
        dataset: a Hub id, a folder in `datasets` format (parquet, imagefolder, or written by `save_to_disk`),
            or a dataset object, which is returned as it is, or the one split of it.
        split: the split to take; None takes the only one there is.
        kwargs: passed on to `datasets.load_dataset` (`revision`, `token`, `streaming`, ...).

    Raises:
        LearngeneError: if there is no such dataset or split, it cannot be read, or it is empty.
    """
    if isinstance(dataset, (Dataset, IterableDataset)):
        loaded: Any = dataset
    elif isinstance(dataset, (DatasetDict, IterableDatasetDict)):
        loaded = _take_split(dataset, split, "the dataset")
    elif isinstance(dataset, (str, os.PathLike)):
        loaded = _load_by_name(os.fspath(dataset), split, kwargs)
    else:
        raise LearngeneError(
            f"the dataset is a {type(dataset).__name__}: give a Hub id, a folder, a Dataset or an IterableDataset"
        )
    if isinstance(loaded, Dataset) and len(loaded) == 0:
        raise LearngeneError("the dataset is empty (0 rows): there is nothing to train or measure on")
    return loaded


def check_dataset(dataset: Any) -> AnyDataset:
    """Return a dataset as it is; raise a `LearngeneError` on anything else, all splits in one among it."""
    if isinstance(dataset, (DatasetDict, IterableDatasetDict)):
        splits = list(map(str, dataset))
        raise LearngeneError(
            f"the dataset is all of {type(dataset).__name__}({', '.join(splits)}): give one split"
            + (f", such as dataset[{splits[0]!r}]" if splits else "")
        )
    if not isinstance(dataset, (Dataset, IterableDataset)):
        raise LearngeneError(f"the dataset is a {type(dataset).__name__}: give a Dataset or an IterableDataset")
    return dataset


def is_transformed(dataset: AnyDataset) -> bool:
    """Whether a function of the caller's (`set_transform`) makes the rows as they are read, whatever the features."""
    return isinstance(dataset, Dataset) and dataset.format["type"] == "custom"


def _load_by_name(name: str, split: str | None, kwargs: dict[str, Any]) -> AnyDataset:
    try:
        if (Path(name) / "state.json").exists() or (Path(name) / "dataset_dict.json").exists():
            from datasets import load_from_disk

            found = load_from_disk(name)
        else:
            found = _load_dataset(name, **kwargs)
    except Exception as error:  # of pyarrow, pandas, zipfile, fsspec and datasets, which has no common class of them
        raise LearngeneError(
            f"cannot load the dataset {name!r}: {_reason(error)}. Give a Hub dataset id, or a folder in "
            "datasets format"
        ) from None  # a chain of five tracebacks would bury the sentence
    if isinstance(found, (DatasetDict, IterableDatasetDict)):
        return _take_split(found, split, repr(name))
    return found


def rows_of(dataset: AnyDataset | Iterator[Any]) -> Iterator[Any]:
    """Iterate over rows; data that cannot be read on are a `LearngeneError` of one sentence."""
    try:
        yield from dataset
    except LearngeneError:
        raise
    except (DatasetsError, OSError, ValueError) as error:
        raise LearngeneError(f"the dataset cannot be read on: {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    """Say why data cannot be loaded, of the error that tells the most among those that led to it."""
    while True:
        if isinstance(error, CastError):
            return f"its files have different columns: {error.details()}"
        cause = error.__cause__ or error.__context__
        if cause is None or not isinstance(error, DatasetGenerationError):
            return first_line(error).rstrip(".")
        error = cause


def _take_split(splits: Mapping[Any, AnyDataset], split: str | None, name: str) -> AnyDataset:
    if split is None and len(splits) == 1:
        return next(iter(splits.values()))
    if split not in splits:
        have = ", ".join(map(str, splits)) or "none"
        asked = "more than one split, or none: name one of" if split is None else f"no split {split!r}: it has"
        raise LearngeneError(f"{name} has {asked} {have}")
    return splits[split]


def split_of(key: Any, validation: float = 0.05, test: float = 0.10) -> str:
    """Assign a key to "train", "validation" or "test" by the hash of its text, alike on every machine."""
    point = int.from_bytes(hashlib.sha256(str(key).encode()).digest()[:8], "big") / 2**64
    if point < test:
        return "test"
    return "validation" if point < test + validation else "train"


def hash_split(
    dataset: Dataset, id_column: str, text_column: str, *, validation: float = 0.05, test: float = 0.10
) -> DatasetDict:
    """Split by a hash of the row's id, keeping each distinct text in one split only.

    All rows of one text follow the row of that text with the smallest id. Within validation and test every text is
    kept once (its smallest id), so that a correct retrieval is never counted wrong. Rows without text are dropped.

    Raises:
        LearngeneError: on columns that are not there, texts that are no strings, or ids that have no order.
    """
    if not isinstance(check_dataset(dataset), Dataset):
        raise LearngeneError("a stream cannot be split by hash: all texts must be seen first. Give a Dataset")
    for column in (id_column, text_column):
        if column not in dataset.column_names:
            raise LearngeneError(f"the dataset has no column {column!r}: it has {', '.join(dataset.column_names)}")
    plain = dataset.with_format(None)
    ids, texts = list(plain[id_column]), [_stripped(text, row) for row, text in enumerate(plain[text_column])]
    try:
        rows = sorted(range(len(dataset)), key=lambda row: ids[row])
    except TypeError as error:
        raise LearngeneError(f"the ids in {id_column!r} have no order ({error}): give numbers or strings") from error
    split_by_text: dict[str, str] = {}
    chosen: dict[str, list[int]] = {"train": [], "validation": [], "test": []}
    for row in rows:
        text = texts[row]
        if not text:
            continue
        first = text not in split_by_text
        split = split_by_text.setdefault(text, split_of(ids[row], validation, test))
        if first or split == "train":
            chosen[split].append(row)
    return DatasetDict({name: dataset.select(sorted(indices)) for name, indices in chosen.items()})


def _stripped(text: Any, row: int) -> str:
    if text is not None and not isinstance(text, str):
        raise LearngeneError(f"row {row} has the text {text!r}: splitting takes one string a row, or None")
    return (text or "").strip()
