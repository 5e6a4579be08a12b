"""Image-text data for tests: pictures as bytes, rows with faults."""

import io

from datasets import Dataset, Features, Image, Value
from pico import pico_image
from PIL import Image as PILImage


def stored(image: PILImage.Image | None = None, kind: str = "PNG", **options) -> bytes:
    """The bytes of a picture in a file; None takes a red square on blue."""
    file = io.BytesIO()
    (pico_image("red", "blue") if image is None else image).save(file, kind, **options)
    return file.getvalue()


def photo(orientation: int = 6, kind: str = "JPEG") -> bytes:
    """The bytes of a photo, red above blue when seen as its EXIF orientation says."""
    upright = PILImage.new("RGB", (16, 16), (220, 30, 30))
    upright.paste((40, 60, 220), (0, 8, 16, 16))
    turns = {3: PILImage.Transpose.ROTATE_180, 6: PILImage.Transpose.ROTATE_90, 8: PILImage.Transpose.ROTATE_270}
    exif = PILImage.Exif()
    exif[0x0112] = orientation
    lying = upright.transpose(turns[orientation]) if orientation in turns else upright
    return stored(lying, kind, exif=exif, **({"quality": 100, "subsampling": 0} if kind == "JPEG" else {}))


def rows_of(images: list, captions: list, text=None) -> Dataset:
    """A dataset of an Image column `image` and a column `caption`, of strings unless `text` says otherwise."""
    features = Features({"image": Image(), "caption": text or Value("string")})
    return Dataset.from_dict({"image": images, "caption": captions}, features=features)


def pairs_with_bad_images(bad=(2, 5), n: int = 8) -> Dataset:
    """Pairs whose images are bytes, some of them unreadable."""
    images = [{"bytes": b"no image" if row in bad else stored(), "path": None} for row in range(n)]
    return rows_of(images, [f"a photo of row {row}" for row in range(n)])
