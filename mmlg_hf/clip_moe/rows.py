"""What the stages of a mixture are trained on: rows that make batches, and what they are as part of a run."""

from typing import Any

from datasets import DatasetDict, IterableDatasetDict

from ..data import fingerprint_processor
from ..data.identity import PROCESSING_VERSION, fingerprint_data
from ..errors import LearngeneError


def check_rows(dataset: Any) -> None:
    """Raise a `LearngeneError` for several splits at once, and for no rows."""
    if isinstance(dataset, (DatasetDict, IterableDatasetDict)):
        raise LearngeneError(f"the dataset has the splits {', '.join(map(repr, dataset))}: give one of them")
    if hasattr(dataset, "__len__") and not len(dataset):
        raise LearngeneError("the dataset is empty (0 rows): there is nothing to train on")


def describe_rows(dataset: Any, data_collator: Any) -> dict[str, Any]:
    """Everything about rows, and the collator that makes batches of them, that changes what is trained."""
    described: dict[str, Any] = {"processing_version": PROCESSING_VERSION}
    for name in ("image_column", "text_column", "max_length"):
        described[name] = getattr(data_collator, name, None)
    processor = getattr(data_collator, "processor", None)
    if getattr(processor, "image_processor", None) is not None:
        described["processor"] = fingerprint_processor(processor)
    return {**described, "data": fingerprint_data(dataset)}
