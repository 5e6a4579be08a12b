"""Load a model of any kind that `mmlg evaluate` measures, with its processor, by Hub id, folder or bundled name."""

import os
from typing import Any

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
    missing = [kind for kind in ("image", "text") if not hasattr(loaded, f"get_{kind}_features")]
    if missing:
        raise LearngeneError(
            f"{name!r} holds a {type(loaded).__name__}, which embeds no {'s and no '.join(missing)}s: "
            "retrieval and zero-shot classification need a model that embeds both, such as a CLIPModel"
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
    # A gene stored in half precision is measured in float32, as its descendants are.
    options = {"dtype": torch.float32} if auto.__name__.startswith("AutoModel") else {}
    try:
        return auto.from_pretrained(name, **options, **hub_kwargs)
    except LearngeneError:
        raise
    except (OSError, ValueError) as error:
        kind = auto.__name__.removeprefix("Auto").lower() or "model"
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise LearngeneError(f"cannot load the {kind} of {name!r}: {reason}") from error
