"""A gene's files: compared with its config before any weight is read, loaded wholly or one side of it, and saved."""

import json
import os
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from transformers import initialization as init

from .checkpoints import damage_of, is_finite, locate_learngene, stored_processor
from .errors import LearngeneError, first_line
from .hub import PICKLED_WEIGHTS, check_subfolder, fetch_learngene, upload_folder_of
from .saving import WEIGHTS, WEIGHTS_INDEX, code_saved_along, is_needed, read_index, save_wholly, split_by_part

# The types in which weights may be stored, as safetensors names them.
STORED_TYPES = ("F64", "F32", "F16", "BF16")


class Stored(NamedTuple):
    """Where a tensor is stored, its type as safetensors names it, and its shape."""

    file: Path
    type: str
    shape: tuple[int, ...]


def check_folder(folder: Path, name: str | None = None) -> None:
    """Refuse a folder that holds no gene in safetensors files; `name` is what the error calls the folder."""
    name = name or str(folder)
    try:
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    except FileNotFoundError:
        raise LearngeneError(f"{name} holds no model: it has no config.json") from None
    except (OSError, ValueError, AttributeError, RecursionError):
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


def read_stored(folder: Path, needed: Callable[[str], bool], name: str) -> dict[str, Stored]:
    """Read the headers of the files that hold needed tensors.

    Args:
        needed: whether a tensor of this name is needed; files that hold no such tensor need not be there.
        name: what an error calls the folder.

    Returns:
        the needed tensors that are stored.

    Raises:
        LearngeneError: a file is missing or damaged, or two hold the same tensor.
    """
    weight_map = _weight_map(folder, name)
    files = {file for tensor, file in weight_map.items() if needed(tensor)} if weight_map is not None else {WEIGHTS}
    absent = sorted(file for file in files if not (folder / file).is_file())
    if absent:
        raise LearngeneError(f"{name} lacks {', '.join(absent)}, which its {WEIGHTS_INDEX} names")
    stored: dict[str, Stored] = {}
    for file in sorted(files):
        for tensor, entry in _read_header(folder / file, name).items():
            if tensor in stored:
                raise LearngeneError(f"{tensor} of {name} is in both {stored[tensor].file.name} and {file}")
            stored[tensor] = entry
    return {tensor: entry for tensor, entry in stored.items() if needed(tensor)}


def _weight_map(folder: Path, name: str) -> dict[str, str] | None:
    """The index of a folder; None if its weights are in a single file."""
    return None if (folder / WEIGHTS).is_file() else read_index(folder / WEIGHTS_INDEX, name)


def check_index(folder: Path, stored: dict[str, Stored], needed: Callable[[str], bool], name: str) -> None:
    """Refuse an index that says of a needed tensor that it is in another file than it is in."""
    weight_map = _weight_map(folder, name)
    if weight_map is None:
        return
    found = {tensor: entry.file.name for tensor, entry in stored.items()}
    listed = {tensor: file for tensor, file in weight_map.items() if needed(tensor)}
    odd = sorted(tensor for tensor in found.keys() | listed.keys() if found.get(tensor) != listed.get(tensor))
    if odd:
        place, said = (files.get(odd[0], "no file") for files in (found, listed))
        more = f", and {len(odd) - 1} more are elsewhere" if len(odd) > 1 else ""
        raise LearngeneError(f"{odd[0]} of {name} is in {place}, where its {WEIGHTS_INDEX} says {said}{more}")


def _read_header(path: Path, name: str) -> dict[str, Stored]:
    try:
        with safe_open(path, framework="pt") as tensors:
            slices = {tensor: tensors.get_slice(tensor) for tensor in tensors.keys()}  # noqa: SIM118
            return {
                tensor: Stored(path, str(part.get_dtype()), tuple(part.get_shape())) for tensor, part in slices.items()
            }
    except (SafetensorError, OSError, ValueError) as error:
        raise LearngeneError(
            f"The weights of {name} are truncated or no safetensors file: "
            f"{damage_of(path) or f'{path.name}: {first_line(error)}'}"
        ) from None


def map_tensors(stored: dict[str, Stored]) -> dict[str, torch.Tensor]:
    """Give stored tensors as they lie in their files: what is read of them is mapped into memory, not copied."""
    weights: dict[str, torch.Tensor] = {}
    for path in {entry.file for entry in stored.values()}:
        with safe_open(path, framework="pt") as tensors:
            weights |= {name: tensors.get_tensor(name) for name, entry in stored.items() if entry.file == path}
    return weights


def build_empty(cls: Any, config: Any, name: str) -> Any:
    """Build a gene without memory for its weights; what its config makes the classes raise is one sentence."""
    try:
        with torch.device("meta"), init.no_init_weights():
            return cls(config)
    except LearngeneError:
        raise
    except Exception as error:  # whatever a value that no check foresaw sets off
        raise LearngeneError(f"no gene can be built by the config of {name}: {first_line(error)}") from error


def check_fit(model: Any, stored: dict[str, Stored], needed: Callable[[str], bool], name: str) -> None:
    """Compare the tensors of an empty gene with the stored ones, and list all that do not fit.

    Before a byte is allocated: a config may ask for more than there is memory.
    """
    wanted = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items() if needed(key)}
    found = [f"missing {key}" for key in sorted(wanted.keys() - stored.keys())]
    found += [f"unexpected {key}" for key in sorted(stored.keys() - wanted.keys())]
    for key in sorted(stored.keys() & wanted.keys()):
        if stored[key].shape != wanted[key]:
            found.append(f"{key} is {list(stored[key].shape)} in place of {list(wanted[key])}")
        elif stored[key].type not in STORED_TYPES:
            found.append(f"{key} is stored as {stored[key].type} in place of {', '.join(STORED_TYPES)}")
    if found:
        raise LearngeneError(f"The tensors of {name} do not fit its config: {'; '.join(found)}")


def check_finite(model: Any, name: str) -> None:
    """Refuse a gene with values that are not finite."""
    for key, tensor in model.state_dict().items():
        if not is_finite(tensor):
            raise LearngeneError(f"{key} of {name} is not finite: a gene with NaN or infinity is of no use")


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
        _only_to_grow: bool = False,
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
        cls = cls.gene_class(read)  # type: ignore[attr-defined]
        stock = super()
        if modality is not None:
            read.check_modality(modality)
        needed = is_needed(modality)
        stored = read_stored(folder, needed, given)
        empty = build_empty(cls, read, given)
        check_fit(empty, stored, needed, given)
        check_index(folder, stored, needed, given)
        if modality in (None, "multimodal") and not _only_to_grow:
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
            if torch.get_default_device().type == "meta":
                raise  # transformers' own error tells what to do instead, and callers know it by its class
            raise LearngeneError(f"cannot load {name}: {first_line(error)}") from error
        return model, info

    @classmethod
    def _load_part(
        cls, model: Any, stored: dict[str, Stored], dtype: Any = None, device_map: Any = None, **kwargs: Any
    ) -> tuple[Any, dict[str, Any]]:
        """Fill an empty gene with stored tensors, unread until they are used; all others stay on the meta device."""
        unknown = sorted(set(kwargs) - set(_OF_AUTO_CLASSES))
        if unknown:
            raise LearngeneError(
                f"With modality, from_pretrained takes dtype and device_map only, not {', '.join(unknown)}"
            )
        model.load_state_dict(map_tensors(stored), strict=False, assign=True)
        if isinstance(dtype, torch.dtype):
            model.to(dtype)
        if device_map is not None:
            device = _one_device(device_map)
            model._apply(lambda tensor: tensor if tensor.is_meta else tensor.to(device))
        info: dict[str, Any] = {"missing_keys": set(), "unexpected_keys": set(), "mismatched_keys": set()}
        return model.eval(), info

    def push_to_hub(
        self,
        repo_id: str,
        *,
        with_code: bool = False,
        commit_message: str = "Upload a learngene",
        commit_description: str | None = None,
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        **card: Any,
    ) -> Any:
        """Upload what `save_pretrained` writes, with the gene's card, in one commit.

        Args:
            repo_id: "namespace/name", made if need be.
            with_code: see `save_pretrained`.
            commit_message, commit_description, private, token, revision, create_pr: as of
                `PreTrainedModel.push_to_hub`.
            card: settings of `mmlg_hf.create_model_card`, such as `results`, `license` and `data_license`.

        Returns:
            `huggingface_hub.CommitInfo`.
        """

        def write(folder: Path) -> None:
            self.save_pretrained(folder, with_code=with_code)
            # By name: where a gene came with its own code, this package and its cards are not there.
            if find_spec("mmlg_hf"):
                import_module("mmlg_hf.cards").save_model_card(folder, repo_id=repo_id, **card)

        return upload_folder_of(
            repo_id,
            write,
            private=private,
            token=token,
            revision=revision,
            create_pr=create_pr,
            commit_message=commit_message,
            commit_description=commit_description,
        )

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
