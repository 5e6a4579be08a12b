"""The product photos every study measures on: where they come from, how they are split, processed and measured.

44,441 product photos (60 x 80) with titles. Split by a hash of the row's id, each distinct title in one split only,
titles kept once in validation and test: see `mmlg_hf.data.hash_split`.
"""

import os
import platform
import subprocess
from typing import Any

import torch
import transformers
from datasets import Dataset, DatasetDict
from transformers import CLIPImageProcessorPil, CLIPProcessor, CLIPTokenizer

from mmlg_hf.data import hash_split, load_image_text, process_pairs
from mmlg_hf.evaluation import evaluate_retrieval, evaluate_zero_shot

HUB_ID = "ashraq/fashion-product-images-small"
TOKENIZER_ID = "openai/clip-vit-base-patch32"
TITLE, IMAGE, ID, TYPE = "productDisplayName", "image", "id", "articleType"
IMAGE_SIZE, MAX_TOKENS = 48, 24
TEMPLATES = ("{}",)  # titles are bare names of products, with no sentence around them


def load_splits(data: str = HUB_ID) -> DatasetDict:
    """Return train, validation and test of the product photos from the Hub or from a folder in `datasets` format."""
    return hash_split(load_image_text(data, "train"), ID, TITLE)


def make_processor(tokenizer: str = TOKENIZER_ID) -> CLIPProcessor:
    """Return CLIP's processor at 48 px: the whole photo is squeezed to a square, nothing is cropped away."""
    return CLIPProcessor(
        CLIPImageProcessorPil(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}, do_center_crop=False),
        CLIPTokenizer.from_pretrained(tokenizer, model_max_length=MAX_TOKENS),
    )


def processed(dataset: Dataset, processor: CLIPProcessor, keep: tuple[str, ...] = ()) -> Dataset:
    """Return the pairs as tensors, computed once and cached by `datasets`."""
    return process_pairs(dataset, processor, image_column=IMAGE, text_column=TITLE, keep_columns=keep)


def measure(model: Any, dataset: Dataset, processor: Any, class_names: list[str]) -> dict[str, float]:
    """Return zero-shot accuracy over article types and retrieval between photos and titles, as fractions."""
    columns = {"label_column": TYPE, "image_column": IMAGE}
    zero_shot = evaluate_zero_shot(
        model, dataset, processor, class_names=class_names, templates=TEMPLATES, batch_size=256, **columns
    )
    retrieval = evaluate_retrieval(model, dataset, processor, image_column=IMAGE, text_column=TITLE, batch_size=256)
    return {**zero_shot, **retrieval}


def environment() -> dict[str, Any]:
    """Return what a result says about where it was measured."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    return {
        "commit": commit or None,
        "hardware": torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
