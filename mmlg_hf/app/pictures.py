"""Pictures as a page gets them: read with a limit, or a sentence; and an album of them that texts search."""

import os
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..data import open_image
from ..errors import LearngeneError
from ..evaluation.dual_encoders import embed_images, embed_texts
from .sizes import Grown, Sizes

MOST_PIXELS = 50_000_000
MOST_PICTURES = 300
_NAMES_TOLD = 3


def read_picture(path: str | os.PathLike) -> Image.Image:
    """Return a picture as upright RGB.

    Raises:
        LearngeneError: it is none, is damaged, or has more than `MOST_PIXELS` pixels; the sentence names the file.
    """
    name = os.path.basename(os.fspath(path))
    if (size := _size_of(path)) > MOST_PIXELS:
        raise LearngeneError(
            f"{name} has {size // 10**6} million pixels or more, and the page takes {MOST_PIXELS // 10**6} million: "
            "make it smaller first"
        )
    try:
        return open_image(path)
    except LearngeneError as error:
        raise LearngeneError(f"{name} cannot be read as a picture: {error}") from error


def _size_of(path: str | os.PathLike) -> int:
    """The pixels of a picture by its header alone, or fewer; 0 where it cannot be read, which `open_image` says."""
    try:
        with Image.open(path) as opened:
            return opened.width * opened.height
    except Image.DecompressionBombError:  # which does not tell the size
        return 2 * (Image.MAX_IMAGE_PIXELS or 0)
    except Exception:  # decoders raise nothing narrower
        return 0


class Album:
    """Pictures that texts are searched in, made small, with their embeddings by each size that was asked.

    Args:
        paths: files; what is no picture is left out, and its name is in `left_out`.
        side: pixels that the shorter side keeps, at least what the model sees.

    Raises:
        LearngeneError: there are no pictures among them, or more than `MOST_PICTURES` files.
    """

    def __init__(self, paths: Sequence[str | os.PathLike], side: int = 256):
        files = [path for path in paths if not os.path.basename(path).startswith(".")]
        if not files:
            raise LearngeneError("there are no pictures to search: choose a folder of them, or some files")
        if len(files) > MOST_PICTURES:
            raise LearngeneError(f"these are {len(files)} files, and the page searches {MOST_PICTURES} at most")
        self.names: list[str] = []
        self.pictures: list[Image.Image] = []
        self.left_out: list[str] = []
        for path in files:
            try:
                picture = shrunk(read_picture(path), side)
            except LearngeneError as error:
                self.left_out.append(str(error))
                continue
            self.names.append(os.path.basename(os.fspath(path)))
            self.pictures.append(picture)
        if not self.pictures:
            raise LearngeneError(f"none of these {len(files)} files is a picture: {self.left_out[0]}")
        self._embeds: dict[tuple[int, int], Tensor] = {}

    def __len__(self) -> int:
        return len(self.pictures)

    def search(self, sizes: Sizes, grown: Grown, text: str, count: int) -> list[tuple[int, float]]:
        """Return the `count` pictures nearest to a text, best first: their places, and their cosines with it.

        Raises:
            LearngeneError: the text is empty.
        """
        if not text or not text.strip():
            raise LearngeneError("there is nothing to search for: type a few words")
        with sizes.lock:
            key = (grown.depth, grown.width)
            if key not in self._embeds:
                self._embeds[key] = embed_images(grown.model, self.pictures, sizes.processor)
            words = embed_texts(grown.model, [" ".join(text.split())], sizes.processor)
        cosines = (self._embeds[key] @ words.T)[:, 0]
        best = torch.argsort(cosines, descending=True, stable=True)[:count].tolist()
        return [(place, cosines[place].item()) for place in best]

    def told(self) -> str:
        """How many pictures there are, and which files are none."""
        text = f"{len(self)} picture{'s' if len(self) > 1 else ''}"
        if not self.left_out:
            return text
        more = f", and {len(self.left_out) - _NAMES_TOLD} more" if len(self.left_out) > _NAMES_TOLD else ""
        return f"{text}; left out: {'; '.join(self.left_out[:_NAMES_TOLD])}{more}"


def shrunk(picture: Image.Image, side: int) -> Image.Image:
    """Return a picture whose shorter side is no longer than `side` pixels; a smaller one as it is."""
    share = side / min(picture.size)
    if share >= 1:
        return picture
    size: Any = tuple(max(1, round(share * length)) for length in picture.size)
    return picture.resize(size, Image.Resampling.BICUBIC, reducing_gap=3.0)
