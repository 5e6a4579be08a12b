"""Measure image and text classifiers: accuracy on a dataset's rows, and as `compute_metrics` of the stock Trainer."""

from typing import Any

import torch
from datasets import ClassLabel, Dataset
from torch import Tensor
from tqdm.auto import tqdm

from ..data import find_columns
from ..data.texts import encode_texts, text_config_of
from ..errors import LearngeneError
from .labels import class_list, class_numbers, find_label_column
from .measuring import (
    check_batch_size,
    explained,
    image_inputs,
    image_values,
    measured_rows,
    measuring,
    part_of,
    read_image,
    read_text,
    to_model,
    tokenizer_for,
)
from .metrics import joined_batches, score_results


def classification_metrics(prediction: Any) -> dict[str, float]:
    """Give the stock `Trainer(compute_metrics=...)` the accuracies of a classifier's logits, with no network.

    It needs all rows at once: leave `batch_eval_metrics` off.

    Args:
        prediction: `transformers.EvalPrediction` with logits [N, C] and labels [N], or lists of batches of them, as
            the Trainer has them with `eval_do_concat_batches=False`. Of several outputs the first is the logits.

    Returns:
        "accuracy", "mean_per_class" and, with more than five classes, "top5", as shares of 1.

    Raises:
        LearngeneError: on shapes that do not fit, logits that are not finite, or a row that is not labelled.
    """
    return accuracies(joined_batches(prediction.predictions, 2), joined_batches(prediction.label_ids, 1))


def accuracies(logits: Any, labels: Any) -> dict[str, float]:
    """Return "accuracy", "mean_per_class" and, with more than five classes, "top5" of logits [N, C] and labels [N]."""
    figures = score_results(logits, labels)
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
    device: str | torch.device | None = None,
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
        device: where to move the model first; None leaves it where it is.
        progress: show a progress bar.

    Returns:
        What `accuracies` does.

    Raises:
        LearngeneError: on missing columns, a row that is not labelled or whose label is no class of the model, no
            rows, an unreadable image, or another model's tokenizer.
    """
    check_batch_size(batch_size)
    dataset = measured_rows(dataset)
    label_column = find_label_column(dataset, label_column)
    labels = _labels(dataset, label_column, model.config)
    of_images = model.main_input_name == "pixel_values"
    column = _find_input_column(dataset, label_column, image_column if of_images else text_column, of_images)
    part: Any
    read: Any
    values: Any
    if of_images:
        part, read, values = part_of(processor, "image_processor"), read_image, image_values(dataset, column)
    else:
        part, read, values = tokenizer_for(model, processor), read_text, dataset[column]

    def forward(batch: list[Any], first: int) -> Tensor:
        inputs = image_inputs(part, batch, first) if of_images else encode_texts(part, batch, text_config_of(model))
        return model(**to_model(inputs, model)).logits.float().cpu()  # [b, C]

    logits = []
    with measuring(model, device):
        for start in tqdm(range(0, len(values), batch_size), desc="classifying", disable=not progress):
            batch: list[Any] = [read(values, row) for row in range(start, min(start + batch_size, len(values)))]
            with explained(f"rows {start} to {start + len(batch) - 1} cannot be classified by this model"):
                logits.append(forward(batch, start))
    return accuracies(torch.cat(logits), labels)


def _find_input_column(dataset: Dataset, label_column: str, wanted: str | None, of_images: bool) -> str:
    inputs = dataset.remove_columns(label_column)
    if of_images:
        return find_columns(inputs, wanted, inputs.column_names[0] if inputs.column_names else None)[0]
    return find_columns(inputs, inputs.column_names[0] if inputs.column_names else None, wanted)[1]


def _labels(dataset: Dataset, label_column: str, config: Any) -> Tensor:
    """Return the rows' labels as the model counts them, [N]."""
    values, feature = list(dataset[label_column]), dataset.features[label_column]
    names = class_list(config.id2label, "the model's id2label")
    unnamed = all(name == f"LABEL_{index}" for index, name in enumerate(names))
    if isinstance(feature, ClassLabel) and not unnamed:
        values = [feature.names[number] for number in class_numbers(values, feature.names).tolist()]
    if any(isinstance(value, str) for value in values):
        _check_agreement(names, config.label2id or {})
    return class_numbers(values, names)


def _check_agreement(names: list[str], label2id: dict[str, int]) -> None:
    for name, label in label2id.items():
        if names.count(name) == 1 and names[label] != name:
            raise LearngeneError(
                f"the model's label2id counts {name!r} as class {label}, its id2label as {names.index(name)}: make "
                "them agree, or give labels as numbers"
            )
