"""What the study can be run on: ancestor, data set, sizes and steps, ready made."""

from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import ClassLabel, Dataset, DatasetDict
from transformers import CLIPProcessor

from benchmarks.common.fashion import HUB_ID, load_splits
from benchmarks.make.ancestor import ancestor_config, train_ancestor
from mmlg_hf.data import hash_split, load_image_text, split_of
from mmlg_hf.descendants import locate_learngene


@dataclass(frozen=True)
class Configuration:
    """A data set with an ancestor.

    Attributes:
        name: of the results.
        ancestor: Hub id; None where it has to be given.
        data: Hub id of the data set.
        load: from the data's name to train, validation and test with the columns image, text and perhaps label.
        settings: sizes, steps, rates; `quick` replaces some of them.
        text_label: another column with labels that are told from the text; None leaves text classification out.
    """

    name: str
    ancestor: str | None
    data: str
    load: Callable[[str], DatasetDict]
    settings: dict[str, Any]
    quick: dict[str, Any]
    text_label: str | None = None


def load_fashion(data: str) -> DatasetDict:
    names = {"productDisplayName": "text", "articleType": "label", "subCategory": "text_label"}
    return load_splits(data).rename_columns(names)


def load_flickr30k(data: str) -> DatasetDict:
    """All 31,783 photos split by a hash of their id; the first of each photo's five captions."""
    rows = load_image_text(data, "test")
    rows = rows.add_column("text", [captions[0] for captions in rows["caption"]])
    return hash_split(rows.select_columns(["image", "text", "img_id"]), "img_id", "text")


def load_pets(data: str) -> DatasetDict:
    """The 37 breeds, with "a photo of a {breed}" for text; a tenth of the training photos are kept for validation."""
    splits = {}
    for split in ("train", "test"):
        rows = load_image_text(data, split)
        kind = rows.features["label"]
        names = [kind.int2str(label) if isinstance(kind, ClassLabel) else str(label) for label in rows["label"]]
        names = [name.replace("_", " ") for name in names]
        rows = rows.remove_columns("label").add_column("label", names)
        splits[split] = rows.add_column("text", [f"a photo of a {name}" for name in names])
    held = [row for row, key in enumerate(splits["train"]["image_id"]) if split_of(key, 0.1, 0.0) == "validation"]
    kept = sorted(set(range(len(splits["train"]))) - set(held))
    return DatasetDict(
        train=splits["train"].select(kept), validation=splits["train"].select(held), test=splits["test"]
    )


_FASHION = {
    "sizes": [(depth, width) for depth in (2, 3, 4, 6) for width in (64, 96, 128)],
    "untrained_sizes": [(6, 192), (3, 192)],
    "steps": 20,
    "batch_size": 64,
    "extraction_steps": 80,
    "extraction_batch_size": 32,
    "rates": [1e-4, 3e-4, 1e-3, 3e-3],
    "tuning_sizes": [(3, 96)],
    "curve_sizes": [(3, 96)],
    "curve_steps": 100,
    "encoder_sizes": [(2, 64), (3, 96), (6, 96), (4, 128)],
    "encoder_steps": 20,
    "encoder_rates": [3e-4, 1e-3, 3e-3],
    "validation_pairs": 500,
    "test_pairs": 600,
    "templates": ["{}"],
}
_FASHION_QUICK = {
    "sizes": [(2, 64), (3, 96)],
    "untrained_sizes": [(3, 192), (6, 96)],
    "steps": 8,
    "extraction_steps": 20,
    "rates": [1e-3, 3e-3],
    "tuning_sizes": [(3, 96)],
    "curve_steps": 20,
    "encoder_sizes": [(3, 96)],
    "encoder_steps": 10,
    "validation_pairs": 300,
    "test_pairs": 300,
    "seeds": [0],
}
# Sized for one accelerator: CLIP ViT-B/32 has 12 layers, 768 and 512 wide.
_VIT_B = {
    "sizes": [(depth, width) for depth in (3, 4, 6, 8) for width in (256, 384, 512)],
    "untrained_sizes": [(12, 768), (6, 768), (12, 384)],
    "steps": 300,
    "batch_size": 128,
    "extraction_steps": 4000,
    "extraction_batch_size": 32,
    "rates": [1e-4, 3e-4, 1e-3],
    "tuning_sizes": [(4, 384)],
    "curve_sizes": [(6, 384)],
    "curve_steps": 1800,
    "encoder_sizes": [(4, 256), (6, 384)],
    "encoder_steps": 300,
    "encoder_rates": [1e-4, 3e-4, 1e-3],
    "validation_pairs": 1000,
    "test_pairs": 1000,
    "templates": ["a photo of a {}."],
}
_VIT_B_QUICK = {
    "sizes": [(3, 256), (6, 384)],
    "untrained_sizes": [(6, 768)],
    "steps": 10,
    "batch_size": 32,
    "extraction_steps": 40,
    "curve_steps": 24,
    "encoder_sizes": [(3, 256)],
    "encoder_steps": 10,
    "validation_pairs": 200,
    "test_pairs": 200,
    "seeds": [0],
}
CONFIGURATIONS = {
    "fashion": Configuration("fashion", None, HUB_ID, load_fashion, _FASHION, _FASHION_QUICK, "text_label"),
    "openai-flickr30k": Configuration(
        "openai-flickr30k",
        "openai/clip-vit-base-patch32",
        "lmms-lab/flickr30k",
        load_flickr30k,
        _VIT_B,
        _VIT_B_QUICK,
    ),
    "laion-pets": Configuration(
        "laion-pets",
        "laion/CLIP-ViT-B-32-laion2B-s34B-b79K",
        "timm/oxford-iiit-pet",
        load_pets,
        _VIT_B,
        _VIT_B_QUICK,
    ),
}


def known_rows(splits: DatasetDict, split: str) -> Dataset:
    """Rows whose class the training split has, all where there are no classes, in a fixed random order."""
    rows = splits[split].shuffle(seed=0)
    if "label" not in rows.column_names:
        return rows
    names = set(splits["train"]["label"])
    return rows.select([row for row, name in enumerate(rows["label"]) if name in names])


def make_quick_ancestor(options: Namespace, splits: DatasetDict) -> str:
    """Train an ancestor of the study's shape for a couple of minutes, with the bundled gene's processor."""
    folder = Path(options.work, "ancestor")
    if not (folder / "config.json").exists():
        processor: Any = CLIPProcessor.from_pretrained(locate_learngene("mmlg-fashion-48"))
        train_ancestor(
            ancestor_config(processor.tokenizer), splits["train"], processor, str(folder), 120, 64, save_steps=120
        )
    return str(folder)
