"""Rows whose pictures are read when they are asked for, in the workers of a DataLoader, and never stored as pixels."""

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.utils.data
from datasets import Dataset

from .identity import fingerprint_data
from .loading import is_transformed
from .pictures import read_image
from .pixels import Pixels


class PictureRows(torch.utils.data.Dataset):
    """Rows as `process_pairs` makes them, but of uint8: each picture is decoded and resized when its row is asked for.

    Args:
        dataset: the rows with their pictures, undecoded.
        image_column: the column of pictures.
        pixels: what is made of them.
        made: for each row that can be used its number in `dataset` ("row"), and what else there is of it.
    """

    def __init__(self, dataset: Dataset, image_column: str, pixels: Pixels, made: Dataset) -> None:
        self.dataset = dataset if is_transformed(dataset) else dataset.select_columns([image_column])
        self.image_column, self.pixels = image_column, pixels
        self.made = made.with_format("torch")

    def __len__(self) -> int:
        return len(self.made)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Return several rows at once: the image processor makes one batch of their pictures."""
        rows = [dict(self.made[int(index)]) for index in indices]
        images = []
        for row in rows:
            number = int(row.pop("row"))
            images.append(read_image(self.dataset[number].get(self.image_column), f"row {number}"))
        for row, pixels in zip(rows, self.pixels.read(images), strict=True):
            row["pixel_values"] = pixels
        return rows

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[index] for index in range(len(self)))

    def fingerprint(self) -> str:
        """Hash the content of the rows, pictures by their bytes, as `fingerprint_data` does."""
        pictures = self.dataset.select(self.made["row"][:].tolist())
        transform = self.dataset._fingerprint if is_transformed(self.dataset) else ""
        content = f"{fingerprint_data(pictures)} {transform} {fingerprint_data(self.made)}"
        return hashlib.sha256(content.encode()).hexdigest()[:32]
