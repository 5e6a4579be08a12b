"""scikit-learn's handwritten digits as pictures with labels and captions: real data that needs no download."""

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value
from PIL import Image as PILImage

from ..errors import LearngeneError, require

load_digits = require("sklearn.datasets", "demo").load_digits
train_test_split = require("sklearn.model_selection", "demo").train_test_split

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
CAPTION = "a handwritten {}"
_SPLIT_SEED = 0


def digit_splits(
    image_size: int, train_images: int, validation_images: int, *, dark_on_white: bool = True
) -> DatasetDict:
    """Split the 1,797 digits of 8 x 8 pixels, blown up, into train, validation and test, the same on every call.

    Each digit has its share of every split.

    Args:
        image_size: pixels of a side; the upscaling is bicubic.
        train_images: size of the split "train".
        validation_images: size of the split "validation"; "test" holds all others.
        dark_on_white: ink as on paper; False leaves the digits white on black as scikit-learn has them.

    Returns:
        splits with `image` (RGB), `label` (named "zero" to "nine") and `caption` ("a handwritten seven").

    Raises:
        LearngeneError: if the splits do not fit, or have less than one image of each digit.
    """
    digits = load_digits()
    count = len(digits.target)
    if min(train_images, validation_images, count - train_images - validation_images) < len(DIGITS):
        raise LearngeneError(
            f"{train_images} training and {validation_images} validation images do not split {count} digits: each "
            f"split, the rest for testing included, needs at least {len(DIGITS)}"
        )
    held_out, train = _stratified(np.arange(count), digits.target, train_images)
    test, validation = _stratified(held_out, digits.target, validation_images)
    rows = {"train": train, "validation": validation, "test": test}
    levels = np.rint(digits.images / 16 * 255).astype(np.uint8)
    if dark_on_white:
        levels = 255 - levels
    return DatasetDict({name: _pictures(levels[part], digits.target[part], image_size) for name, part in rows.items()})


def _stratified(rows: np.ndarray, labels: np.ndarray, size: int) -> list[np.ndarray]:
    return train_test_split(rows, test_size=size, random_state=_SPLIT_SEED, stratify=labels[rows])


def _pictures(levels: np.ndarray, labels: np.ndarray, image_size: int) -> Dataset:
    side = (image_size, image_size)
    images = [PILImage.fromarray(image).resize(side, PILImage.Resampling.BICUBIC).convert("RGB") for image in levels]
    return Dataset.from_dict(
        {"image": images, "label": labels.tolist(), "caption": [CAPTION.format(DIGITS[label]) for label in labels]},
        features=Features({"image": Image(), "label": ClassLabel(names=list(DIGITS)), "caption": Value("string")}),
    )
