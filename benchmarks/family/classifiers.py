"""The study's image-only and text-only descendants, each fine-tuned as a classifier."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from datasets import Dataset, DatasetDict
from transformers import CLIPForImageClassification, CLIPModel, Trainer, TrainingArguments, set_seed

from benchmarks.common.training import Rows
from mmlg_hf import CLIPTextForSequenceClassification
from mmlg_hf.data import load_image_text, process_images
from mmlg_hf.demo.digits import digit_splits
from mmlg_hf.evaluation.classification import classification_metrics
from mmlg_hf.training import probe_head


@dataclass(frozen=True)
class Task:
    """A classification task for one encoder: what it is trained on, tuned on and measured on."""

    modality: str  # "image" or "text"
    splits: dict[str, Rows]  # train, validation, test
    names: list[str]


def image_task(splits: DatasetDict, processor: Any, limits: dict[str, int]) -> Task:
    """Photos or pictures with a column "label" that names its classes; at most so many rows of each split."""
    found = {}
    for split, count in limits.items():
        rows = splits[split].shuffle(seed=0)
        rows = rows.select(range(min(count, len(rows))))
        pixels = process_images(rows, processor.image_processor, image_column="image")["pixel_values"]
        found[split] = Rows(pixel_values=[torch.as_tensor(row) for row in pixels], labels=list(rows["label"]))
    return Task("image", found, splits["train"].features["label"].names)


def clothing_task(data: str, processor: Any, limits: dict[str, int]) -> Task:
    """Clothes on other photos than the study's."""
    return image_task(DatasetDict({name: load_image_text(data, name) for name in limits}), processor, limits)


def digit_task(processor: Any, limits: dict[str, int]) -> Task:
    """scikit-learn's handwritten digits: nothing that the study's photos show."""
    size = processor.image_processor.size
    return image_task(digit_splits(size.get("height") or size["shortest_edge"], 1000, 300), processor, limits)


def text_task(splits: dict[str, Dataset], column: str, processor: Any, limits: dict[str, int]) -> Task:
    """Texts of the study's own splits with labels that are told from the text."""
    train = splits["train"].shuffle(seed=1)
    rows_of = {**splits, "train": train.select(range(min(limits["train"], len(train))))}
    names = sorted(set(rows_of["train"][column]))
    found = {}
    for split, rows in rows_of.items():
        rows = rows.select([row for row, name in enumerate(rows[column]) if name in set(names)])
        tokens = processor.tokenizer(list(rows["text"]), truncation=True, padding="max_length", return_tensors="pt")
        columns = {name: tokens[name] for name in ("input_ids", "attention_mask")}
        found[split] = Rows(**columns, labels=[names.index(name) for name in rows[column]])
    return Task("text", found, names)


def as_classifier(model: CLIPModel, modality: str, num_labels: int, seed: int) -> Any:
    """One encoder of a CLIP under a new head; the head depends on the seed alone."""
    config = model.config if modality == "image" else model.config.text_config
    config.num_labels = model.config.num_labels = num_labels
    set_seed(seed)
    if modality == "image":
        classifier: Any = CLIPForImageClassification(config)
        classifier.vision_model.load_state_dict(model.vision_model.state_dict())
        classifier.accepts_loss_kwargs = False
    else:
        classifier = CLIPTextForSequenceClassification(config)
        classifier.text_model.load_state_dict(model.text_model.state_dict())
    return classifier


def train_classifier(
    model: CLIPModel, task: Task, arguments: dict[str, Any], seed: int, split: str, probed: bool = False
) -> dict[str, Any]:
    """Fine-tune one encoder with the stock Trainer; return accuracies on a split of the task, and the seconds.

    Args:
        probed: set the head to a logistic regression on the training rows before the first step; "probe" then has the
            accuracies with it, and the seconds that it took.
    """
    classifier, arguments = as_classifier(model, task.modality, len(task.names), seed), {**arguments, "seed": seed}
    data = {"train_dataset": task.splits["train"], "eval_dataset": task.splits[split]}
    trainer = Trainer(classifier, TrainingArguments(**arguments), compute_metrics=classification_metrics, **data)
    before: dict[str, Any] = {}
    if probed:
        seconds = seconds_of(partial(probe_head, classifier, task.splits["train"]))
        before = {"probe": {**measure(trainer), "seconds": seconds}}
        set_seed(seed)  # as the Trainer set it: measuring is no part of the training that follows
    seconds = seconds_of(trainer.train)
    return {**before, **measure(trainer), "seconds": seconds}


def seconds_of(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return round(time.perf_counter() - started, 2)


def measure(trainer: Trainer) -> dict[str, float]:
    found = trainer.evaluate()
    return {name: found[f"eval_{key}"] for name, key in (("top1", "accuracy"), ("mean_per_class", "mean_per_class"))}
