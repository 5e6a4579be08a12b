"""The option `--device` of commands that compute."""

import os
from typing import Annotated, Any

import typer

from ..errors import LearngeneError

Device = Annotated[
    str | None,
    typer.Option(help='Where to compute, such as "cpu" or "cuda:1".', show_default="a GPU, if there is one"),
]


def find_device(name: str | None) -> Any:
    """Return the torch device of a name; None takes the accelerator, and the CPU where there is none.

    Raises:
        LearngeneError: there is no such device on this machine.
    """
    import torch

    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if name is None:
        return accelerator or torch.device("cpu")
    try:
        device = torch.device(name)
    except (RuntimeError, ValueError) as error:
        raise LearngeneError(f'device is {name!r}: give "cpu", or such as "cuda" or "cuda:1"') from error
    there = {"cpu": 1}
    if accelerator is not None:
        there[accelerator.type] = torch.accelerator.device_count()
    if (device.index or 0) >= there.get(device.type, 0):
        known = [kind if count == 1 else f"{kind}:0 to {kind}:{count - 1}" for kind, count in there.items()]
        raise LearngeneError(f"device is {name!r}, but this machine has {' and '.join(known)}")
    return device


def train_on(name: str | None) -> dict[str, Any]:
    """Return the `TrainingArguments` that train on the device of a name; None leaves the choice to the Trainer.

    A GPU that is named by its number is made the only one that this process sees, before any is looked at, as the
    Trainer would take the first, or all of them.

    Raises:
        LearngeneError: there is no such device on this machine.
    """
    kind, _, index = (name or "").partition(":")
    if kind != "cuda" or not index.isdecimal():
        return {"use_cpu": True} if name is not None and find_device(name).type == "cpu" else {}
    before = os.environ.get("CUDA_VISIBLE_DEVICES")
    seen = [part for part in (before or "").split(",") if part]
    os.environ["CUDA_VISIBLE_DEVICES"] = seen[int(index)] if int(index) < len(seen) else "" if seen else index
    try:
        find_device(kind)
    except LearngeneError as error:
        os.environ.pop("CUDA_VISIBLE_DEVICES")
        if before is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = before
        raise LearngeneError(f"device is {name!r}, but there is no such GPU on this machine") from error
    return {}
