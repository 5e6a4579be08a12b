"""Loading genes: by Hub id, folder or bundled name, wholly or one side of them."""

import os
from pathlib import Path
from typing import Any

import torch

from .checkpoints import bundled_learngenes, load_processor, locate_learngene
from .configuration_learngene import LearngeneConfig
from .errors import LearngeneError
from .gene_files import check_folder, read_dtype
from .hub import check_subfolder, fetch_learngene
from .modeling_learngene import LearngeneMixin, class_of_gene

__all__ = ["bundled_learngenes", "load_learngene", "load_processor", "locate_learngene"]

_HUB_KEYWORDS = ("revision", "token", "cache_dir", "local_files_only", "force_download", "subfolder")


def load_learngene(
    learngene: str | os.PathLike | LearngeneMixin,
    *,
    modality: str | None = None,
    dtype: torch.dtype | str | None = torch.float32,
    torch_dtype: torch.dtype | str | None = None,
    device_map: Any = None,
    **hub_kwargs: Any,
) -> LearngeneMixin:
    """Load a gene of either kind, with its processor when one is stored with it.

    Args:
        learngene: a Hub id, a folder, a bundled name, or a gene in memory, which is returned as it is.
        modality: "image" or "text" fetches and loads only what descendants of that modality are made from.
        dtype: of the weights, from torch or by name; "auto" and None keep the stored one.
        torch_dtype: transformers' older name for `dtype`.
        device_map: as for transformers' `from_pretrained`; None loads to the CPU.
        hub_kwargs: `revision`, `token`, `cache_dir`, `local_files_only`, `force_download`, `subfolder`.

    Raises:
        LearngeneError: see `LearngeneModel.from_pretrained`.
    """
    kind = read_dtype(torch_dtype) if torch_dtype is not None else read_dtype(dtype) or "auto"
    placed = {} if device_map is None else {"device_map": device_map}
    return _load(learngene, {"modality": modality, "dtype": kind, **placed}, hub_kwargs)


def open_to_grow(learngene: str | os.PathLike | LearngeneMixin, modality: str | None, **hub_kwargs: Any) -> Any:
    """Open a gene for growing a descendant at once: its weights stay in their files, in the type they are stored in.

    Args and errors as of `load_learngene`. Such a gene can do nothing but grow.
    """
    return _load(learngene, {"modality": modality, "dtype": "auto", "_only_to_grow": True}, hub_kwargs)


def _load(learngene: Any, settings: dict[str, Any], hub_kwargs: dict[str, Any]) -> Any:
    """Load by `from_pretrained` of the class that the config says, with these settings."""
    unknown = sorted(set(hub_kwargs) - set(_HUB_KEYWORDS))
    if unknown:
        raise LearngeneError(f"load_learngene takes {', '.join(_HUB_KEYWORDS)}, not {', '.join(unknown)}")
    if isinstance(learngene, LearngeneMixin):
        return learngene
    if not isinstance(learngene, (str, os.PathLike)):
        raise LearngeneError(
            f"the learngene is a {type(learngene).__name__}: give a Hub id, a folder, a bundled name "
            f"({', '.join(bundled_learngenes()) or 'none here'}) or a LearngeneModel"
        )
    name = locate_learngene(learngene)
    if os.path.isdir(name):
        folder = Path(name, check_subfolder(hub_kwargs.get("subfolder") or ""))
    else:
        folder, commit = fetch_learngene(name, modality=settings["modality"], with_processor=True, **hub_kwargs)
        # What follows takes this commit's files from the cache: the Hub may have moved on meanwhile.
        hub_kwargs = {**hub_kwargs, "revision": commit, "local_files_only": True, "force_download": False}
    check_folder(folder, os.fspath(learngene))
    config = LearngeneConfig.from_pretrained(folder)
    if settings.get("_only_to_grow"):  # to read and check it a second time would take longer than to grow
        settings = {**settings, "config": config}
    return class_of_gene(config).from_pretrained(learngene, **settings, **hub_kwargs)
