"""Image-text datasets: loading, finding the columns, splitting by hash, and turning pairs into tensors once."""

import hashlib
import io
import json
import os
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from datasets import (
    Array3D,
    Dataset,
    DatasetDict,
    Features,
    Image,
    IterableDataset,
    IterableDatasetDict,
    List,
    Sequence,
    Value,
)
from datasets import load_dataset as _load_dataset
from PIL import Image as PILImage
from transformers.utils import logging

from .errors import LearngeneError

logger = logging.get_logger(__name__)

AnyDataset: TypeAlias = Dataset | IterableDataset

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
)
IMAGE_COLUMN_NAMES = ("image", "images", "img", "photo", "picture", "jpg", "png", "webp")


def load_image_text(dataset: str | os.PathLike | AnyDataset, split: str | None = "train", **kwargs: Any) -> AnyDataset:
    """Return one split as a `Dataset` or `IterableDataset`.

    Args:
        dataset: a Hub id, a folder in `datasets` format (parquet, imagefolder, or written by `save_to_disk`),
            or a dataset object, which is returned as it is.
        split: the split to take; None takes the only one there is.
        kwargs: passed on to `datasets.load_dataset` (`revision`, `token`, `streaming`, ...).

    Raises:
        LearngeneError: if there is no such dataset or split, or it is empty.
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


def _load_by_name(name: str, split: str | None, kwargs: dict[str, Any]) -> AnyDataset:
    try:
        if (Path(name) / "state.json").exists() or (Path(name) / "dataset_dict.json").exists():
            from datasets import load_from_disk

            found = load_from_disk(name)
        else:
            found = _load_dataset(name, **kwargs)
    except (OSError, ValueError, ConnectionError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise LearngeneError(
            f"cannot load the dataset {name!r}: {reason}. Give a Hub dataset id, or a folder in datasets format"
        ) from error
    if isinstance(found, (DatasetDict, IterableDatasetDict)):
        return _take_split(found, split, repr(name))
    return found


def _take_split(splits: Mapping[Any, AnyDataset], split: str | None, name: str) -> AnyDataset:
    if split is None and len(splits) == 1:
        return next(iter(splits.values()))
    if split not in splits:
        raise LearngeneError(f"{name} has no split {split!r}: it has {', '.join(map(str, splits))}")
    return splits[split]


def find_columns(
    dataset: AnyDataset | Features | Mapping[str, Any], image_column: str | None = None, text_column: str | None = None
) -> tuple[str, str]:
    """Name the image and the text column of a dataset.

    Args:
        dataset: a dataset, its `Features`, or one row of it.
        image_column: the image column's name; None finds it by feature type, then by name.
        text_column: the text column's name; None finds it by name, then takes the only string column there is.

    Raises:
        LearngeneError: naming the columns there are, if one is missing or more than one would do.
    """
    kinds = _column_kinds(dataset)
    found = [
        _pick_column("image", image_column, kinds, IMAGE_COLUMN_NAMES),
        _pick_column("text", text_column, kinds, TEXT_COLUMN_NAMES),
    ]
    return found[0], found[1]


def _column_kinds(dataset: AnyDataset | Features | Mapping[str, Any]) -> dict[str, str]:
    """Map each column to "image", "text" or "other"."""
    if isinstance(dataset, IterableDataset) and dataset.features is None:
        dataset = next(iter(dataset), {})
    described: Mapping[str, Any] = (
        dataset.features if isinstance(dataset, (Dataset, IterableDataset)) else dataset  # type: ignore[assignment]
    )

    def kind(value: Any) -> str:
        if isinstance(value, (List, Sequence)):
            value = value.feature
        elif isinstance(value, list) and value:
            value = value[0]
        if isinstance(value, (Image, PILImage.Image)):
            return "image"
        if isinstance(value, str) or (isinstance(value, Value) and value.dtype in ("string", "large_string")):
            return "text"
        return "other"

    return {name: kind(value) for name, value in described.items()}


def _pick_column(kind: str, wanted: str | None, kinds: dict[str, str], names: tuple[str, ...]) -> str:
    have = ", ".join(f"{name!r}" for name in kinds) or "none"
    if wanted is not None:
        if wanted not in kinds:
            raise LearngeneError(f"the dataset has no {kind} column {wanted!r}: its columns are {have}")
        return wanted
    candidates = [name for name, found in kinds.items() if found == kind]
    for name in names:
        if name in candidates:
            return name
    if len(candidates) == 1:
        return candidates[0]
    trouble = "no" if not candidates else f"more than one possible ({', '.join(candidates)})"
    raise LearngeneError(
        f"the dataset has {trouble} {kind} column: its columns are {have}. Name one with {kind}_column"
    )


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
    """
    for column in (id_column, text_column):
        if column not in dataset.column_names:
            raise LearngeneError(f"the dataset has no column {column!r}: it has {', '.join(dataset.column_names)}")
    ids, texts = dataset[id_column], [(text or "").strip() for text in dataset[text_column]]
    rows = sorted(range(len(dataset)), key=lambda row: ids[row])
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


# What Pillow's decoders raise of damaged bytes besides OSError, a size that no image has among it.
_DAMAGED = (
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    OverflowError,
    struct.error,
    PILImage.DecompressionBombError,
)


def open_image(value: Any) -> PILImage.Image:
    """Return an RGB image from a PIL image, bytes, a path, or a `datasets` image dictionary.

    Raises:
        OSError: if the bytes are no readable image.
    """
    if isinstance(value, dict):
        value = value["bytes"] if value.get("bytes") is not None else value["path"]
    if isinstance(value, bytes):
        value = io.BytesIO(value)
    try:
        image = value if isinstance(value, PILImage.Image) else PILImage.open(value)
        return image.convert("RGB")
    except _DAMAGED as error:
        raise OSError(f"damaged image: {error}") from error


def process_pairs(
    dataset: AnyDataset,
    processor: Any,
    *,
    image_column: str | None = None,
    text_column: str | None = None,
    max_length: int | None = None,
    on_bad_image: str = "raise",
    keep_columns: tuple[str, ...] = (),
    num_proc: int | None = None,
) -> AnyDataset:
    """Turn pairs into `pixel_values` [3, H, W] float32 and `input_ids` [T] once, cached on disk by `datasets`.

    Args:
        dataset: a `Dataset`, or an `IterableDataset`, which is processed as it streams.
        processor: a `CLIPProcessor`, or anything with `image_processor` and `tokenizer`.
        image_column, text_column: the columns' names; None finds them. Of several captions the first is taken.
        max_length: longest text in tokens, longer ones are cut; None takes the tokenizer's own limit.
        on_bad_image: "raise" stops at the first unreadable image with its index; "skip" drops such rows and says
            how many (for a stream, which has no length, they are dropped as they come).
        keep_columns: columns to carry along.
        num_proc: worker processes of `datasets.map`; None works in this one.

    Raises:
        LearngeneError: an unreadable image under "raise", no readable image at all, or missing columns.
    """
    image_column, text_column = find_columns(dataset, image_column, text_column)

    def tokenize(texts: list[Any]) -> list[list[int]]:
        firsts = [(text[0] if isinstance(text, list) and text else text) or "" for text in texts]
        return processor.tokenizer(firsts, truncation=True, max_length=max_length)["input_ids"]

    key = f"{processor_key(processor)} {text_column} {max_length}"
    return _process(
        dataset,
        processor.image_processor,
        image_column,
        on_bad_image,
        keep_columns,
        num_proc,
        key,
        text_column,
        tokenize,
    )


def process_images(
    dataset: AnyDataset,
    image_processor: Any,
    *,
    image_column: str | None = None,
    on_bad_image: str = "raise",
    keep_columns: tuple[str, ...] = (),
    num_proc: int | None = None,
) -> AnyDataset:
    """Turn images into `pixel_values` [3, H, W] float32 once: `process_pairs` for data without texts."""
    image_column = _pick_column("image", image_column, _column_kinds(dataset), IMAGE_COLUMN_NAMES)
    key = processor_key(image_processor)
    return _process(dataset, image_processor, image_column, on_bad_image, keep_columns, num_proc, key)


def processor_key(processor: Any) -> str:
    """Describe what a processor does, alike in every process, for naming what it made.

    Pickling it would not do: a tokenizer's state changes when it is used.
    """
    image_processor = getattr(processor, "image_processor", processor)
    described = (
        image_processor.to_json_string() if hasattr(image_processor, "to_json_string") else repr(image_processor)
    )
    tokenizer = getattr(processor, "tokenizer", None)
    if tokenizer is None:
        return described
    backend = getattr(tokenizer, "backend_tokenizer", None)
    state = json.loads(backend.to_str()) if backend is not None else {"vocabulary": tokenizer.get_vocab()}
    state |= {"padding": None, "truncation": None, "limit": tokenizer.model_max_length}
    return described + json.dumps(state, sort_keys=True)


def _process(
    dataset: AnyDataset,
    image_processor: Any,
    image_column: str,
    on_bad_image: str,
    keep: tuple[str, ...],
    num_proc: int | None,
    key: str,
    text_column: str | None = None,
    tokenize: Callable[[list[Any]], list[list[int]]] | None = None,
) -> AnyDataset:
    if on_bad_image not in ("raise", "skip"):
        raise LearngeneError(f'on_bad_image is {on_bad_image!r}: it takes "raise" or "skip"')
    # Images come as bytes, so that one that cannot be decoded is met in our code, with its index.
    if dataset.features is not None and isinstance(dataset.features.get(image_column), Image):
        dataset = dataset.cast_column(image_column, Image(decode=False))

    def work(batch: dict[str, list], indices: list[int]) -> dict[str, list]:
        images, kept = _open_images(batch[image_column], indices, on_bad_image)
        done: dict[str, list] = {name: [batch[name][position] for position in kept] for name in keep}
        done["pixel_values"] = (
            list(image_processor(images=images, return_tensors="np")["pixel_values"]) if kept else []
        )
        if tokenize is not None and text_column is not None:
            done["input_ids"] = tokenize([batch[text_column][position] for position in kept]) if kept else []
        return done

    columns = list(dataset.column_names or next(iter(dataset)))
    if isinstance(dataset, IterableDataset):
        return dataset.map(work, batched=True, batch_size=64, with_indices=True, remove_columns=columns)
    # Fixed-shape arrays are read without copying; nested lists would cost more than the model's own step.
    blank = image_processor(images=[PILImage.new("RGB", (8, 8))], return_tensors="np")["pixel_values"]
    features: dict[str, Any] = {name: dataset.features[name] for name in keep}
    features["pixel_values"] = Array3D(blank.shape[1:], "float32")
    if tokenize is not None:
        features["input_ids"] = List(Value("int64"))
    done = dataset.map(
        work,
        batched=True,
        batch_size=64,
        with_indices=True,
        remove_columns=columns,
        features=Features(features),
        num_proc=num_proc,
        new_fingerprint=hashlib.sha256(
            f"{dataset._fingerprint} {key} {image_column} {on_bad_image} {keep}".encode()
        ).hexdigest()[:16],
        desc="processing",
    )
    skipped = len(dataset) - len(done)
    if skipped and not len(done):
        raise LearngeneError(f"none of the {len(dataset)} images can be read")
    if skipped:
        logger.warning(f"skipped {skipped} of {len(dataset)} rows: their images cannot be read")
    return done.with_format("torch")


def _open_images(values: list[Any], indices: list[int], on_bad_image: str) -> tuple[list[PILImage.Image], list[int]]:
    """Open images; return them and the positions of those that could be read."""
    images, kept = [], []
    for position, value in enumerate(values):
        try:
            images.append(open_image(value))
            kept.append(position)
        except (OSError, TypeError, KeyError, AttributeError) as error:
            if on_bad_image == "raise":
                raise LearngeneError(
                    f"the image of row {indices[position]} cannot be read ({type(error).__name__}): mend it, or "
                    'pass on_bad_image="skip" to leave such rows out'
                ) from error
    return images, kept
