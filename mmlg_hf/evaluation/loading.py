"""Load a model of any kind that `mmlg evaluate` measures, with its processor, by Hub id, folder or bundled name."""

import os
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    AutoProcessor,
    AutoTokenizer,
)

from ..alignment import dual_encoder as _aligned_pairs  # noqa: F401  its classes register with transformers' auto classes
from ..checkpoints import AutoImageProcessor, load_config, load_model, quiet
from ..clip_moe import modeling_clip_moe as _mixtures  # noqa: F401  likewise
from ..descendants import locate_learngene
from ..errors import LearngeneError, first_line
from .measuring import part_of, tokenizer_for

__all__ = ["load_classifier", "load_dual_encoder", "quiet"]


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
    loaded = _load_model(AutoModel, name, hub_kwargs)
    if not (hasattr(loaded, "get_image_features") and hasattr(loaded, "get_text_features")):
        saved_as = loaded.config.architectures
        kind = saved_as[0] if isinstance(saved_as, list) and saved_as else type(loaded).__name__
        raise LearngeneError(
            f"{name!r} holds a {kind}: retrieval and zero-shot classification need a model that embeds images and "
            "texts, such as a CLIPModel"
        )
    processor = _load_part(AutoProcessor, name, hub_kwargs)
    part_of(processor, "image_processor")
    tokenizer_for(loaded, processor)  # of missing files transformers makes a tokenizer without words
    return loaded, processor


def load_classifier(model: str | os.PathLike, **hub_kwargs: Any) -> tuple[Any, Any]:
    """Load an image or text classifier in float32, with its image processor or tokenizer.

    Args, raises: as `load_dual_encoder`; a model without a trained classifier is refused.
    """
    name = locate_learngene(model)
    config = load_config(AutoConfig, name, "the model", **hub_kwargs)
    saved_as = getattr(config, "architectures", None)
    kind = str(saved_as[0]) if isinstance(saved_as, list) and saved_as else "model of unknown class"
    auto: Any
    part: Any
    if kind.endswith("ForImageClassification"):
        auto, part = AutoModelForImageClassification, AutoImageProcessor
    elif kind.endswith("ForSequenceClassification"):
        auto, part = AutoModelForSequenceClassification, AutoTokenizer
    else:
        raise LearngeneError(
            f"{name!r} holds a {kind}, which has no trained classifier: grow one with `mmlg descend --num-labels` and "
            "fine-tune it, or take the task zero-shot"
        )
    loaded, processor = _load_model(auto, name, hub_kwargs), _load_part(part, name, hub_kwargs)
    if part is AutoTokenizer:
        tokenizer_for(loaded, processor)
    return loaded, processor


def _load_model(auto: Any, name: str, hub_kwargs: dict[str, Any]) -> Any:
    # A gene stored in half precision is measured in float32, as its descendants are.
    return load_model(auto, name, "the model", dtype=torch.float32, **hub_kwargs)


def _load_part(auto: Any, name: str, hub_kwargs: dict[str, Any]) -> Any:
    kind = {"AutoImageProcessor": "image processor", "AutoTokenizer": "tokenizer"}.get(auto.__name__, "processor")
    try:
        with quiet():
            return auto.from_pretrained(name, **hub_kwargs)
    except Exception as error:  # damaged files make tokenizers raise bare Exceptions
        raise LearngeneError(f"cannot load the {kind} of {name!r}: {first_line(error)}") from error
