"""Load a model of any kind that `mmlg evaluate` measures, with its processor, by Hub id, folder or bundled name."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import datasets
import torch
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    AutoProcessor,
    AutoTokenizer,
)
from transformers.utils import logging as transformers_logging

from .alignment import dual_encoder as _aligned_pairs  # noqa: F401  its classes register with transformers' auto classes
from .clip_moe import modeling_clip_moe as _mixtures  # noqa: F401  likewise
from .descendants import locate_learngene
from .errors import LearngeneError


def load_dual_encoder(model: str | os.PathLike, **hub_kwargs: Any) -> tuple[Any, Any]:
    """Load a model that embeds images and texts (a CLIP, a gene, a mixture of experts, a dual encoder) in float32.

    Args:
        model: a Hub id, a folder, or the name of a bundled gene.
        hub_kwargs: `revision`, `token`, `cache_dir`, `local_files_only`.

    Returns:
        the model in evaluation mode, and its processor.

    Raises:
        LearngeneError: if it cannot be loaded, embeds only one of the two, or has no processor beside it.
    """
    name = locate_learngene(model)
    loaded = _load(AutoModel, name, hub_kwargs)
    if not (hasattr(loaded, "get_image_features") and hasattr(loaded, "get_text_features")):
        kind = (loaded.config.architectures or [type(loaded).__name__])[0]
        raise LearngeneError(
            f"{name!r} holds a {kind}: retrieval and zero-shot classification need a model that embeds images and "
            "texts, such as a CLIPModel"
        )
    return loaded, _load(AutoProcessor, name, hub_kwargs)


def load_classifier(model: str | os.PathLike, **hub_kwargs: Any) -> tuple[Any, Any]:
    """Load an image or text classifier in float32, with its image processor or tokenizer.

    Args, raises: as `load_dual_encoder`; a model without a trained classifier is refused.
    """
    name = locate_learngene(model)
    config = _load(AutoConfig, name, hub_kwargs)
    kind = (getattr(config, "architectures", None) or ["model of unknown class"])[0]
    if kind.endswith("ForImageClassification"):
        return _load(AutoModelForImageClassification, name, hub_kwargs), _load(AutoImageProcessor, name, hub_kwargs)
    if kind.endswith("ForSequenceClassification"):
        return _load(AutoModelForSequenceClassification, name, hub_kwargs), _load(AutoTokenizer, name, hub_kwargs)
    raise LearngeneError(
        f"{name!r} holds a {kind}, which has no trained classifier: grow one with `mmlg descend --num-labels` and "
        "fine-tune it, or take the task zero-shot"
    )


def _load(auto: Any, name: str, hub_kwargs: dict[str, Any]) -> Any:
    """Load with one of transformers' auto classes; a model that lacks tensors is refused, not filled up at random."""
    try:
        if not auto.__name__.startswith("AutoModel"):
            return auto.from_pretrained(name, **hub_kwargs)
        with quiet():
            # A gene stored in half precision is measured in float32, as its descendants are.
            model, info = auto.from_pretrained(name, dtype=torch.float32, output_loading_info=True, **hub_kwargs)
    except LearngeneError:
        raise
    except (OSError, ValueError) as error:
        kind = auto.__name__.removeprefix("Auto").lower()
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise LearngeneError(f"cannot load the {kind} of {name!r}: {reason}") from error
    missing = sorted(info["missing_keys"])
    if missing:
        saved_as = (model.config.architectures or ["another class"])[0]
        raise LearngeneError(
            f"{name!r} was saved as {saved_as} and lacks {len(missing)} tensors of a {type(model).__name__}, such as "
            f"{missing[0]}: it cannot be measured as one"
        )
    return model


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the progress bars and notices of transformers and datasets."""
    log = transformers_logging
    verbosity, bars, data_bars = log.get_verbosity(), log.is_progress_bar_enabled(), datasets.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        log.set_verbosity(verbosity)
        if bars:
            log.enable_progress_bar()
        if data_bars:
            datasets.enable_progress_bars()
