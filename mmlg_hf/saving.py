"""Saving genes and descendants: with the processor, with nothing left of what lay there, uploaded wholly."""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .parts import WEIGHTS, WEIGHTS_INDEX, read_index

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
        with _in_place_of_what_was_there(Path(save_directory)):
            save(save_directory, *args, **kwargs)
            if finish is not None:
                finish(save_directory)
    if processor is not None:
        processor.save_pretrained(save_directory)
    if push_to_hub:
        # Not by the stock keyword, which uploads what the stock method itself has written.
        model.push_to_hub(upload.pop("repo_id", Path(save_directory).name), token=kwargs.get("token"), **upload)


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
