"""The product photos every study measures on: where they come from, how they are split, processed and measured.

44,441 product photos (60 x 80) with titles. Split by a hash of the row's id, each distinct title in one split only,
titles kept once in validation and test: see `mmlg_hf.data.hash_split`.
"""

import json
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict
from transformers import CLIPImageProcessorPil, CLIPProcessor, CLIPTokenizer

from benchmarks.common.results import environment, write
from mmlg_hf.data import hash_split, load_image_text, process_pairs
from mmlg_hf.evaluation import evaluate_retrieval, evaluate_zero_shot

HUB_ID = "ashraq/fashion-product-images-small"
TOKENIZER_ID = "openai/clip-vit-base-patch32"
TITLE, IMAGE, ID, TYPE = "productDisplayName", "image", "id", "articleType"
IMAGE_SIZE, MAX_TOKENS = 48, 24
ANCESTOR = "upload/artifacts/mmlg-fashion-48-ancestor"  # kept by `benchmarks.make.ancestor`, on the Hub as in the zoo
CLIP_TOKENS = 49408  # of CLIP's whole vocabulary, before it is trimmed
TEMPLATES = ("{}",)  # titles are bare names of products, with no sentence around them
SHOWN = ["top1", "mean_per_class", "image_to_text_R@1", "text_to_image_R@1"]  # of a model's figures, on its card


def load_splits(data: str = HUB_ID) -> DatasetDict:
    """Return train, validation and test of the product photos from the Hub or from a folder in `datasets` format."""
    return hash_split(load_image_text(data, "train"), ID, TITLE)


def make_processor(tokenizer: str = TOKENIZER_ID) -> CLIPProcessor:
    """Return CLIP's processor at 48 px: the whole photo is squeezed to a square, nothing is cropped away."""
    return CLIPProcessor(
        CLIPImageProcessorPil(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}, do_center_crop=False),
        CLIPTokenizer.from_pretrained(tokenizer, model_max_length=MAX_TOKENS),
    )


def processed(dataset: Dataset, processor: CLIPProcessor, text_column: str = TITLE) -> Dataset:
    """Return the pairs as tensors, computed once and cached by `datasets`."""
    return process_pairs(dataset, processor, image_column=IMAGE, text_column=text_column)


def known_types(splits: DatasetDict, split: str) -> Dataset:
    """The rows of a split whose article type the training split has."""
    known = set(splits["train"][TYPE])
    return splits[split].select([row for row, name in enumerate(splits[split][TYPE]) if name in known])


def measure(model: Any, dataset: Dataset, processor: Any) -> dict[str, float]:
    """Return zero-shot accuracy over the rows' article types and retrieval of photos and titles, as fractions."""
    columns = {"image_column": IMAGE, "batch_size": 256}
    zero_shot = evaluate_zero_shot(
        model,
        dataset,
        processor,
        class_names=sorted(set(dataset[TYPE])),
        templates=TEMPLATES,
        label_column=TYPE,
        **columns,
    )
    return {**zero_shot, **evaluate_retrieval(model, dataset, processor, text_column=TITLE, **columns)}


def card_row(name: str, role: str, model: Any, test: Dataset, processor: Any, **about: Any) -> dict[str, Any]:
    """A measured model as `mmlg_hf.cards.read_results` takes it; stored in float32, if `about` says nothing else."""
    about = {"parameters": model.num_parameters(), "megabytes": round(model.num_parameters() * 4e-6, 2)} | about
    return {"name": name, "role": role, **about, "figures": measure(model, test, processor)}


def write_card_results(path: Path, test: Dataset, models: list[dict[str, Any]], **more: Any) -> None:
    """Write, and print, what cards show: where the models were measured, and their rows."""
    split = f"test (one in ten by hash of the id: {len(test)} pairs, {len(set(test[TYPE]))} classes)"
    results = {"dataset": {"id": HUB_ID, "split": split}, "shown": SHOWN, **environment(), **more, "models": models}
    write(path, results)
    print(json.dumps(results, indent=1))
