"""Saving: files that appear whole or not at all, weights as files by part, code and processor along with a model."""

import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import LearngeneError, OutputError, first_line

_PROBE = 1 << 16  # bytes: more than the last blocks of a full disk


def check_writable(path: str | os.PathLike) -> None:
    """Refuse an output folder or file that cannot be written, before the long work whose result it is for.

    Nothing is made: an unnamed file is written where the first folder would be made, or in the folder itself.

    Raises:
        OutputError: it lies under a file, in a folder that may not be written, or on a full disk.
    """
    path = Path(os.path.abspath(path))
    there = next(folder for folder in (path, *path.parents) if os.path.lexists(folder))
    if not there.is_dir():
        if there == path:
            there = path.parent  # a file to replace
        else:
            raise OutputError(f"{str(path)!r} cannot be made: {str(there)!r} is no folder")
    try:
        with tempfile.TemporaryFile(dir=there) as probe:
            probe.write(bytes(_PROBE))
    except OSError as error:
        reason = error.strerror or first_line(error)
        raise OutputError(f"{str(path)!r} cannot be written: {reason} in {str(there)!r}") from error


@contextmanager
def whole_file(path: str | os.PathLike) -> Iterator[Path]:
    """Give a path to write to, with the same suffix, that becomes `path` when the block ends without an error."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-", suffix=path.suffix)
    os.close(handle)
    partial = Path(name)
    try:
        yield partial
        partial.chmod(0o666 & ~_umask())  # mkstemp's files are the owner's alone
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write a text file, whole or not at all."""
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike, content: Any, indent: int | None = 2) -> None:
    """Write a JSON file, whole or not at all."""
    write_text(path, json.dumps(content, indent=indent) + "\n")


@contextmanager
def whole_folder(path: str | os.PathLike) -> Iterator[Path]:
    """Give a new folder to write to that becomes `path`, in place of what was there, when the block ends well."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as temporary:
        folder, before = Path(temporary, path.name), Path(temporary, "before")
        folder.mkdir()
        yield folder
        if path.exists():
            os.replace(path, before)
        os.replace(folder, path)
        shutil.rmtree(before, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


WEIGHTS, WEIGHTS_INDEX = "model.safetensors", "model.safetensors.index.json"
SHARED = "shared"
# The first component of a tensor's name, without its last word, tells its part; all else is shared.
_PART_OF_PREFIX = {"vision": "image", "visual": "image", "classifier": "image", "text": "text"}


def part_of(name: str) -> str:
    """The part that a tensor of a gene belongs to: "image", "text" or "shared"."""
    return _PART_OF_PREFIX.get(name.partition(".")[0].partition("_")[0], SHARED)


def is_needed(modality: str | None) -> Callable[[str], bool]:
    """A test of tensor names: whether a descendant of this modality is made from the tensor; None is "multimodal"."""
    parts = {SHARED, modality} if modality in ("image", "text") else {SHARED, "image", "text"}
    return lambda name: part_of(name) in parts


def read_index(path: Path, name: str) -> dict[str, str]:
    """Read which file each tensor is in; `name` is what the error calls the folder or repository.

    Raises:
        LearngeneError: it is no index, or names what is no plain name of a safetensors file.
    """
    try:
        weight_map = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        files = set(weight_map.values())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise LearngeneError(f"The {WEIGHTS_INDEX} of {name} is no index of weights") from None
    for file in sorted(files, key=repr):
        if not isinstance(file, str) or len(file) > 200 or not re.fullmatch(r"\w[\w.-]*\.safetensors", file):
            shown = repr(file) if len(repr(file)) < 80 else f"{repr(file)[:60]}... ({len(repr(file))} characters)"
            raise LearngeneError(f"{WEIGHTS_INDEX} of {name} names a shard {shown}, which is no plain file name")
    return weight_map


def weight_files(folder: str | os.PathLike) -> list[Path]:
    """The files that a folder's weights are in, as loaders take them: the single one, else those of the index."""
    folder = Path(folder)
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if not (folder / WEIGHTS_INDEX).is_file():
        return []
    return [folder / file for file in sorted(set(read_index(folder / WEIGHTS_INDEX, str(folder)).values()))]


def split_by_part(folder: str | os.PathLike) -> list[str]:
    """Replace a gene's `model.safetensors` by one file for each part and the usual index; return their names.

    A gene with one part, or one that is in several files already, is left as it is. Until the last step the single
    file is complete, and it is the one that loaders prefer.
    """
    from safetensors import safe_open  # not at import: the command line shows its help without torch
    from safetensors.torch import save_file

    folder = Path(folder)
    single = folder / WEIGHTS
    if not single.is_file():
        return []
    files: dict[str, dict] = {}
    with safe_open(single, framework="pt") as tensors:
        for name in sorted(tensors.keys()):
            files.setdefault(f"model-{part_of(name)}.safetensors", {})[name] = tensors.get_tensor(name)
        metadata = tensors.metadata() or {"format": "pt"}
    if {SHARED, "image", "text"} - {part_of(name) for part in files.values() for name in part}:
        return []
    sizes = [tensor.numel() * tensor.element_size() for part in files.values() for tensor in part.values()]
    weight_map = {name: file for file, part in files.items() for name in part}
    index = {"metadata": {"total_size": sum(sizes)}, "weight_map": dict(sorted(weight_map.items()))}
    with tempfile.TemporaryDirectory(dir=folder, prefix=".parts-") as temporary:
        for file, part in files.items():
            save_file(part, Path(temporary) / file, metadata=metadata)
        (Path(temporary) / WEIGHTS_INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
        for file in [*files, WEIGHTS_INDEX]:
            os.replace(Path(temporary) / file, folder / file)
    single.unlink()
    return sorted(files)


@contextmanager
def code_saved_along(model: Any, with_code: bool, auto_class: str) -> Iterator[None]:
    """Let `save_pretrained` save the code of a model, or none, for as long as this lasts.

    `auto_map` on a config says that the code lies beside it. It is written if the code is, and the model's config and
    the classes are left as they were: else every later save would name code that is not there, or save it too.

    Args:
        with_code: save the code, even where the classes are not registered for it.
        auto_class: the class of transformers that loads the model with its own code, such as "AutoModel".
    """
    config = model.config
    ours = [cls for cls in (type(model), type(config)) if not cls.__module__.startswith("transformers.")]
    before = {cls: cls._auto_class for cls in ours}
    auto_map = config.__dict__.pop("auto_map", None)
    if with_code:
        for cls in ours:
            cls.register_for_auto_class(auto_class if cls is type(model) else "AutoConfig")
    try:
        yield
    finally:
        for cls, registered in before.items():
            cls._auto_class = registered
        config.__dict__.pop("auto_map", None)
        if auto_map is not None:
            config.auto_map = auto_map


# Keywords of `save_pretrained` that belong to the upload which `push_to_hub=True` adds to it.
_UPLOAD_KEYWORDS = ("repo_id", "commit_message", "commit_description", "private", "revision", "create_pr", "tags")
_OF_A_MODEL = re.compile(r"model(-[\w-]+)?\.safetensors")


def save_wholly(
    model: Any,
    save: Callable[..., None],
    save_directory: str | os.PathLike,
    *args: Any,
    processor: Any = None,
    finish: Callable[[str | os.PathLike], Any] | None = None,
    push_to_hub: bool = False,
    **kwargs: Any,
) -> None:
    """Save a model and its processor; the weight files of another model that lay in the folder are removed.

    Args:
        save: `PreTrainedModel.save_pretrained` of the model.
        processor: saved into the same folder; None saves none.
        finish: run on the folder after the weights are in it.
        push_to_hub: then upload all that, to `repo_id` or a repository of the folder's name.
        args, kwargs: as for `PreTrainedModel.save_pretrained`.
    """
    upload = {key: kwargs.pop(key) for key in _UPLOAD_KEYWORDS if push_to_hub and key in kwargs}
    if not kwargs.get("is_main_process", True):
        save(save_directory, *args, **kwargs)
        return
    if kwargs.get("variant") or getattr(model, "_hf_peft_config_loaded", False):
        save(save_directory, *args, **kwargs)  # beside the model that is there, not in its place
    else:
        folder = Path(save_directory)
        if folder.exists() and not folder.is_dir():
            raise LearngeneError(f"{str(folder)!r} is a file: give a folder to save to")
        folder.mkdir(parents=True, exist_ok=True)
        # Written beside, then renamed: whoever stops it half-way leaves no half file under a final name.
        with tempfile.TemporaryDirectory(dir=folder, prefix=".saving-") as beside:
            save(beside, *args, **kwargs)
            if finish is not None:
                finish(beside)
            with _in_place_of_what_was_there(folder):
                _move_files(Path(beside), folder)
    if processor is not None:
        save_processor(processor, save_directory)
    if push_to_hub:
        # Not by the stock keyword, which uploads what the stock method itself has written.
        model.push_to_hub(upload.pop("repo_id", Path(save_directory).name), token=kwargs.get("token"), **upload)


# How a tokenizer was loaded, and what transformers takes for its settings of the truncation and padding in its file.
_LEFT_IN_TOKENIZERS = (
    "is_local", "local_files_only", "max_length", "stride", "truncation_strategy", "pad_to_multiple_of",
)  # fmt: skip


def save_processor(processor: Any, save_directory: str | os.PathLike) -> None:
    """Save a processor or tokenizer as it is, without what its last call and its loading left in the tokenizer.

    transformers keeps the truncation and padding of the last call in the tokenizer that it saves, where whoever reads
    `tokenizer.json` by the tokenizers library alone would get them, and writes down whether it was loaded from a disk.
    """
    tokenizer = getattr(processor, "tokenizer", processor)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        backend.no_truncation()  # each call of the transformers tokenizer sets its own again
        backend.no_padding()
    for name in _LEFT_IN_TOKENIZERS:
        getattr(tokenizer, "init_kwargs", {}).pop(name, None)
    processor.save_pretrained(save_directory)


def _move_files(source: Path, target: Path) -> None:
    """Rename all files of a folder into another one, the index of the weights last: it says that they are there."""
    files = sorted(path.relative_to(source) for path in source.rglob("*") if path.is_file())
    for name in sorted(files, key=lambda name: name.name == WEIGHTS_INDEX):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(source / name, target / name)


@contextmanager
def _in_place_of_what_was_there(folder: Path) -> Iterator[None]:
    """Remove the weight files that a save leaves unused; if it fails, the former index is put back."""
    index, former = folder / WEIGHTS_INDEX, folder / f".{WEIGHTS_INDEX}-before"
    if index.is_file():
        os.replace(index, former)  # so that an index found after the save is the save's own
    try:
        yield
        used = set(read_index(index, str(folder)).values()) if index.is_file() else {WEIGHTS}
        for path in folder.glob("model*.safetensors"):
            if _OF_A_MODEL.fullmatch(path.name) and path.name not in used:
                path.unlink()
    except BaseException:
        if former.is_file() and not index.is_file():
            os.replace(former, index)
        raise
    finally:
        former.unlink(missing_ok=True)


class SavesWithProcessor:
    """What takes the place of a stock model's `save_pretrained`: saves the processor into the same folder.

    An object and neither a closure nor a bound method: it goes with its model through `copy.deepcopy`, `pickle` and
    `torch.save`, and a copy of the model saves the copy.
    """

    def __init__(self, model: Any, processor: Any):
        self.model = model
        self.processor = processor

    def __call__(self, save_directory: str | os.PathLike, *args: Any, **kwargs: Any) -> None:
        save = type(self.model).save_pretrained.__get__(self.model)
        save_wholly(self.model, save, save_directory, *args, processor=self.processor, **kwargs)
