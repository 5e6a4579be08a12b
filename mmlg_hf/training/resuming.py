"""Which checkpoint of a folder a run goes on from: the last that was written to its end."""

import json
import os
from pathlib import Path
from typing import Any

STATE_FILE = "trainer_state.json"  # a checkpoint's last file


def is_complete(checkpoint: str | os.PathLike) -> bool:
    """Whether a checkpoint was written to its end; one that was cut off lacks its state, or holds a part of it."""
    try:
        return isinstance(json.loads(Path(checkpoint, STATE_FILE).read_text(encoding="utf-8")), dict)
    except (OSError, ValueError):
        return False


def output_of(args: Any) -> Path:
    """Return the output folder of `TrainingArguments`, which they fill in where it is not given."""
    return Path(args.output_dir)


def last_checkpoint(folder: str | os.PathLike) -> str | None:
    """Return the complete checkpoint of the most steps in a run's output folder; None where there is none.

    transformers' `get_last_checkpoint` would take one that was cut off by a kill or a full disk.
    """
    steps = {path: path.name.removeprefix("checkpoint-") for path in Path(folder).glob("checkpoint-*")}
    complete = {path: int(step) for path, step in steps.items() if step.isdigit() and is_complete(path)}
    return str(max(complete, key=lambda path: complete[path])) if complete else None
