"""Measure image and text classifiers: accuracy on a dataset's rows, and as `compute_metrics` of the stock Trainer."""

from typing import Any

import torch
from datasets import ClassLabel, Dataset
from torch import Tensor
from tqdm.auto import tqdm

from .data import find_columns, open_image
from .errors import LearngeneError
from .metrics import ZeroShotClassification

LABEL_COLUMN_NAMES = ("label", "labels", "class", "category")


def classification_metrics(prediction: Any) -> dict[str, float]:
    """Give the stock `Trainer(compute_metrics=...)` the accuracies of a classifier's logits, with no network.

    Args:
        prediction: `transformers.EvalPrediction` with logits [N, C] and labels [N].

    Returns:
        "accuracy", "mean_per_class" and, with more than five classes, "top5", as shares of 1.
    """
    return accuracies(torch.as_tensor(prediction.predictions), torch.as_tensor(prediction.label_ids))


def accuracies(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Return "accuracy", "mean_per_class" and, with more than five classes, "top5" of logits [N, C] and labels [N]."""
    figures = ZeroShotClassification(keep_in_memory=True).compute(predictions=logits.numpy(), references=labels)
    return {"accuracy": figures.pop("top1"), **figures}


def evaluate_classification(
    model: Any,
    dataset: Dataset,
    processor: Any,
    *,
    label_column: str | None = None,
    image_column: str | None = None,
    text_column: str | None = None,
    batch_size: int = 64,
    progress: bool = False,
) -> dict[str, float]:
    """Measure a trained image or text classifier on labelled rows.

    Args:
        model: a `CLIPForImageClassification`, a `CLIPTextForSequenceClassification` or another whose output has
            `logits` [B, C] and whose config names the classes.
        dataset: an image or a text column, and a label column: a `ClassLabel` or strings, matched with the model's
            classes by name, or integers, which are the model's own.
        processor: an image processor for images, a tokenizer for texts, or a processor that has it.
        label_column: None takes the only `ClassLabel` column, or one named label, labels, class or category.
        image_column: None finds it.
        text_column: None finds it.
        batch_size: rows in one forward pass.
        progress: show a progress bar.

    Returns:
        What `accuracies` does.

    Raises:
        LearngeneError: on missing columns, labels that are no class of the model, no rows, or an unreadable image.
    """
    if len(dataset) == 0:
        raise LearngeneError("the dataset is empty (0 rows): there is nothing to measure")
    label_column = _find_label_column(dataset, label_column)
    labels = _labels(dataset, label_column, model.config)
    of_images = model.main_input_name == "pixel_values"
    column = _find_input_column(dataset, label_column, image_column if of_images else text_column, of_images)
    part = getattr(processor, "image_processor" if of_images else "tokenizer", processor)
    was_training = model.training
    model.eval()
    logits = []
    try:
        for start in tqdm(range(0, len(dataset), batch_size), desc="classifying", disable=not progress):
            values = dataset[start : start + batch_size][column]
            if of_images:
                inputs = part(images=_open_images(values, start), return_tensors="pt")
            else:
                inputs = part(values, padding=True, truncation=True, return_tensors="pt")
            with torch.no_grad():
                logits.append(model(**inputs.to(model.device)).logits.float().cpu())  # [b, C]
    finally:
        model.train(was_training)
    return accuracies(torch.cat(logits), labels)


def _find_label_column(dataset: Dataset, label_column: str | None) -> str:
    have = ", ".join(map(repr, dataset.column_names))
    if label_column is not None:
        if label_column not in dataset.column_names:
            raise LearngeneError(f"the dataset has no label column {label_column!r}: its columns are {have}")
        return label_column
    found = [name for name, feature in dataset.features.items() if isinstance(feature, ClassLabel)]
    if len(found) != 1:
        found = [name for name in LABEL_COLUMN_NAMES if name in dataset.column_names]
    if not found:
        raise LearngeneError(f"the dataset has no label column that stands out: name one of {have} with label_column")
    return found[0]


def _find_input_column(dataset: Dataset, label_column: str, wanted: str | None, of_images: bool) -> str:
    inputs = dataset.remove_columns(label_column)
    if of_images:
        return find_columns(inputs, wanted, inputs.column_names[0] if inputs.column_names else None)[0]
    return find_columns(inputs, inputs.column_names[0] if inputs.column_names else None, wanted)[1]


def _labels(dataset: Dataset, label_column: str, config: Any) -> Tensor:
    """Return the rows' labels as the model counts them, [N]."""
    values, feature = list(dataset[label_column]), dataset.features[label_column]
    names = config.id2label
    unnamed = all(name == f"LABEL_{index}" for index, name in names.items())
    if isinstance(feature, ClassLabel) and not unnamed:
        values = [feature.names[value] for value in values]
    known = {name: index for index, name in names.items()} | {index: index for index in names}
    for row, value in enumerate(values):
        if value not in known:
            raise LearngeneError(
                f"row {row} has the label {value!r}, but the model's classes are {list(names.values())}"
            )
    return torch.tensor([known[value] for value in values])


def _open_images(values: list[Any], start: int) -> list[Any]:
    images = []
    for row, value in enumerate(values, start):
        try:
            images.append(open_image(value))
        except (OSError, TypeError, KeyError, AttributeError) as error:
            raise LearngeneError(
                f"image {row} cannot be read ({error or type(error).__name__}): mend it or drop that row"
            ) from error
    return images
