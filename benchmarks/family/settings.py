"""What the study can be run on: `settings.yaml`, and how each data set becomes pairs."""

from argparse import Namespace
from pathlib import Path
from typing import Any

from datasets import ClassLabel, Dataset, DatasetDict
from transformers import CLIPProcessor

from benchmarks.common.fashion import load_splits
from benchmarks.common.options import read_settings
from benchmarks.make.ancestor import ancestor_config, train_ancestor
from mmlg_hf.data import hash_split, load_image_text, split_of
from mmlg_hf.descendants import locate_learngene

SETTINGS = read_settings(__file__)
CONFIGURATIONS: dict[str, dict[str, Any]] = SETTINGS["configurations"]


def load_pairs(configuration: str, data: str) -> DatasetDict:
    """Train, validation and test with the columns image, text and perhaps label."""
    return {"fashion": _fashion, "openai-flickr30k": _flickr30k, "laion-pets": _pets}[configuration](data)


def _fashion(data: str) -> DatasetDict:
    names = {"productDisplayName": "text", "articleType": "label", "subCategory": "text_label"}
    return load_splits(data).rename_columns(names)


def _flickr30k(data: str) -> DatasetDict:
    """All 31,783 photos split by a hash of their id; the first of each photo's five captions."""
    rows = load_image_text(data, "test")
    rows = rows.add_column("text", [captions[0] for captions in rows["caption"]])
    return hash_split(rows.select_columns(["image", "text", "img_id"]), "img_id", "text")


def _pets(data: str) -> DatasetDict:
    """The 37 breeds, with "a photo of a {breed}" for text; a tenth of the training photos are kept for validation."""
    splits = {}
    for split in ("train", "test"):
        rows = load_image_text(data, split)
        kind = rows.features["label"]
        names = [kind.int2str(label) if isinstance(kind, ClassLabel) else str(label) for label in rows["label"]]
        names = [name.replace("_", " ") for name in names]
        rows = rows.remove_columns("label").add_column("label", names)
        splits[split] = rows.add_column("text", [f"a photo of a {name}" for name in names])
    train, rows_of = splits["train"], {"train": [], "validation": []}
    for row, key in enumerate(train["image_id"]):
        rows_of[split_of(key, 0.1, 0.0)].append(row)
    return DatasetDict({name: train.select(rows) for name, rows in rows_of.items()}, test=splits["test"])


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
        config = ancestor_config(processor.tokenizer)
        train_ancestor(config, splits["train"], processor, str(folder), 120, 64, save_steps=120)
    return str(folder)
