"""Turning rows into tensors once: pictures into `pixel_values`, captions into `input_ids`."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import PIL
import transformers
from datasets import Array3D, Dataset, Features, IterableDataset, List, Value
from torch.utils.data import get_worker_info
from transformers.utils import logging

from ..errors import LearngeneError
from .captions import captions_of
from .columns import column_names, find_columns, find_image_column
from .identity import PROCESSING_VERSION, fingerprint_data
from .loading import AnyDataset, check_dataset, is_transformed, rows_of
from .pictures import make_pixels, read_image, undecoded
from .pixels import Pixels
from .rows import PictureRows
from .texts import encode_texts, longest_text, pads_to_one_length

logger = logging.get_logger(__name__)

_BATCH = 64


def process_pairs(
    dataset: AnyDataset,
    processor: Any,
    *,
    image_column: str | None = None,
    text_column: str | None = None,
    max_length: int | None = None,
    text_config: Any = None,
    on_bad_image: str = "raise",
    keep_columns: tuple[str, ...] = (),
    num_proc: int | None = None,
) -> AnyDataset:
    """Turn pairs into `pixel_values` [3, H, W] float32 and `input_ids` [T] once, cached on disk by `datasets`.

    What is on disk is known by the content of the rows used (pictures by their bytes, not by where they lie), the
    processor and the settings, and the versions of this code, transformers and Pillow.

    Args:
        dataset: a `Dataset`, or an `IterableDataset`, which is processed as it streams.
        processor: a `CLIPProcessor`, or anything with `image_processor` and `tokenizer`.
        image_column, text_column: the columns' names; None finds them. Of several captions the first is taken.
        max_length: longest text in tokens, longer ones are cut; None takes the tokenizer's own limit.
        text_config: the config of the text encoder the texts are for: they are cut to its positions, and padded where
            it needs one length (SigLIP); None takes the tokenizer at its word.
        on_bad_image: what becomes of a row whose image cannot be read, or which has no text (None, an empty or blank
            string or list, anything else than strings): "raise" stops at the first one and names it; "skip" drops such
            rows and says how many, of a stream at its end.
        keep_columns: columns to carry along.
        num_proc: worker processes of `datasets.map`; None works in this one.

    Raises:
        LearngeneError: such a row under "raise", no usable row at all, missing columns, or pictures that the image
            processor leaves at unequal sizes.
    """
    check_dataset(dataset)
    image_column, text_column = find_columns(dataset, image_column, text_column)
    work = _Work(
        Pixels(processor.image_processor), image_column, on_bad_image, keep_columns, text_column, processor.tokenizer,
        text_config, max_length,
    )  # fmt: skip
    limit = longest_text(processor.tokenizer, text_config, max_length)
    return _process(dataset, work, f"{processor_key(processor)} {limit} {pads_to_one_length(text_config)}", num_proc)


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
    check_dataset(dataset)
    image_column = find_image_column(dataset, image_column)
    work = _Work(Pixels(image_processor), image_column, on_bad_image, keep_columns)
    return _process(dataset, work, processor_key(image_processor), num_proc)


def read_rows(
    dataset: AnyDataset,
    processor: Any,
    *,
    of_pairs: bool = True,
    image_column: str | None = None,
    text_column: str | None = None,
    max_length: int | None = None,
    text_config: Any = None,
    on_bad_image: str = "raise",
) -> PictureRows | IterableDataset:
    """Give the rows of `process_pairs` or `process_images` without storing a pixel: uint8, made when a row is read.

    Of a `Dataset` only the tokens are kept on disk. A picture that cannot be read is met when its row is, or, under
    "skip", before: all are read once for that.

    Args:
        processor: as of `process_pairs`, or without `of_pairs` an image processor or what has one.
        of_pairs: whether the rows have texts.

    Returns:
        what the collators take, `Pixels.finish` making floats of the `pixel_values`; of a stream a stream.
    """
    check_dataset(dataset)
    tokenizer = processor.tokenizer if of_pairs else None
    if of_pairs:
        image_column, text_column = find_columns(dataset, image_column, text_column)
    else:
        image_column, text_column = find_image_column(dataset, image_column), None
    pixels = Pixels(getattr(processor, "image_processor", processor))
    streamed = isinstance(dataset, IterableDataset)
    work = _Work(
        pixels if streamed else None, image_column, on_bad_image, (), text_column, tokenizer, text_config, max_length,
        as_bytes=True, reads_images=streamed or on_bad_image != "raise",
    )  # fmt: skip
    if streamed:
        return _process(dataset, work, "", None)
    plain = undecoded(dataset)
    needed = plain
    if not work.reads_images and not is_transformed(plain):
        needed = plain.select_columns([text_column or image_column])
    limit = longest_text(tokenizer, text_config, max_length) if of_pairs else None
    key = f"{processor_key(processor)} {limit} {pads_to_one_length(text_config)}"
    return PictureRows(plain, image_column, pixels, _process(needed, work, key, None))


def processor_key(processor: Any) -> str:
    """Describe what a processor does, alike in every process, for naming what it made.

    Pickling it would not do: a tokenizer's state changes when it is used.
    """
    image_processor = getattr(processor, "image_processor", processor)
    described = type(image_processor).__qualname__ + (
        image_processor.to_json_string() if hasattr(image_processor, "to_json_string") else repr(image_processor)
    )
    tokenizer = getattr(processor, "tokenizer", None)
    if tokenizer is None:
        return described
    backend = getattr(tokenizer, "backend_tokenizer", None)
    state = json.loads(backend.to_str()) if backend is not None else {"vocabulary": tokenizer.get_vocab()}
    state |= {"padding": None, "truncation": None, "limit": tokenizer.model_max_length}
    return described + json.dumps(state, sort_keys=True)


def fingerprint_processor(processor: Any) -> str:
    """Hash what a processor does: 32 hexadecimal digits."""
    return hashlib.sha256(processor_key(processor).encode()).hexdigest()[:32]


@dataclass
class _Counts:
    """Rows seen and left out in one pass over a stream."""

    seen: int = 0
    skipped: int = 0


@dataclass
class _Work:
    """What is done to a batch of rows.

    `text_column` None makes no `input_ids`; `pixels` None makes no `pixel_values`, and gives rows' numbers instead.
    """

    pixels: Pixels | None
    image_column: str
    on_bad_image: str
    keep: tuple[str, ...]
    text_column: str | None = None
    tokenizer: Any = None
    text_config: Any = None
    max_length: int | None = None
    shape: tuple[int, ...] | None = None
    columns: tuple[str, ...] | None = None
    as_bytes: bool = False
    reads_images: bool = True
    counts: _Counts = field(default_factory=_Counts)

    def __call__(self, batch: dict[str, list], indices: list[int]) -> dict[str, list]:
        images, texts, kept = [], [], []
        for position, index in enumerate(indices):
            try:
                image, text = self.read({name: values[position] for name, values in batch.items()}, f"row {index}")
            except LearngeneError as error:
                self.refuse(error)
                if not self.counts.skipped:
                    logger.warning(f"leaving out rows that cannot be used; the first: {error}")
                self.counts.skipped += 1
                continue
            images.append(image)
            texts.append(text)
            kept.append(position)
        self.counts.seen += len(indices)
        done: dict[str, list] = {name: [batch[name][position] for position in kept] for name in self.keep}
        numbers = [indices[position] for position in kept]
        if self.pixels is None:
            done["row"] = numbers
        else:
            done["pixel_values"] = self.make(self.pixels, images, numbers) if kept else []
        if self.text_column is not None:
            done["input_ids"] = self.ids(texts) if kept else []
        # A row of a stream without features may have columns that the first rows do not have.
        late = [name for name in batch if self.columns is not None and name not in self.columns]
        return done | {name: [None] * len(kept) for name in late}

    def refuse(self, error: LearngeneError) -> None:
        """Raise the error of a row that cannot be used, unless such rows are to be left out."""
        if self.on_bad_image == "raise":
            raise LearngeneError(f'{error}, or pass on_bad_image="skip" to leave such rows out') from error

    def read(self, row: dict[str, Any], name: str) -> tuple[Any, str]:
        image = read_image(row.get(self.image_column), name) if self.reads_images else None
        return image, "" if self.text_column is None else captions_of(row.get(self.text_column), name)[0]

    def make(self, pixels_of: Pixels, images: list[Any], indices: list[int]) -> list[Any]:
        read = pixels_of.read(images, "np") if self.as_bytes else make_pixels(pixels_of.image_processor, images, "np")
        pixels = list(read)
        self.shape = pixels[0].shape if self.shape is None else self.shape
        for values, index in zip(pixels, indices, strict=True):
            if values.shape != self.shape:
                raise LearngeneError(
                    f"the image processor makes {list(values.shape)} values of the image of row {index}, and "
                    f"{list(self.shape)} of those before it: resize the images, or set do_resize=True in the processor"
                )
        return pixels

    def ids(self, texts: list[str]) -> list[list[int]]:
        encoded = encode_texts(
            self.tokenizer,
            texts,
            self.text_config,
            max_length=self.max_length,
            padding=False,
            return_tensors=None,
        )
        return encoded["input_ids"]

    @property
    def trouble(self) -> str:
        return "their images cannot be read" + ("" if self.text_column is None else ", or they have no text")


class _ProcessedStream(IterableDataset):
    """A stream that says at its end how many rows it left out."""

    _work: _Work

    def __iter__(self) -> Iterator[Any]:
        self._begin()
        yield from rows_of(super().__iter__())
        self._report()

    def iter(self, batch_size: int, drop_last_batch: bool = False) -> Iterator[Any]:
        self._begin()
        yield from rows_of(super().iter(batch_size, drop_last_batch))
        self._report()

    def _begin(self) -> None:
        self._work.counts.seen = self._work.counts.skipped = 0

    def _report(self) -> None:
        counts = self._work.counts
        # A worker process sees a part of the stream: what it can't use may not be all.
        if counts.skipped == counts.seen and get_worker_info() is None:
            raise LearngeneError(
                f"none of the {counts.seen} rows can be used: {self._work.trouble}"
                if counts.seen
                else "the dataset is empty (0 rows): there is nothing to train or measure on"
            )
        if counts.skipped:
            logger.warning(f"skipped {counts.skipped} of {counts.seen} rows: {self._work.trouble}")


def _process(dataset: AnyDataset, work: _Work, key: str, num_proc: int | None) -> AnyDataset:
    if work.on_bad_image not in ("raise", "skip"):
        raise LearngeneError(f'on_bad_image is {work.on_bad_image!r}: it takes "raise" or "skip"')
    work.keep = (work.keep,) if isinstance(work.keep, str) else tuple(work.keep)
    known = column_names(dataset)
    for name in work.keep:
        if name not in known:
            raise LearngeneError(f"the dataset has no column {name!r} to keep: its columns are {', '.join(known)}")
    decoded, dataset = dataset, undecoded(dataset)
    if isinstance(dataset, IterableDataset):
        return _process_stream(dataset, work, known)
    if len(dataset) == 0:
        raise LearngeneError("the dataset is empty (0 rows): there is nothing to process")
    features: dict[str, Any] = {name: decoded.features[name] for name in work.keep}
    if work.pixels is None:
        features["row"] = Value("int64")
    else:
        work.shape = _first_shape(dataset, work, work.pixels)
        # Fixed-shape arrays are read without copying; nested lists would cost more than the model's own step.
        features["pixel_values"] = Array3D(work.shape, "float32")
    if work.text_column is not None:
        features["input_ids"] = List(Value("int64"))
    done = dataset.map(
        work,
        batched=True,
        batch_size=_BATCH,
        with_indices=True,
        remove_columns=dataset.column_names,
        features=Features(features),
        num_proc=num_proc,
        new_fingerprint=_fingerprint(dataset, work, key, features),
        desc="processing",
    )
    skipped = len(dataset) - len(done)
    if skipped:
        logger.warning(f"skipped {skipped} of {len(dataset)} rows: {work.trouble}")
    return done.with_format("torch")


def _process_stream(stream: IterableDataset, work: _Work, columns: list[str]) -> IterableDataset:
    work.columns = tuple(columns)
    done: Any = stream.map(work, batched=True, batch_size=_BATCH, with_indices=True, remove_columns=columns)
    done.__class__ = _ProcessedStream
    done._work = work
    return done


def _first_shape(dataset: Dataset, work: _Work, pixels: Pixels) -> tuple[int, ...]:
    """Return the shape [3, H, W] that the image processor gives the first row that can be used."""
    for index, row in enumerate(dataset):
        try:
            image, _ = work.read(row, f"row {index}")
        except LearngeneError as error:
            work.refuse(error)
            continue
        return make_pixels(pixels.image_processor, [image], "np")[0].shape
    raise LearngeneError(f"none of the {len(dataset)} rows can be used: {work.trouble}")


def _fingerprint(dataset: Dataset, work: _Work, key: str, features: dict[str, Any]) -> str:
    """Name what is made of a dataset by all that makes it."""
    columns = [name for name in (work.image_column, work.text_column, *work.keep) if name is not None]
    # What a caller's transform makes is not in the content.
    transform = dataset._fingerprint if is_transformed(dataset) else ""
    content = fingerprint_data(dataset, [name for name in columns if name in dataset.column_names])
    versions = f"{PROCESSING_VERSION} {transformers.__version__} {PIL.__version__}"
    return hashlib.sha256(
        f"{versions} {content} {transform} {key} {columns} {work.on_bad_image} {features}".encode()
    ).hexdigest()[:16]
