"""What the studies train with: arguments of the Trainer, rows in memory, and figures from embeddings."""

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor

from mmlg_hf.evaluation import class_embeddings
from mmlg_hf.evaluation.metrics import classification_results, label_ranks, retrieval_results


def training(
    folder: Path | str, steps: int, batch_size: int, rate: float, log_every: int | None = None, **changes: Any
) -> dict[str, Any]:
    """Settings of a `TrainingArguments` for a run that is measured at its end: a tenth of warm-up, then a cosine."""
    settings = {
        "output_dir": str(folder),
        "max_steps": steps,
        "per_device_train_batch_size": batch_size,
        "per_device_eval_batch_size": 256,
        "learning_rate": rate,
        "warmup_steps": 0.1,
        "lr_scheduler_type": "cosine",
        "logging_strategy": "steps" if log_every else "no",
        "logging_steps": log_every or 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }
    return settings | changes


class Rows(torch.utils.data.Dataset):
    """Columns of the same length in memory, a row as the Trainer's collators take it; photos come as float32."""

    def __init__(self, **columns: Any) -> None:
        self.columns = columns

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, row: int) -> dict[str, Any]:
        found = {name: values[row] for name, values in self.columns.items()}
        return found | ({"pixel_values": found["pixel_values"].float()} if "pixel_values" in found else {})


def photos(processed: Dataset) -> Tensor:
    """Photos [N, 3, H, W] of processed pairs, in float16."""
    return torch.cat([batch["pixel_values"].half() for batch in processed.select_columns("pixel_values").iter(512)])


def batches_of(rows: Rows, collator: Any, size: int, count: int | None = None) -> list[dict[str, Tensor]]:
    """The first `count` rows, all if None, in batches."""
    end = min(len(rows) if count is None else count, len(rows))
    return [collator([rows[row] for row in range(at, min(at + size, end))]) for at in range(0, end, size)]


def figures(
    model: Any, images: Tensor, texts: Tensor, names: list[str] | None, processor: Any, templates: Any
) -> tuple[dict[str, float], dict[str, float]]:
    """Retrieval and zero-shot figures from normalised embeddings [N, D].

    Args:
        names: each row's class; None leaves zero-shot out.
    """
    retrieval = retrieval_results(images, texts, torch.arange(len(texts)))
    if names is None:
        return retrieval, {}
    classes = sorted(set(names))
    labels = torch.tensor([classes.index(name) for name in names])
    prompts = class_embeddings(model, classes, processor, templates=templates)
    return retrieval, classification_results(label_ranks(images @ prompts.T, labels), labels, len(classes))
