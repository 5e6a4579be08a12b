"""A short contrastive training of a pico CLIP."""

from pathlib import Path
from typing import Any

from pico import pico_clip, pico_pairs, pico_processor
from transformers import TrainingArguments

from mmlg_hf import ContrastiveTrainer


def contrastive(tmp_path: Path, rows: Any = None, **settings) -> ContrastiveTrainer:
    """A trainer of six steps with a checkpoint after each, in the folder `run`; `settings` change its arguments."""
    settings = {"save_strategy": "steps", "save_steps": 1, "learning_rate": 1e-3, "max_steps": 6, **settings}
    args = TrainingArguments(
        str(tmp_path / "run"), per_device_train_batch_size=4, report_to="none", use_cpu=True, disable_tqdm=True,
        logging_strategy="no", **settings,
    )  # fmt: skip
    return ContrastiveTrainer(
        pico_clip(), args, train_dataset=rows or pico_pairs(32), processing_class=pico_processor()
    )
