"""Rows of image-text data into batches."""

from collections.abc import Mapping, Sequence
from copy import copy
from typing import Any

import torch

from ..errors import LearngeneError
from .captions import captions_of
from .columns import find_columns
from .pictures import make_pixels, read_image
from .pixels import Pixels
from .texts import encode_texts, longest_text, pads_to_one_length

_PROCESSED = ("pixel_values", "input_ids")
_STATES = ("image_states", "text_states")  # of two frozen encoders


class ImageTextCollator:
    """Turn rows of image-text data into one batch for a CLIP-like model, with `return_loss=True`.

    Rows are raw (an image column and a text column) or processed (`pixel_values` and `input_ids`, as `process_pairs`
    leaves them). A raw row may hold a list of captions: one is drawn at random from torch's generator each time the
    row is seen, so that a seed fixes the choice. Rows of `image_states` and `text_states`, as
    `mmlg_hf.alignment.keep_states` makes them, are stacked as they are.

    Args:
        processor: a `CLIPProcessor`, or any processor with an `image_processor` and a `tokenizer`.
        image_column: the image column of raw rows; None finds it from all rows of the first batch, and keeps to it for
            rows of the same columns.
        text_column: the text column of raw rows; None finds it likewise.
        max_length: longest text in tokens, longer ones are cut; None takes the tokenizer's own limit.
        pad_to_multiple_of: pad texts to a multiple of this, which must divide the longest length; None pads to the
            longest text of the batch.
        text_config: the config of the text encoder the texts are for: they are cut to its positions, and padded to
            one length where it needs that (SigLIP); None takes the tokenizer at its word.

    Raises:
        LearngeneError: on a processor that lacks one of the two, and on rows without a readable image or a text.
    """

    def __init__(
        self,
        processor: Any,
        image_column: str | None = None,
        text_column: str | None = None,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        text_config: Any = None,
    ) -> None:
        for part in ("image_processor", "tokenizer"):
            if getattr(processor, part, None) is None:
                raise LearngeneError(
                    f"ImageTextCollator needs a processor with an image_processor and a tokenizer, such as a "
                    f"CLIPProcessor; this {type(processor).__name__} has no {part}"
                )
        _check_lengths(processor.tokenizer, text_config, max_length, pad_to_multiple_of)
        self.processor = processor
        self.image_column = image_column
        self.text_column = text_column
        self.max_length = max_length
        self.pad_to_multiple_of = pad_to_multiple_of
        self.text_config = text_config
        self.pixels = Pixels(processor.image_processor)
        self._is_deferred = False
        self._columns: dict[frozenset[str], tuple[str, str]] = {}

    def deferred(self) -> "ImageTextCollator":
        """Return a collator of the same settings that leaves pictures 8-bit pixels, for `finish` to make floats of.

        So that a worker hands over a quarter of the bytes, and the device normalises them.
        """
        other = copy(self)
        other._is_deferred = True
        return other

    def finish(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Make the floats that the model takes of a batch's 8-bit pixels, on their device."""
        return finish(self.pixels, batch)

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return `pixel_values` [B, 3, H, W], `input_ids` and `attention_mask` [B, T], and `return_loss=True`."""
        if not rows:
            raise LearngeneError("a batch needs at least one row, got none")
        for position, row in enumerate(rows):
            if not isinstance(row, Mapping):
                raise LearngeneError(f"row {position} of the batch is a {type(row).__name__}: give rows with columns")
        if all(row.get(name) is not None for row in rows for name in _STATES):
            states = {name: torch.stack([torch.as_tensor(row[name]) for row in rows]) for name in _STATES}
            return {**states, "return_loss": True}
        processed = [all(row.get(name) is not None for name in _PROCESSED) for row in rows]
        if any(processed) and not all(processed):
            raise LearngeneError(
                f"row {processed.index(False)} of the batch lacks pixel_values or input_ids, which other rows have: "
                "give either raw or processed rows"
            )
        batch = self._stack(rows) if processed[0] else self._process(rows)
        return {**(batch if self._is_deferred else self.finish(batch)), "return_loss": True}

    def _stack(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        names = [name for name in ("input_ids", "attention_mask", "token_type_ids") if name in rows[0]]
        tokenizer, limit = self.processor.tokenizer, longest_text(self.processor.tokenizer, self.text_config)
        longest = max(len(row["input_ids"]) for row in rows)
        if limit is not None and longest > limit:
            raise LearngeneError(
                f"a row of the batch has {longest} input_ids and the text encoder takes {limit}: process the data for "
                "this model, with max_length or text_config"
            )
        one_length = pads_to_one_length(self.text_config)
        texts = tokenizer.pad(
            [{name: row[name] for name in names} for row in rows],
            padding="max_length" if one_length else True,
            max_length=limit if one_length else None,
            pad_to_multiple_of=None if one_length else self.pad_to_multiple_of,
            return_attention_mask=False if one_length else None,
            # An encoder that reads the first end token must not meet padding, often the same token, before it.
            padding_side=None if self.text_config is None else "right",
            return_tensors="pt",
        )
        pixels = [torch.as_tensor(row["pixel_values"]) for row in rows]
        for position, values in enumerate(pixels):
            if values.shape != pixels[0].shape:
                raise LearngeneError(
                    f"row {position} of the batch has pixel_values {list(values.shape)}, row 0 has "
                    f"{list(pixels[0].shape)}: process the images to one size (do_resize=True)"
                )
        return {**texts, "pixel_values": torch.stack(pixels)}

    def _process(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        image_column, text_column = self._find_columns(rows)
        images, texts = [], []
        for position, row in enumerate(rows):
            name = f"row {position} of the batch"
            images.append(read_image(row.get(image_column), name))
            texts.append(_choose(captions_of(row.get(text_column), name)))
        tokens = encode_texts(
            self.processor.tokenizer,
            texts,
            self.text_config,
            max_length=self.max_length,
            pad_to_multiple_of=self.pad_to_multiple_of,
        )
        made = self.pixels.read(images) if self._is_deferred else make_pixels(self.pixels.image_processor, images)
        return {**tokens, "pixel_values": made}

    def _find_columns(self, rows: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
        """Choose once for rows of the same columns: a batch of few rows may be empty in the right one."""
        names = frozenset(name for row in rows for name in row)
        if names not in self._columns:
            self._columns[names] = find_columns(list(rows), self.image_column, self.text_column)
        return self._columns[names]


def finish(pixels: Pixels, batch: Mapping[str, Any]) -> dict[str, Any]:
    """Return a batch whose `pixel_values`, if it has any, are what the model takes."""
    values = batch.get("pixel_values")
    return {**batch} if values is None else {**batch, "pixel_values": pixels.finish(values)}


def _choose(captions: list[str]) -> str:
    return captions[0] if len(captions) == 1 else captions[int(torch.randint(len(captions), ()))]


def _check_lengths(tokenizer: Any, text_config: Any, max_length: int | None, multiple: int | None) -> None:
    for name, value in (("max_length", max_length), ("pad_to_multiple_of", multiple)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise LearngeneError(f"{name} is {value!r}: give a number of tokens above 0, or None")
    limit = longest_text(tokenizer, text_config, max_length)
    if multiple is not None and limit is not None and limit % multiple:
        # Padding the longest texts up to the multiple would pass the limit, and with it the model's positions.
        raise LearngeneError(
            f"texts have up to {limit} tokens, no multiple of pad_to_multiple_of={multiple}: set max_length to one, "
            f"such as {max(limit // multiple, 1) * multiple}"
        )
