"""The initialisation study's image-only and text-only descendants, each fine-tuned as a classifier."""

import time
from typing import Any

import torch
from datasets import Dataset
from transformers import CLIPForImageClassification, CLIPModel, Trainer, TrainingArguments, set_seed

from mmlg_hf import CLIPTextForSequenceClassification
from mmlg_hf.data import load_image_text, process_images
from mmlg_hf.metrics import classification_results, label_ranks


class Labelled(torch.utils.data.Dataset):
    """Rows with a class, as the stock Trainer's collator takes them."""

    def __init__(self, rows: list[dict[str, Any]], labels: list[int]) -> None:
        self.rows, self.labels = rows, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> dict[str, Any]:
        return {**self.rows[row], "labels": self.labels[row]}


def image_task(data: str, processor: Any, train_rows: int, test_rows: int) -> tuple[Labelled, Labelled, list[str]]:
    """Other photos than the study's: a data set with splits train and test and a column "label"."""
    found = []
    names: list[str] = []
    for split, count in (("train", train_rows), ("test", test_rows)):
        rows = load_image_text(data, split).shuffle(seed=0)
        rows = rows.select(range(min(count, len(rows))))
        names = names or rows.features["label"].names
        pixels = process_images(rows, processor.image_processor, image_column="image")["pixel_values"]
        found.append(Labelled([{"pixel_values": torch.as_tensor(row)} for row in pixels], list(rows["label"])))
    return found[0], found[1], names


def text_task(
    train: Dataset, test: Dataset, column: str, processor: Any, train_rows: int
) -> tuple[Labelled, Labelled, list[str]]:
    """Texts of the study's own splits with labels that are told from the text."""
    train = train.shuffle(seed=1).select(range(min(train_rows, len(train))))
    names = sorted(set(train[column]))
    test = test.select([row for row, name in enumerate(test[column]) if name in set(names)])
    found = []
    for rows in (train, test):
        tokens = processor.tokenizer(list(rows["text"]), truncation=True, padding="max_length", return_tensors="pt")
        texts = [
            {"input_ids": ids, "attention_mask": mask}
            for ids, mask in zip(tokens["input_ids"], tokens["attention_mask"], strict=True)
        ]
        found.append(Labelled(texts, [names.index(name) for name in rows[column]]))
    return found[0], found[1], names


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
    model: CLIPModel,
    modality: str,
    task: tuple[Labelled, Labelled, list[str]],
    arguments: dict[str, Any],
    seed: int,
) -> dict[str, float]:
    """Fine-tune one encoder with the stock Trainer; return accuracies on the task's test rows and the seconds."""
    train, test, names = task
    classifier = as_classifier(model, modality, len(names), seed)
    trainer = Trainer(classifier, TrainingArguments(**arguments, seed=seed), train_dataset=train)
    started = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - started
    logits = torch.as_tensor(trainer.predict(test).predictions)
    labels = torch.tensor(test.labels)
    figures = classification_results(label_ranks(logits, labels), labels, len(names))
    return {"top1": figures["top1"], "mean_per_class": figures["mean_per_class"], "seconds": round(seconds, 2)}
