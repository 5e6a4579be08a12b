"""Image-text data: loading and splitting, columns, pictures, captions, tensors made once, and batches."""

from .captions import captions_of
from .collation import ImageTextCollator
from .columns import IMAGE_COLUMN_NAMES, TEXT_COLUMN_NAMES, find_columns, find_image_column
from .loading import AnyDataset, check_dataset, hash_split, load_image_text, split_of
from .pictures import UnreadableImage, holds_pictures, make_pixels, open_image, picture_files, read_image, undecoded
from .pixels import Pixels
from .processing import fingerprint_processor, process_images, process_pairs, processor_key, read_rows
from .rows import PictureRows

__all__ = [
    "IMAGE_COLUMN_NAMES",
    "TEXT_COLUMN_NAMES",
    "AnyDataset",
    "ImageTextCollator",
    "PictureRows",
    "Pixels",
    "UnreadableImage",
    "captions_of",
    "check_dataset",
    "find_columns",
    "find_image_column",
    "fingerprint_processor",
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
    "read_rows",
    "split_of",
    "undecoded",
]
