"""Loading and saving a gene: from a folder or the Hub, wholly or one side of it, and nothing that does not fit."""

import os
from pathlib import Path
from typing import Any

import torch

from .errors import LearngeneError, first_line
from .gene_files import (
    Stored,
    build_empty,
    check_finite,
    check_fit,
    check_folder,
    check_index,
    read_stored,
    read_tensors,
)
from .hub import check_subfolder, fetch_learngene
from .locating import locate_learngene
from .parts import is_needed, split_by_part
from .processors import stored_processor
from .remote_code import code_saved_along
from .saving import save_wholly

DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in (torch.float32, torch.float16, torch.bfloat16)}
DTYPES["float64"] = torch.float64

# What transformers' auto classes pass to `from_pretrained` of whatever they load, of no meaning for one side alone.
_OF_AUTO_CLASSES = ("_from_auto", "adapter_kwargs", "trust_remote_code", "code_revision", "use_safetensors")


def read_dtype(dtype: Any, torch_dtype: Any = None) -> torch.dtype | str | None:
    """Read a type of weights: a torch type, its name, "auto", or None.

    Args:
        torch_dtype: transformers' older name for the same; None where it is not used.

    Raises:
        LearngeneError: it is no floating-point type that a model can have, or the two differ.
    """
    read = [_read_dtype(given) for given in (dtype, torch_dtype) if given is not None]
    if len(set(read)) > 1:
        raise LearngeneError(f"dtype is {dtype!r} and torch_dtype, its older name, {torch_dtype!r}: give dtype alone")
    return read[0] if read else None


def _read_dtype(dtype: Any) -> torch.dtype | str:
    name = str(dtype).removeprefix("torch.") if isinstance(dtype, (str, torch.dtype)) else None
    if name == "auto":
        return name
    if name not in DTYPES:
        raise LearngeneError(f"dtype is {dtype!r}: it takes {', '.join(DTYPES)}, by name or from torch, or 'auto'")
    return DTYPES[name]


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
        The processor stored with the gene becomes its `processor`, which descendants save along with themselves.

        Args:
            pretrained_model_name_or_path: a folder, a Hub id or the name of a bundled gene.
            modality: "image" or "text" fetches and loads only what descendants of that modality are made from: such a
                gene grows them and can do nothing else. None and "multimodal" load all of it.
            kwargs: further keywords of `PreTrainedModel.from_pretrained`, such as `dtype` and `device_map`; with
                `modality` these two only. As there, without `dtype` the gene keeps the type it is stored in;
                descendants are summed in float32 all the same.

        Raises:
            LearngeneError: there is no gene there, its weights are pickled, damaged or not finite, or tensors are
                missing, unexpected or of another shape, all of which are listed.
        """
        stock: Any = super()
        if "dtype" in kwargs or "torch_dtype" in kwargs:
            kwargs["dtype"] = read_dtype(kwargs.pop("dtype", None), kwargs.pop("torch_dtype", None))
        if pretrained_model_name_or_path is None:
            return stock.from_pretrained(
                None, *model_args, config=config, output_loading_info=output_loading_info, **kwargs
            )
        given = os.fspath(pretrained_model_name_or_path)
        name, commit = locate_learngene(given), None
        if os.path.isdir(name):
            folder = Path(name) / check_subfolder(subfolder)
        else:
            folder, commit = fetch_learngene(
                name,
                modality=modality,
                with_processor=True,
                revision=revision,
                token=token,
                cache_dir=cache_dir,
                local_files_only=local_files_only,
                force_download=force_download,
                subfolder=subfolder,
            )
        check_folder(folder, given)
        read: Any = config if hasattr(config, "to_dict") else cls._config_of(config or folder)
        if modality is not None:
            read.check_modality(modality)
        needed = is_needed(modality)
        stored = read_stored(folder, needed, given)
        empty = build_empty(cls, read, given)
        check_fit(empty, stored, needed, given)
        check_index(folder, stored, needed, given)
        if modality in (None, "multimodal"):
            model, info = cls._load_whole(stock.from_pretrained, folder, given, *model_args, config=config, **kwargs)
        else:
            model, info = cls._load_part(empty, stored, **kwargs)
        check_finite(model, given)
        # Where this package lies is nothing for descendants to record.
        model.config._name_or_path = model.name_or_path = given
        model.config._commit_hash = commit
        model.processor = stored_processor(folder, given)
        return (model, info) if output_loading_info else model

    @classmethod
    def _config_of(cls, source: Any) -> Any:
        try:
            return cls.config_class.from_pretrained(source)  # type: ignore[attr-defined]
        except OSError as error:
            raise LearngeneError(f"cannot read the config {os.fspath(source)!r}: {first_line(error)}") from error

    @staticmethod
    def _load_whole(load: Any, folder: Path, name: str, *args: Any, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """Load all of a gene by the stock method, whose errors become one sentence."""
        kwargs = {"use_safetensors": True, **kwargs, "output_loading_info": True}
        try:
            model, info = load(folder, *args, **kwargs)
        except LearngeneError:
            raise
        except Exception as error:  # a keyword of the caller's, or a value in the config that no check foresaw
            raise LearngeneError(f"cannot load {name}: {first_line(error)}") from error
        return model, info

    @classmethod
    def _load_part(
        cls, model: Any, stored: dict[str, Stored], dtype: Any = None, device_map: Any = None, **kwargs: Any
    ) -> tuple[Any, dict[str, Any]]:
        """Fill an empty gene with the tensors that one modality needs; all others stay on the meta device."""
        unknown = sorted(set(kwargs) - set(_OF_AUTO_CLASSES))
        if unknown:
            raise LearngeneError(
                f"With modality, from_pretrained takes dtype and device_map only, not {', '.join(unknown)}"
            )
        model.load_state_dict(read_tensors(stored), strict=False, assign=True)
        if isinstance(dtype, torch.dtype):
            model.to(dtype)
        if device_map is not None:
            device = _one_device(device_map)
            model._apply(lambda tensor: tensor if tensor.is_meta else tensor.to(device))
        info: dict[str, Any] = {"missing_keys": set(), "unexpected_keys": set(), "mismatched_keys": set()}
        return model.eval(), info

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        *args: Any,
        with_code: bool = False,
        **kwargs: Any,
    ) -> None:
        """Save as `PreTrainedModel.save_pretrained` does, with the processor, the weights in one file for each part.

        An image descendant can then be grown without fetching the text side, and a text descendant without the other.

        Args:
            with_code: also save the code that loads the gene, with `trust_remote_code=True`, where this package is
                not installed.
        """
        save: Any = super().save_pretrained  # type: ignore[misc]
        with code_saved_along(self, with_code, self.auto_class):
            save_wholly(self, save, save_directory, *args, processor=self.processor, finish=split_by_part, **kwargs)


def _one_device(device_map: Any) -> torch.device:
    """The device that a `device_map` puts a whole model on."""
    if isinstance(device_map, dict) and set(device_map) == {""}:
        device_map = device_map[""]
    if device_map in ("auto", "balanced", "balanced_low_0", "sequential"):
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return accelerator or torch.device("cpu")
    try:
        return torch.device(device_map)
    except (RuntimeError, TypeError, ValueError):
        raise LearngeneError(
            f'device_map is {device_map!r}: it takes "auto" or one device, such as "cpu" or "cuda:0"'
        ) from None
