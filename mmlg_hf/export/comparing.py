"""`compare_models`: what several models cost and how good they are, in one table."""

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import LearngeneError
from ..evaluation.classification import evaluate_classification
from ..evaluation.dual_encoders import DEFAULT_TEMPLATES, evaluate_retrieval, evaluate_zero_shot
from .exporting import export_model, machine
from .formats import check_format
from .inputs import Inputs
from .measures import time_model
from .parts import PICTURES, TEXTS, parts_of_model
from .sources import Source, load_exportable

TASKS = ("retrieval", "zero-shot", "classification")
# The figures of each task that the table shows; the JSON has all.
SHOWN = {
    "retrieval": ("image_to_text_R@1", "image_to_text_R@10"),
    "zero-shot": ("top1",),
    "classification": ("accuracy",),
}


def compare_models(
    models: Sequence[str | os.PathLike],
    rows: Any = None,
    task: str | None = None,
    *,
    to: str | None = None,
    int8: bool = False,
    **evaluation: Any,
) -> dict[str, Any]:
    """Measure several models' parameters, megabytes, milliseconds and, on data, their figures.

    Args:
        models: Hub ids, folders or genes; "NAME@DEPTHxWIDTH" grows a size from a gene.
        rows: a `datasets.Dataset` to measure on; None measures costs alone.
        task: "retrieval", "zero-shot" or "classification"; needed with `rows`.
        to: a format to export each model to (and remove again), so that its files' costs stand beside torch's; None
            exports none.
        int8: with `to`, also in int8.
        evaluation: for `evaluate_retrieval`, `evaluate_zero_shot` or `evaluate_classification`, such as
            `image_column`.

    Returns:
        `models`, one dictionary a model: `name`, `class`, `parameters`, `megabytes` (of float32 weights),
        `milliseconds_picture` and `milliseconds_text` in torch (None where it takes none), `files` (as in
        `export.json`; empty without `to`) and `figures`; `task` and `machine`.

    Raises:
        LearngeneError: a model cannot be loaded, exported or measured, or there are none, or two of one name.
    """
    if not models:
        raise LearngeneError("there are no models to compare")
    if (rows is None) != (task is None):
        raise LearngeneError("data and task go together: give both to measure figures, or neither")
    if task is not None and task not in TASKS:
        raise LearngeneError(f"there is no task {task!r}: choose from {', '.join(TASKS)}")
    if to is not None:
        check_format(to)
    elif int8:
        raise LearngeneError("int8 is of exported files: name a format as well")
    twice = sorted({os.fspath(name) for name in models if list(models).count(name) > 1})
    if twice:
        raise LearngeneError(f"{twice[0]!r} is given twice: name each model once")
    measured = [_measure(load_exportable(name), rows, task, to, int8, evaluation) for name in models]
    return {"models": measured, "task": task, "machine": machine()}


def _measure(source: Source, rows: Any, task: str | None, to: str | None, int8: bool, evaluation: Any) -> dict:
    model, inputs = source.model, Inputs(source.model, source.processor)
    times: dict[str, float] = {}
    for part in parts_of_model(model, inputs):
        times[part.takes[0]] = time_model(part, inputs)
    tensors = {id(tensor): tensor for tensor in model.parameters()}.values()
    return {
        "name": source.title,
        "class": type(model).__name__,
        "parameters": model.num_parameters(),
        "megabytes": sum(tensor.numel() * tensor.element_size() for tensor in tensors) / 1e6,
        "milliseconds_picture": times.get(PICTURES),
        "milliseconds_text": times.get(TEXTS),
        "files": [] if to is None else _files(source, to, int8),
        "figures": {} if task is None else _figures(source, rows, task, evaluation),
    }


def _files(source: Source, to: str, int8: bool) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        return export_model(source, Path(folder, "exported"), to, int8=int8)["files"]


def _figures(source: Source, rows: Any, task: str, evaluation: dict[str, Any]) -> dict[str, float]:
    model, processor = source.model, source.processor
    if task == "classification":
        return evaluate_classification(model, rows, processor, **evaluation)
    if not (hasattr(model, "get_image_features") and hasattr(model, "get_text_features")):
        raise LearngeneError(
            f"{source.title} is a {type(model).__name__}: {task} takes a model that embeds pictures and texts"
        )
    if task == "zero-shot":
        return evaluate_zero_shot(model, rows, processor, **{"templates": DEFAULT_TEMPLATES, **evaluation})
    return evaluate_retrieval(model, rows, processor, **evaluation)


def megabytes_of(row: dict[str, Any], weights: str) -> float | None:
    """The size of a model's exported files of one kind of weights; None where there are none."""
    sizes = [file["megabytes"] for file in row["files"] if file["weights"] == weights]
    return sum(sizes) if sizes else None
