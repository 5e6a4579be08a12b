"""The one decoder of pictures: from every form and mode to upright 8-bit RGB, or one sentence on what is wrong."""

import io
import os
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Image
from datasets.utils.file_utils import is_local_path, xopen
from PIL import ExifTags, UnidentifiedImageError
from PIL import Image as PILImage

from ..errors import LearngeneError, first_line
from .loading import AnyDataset, is_transformed

# What Pillow's decoders raise of damaged bytes besides OSError, a size that no image has among it; and what they warn
# of where warnings are errors.
_DAMAGED = (
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    AttributeError,
    OverflowError,
    MemoryError,
    RuntimeError,
    struct.error,
    PILImage.DecompressionBombError,
    Warning,
)
# Modes that Pillow turns to RGB by way of another only, or with a warning.
_BY_WAY_OF = {"La": "LA", "RGBa": "RGBA", "P": "RGBA", "PA": "RGBA"}
# How the EXIF orientations turn a picture upright; 1 is upright.
_TURNED = {
    2: PILImage.Transpose.FLIP_LEFT_RIGHT,
    3: PILImage.Transpose.ROTATE_180,
    4: PILImage.Transpose.FLIP_TOP_BOTTOM,
    5: PILImage.Transpose.TRANSPOSE,
    6: PILImage.Transpose.ROTATE_270,
    7: PILImage.Transpose.TRANSVERSE,
    8: PILImage.Transpose.ROTATE_90,
}
PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")


class UnreadableImage(LearngeneError, OSError):
    """A picture that cannot be opened, is damaged, or whose values cannot be told."""


def open_image(value: Any) -> PILImage.Image:
    """Return a picture as 8-bit RGB, upright as its EXIF orientation says; transparency is dropped, as CLIP does.

    Values of 16 and 32 bits and floats are scaled, not clipped: 16-bit ones from 0 to 65535, 32-bit integers by their
    largest value (to 255, 65535 or 2^31 - 1), floats from 0 to 1, or as integers where all of them are whole.

    Args:
        value: a PIL image, bytes, a path, an open file, a `datasets` image dictionary (its path may lie in an archive
            or on the Hub), or what a numpy- or torch-formatted dataset makes of an RGB image: uint8, [H, W, 3] or
            [3, H, W].

    Raises:
        UnreadableImage: (a `LearngeneError` and an `OSError`) if this is no picture, it is damaged, or larger than
            Pillow allows, or the range of its values cannot be told.
    """
    try:
        return _to_rgb(_upright(_open(value)))
    except UnreadableImage:
        raise
    except UnidentifiedImageError as error:
        raise UnreadableImage("its bytes are no image that Pillow knows") from error
    except OSError as error:
        raise UnreadableImage(first_line(error)) from error
    except _DAMAGED as error:
        raise UnreadableImage(f"damaged image: {first_line(error)}") from error


def read_image(value: Any, row: str) -> PILImage.Image:
    """Open a picture as `open_image` does; its error names the row, such as "row 3"."""
    try:
        return open_image(value)
    except UnreadableImage as error:
        raise UnreadableImage(f"the image of {row} cannot be read ({error}): mend it or drop that row") from error


def picture_files(folder: str | os.PathLike) -> list[Path]:
    """The files of a folder, and of those in it, that are named as pictures are, by path; hidden ones are left out.

    Raises:
        LearngeneError: it is no folder, or has none.
    """
    if not os.path.isdir(folder):
        raise LearngeneError(f"{os.fspath(folder)!r} is no folder: give one with pictures in it")
    paths = (path for path in sorted(Path(folder).rglob("*")) if path.suffix.lower() in PICTURE_SUFFIXES)
    found = [path for path in paths if path.is_file() and not path.name.startswith(".")]
    if not found:
        raise LearngeneError(f"{os.fspath(folder)!r} has no pictures in it ({', '.join(PICTURE_SUFFIXES)})")
    return found


def stored_bytes(value: dict[str, Any]) -> bytes | None:
    """Return the bytes of a `datasets` image dictionary, by datasets' own opener of archives; None of one without.

    Raises:
        OSError: if the file is not there.
    """
    if value.get("bytes") is not None:
        return bytes(value["bytes"])
    path = value.get("path")
    if path is None:
        return None
    with open(path, "rb") if is_local_path(path) else xopen(path, "rb") as file:
        return file.read()


def holds_pictures(dataset: Any) -> bool:
    """Whether a dataset has a column of pictures that it decodes when a row is read."""
    features = getattr(dataset, "features", None) or {}
    return any(isinstance(feature, Image) and feature.decode for feature in features.values())


def undecoded(dataset: AnyDataset) -> AnyDataset:
    """Return a dataset whose rows hold pictures as bytes or paths, and plain Python values.

    So that a picture that cannot be decoded is met in our code, with its row, and one decoder makes all pixels. Rows
    that a function of the caller's makes (`set_transform`) stay what it makes of them.
    """
    if is_transformed(dataset):
        return dataset
    dataset = dataset.with_format(None)
    for name, feature in (dataset.features or {}).items():
        if isinstance(feature, Image) and feature.decode:
            dataset = dataset.cast_column(name, Image(decode=False))
    return dataset


def make_pixels(
    image_processor: Any, images: Sequence[PILImage.Image], return_tensors: str = "pt", **settings: Any
) -> Any:
    """Return `pixel_values` [B, 3, H, W] of pictures; `settings` are of the image processor's call.

    Raises:
        LearngeneError: if the image processor cannot make one batch of them, as without resizing of unequal sizes.
    """
    try:
        return image_processor(images=list(images), return_tensors=return_tensors, **settings)["pixel_values"]
    except (ValueError, TypeError, RuntimeError, ZeroDivisionError, OverflowError, MemoryError, OSError) as error:
        sizes = sorted({image.size for image in images})
        some = ", ".join(f"{width}x{height}" for width, height in sizes[:3]) + (", ..." if len(sizes) > 3 else "")
        hint = "resize them, or set do_resize=True in" if len(sizes) > 1 else "look at the settings of"
        raise LearngeneError(
            f"the image processor cannot make one batch of pictures of {some} pixels ({first_line(error)}): {hint} "
            f"the {type(image_processor).__name__}"
        ) from error


def _open(value: Any) -> PILImage.Image:
    if isinstance(value, PILImage.Image):
        return value
    if isinstance(value, dict) and value and set(value) <= {"bytes", "path"}:
        stored = stored_bytes(value)
        if stored is None:
            raise UnreadableImage("it has neither bytes nor a path")
        value = stored
    if isinstance(value, (bytes, bytearray, memoryview)):
        return PILImage.open(io.BytesIO(value))
    if isinstance(value, (np.ndarray, torch.Tensor)):
        return _of_array(value)
    if isinstance(value, (str, os.PathLike)):
        with open(value, "rb") as file:
            return PILImage.open(io.BytesIO(file.read()))
    if hasattr(value, "read"):
        return PILImage.open(value)
    if value is None:
        raise UnreadableImage("there is none")
    raise UnreadableImage(
        f"a value of type {type(value).__name__} is no image: give a PIL image, bytes, a path, or a datasets image "
        "dictionary"
    )


def _of_array(value: Any) -> PILImage.Image:
    """Return the picture of a formatted row; of other shapes it cannot be told what the channels are."""
    array = (
        value.detach().cpu().permute(1, 2, 0).numpy() if isinstance(value, torch.Tensor) and value.ndim == 3 else value
    )
    if not isinstance(array, np.ndarray) or array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
        raise UnreadableImage(
            f"an array of shape {tuple(value.shape)} and type {value.dtype}, whose channels cannot be told: give the "
            "dataset without a format (dataset.with_format(None)), or RGB images as uint8"
        )
    return PILImage.fromarray(np.ascontiguousarray(array))


def _upright(image: PILImage.Image) -> PILImage.Image:
    image.load()
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # damaged EXIF data says nothing about how the picture stands
        return image
    return image.transpose(_TURNED[orientation]) if orientation in _TURNED else image


def _to_rgb(image: PILImage.Image) -> PILImage.Image:
    if image.mode == "F" or image.mode.startswith("I"):
        image = PILImage.fromarray(_to_8_bit(np.asarray(image), image.mode))
    if image.mode in _BY_WAY_OF:
        image = image.convert(_BY_WAY_OF[image.mode])
    image = image.convert("RGB")
    image.info = {}  # an orientation that stayed would turn the picture again
    return image


def _to_8_bit(values: np.ndarray, mode: str) -> np.ndarray:
    """Scale integers of more than 8 bits, and floats, to 8 bits; refuse values whose range cannot be told.

    Integers keep their leading 8 bits, as Pillow keeps those of 16-bit colours. Of a 16-bit picture with no value
    above 255 it cannot be told whether it is almost black, or holds 8 bits.
    """
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
    unknown = UnreadableImage(
        f"the range of its values cannot be told (mode {mode}, from {low:g} to {high:g}): give 8-bit values, 16-bit "
        "ones up to 65535, or floats from 0 to 1"
    )
    if not (low >= 0 and high < 2**31):  # so NaN is refused too
        raise unknown
    if mode == "F" and high <= 1:
        return np.round(values * 255).astype(np.uint8)
    whole = values.astype(np.int64)
    if mode == "F" and not np.array_equal(whole, values):
        raise unknown
    if high == 0 or (high <= 255 and not mode.startswith("I;")):
        return whole.astype(np.uint8)
    for bits in (16, 31):
        if 2 ** (bits - 8) <= high < 2**bits:
            return (whole >> (bits - 8)).astype(np.uint8)
    raise unknown
