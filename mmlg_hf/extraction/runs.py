"""What a run of an extraction is known by, how it is gone on with, and the recipe that its gene carries."""

import json
import os
import platform
import time
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import TrainerCallback, TrainingArguments
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import has_length
from transformers.utils import logging

from ..data import fingerprint_processor
from ..data.identity import PROCESSING_VERSION, check_same_run, fingerprint_data
from ..errors import LearngeneError, first_line
from ..saving import write_json
from ..training.resuming import STATE_FILE, is_complete, last_checkpoint, output_of
from .ancestors import public_name
from .arguments import ExtractionArguments

logger = logging.get_logger(__name__)

RUN_FILE = "extraction.json"

_OWN = [
    name for name in ExtractionArguments.__dataclass_fields__ if name not in TrainingArguments.__dataclass_fields__
]
# Where things are kept, and what the data and its columns say themselves.
_NO_SETTINGS = ("ancestor_cache_dir", "cache_ancestor", "cache_stream", "split", "image_column", "text_column")
_STOCK = (
    "gradient_accumulation_steps", "learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps",
    "weight_decay", "optim", "optim_args", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm", "seed",
    "data_seed", "bf16", "fp16", "label_smoothing_factor",
)  # fmt: skip


def describe_run(
    args: ExtractionArguments, ancestor: str, data: Any, columns: Sequence[str] | None, processor: Any
) -> dict[str, Any]:
    """Return everything that must stay the same where a run goes on.

    The number of steps or epochs is no part of it: it may be raised to go on for longer.

    Args:
        ancestor: its fingerprint.
        data: the raw rows. Of a stream only the first ones count.
        columns: those that are learned from; None takes all.
    """
    settings = {name: getattr(args, name) for name in (*_OWN, *_STOCK) if name not in _NO_SETTINGS}
    return {
        "ancestor": ancestor,
        "columns": list(columns) if columns is not None else args.image_column,
        "data": fingerprint_data(data, columns),
        "processor": fingerprint_processor(processor),
        "processing": PROCESSING_VERSION,
        "batch_size": args.train_batch_size * args.world_size,
        **{name: getattr(value, "value", value) for name, value in settings.items()},
    }


class WriteRun(TrainerCallback):
    """Write the description of the run beside its checkpoints, when it begins, and into each of them.

    A folder may hold checkpoints of more than one run.
    """

    def __init__(self, run: Mapping[str, Any]) -> None:
        self.run = run

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write it into the output folder, on the main process."""
        if state.is_world_process_zero:
            write_json(Path(args.output_dir, RUN_FILE), self.run)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write it, on the main process."""
        folder = Path(args.output_dir, f"checkpoint-{state.global_step}")
        if state.is_world_process_zero and folder.is_dir():
            write_json(folder / RUN_FILE, self.run)


class Stopwatch(TrainerCallback, ExportableState):
    """Counts the seconds of a run, and keeps them in its checkpoints: a run that is gone on with has all of its own.

    Args:
        before: seconds up to the checkpoint that is gone on from.
    """

    def __init__(self, before: float = 0.0) -> None:
        self.before, self.started = before, time.monotonic()

    @property
    def seconds(self) -> float:
        """What the run has taken so far."""
        return self.before + time.monotonic() - self.started

    def state(self) -> dict[str, Any]:
        """What the Trainer writes into `trainer_state.json`."""
        return {"args": {"before": self.seconds}, "attributes": {}}

    @classmethod
    def gone_on_with(cls, checkpoint: str | None) -> "Stopwatch":
        """One that begins with the seconds that a checkpoint was written after; None begins with none."""
        if checkpoint is None:
            return cls()
        kept = _read_json(Path(checkpoint, STATE_FILE)).get("stateful_callbacks") or {}
        return cls(**kept.get(cls.__name__, {}).get("args", {}))


def find_checkpoint(
    args: ExtractionArguments, run: Mapping[str, Any], resume: str | os.PathLike | bool | None
) -> str | None:
    """Return the checkpoint to go on from, after seeing that it is of the same run; None to begin one.

    Args:
        run: what `describe_run` says of it.
        resume: a checkpoint's folder; True for the last complete one in `args.output_dir`, or the beginning of a run
            that was cut off before its first; None or False begins a new run.

    Raises:
        LearngeneError: there is nothing to go on with, it is another run, or is longer already than asked for.
    """
    output = output_of(args)
    checkpoint: Path | None = None
    if resume is True:
        last = last_checkpoint(output)
        checkpoint = None if last is None else Path(last)
        if checkpoint is None and not (output / RUN_FILE).exists():
            raise LearngeneError(
                f"{str(output)!r} holds no checkpoint to go on from: begin without resuming, or name its folder"
            )
        _check_run(output, checkpoint, run)
        if checkpoint is None:
            logger.warning(f"{str(output)!r} holds no checkpoint yet: the run begins anew")
    elif resume:
        checkpoint = Path(os.fspath(resume))
        if not is_complete(checkpoint):
            raise LearngeneError(f"{str(checkpoint)!r} is no complete checkpoint: it has no whole {STATE_FILE}")
        _check_run(checkpoint.parent, checkpoint, run)
    if checkpoint is not None:
        _check_length(args, checkpoint)
    return None if checkpoint is None else str(checkpoint)


def _check_run(folder: Path, checkpoint: Path | None, run: Mapping[str, Any]) -> None:
    if not (folder / RUN_FILE).is_file():
        raise LearngeneError(
            f"{str(folder)!r} holds checkpoints but no {RUN_FILE}, which tells what run they are of: begin anew in "
            "another output folder"
        )
    check_same_run(_read_json(folder / RUN_FILE), run, folder)
    if checkpoint is not None and (checkpoint / RUN_FILE).is_file():
        check_same_run(_read_json(checkpoint / RUN_FILE), run, checkpoint)


def _check_length(args: ExtractionArguments, checkpoint: Path) -> None:
    state = _read_json(checkpoint / STATE_FILE)
    for name, wanted, done in (
        ("max_steps", args.max_steps, state.get("global_step")),
        ("num_train_epochs", args.num_train_epochs, state.get("epoch")),
    ):
        if name == "num_train_epochs" and args.max_steps > 0:
            continue
        if wanted > 0 and done is not None and done > wanted:
            raise LearngeneError(
                f"{name} is {wanted}, but the run of {str(checkpoint)!r} has come to {done} already: raise it, or "
                "begin anew in another output folder"
            )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise LearngeneError(f"{str(path)!r} cannot be read ({first_line(error)}): begin anew") from error
    if not isinstance(found, dict):
        raise LearngeneError(f"{str(path)!r} holds no settings: begin anew")
    return found


def mean_loss(history: Sequence[Mapping[str, Any]]) -> float | None:
    """The mean loss of all logged steps, also those before a run was gone on with, which the Trainer's own leaves out.

    Returns None if none was logged.
    """
    logged = [(0, 0.0), *((entry["step"], entry["loss"]) for entry in history if "loss" in entry)]
    total = sum(float(loss) * (step - before) for (before, _), (step, loss) in pairwise(logged))
    return round(total / logged[-1][0], 5) if logged[-1][0] else None


def recipe(
    args: ExtractionArguments, dataset: Any, train: Any, result: Any, state: Any, stopwatch: Stopwatch
) -> dict[str, Any]:
    """Collect what the artifact says about how it was made."""
    settings = {name: getattr(args, name) for name in _OWN if name != "ancestor_cache_dir"}
    last: dict[str, Any] = next((entry for entry in reversed(state.log_history) if "loss" in entry), {})
    named = isinstance(dataset, (str, os.PathLike))
    return {
        "dataset": public_name(dataset) if named else type(dataset).__name__,
        "rows": len(train) if has_length(train) else None,
        "steps": state.global_step,
        "batch_size": args.train_batch_size * args.gradient_accumulation_steps * args.world_size,
        "learning_rate": args.learning_rate,
        "weight_decay": args.weight_decay,
        "seed": args.seed,
        **settings,
        "train_loss": mean_loss(state.log_history) if stopwatch.before else round(result.training_loss, 5),
        "final_losses": {name: value for name, value in last.items() if name.startswith("loss")},
        "seconds": round(stopwatch.seconds),
        "hardware": torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
