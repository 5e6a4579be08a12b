"""Loading and saving a gene: from a folder or the Hub, wholly or one side of it, and nothing that does not fit."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from .errors import LearngeneError
from .hub import PICKLED_WEIGHTS, check_subfolder, fetch_learngene
from .parts import WEIGHTS, WEIGHTS_INDEX, is_needed, split_by_part

# Keywords of `save_pretrained` that belong to the upload which `push_to_hub=True` adds to it.
_UPLOAD_KEYWORDS = ("repo_id", "commit_message", "commit_description", "private", "revision", "create_pr", "tags")


class StrictLoadingMixin:
    """`from_pretrained` and `save_pretrained` of a gene."""

    processor: Any
    auto_class = "AutoModel"  # the class of transformers through which a gene is loaded with its own code

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike | None,
        *model_args: Any,
        modality: str | None = None,
        config: Any = None,
        cache_dir: str | os.PathLike | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        token: str | bool | None = None,
        revision: str | None = None,
        subfolder: str = "",
        output_loading_info: bool = False,
        **kwargs: Any,
    ):
        """Load a gene, as `PreTrainedModel.from_pretrained` does, but refuse one whose tensors do not fit its config.

        Files from the Hub are compared with their hashes; see `hub.fetch_learngene` for `cache_dir` to `subfolder`.

        Args:
            pretrained_model_name_or_path: a folder or a Hub id.
            modality: "image" or "text" fetches and loads only what descendants of that modality are made from: such a
                gene grows them and can do nothing else. None and "multimodal" load all of it.
            kwargs: further keywords of `PreTrainedModel.from_pretrained`, such as `dtype` and `device_map`; with
                `modality` only `dtype`.

        Raises:
            LearngeneError: there is no gene there, its weights are pickled, damaged or not finite, or tensors are
                missing, unexpected or of another shape, all of which are listed.
        """
        stock: Any = super()
        if pretrained_model_name_or_path is None:
            return stock.from_pretrained(
                None, *model_args, config=config, output_loading_info=output_loading_info, **kwargs
            )
        name, commit = str(pretrained_model_name_or_path), None
        if os.path.isdir(name):
            folder = Path(name) / check_subfolder(subfolder)
        else:
            folder, commit = fetch_learngene(
                name,
                modality=modality,
                revision=revision,
                token=token,
                cache_dir=cache_dir,
                local_files_only=local_files_only,
                force_download=force_download,
                subfolder=subfolder,
            )
        check_folder(folder, name)
        files = _weight_files(folder, is_needed(modality or "multimodal"), name)
        try:
            if modality in (None, "multimodal"):
                keywords = {"use_safetensors": True, "ignore_mismatched_sizes": True, **kwargs}
                model, info = stock.from_pretrained(
                    folder, *model_args, config=config, output_loading_info=True, **keywords
                )
            else:
                model, info = cls._load_part(folder, files, modality, config, **kwargs)
        except SafetensorError as error:
            raise LearngeneError(f"The weights of {name} are truncated or no safetensors file: {error}") from None
        _check_tensors(model, info, name)
        model.config._name_or_path = model.name_or_path = name
        model.config._commit_hash = commit
        return (model, info) if output_loading_info else model

    @classmethod
    def _load_part(
        cls,
        folder: Path,
        files: list[Path],
        modality: str,
        config: Any,
        dtype: torch.dtype | None = None,
        **kwargs: Any,
    ):
        """Load the tensors that one modality needs; all others stay on the meta device."""
        if kwargs:
            raise LearngeneError(f"With modality, from_pretrained takes dtype only, not {', '.join(sorted(kwargs))}")
        if config is None:
            config = cls.config_class.from_pretrained(folder)  # type: ignore[attr-defined]
        config.check_modality(modality)
        needed = is_needed(modality)
        with torch.device("meta"):
            model: Any = cls(config)  # type: ignore[call-arg]
        wanted = {name: tensor.shape for name, tensor in model.state_dict().items() if needed(name)}
        weights: dict[str, torch.Tensor] = {}
        for path in files:
            with safe_open(path, framework="pt") as tensors:
                weights |= {name: tensors.get_tensor(name) for name in tensors.keys() if needed(name)}  # noqa: SIM118
        fitting = {name: tensor for name, tensor in weights.items() if wanted.get(name) == tensor.shape}
        model.load_state_dict(fitting, strict=False, assign=True)
        if dtype is not None:
            model.to(dtype)
        mismatched = {
            (name, tuple(weights[name].shape), tuple(wanted[name])) for name in weights.keys() & wanted.keys()
        }
        info = {
            "missing_keys": wanted.keys() - weights.keys(),
            "unexpected_keys": weights.keys() - wanted.keys(),
            "mismatched_keys": {entry for entry in mismatched if entry[1] != entry[2]},
        }
        return model.eval(), info

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        *args: Any,
        push_to_hub: bool = False,
        with_code: bool = False,
        **kwargs: Any,
    ) -> None:
        """Save as `PreTrainedModel.save_pretrained` does, with the processor, the weights in one file for each part.

        An image descendant can then be grown without fetching the text side, and a text descendant without the other.

        Args:
            with_code: also save the code that loads the gene, with `trust_remote_code=True`, where this package is
                not installed.
        """
        upload = {key: kwargs.pop(key) for key in _UPLOAD_KEYWORDS if push_to_hub and key in kwargs}
        stock: Any = super()
        with _registered(self, with_code):
            stock.save_pretrained(save_directory, *args, **kwargs)
        if kwargs.get("is_main_process", True):
            split_by_part(save_directory)
            if self.processor is not None:
                self.processor.save_pretrained(save_directory)
        if push_to_hub:
            repo_id = upload.pop("repo_id", Path(save_directory).name)
            self.push_to_hub(repo_id, token=kwargs.get("token"), **upload)  # type: ignore[attr-defined]


@contextmanager
def _registered(gene: Any, with_code: bool) -> Iterator[None]:
    """Have the classes of a gene save their code, for as long as this lasts: else every later save would, too."""
    classes = (type(gene), type(gene.config))
    before, auto_map = [cls._auto_class for cls in classes], getattr(gene.config, "auto_map", None)
    if with_code:
        type(gene).register_for_auto_class(gene.auto_class)
        type(gene.config).register_for_auto_class()
    try:
        yield
    finally:
        for cls, auto_class in zip(classes, before, strict=True):
            cls._auto_class = auto_class
        if with_code and auto_map is None:
            del gene.config.auto_map  # it names the code that went along with this save


def save_along(model: Any, processor: Any) -> None:
    """Make `model.save_pretrained` save the processor into the same folder."""
    model.processor_to_save = processor
    # A method and no closure, so that a copy of the model saves the copy.
    model.save_pretrained = MethodType(_save_with_processor, model)


def _save_with_processor(model: Any, save_directory: str | os.PathLike, *args: Any, **kwargs: Any) -> None:
    if kwargs.get("is_main_process", True):
        model.processor_to_save.save_pretrained(save_directory)
    type(model).save_pretrained(model, save_directory, *args, **kwargs)


def check_folder(folder: Path, name: str | None = None) -> None:
    """Refuse a folder that holds no gene in safetensors files; `name` is what the error calls the folder."""
    name = name or str(folder)
    try:
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    except FileNotFoundError:
        raise LearngeneError(f"{name} holds no model: it has no config.json") from None
    except (ValueError, AttributeError):
        raise LearngeneError(f"The config.json of {name} is not JSON") from None
    if kind != "learngene":
        raise LearngeneError(f"{name} holds a {kind!r} model, not a learngene: extract one from it first")
    if not (folder / WEIGHTS).is_file() and not (folder / WEIGHTS_INDEX).is_file():
        pickled = [file for file in PICKLED_WEIGHTS if (folder / file).is_file()]
        if pickled:
            raise LearngeneError(
                f"{name} has pickled weights only ({pickled[0]}), which can run code when they are opened: "
                "save the model as safetensors"
            )
        raise LearngeneError(f"{name} has no weights: it needs {WEIGHTS} or {WEIGHTS_INDEX}")


def _weight_files(folder: Path, needed: Callable[[str], bool], name: str) -> list[Path]:
    """Find the files of a gene that hold a needed tensor; `name` is what an error calls the folder."""
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    try:
        weight_map = json.loads((folder / WEIGHTS_INDEX).read_text(encoding="utf-8"))["weight_map"]
        files = sorted({file for tensor, file in weight_map.items() if needed(tensor)})
    except (ValueError, KeyError, TypeError, AttributeError):
        raise LearngeneError(f"The {WEIGHTS_INDEX} of {name} is no index of weights") from None
    absent = [file for file in files if not (folder / file).is_file()]
    if absent:
        raise LearngeneError(f"{name} lacks {', '.join(absent)}, which its {WEIGHTS_INDEX} names")
    return [folder / file for file in files]


def _check_tensors(model: Any, info: Any, name: str) -> None:
    """List every tensor that does not fit, and refuse values that are not finite."""
    found = [f"missing {key}" for key in sorted(info["missing_keys"])]
    found += [f"unexpected {key}" for key in sorted(info["unexpected_keys"])]
    found += [
        f"{key} is {list(got)} in place of {list(wanted)}" for key, got, wanted in sorted(info["mismatched_keys"])
    ]
    if found:
        raise LearngeneError(f"The tensors of {name} do not fit its config: {'; '.join(found)}")
    for key, tensor in model.state_dict().items():
        if not tensor.is_meta and not torch.isfinite(tensor).all():
            raise LearngeneError(f"{key} of {name} is not finite: a gene with NaN or infinity is of no use")
