"""The processor that is stored with a model: images and text, or the one side that is there."""

import os
from pathlib import Path
from typing import Any

from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer
from transformers.utils import logging

from .errors import LearngeneError, first_line
from .hub import check_subfolder, list_files
from .locating import locate_learngene

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
