"""Fine-tune an image classifier on event images with the stock Trainer: class weights, frozen layers, the scores."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from sklearn.metrics import accuracy_score, confusion_matrix, precision_recall_fscore_support
from torch import Tensor, nn
from transformers import CLIPImageProcessorPil, PrinterCallback, Trainer, TrainingArguments

from mmlg_hf.errors import LearngeneError


def image_processor(size: int) -> CLIPImageProcessorPil:
    """CLIP's image processor for square pictures of events: resized to `size` pixels and never cropped."""
    return CLIPImageProcessorPil(size={"height": size, "width": size}, do_center_crop=False)


def examples(images: np.ndarray, labels: np.ndarray, processor: CLIPImageProcessorPil) -> list[dict]:
    """What the Trainer takes: one dict of pixel_values [3, S, S] and label per image of uint8 [N, H, W, 3]."""
    pixels = processor(images=list(images), return_tensors="pt", input_data_format="channels_last")["pixel_values"]
    return [{"pixel_values": pixel, "labels": int(label)} for pixel, label in zip(pixels, labels, strict=True)]


def check_labels(labels: np.ndarray, classes: Sequence[str]) -> None:
    """Raise a `LearngeneError` unless the labels name at least two of the classes and none beyond them."""
    found = np.unique(labels)
    if len(found) < 2:
        held = [classes[k] if k < len(classes) else k for k in found]
        raise LearngeneError(f"the training events hold only {held}; a classifier needs at least two classes")
    if found.max() >= len(classes):
        raise LearngeneError(
            f"the labels go up to {found.max()}, but there are {len(classes)} classes: {list(classes)}"
        )


def class_weights(labels: np.ndarray, classes: int) -> Tensor:
    """Weights [classes] inverse to the classes' numbers, of mean 1 over the events; 0 for a class without events."""
    number = np.bincount(labels, minlength=classes)
    weights = len(labels) / (np.count_nonzero(number) * np.maximum(number, 1))
    return torch.tensor(np.where(number > 0, weights, 0.0), dtype=torch.float32)


def weighted_loss(weights: Tensor):
    """A `compute_loss_func` for the stock Trainer: cross-entropy in which each class counts the same.

    The sum over a batch is divided by the number of examples in the whole optimiser step, which the Trainer passes, so
    that gradient accumulation changes nothing.
    """

    def loss(outputs, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        logits = outputs["logits"]
        total = nn.functional.cross_entropy(logits, labels, weight=weights.to(logits), reduction="sum")
        return total / (len(labels) if num_items_in_batch is None else num_items_in_batch)

    return loss


def scores(logits: np.ndarray, labels: np.ndarray, classes: Sequence[str], positive: int | None = None) -> dict:
    """Accuracy, precision, recall and F1 (of class `positive`, or the classes' mean when None), per class, confusion.

    The confusion matrix has the true classes in rows and the predicted ones in columns.
    """
    guesses, every = logits.argmax(axis=-1), np.arange(len(classes))
    per_class = precision_recall_fscore_support(labels, guesses, labels=every, zero_division=0)
    precision, recall, f1 = (float(v.mean() if positive is None else v[positive]) for v in per_class[:3])
    return {
        "accuracy": float(accuracy_score(labels, guesses)),
        "precision": precision,
        "recall": recall,
        "f1": f1,
        "per_class": {
            name: {"precision": p, "recall": r, "f1": f, "events": int(n)}
            for name, p, r, f, n in zip(classes, *(v.tolist() for v in per_class), strict=True)
        },
        "confusion": confusion_matrix(labels, guesses, labels=every).tolist(),
    }


def freeze_layers(model: nn.Module, layers: int) -> None:
    """Freeze the embeddings and the first `layers` encoder layers of a `CLIPForImageClassification`; 0: none."""
    vision = model.vision_model
    if not 0 <= layers <= len(vision.encoder.layers):
        raise LearngeneError(f"layers is {layers}; the model has {len(vision.encoder.layers)} that can be frozen")
    if layers:
        for part in (vision.embeddings, vision.pre_layrnorm, *vision.encoder.layers[:layers]):
            part.requires_grad_(False)


def fine_tune(
    model: nn.Module,
    train: list[dict],
    classes: Sequence[str],
    *,
    output_dir: str | Path,
    steps: int = 100,
    batch_size: int = 16,
    learning_rate: float = 3e-4,
    weight_decay: float = 0.05,
    seed: int = 0,
    quiet: bool = False,
) -> Trainer:
    """Train a classifier, any module that gives "logits" for "pixel_values", with the stock Trainer.

    Args:
        train: from `examples`.
        classes: names; the loss weighs each class the same however often it occurs.
        steps: optimiser steps, with a tenth of warm-up and a cosine to zero; 0 leaves the model as it is, which is
            what a probed head alone needs.
        output_dir: where the Trainer keeps its state; no checkpoint is written there.
        seed: of the order of the events.
        quiet: no progress bar and no log lines.
    """
    labels = np.array([example["labels"] for example in train])
    check_labels(labels, classes)
    if steps < 0:
        raise LearngeneError(f"steps is {steps}; it must be at least 0")
    arguments = TrainingArguments(
        output_dir=str(output_dir),
        max_steps=max(steps, 1),
        per_device_train_batch_size=batch_size,
        per_device_eval_batch_size=128,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        warmup_steps=max(steps // 10, 1),
        lr_scheduler_type="cosine",
        save_strategy="no",
        report_to="none",
        logging_steps=max(steps // 10, 1),
        disable_tqdm=quiet,
        seed=seed,
        data_seed=seed,
        dataloader_pin_memory=torch.cuda.is_available(),
    )
    trainer = Trainer(
        model, arguments, train_dataset=train, compute_loss_func=weighted_loss(class_weights(labels, len(classes)))
    )
    if quiet:
        trainer.remove_callback(PrinterCallback)
    if steps:
        trainer.train()
    return trainer
