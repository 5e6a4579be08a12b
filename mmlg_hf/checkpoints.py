"""Loading stock configs, models and processors: nothing is filled up at random, and every fault is one sentence."""

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from logging import getLogger
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from transformers import AutoProcessor, AutoTokenizer

# Not from `transformers` itself: in 5.15, without torchvision, that name is a stand-in that raises.
from transformers.models.auto.image_processing_auto import AutoImageProcessor
from transformers.utils import logging

from .errors import LearngeneError, first_line
from .hub import PICKLED_WEIGHTS, check_subfolder, list_files
from .saving import WEIGHTS, WEIGHTS_INDEX


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the progress bars and notices of transformers and, where it is loaded, of datasets; ours are kept."""
    own = getLogger(__package__)
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    datasets = sys.modules.get("datasets")  # not imported for this: growing a descendant needs none of it
    data_bars = datasets is not None and datasets.is_progress_bar_enabled()
    level = own.level
    own.setLevel(own.getEffectiveLevel())
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if datasets is not None:
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        own.setLevel(level)
        if bars:
            logging.enable_progress_bar()
        if data_bars and datasets is not None:
            datasets.enable_progress_bars()


ZOO = Path(__file__).parent / "zoo"


def bundled_learngenes() -> list[str]:
    """Name the genes that come with the package; none for code that was loaded from the Hub without it."""
    return sorted(path.parent.name for path in ZOO.glob("*/config.json"))


def locate_learngene(learngene: str | os.PathLike) -> str:
    """Return the folder of a bundled gene for its name; a folder or Hub id is returned as it is."""
    name = os.fspath(learngene)
    if not os.path.isdir(name) and name in bundled_learngenes():
        return str(ZOO / name)
    if os.path.exists(name) and not os.path.isdir(name):
        raise LearngeneError(f"{name!r} is a file: give the folder that a gene was saved to, or a Hub id")
    return name


# What a damaged config or a config of another model makes transformers raise.
CONFIG_FAULTS = (
    *(OSError, ValueError, TypeError, AttributeError, LookupError, ArithmeticError, RuntimeError),
    StrictDataclassError,
)
_SHOWN = 3
_LONGEST_NAME = 120


def load_config(auto: Any, name: str | os.PathLike, what: str, **kwargs: Any) -> Any:
    """Read a config with a config class (or `AutoConfig`).

    Args:
        what: what the error calls it, such as "the ancestor".
        kwargs: `revision`, `token`, `cache_dir`, `local_files_only`, ...

    Raises:
        LearngeneError: if there is none, or it is damaged.
    """
    name = os.fspath(name)
    _check_folder(name, what, kwargs.get("subfolder"), auto)
    try:
        return auto.from_pretrained(name, **kwargs)
    except LearngeneError:
        raise
    except CONFIG_FAULTS as error:
        raise LearngeneError(f"cannot read the config of {what} {_short(name)}: {first_line(error)}") from error


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
    if kwargs.get("config") is None:
        _check_folder(name, what, kwargs.get("subfolder"), getattr(cls, "config_class", None))
    _check_weight_files(name, what, kwargs.get("subfolder"))
    described = f"{what} {_short(name)}"
    try:
        with quiet():
            model, info = cls.from_pretrained(
                name, output_loading_info=True, use_safetensors=True, ignore_mismatched_sizes=True, **kwargs
            )
    except LearngeneError:
        raise
    except SafetensorError as error:
        raise LearngeneError(
            f"the weights of {described} are damaged ({_damage(name) or first_line(error)}): fetch them again"
        ) from error
    except CONFIG_FAULTS as error:
        raise LearngeneError(f"cannot load {described}: {first_line(error)}") from error
    check_tensors(model, info, described, may_lack=may_lack, may_hold_more=may_hold_more)
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
        damage = damage_of(path) if path.is_file() else None
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
        saved_as = getattr(model.config, "architectures", None)
        saved_as = saved_as[0] if isinstance(saved_as, list) and saved_as else kind
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
    unexpected = sorted(info["unexpected_keys"])
    beyond = [key for key in unexpected if _is_of_a_layer_beyond(model, key)]
    if beyond:
        raise LearngeneError(
            f"{described} holds {_counted(beyond)} of more layers than its config says, such as "
            f"{', '.join(beyond[:_SHOWN])}: one of the two is another model's"
        )
    if unexpected and not may_hold_more:
        raise LearngeneError(
            f"{described} holds {_counted(unexpected)} that a {kind} has not, such as "
            f"{', '.join(unexpected[:_SHOWN])}: it is another model"
        )
    check_finite(model, described)


def check_finite(model: Any, described: str) -> None:
    """Refuse a model with a NaN or an infinity in any tensor, naming it."""
    for key, tensor in model.state_dict().items():
        _check_finite(key, tensor, described)


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether a tensor holds neither NaN nor infinity; one on the meta device holds nothing."""
    if tensor.is_meta or not tensor.is_floating_point():
        return True
    # A sum that is finite has finite terms alone, and needs a fifth of the time; one that is not may be too large.
    total = tensor.sum(dtype=torch.promote_types(tensor.dtype, torch.float32))
    return bool(torch.isfinite(total)) or bool(torch.isfinite(tensor).all())


def _check_finite(key: str, tensor: torch.Tensor, described: str) -> None:
    if not is_finite(tensor):
        raise LearngeneError(f"{key} of {described} holds NaN or infinity: such weights are of no use")


def _counted(names: list) -> str:
    return f"{len(names)} tensor{'s' if len(names) > 1 else ''}"


def _short(name: str) -> str:
    return repr(name if len(name) <= _LONGEST_NAME else f"{name[:_LONGEST_NAME]}...")


def _is_of_a_layer_beyond(model: nn.Module, key: str) -> bool:
    """Whether a tensor belongs to a layer that a list of the model's layers is too short for."""
    steps = key.removeprefix(f"{getattr(model, 'base_model_prefix', '')}.").split(".")
    for position, step in enumerate(steps):
        try:
            layers = model.get_submodule(".".join(steps[:position]))
        except AttributeError:
            return False
        if isinstance(layers, nn.ModuleList) and step.isdigit() and int(step) >= len(layers):
            return True
    return False


def check_place(name: str, what: str) -> None:
    """Refuse a path where no folder is; Hub ids pass."""
    if os.path.isfile(name):
        raise LearngeneError(f"{what} {_short(name)} is a file: give the folder that the model was saved to")
    if not os.path.isdir(name) and (os.path.isabs(name) or name.startswith((".", "~")) or name.count("/") > 1):
        raise LearngeneError(f"there is no folder {_short(name)} to load {what} from")


def _check_folder(name: str, what: str, subfolder: str | None, config_class: Any) -> None:
    """Refuse a path where no folder is, and a folder without the config of such a model; Hub ids pass."""
    check_place(name, what)
    if not os.path.isdir(name):
        return
    folder, described = Path(name, subfolder or ""), f"{what} {_short(name)}"
    if (folder / "adapter_config.json").is_file():  # peft's: it names the model that the adapter belongs to
        return
    try:
        content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except OSError:
        raise LearngeneError(f"{described} has no config.json: it is no model's folder") from None
    except ValueError:
        raise LearngeneError(f"the config.json of {described} is no JSON: it is damaged") from None
    if not isinstance(content, dict) or not isinstance(content.get("model_type"), str):
        raise LearngeneError(f"the config.json of {described} has no model_type: it is no model's config")
    wanted, kind = getattr(config_class, "model_type", ""), content["model_type"]
    part = getattr(config_class, "base_config_key", "")  # an encoder's config stands inside that of the whole
    if wanted and kind != wanted and not (part and part in content):
        raise LearngeneError(f"{described} is a {kind!r} model, and a {wanted!r} model is needed")


def _check_weight_files(name: str, what: str, subfolder: str | None) -> None:
    """Refuse a folder of pickled weights, or with an index that names files which are not in it; Hub ids pass."""
    folder, described = Path(name, subfolder or ""), f"{what} {_short(name)}"
    if not os.path.isdir(name) or (folder / WEIGHTS).is_file():
        return
    if not (folder / WEIGHTS_INDEX).is_file():
        pickled = [file for file in PICKLED_WEIGHTS if (folder / file).is_file()]
        if pickled:
            raise LearngeneError(
                f"{described} has pickled weights only ({pickled[0]}), which can run code when they are opened: save "
                "it as safetensors"
            )
        if any(folder.glob("*.safetensors")):
            return  # a variant, such as model.fp16.safetensors
        raise LearngeneError(f"{described} has no weights: it needs {WEIGHTS} or {WEIGHTS_INDEX}")
    try:
        content = json.loads((folder / WEIGHTS_INDEX).read_text(encoding="utf-8"))
        files = list(content["weight_map"].values())
        if not files or "metadata" not in content:
            raise ValueError
    except (ValueError, LookupError, TypeError, AttributeError):
        raise LearngeneError(f"the {WEIGHTS_INDEX} of {described} is no index of weights") from None
    there = set(os.listdir(folder))  # names are compared, so that none leads out of the folder
    for file in files:
        if not isinstance(file, str) or file not in there:
            raise LearngeneError(f"{described} lacks {_short(str(file))}, which its {WEIGHTS_INDEX} names")


def _damage(name: str) -> str | None:
    """What is wrong with a folder's weights, where it can be told."""
    paths = sorted(Path(name).glob("*.safetensors")) if os.path.isdir(name) else []
    return next((damage for path in paths if (damage := damage_of(path))), None)


def damage_of(path: Path) -> str | None:
    """What is wrong with a file of weights, where it can be told: it is empty, or stands for another file."""
    if not path.stat().st_size:
        return f"{path.name} is empty"
    with path.open("rb") as file:
        if file.read(23) == b"version https://git-lfs":
            return f"{path.name} is a Git LFS pointer, not the file itself: run `git lfs pull`"
    return None


logger = logging.get_logger(__name__)

_IMAGE = ("preprocessor_config.json", "processor_config.json")
_TEXT = (
    "tokenizer.json", "tokenizer_config.json", "vocab.json", "vocab.txt", "spiece.model", "tokenizer.model",
    "sentencepiece.bpe.model",
)  # fmt: skip


def load_processor(learngene: str | os.PathLike, **hub_kwargs: Any) -> Any:
    """Load the processor stored with a gene or another model (images and text, or the one side that is there).

    Args:
        learngene: a Hub id, a folder or a bundled name.
        hub_kwargs: `revision`, `token`, `cache_dir`, `local_files_only`, `subfolder`.

    Raises:
        LearngeneError: none is stored with the model, the one that is cannot be read, or it cannot be reached.
    """
    name = locate_learngene(learngene)
    stored = _stored_files(name, hub_kwargs)
    image, text = (any(file in stored for file in files) for files in (_IMAGE, _TEXT))
    if not (image or text):
        raise LearngeneError(f"{name!r} has no processor stored with it: use its ancestor's")
    # Not one after the other until one loads: where the image side is damaged, the tokenizer alone would pass for all.
    auto: Any = AutoProcessor if image and text else AutoImageProcessor if image else AutoTokenizer
    try:
        return auto.from_pretrained(name, **hub_kwargs)
    except Exception as error:  # the tokenizers library raises nothing narrower for a damaged file
        raise LearngeneError(f"the processor stored with {name!r} cannot be read: {first_line(error)}") from error


def stored_processor(folder: Path, name: str) -> Any:
    """Load the processor in a gene's folder; None if there is none, or, with a warning, if it cannot be read."""
    if not _stored_files(str(folder), {}) & {*_IMAGE, *_TEXT}:
        return None
    try:
        return load_processor(folder)
    except LearngeneError as error:
        logger.warning(f"{name} is loaded without its processor, and so are its descendants: {error}")
        return None


def _stored_files(name: str, hub_kwargs: dict[str, Any]) -> set[str]:
    """The names of the files beside a model."""
    if os.path.isdir(name):
        folder = Path(name, check_subfolder(hub_kwargs.get("subfolder") or ""))
        return {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    known = ("revision", "token", "cache_dir", "local_files_only", "subfolder")
    return list_files(name, (*_IMAGE, *_TEXT), **{key: hub_kwargs[key] for key in known if key in hub_kwargs})
