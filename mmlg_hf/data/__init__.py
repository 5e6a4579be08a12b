"""Image-text data: loading and splitting, columns, pictures, captions, tensors made once, and batches."""

from .captions import captions_of
from .collation import ImageTextCollator
from .columns import IMAGE_COLUMN_NAMES, TEXT_COLUMN_NAMES, find_columns, find_image_column
from .loading import AnyDataset, check_dataset, hash_split, load_image_text, split_of
from .pictures import UnreadableImage, holds_pictures, make_pixels, open_image, picture_files, read_image, undecoded
from .processing import process_images, process_pairs, processor_key

__all__ = [
    "IMAGE_COLUMN_NAMES",
    "TEXT_COLUMN_NAMES",
    "AnyDataset",
    "ImageTextCollator",
    "UnreadableImage",
    "captions_of",
    "check_dataset",
    "find_columns",
    "find_image_column",
    "hash_split",
    "holds_pictures",
    "load_image_text",
    "make_pixels",
    "open_image",
    "picture_files",
    "process_images",
    "process_pairs",
    "processor_key",
    "read_image",
    "split_of",
    "undecoded",
]
