"""Inputs to export with, to verify with and to time: some always the same, others drawn at random."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..data import open_image, picture_files
from ..data.texts import encode_texts, longest_text, text_config_of
from ..errors import LearngeneError
from ..evaluation.measuring import image_inputs, part_of, tokenizer_for

_TEXT = "a photo of some red shoes on white, beside two blue shirts and an old watch"
# Pictures to calibrate with: fewer tell too little of what activations there are, more are not used.
_FEWEST, _MOST = 16, 512


class Pictures:
    """A user's own pictures: three in four to calibrate static int8 with, the others to verify it with.

    Args:
        folder: of pictures like those that the model will meet.
        inputs: makes a model's inputs.

    Raises:
        LearngeneError: it is no folder, or has fewer than 16 pictures.
    """

    def __init__(self, folder: Any, inputs: "Inputs"):
        self.inputs = inputs
        paths = picture_files(folder)
        if len(paths) < _FEWEST:
            raise LearngeneError(
                f"{str(folder)!r} has {len(paths)} pictures: calibrating takes {_FEWEST} or more, like those that the "
                "model will meet"
            )
        paths = [paths[index * len(paths) // min(len(paths), _MOST)] for index in range(min(len(paths), _MOST))]
        self.held_out: Sequence[Path] = paths[3::4]
        self.used: Sequence[Path] = [path for index, path in enumerate(paths) if index % 4 != 3]

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        """Inputs of one picture after the other, to calibrate with."""
        return (self._pixels([path]) for path in self.used)

    def batches(self) -> Iterator[dict[str, Tensor]]:
        """Inputs of the pictures that were held out, some at once."""
        return (self._pixels(self.held_out[first : first + 8]) for first in range(0, len(self.held_out), 8))

    def _pixels(self, paths: Sequence[Path]) -> dict[str, Tensor]:
        pictures = []
        for path in paths:
            try:
                pictures.append(open_image(path))
            except LearngeneError as error:
                raise LearngeneError(f"{str(path)!r} cannot be read as a picture: {error}") from error
        image_processor = part_of(self.inputs.processor, "image_processor")
        return {"pixel_values": image_inputs(image_processor, pictures, 0)["pixel_values"].float()}


class Inputs:
    """Makes inputs of a model through its own processor, as tensors by name.

    Args:
        model: whose inputs they are.
        processor: with an image processor, a tokenizer or both, as the model needs them.
    """

    def __init__(self, model: Any, processor: Any):
        self.model = model
        self.processor = processor

    def make(self, taken: tuple[str, ...], count: int, seed: int | None = None) -> dict[str, Tensor]:
        """`count` pictures, texts or both; the same ones for None, others for a seed."""
        made: dict[str, Tensor] = {}
        if "texts" in taken:
            made |= self.texts(count, seed)
        if "pictures" in taken:
            made |= self.pictures(count, seed)
        return made

    def pictures(self, count: int, seed: int | None = None) -> dict[str, Tensor]:
        """`pixel_values` [count, C, H, W] of shaded pictures, or of noise."""
        pictures = []
        for index in range(count):
            shades = Image.linear_gradient("L").rotate(90 * index)
            other = Image.radial_gradient("L")
            pictures.append(Image.merge("RGB", (shades, other, shades.rotate(180))))
        image_processor = part_of(self.processor, "image_processor")
        pixels = image_inputs(image_processor, pictures, 0)["pixel_values"]
        if seed is not None:
            pixels = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(seed))
        return {"pixel_values": pixels.float()}

    def texts(self, count: int, seed: int | None = None) -> dict[str, Tensor]:
        """`input_ids` and, where the model takes one, `attention_mask` [count, T] of texts of several lengths."""
        tokenizer = tokenizer_for(self.model, self.processor)
        words = _TEXT.split()
        texts = [" ".join(words[: 2 + (5 * index) % len(words)]) for index in range(count)]
        encoded = encode_texts(tokenizer, texts, text_config_of(self.model))
        made = {name: encoded[name] for name in ("input_ids", "attention_mask") if name in encoded}
        if seed is not None:
            made["input_ids"] = _other_tokens(made["input_ids"], tokenizer, seed)
        return made

    @property
    def longest_text(self) -> int | None:
        """Most tokens that a text may have; None where nothing sets a limit."""
        return longest_text(tokenizer_for(self.model, self.processor), text_config_of(self.model))


def _other_tokens(ids: Tensor, tokenizer: Any, seed: int) -> Tensor:
    """Replace all but the special tokens by random ones that are none of these."""
    special = torch.tensor(sorted(tokenizer.all_special_ids))
    ordinary = torch.tensor(sorted(set(tokenizer.get_vocab().values()) - set(tokenizer.all_special_ids)))
    if not len(ordinary):
        raise LearngeneError("the tokenizer has nothing but special tokens: it is damaged")
    drawn = torch.randint(len(ordinary), ids.shape, generator=torch.Generator().manual_seed(seed))
    return torch.where(torch.isin(ids, special), ids, ordinary[drawn])
