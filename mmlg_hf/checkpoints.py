"""Loading stock transformers models: nothing is filled up at random, and every fault is one sentence."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from safetensors.torch import load_file

from .errors import LearngeneError, first_line
from .hub import PICKLED_WEIGHTS
from .silence import quiet

# What a damaged config or a config of another model makes transformers raise.
CONFIG_FAULTS = (OSError, ValueError, TypeError, KeyError, AttributeError, StrictDataclassError)
_SHOWN = 3


def load_config(auto: Any, name: str | os.PathLike, what: str, **kwargs: Any) -> Any:
    """Read a config with a config class (or `AutoConfig`).

    Args:
        what: what the error calls it, such as "the ancestor".
        kwargs: `revision`, `token`, `cache_dir`, `local_files_only`, ...

    Raises:
        LearngeneError: if there is none, or it is damaged.
    """
    try:
        return auto.from_pretrained(name, **kwargs)
    except LearngeneError:
        raise
    except CONFIG_FAULTS as error:
        raise LearngeneError(f"cannot read the config of {what} {os.fspath(name)!r}: {first_line(error)}") from error


def load_model(
    cls: Any,
    name: str | os.PathLike,
    what: str,
    *,
    may_lack: Callable[[str], bool] = lambda key: False,
    may_hold_more: bool = True,
    **kwargs: Any,
) -> Any:
    """Load a model by `cls.from_pretrained` from safetensors files and refuse one whose tensors do not fit.

    Args:
        cls: a stock class, an auto class, or one of ours.
        name: a Hub id or a folder.
        what: what the error calls it, such as "the ancestor".
        may_lack: whether a tensor may be missing; None may.
        may_hold_more: whether tensors that the class has no use for (another model's head) are dropped in silence.
        kwargs: passed on (`revision`, `dtype`, `config`, ...).

    Returns:
        the model, in evaluation mode.

    Raises:
        LearngeneError: there is no such model, its weights are pickled or damaged, or tensors are missing, of another
            shape or not finite (or, as asked, unexpected), naming the first.
    """
    name = os.fspath(name)
    _refuse_pickled(name, what)
    try:
        with quiet():
            model, info = cls.from_pretrained(
                name, output_loading_info=True, use_safetensors=True, ignore_mismatched_sizes=True, **kwargs
            )
    except LearngeneError:
        raise
    except SafetensorError as error:
        raise LearngeneError(
            f"the weights of {what} {name!r} are damaged ({_damage(name) or first_line(error)}): fetch them again"
        ) from error
    except (*CONFIG_FAULTS, RuntimeError) as error:
        raise LearngeneError(f"cannot load {what} {name!r}: {first_line(error)}") from error
    check_tensors(model, info, f"{what} {name!r}", may_lack=may_lack, may_hold_more=may_hold_more)
    return model.eval()


def read_tensors(path: str | os.PathLike, described: str) -> dict[str, torch.Tensor]:
    """Read a safetensors file whole.

    Args:
        described: what the error calls it, such as "model.safetensors of 'FOLDER'".

    Raises:
        LearngeneError: if there is none, it is damaged, or a value is NaN or infinity.
    """
    path = Path(path)
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        damage = _damage_of(path) if path.is_file() else None
        raise LearngeneError(f"cannot read {described}: {damage or first_line(error)}") from error
    for key, tensor in tensors.items():
        _check_finite(key, tensor, described)
    return tensors


def check_tensors(
    model: Any,
    info: dict[str, Any],
    described: str,
    *,
    may_lack: Callable[[str], bool] = lambda key: False,
    may_hold_more: bool = True,
) -> None:
    """Refuse a loaded model whose loading report, `info`, names tensors that do not fit, or with values not finite."""
    kind = type(model).__name__
    missing = sorted(key for key in info["missing_keys"] if not may_lack(key))
    if missing:
        saved_as = (getattr(model.config, "architectures", None) or [kind])[0]
        raise LearngeneError(
            f"{described} was saved as {saved_as} and lacks {_counted(missing)} of a {kind}, such as "
            f"{', '.join(missing[:_SHOWN])}: it is damaged, or another model"
        )
    odd = sorted((key, list(found), list(wanted)) for key, found, wanted in info["mismatched_keys"])
    if odd:
        key, found, wanted = odd[0]
        raise LearngeneError(
            f"{described} has {_counted(odd)} of another shape than its config says, such as {key}: {found} in place "
            f"of {wanted}"
        )
    unexpected = [] if may_hold_more else sorted(info["unexpected_keys"])
    if unexpected:
        raise LearngeneError(
            f"{described} holds {_counted(unexpected)} that a {kind} has not, such as "
            f"{', '.join(unexpected[:_SHOWN])}: it is another model"
        )
    check_finite(model, described)


def check_finite(model: Any, described: str) -> None:
    """Refuse a model with a NaN or an infinity in any tensor, naming it."""
    for key, tensor in model.state_dict().items():
        _check_finite(key, tensor, described)


def _check_finite(key: str, tensor: torch.Tensor, described: str) -> None:
    if tensor.is_floating_point() and not tensor.is_meta and not torch.isfinite(tensor).all():
        raise LearngeneError(f"{key} of {described} holds NaN or infinity: such weights are of no use")


def _counted(names: list) -> str:
    return f"{len(names)} tensor{'s' if len(names) > 1 else ''}"


def _refuse_pickled(name: str, what: str) -> None:
    if not os.path.isdir(name) or any(Path(name).glob("*.safetensors*")):
        return
    pickled = [file for file in PICKLED_WEIGHTS if Path(name, file).is_file()]
    if pickled:
        raise LearngeneError(
            f"{what} {name!r} has pickled weights only ({pickled[0]}), which can run code when they are opened: save "
            "it as safetensors"
        )


def _damage(name: str) -> str | None:
    """What is wrong with a folder's weights, where it can be told."""
    files = sorted(Path(name).glob("*.safetensors")) if os.path.isdir(name) else []
    return next((told for told in map(_damage_of, files) if told), None)


def _damage_of(path: Path) -> str | None:
    """What is wrong with a file of weights, where it can be told."""
    if not path.stat().st_size:
        return f"{path.name} is empty"
    with path.open("rb") as file:
        if file.read(23) == b"version https://git-lfs":
            return f"{path.name} is a Git LFS pointer, not the file itself: run `git lfs pull`"
    return None
