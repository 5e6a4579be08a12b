"""What is trained when two encoders are aligned: the recipes, and how each marks and extends a model.

The projections and the temperature train in every recipe. LoRA and LayerNorm tuning are peft's own; LilT's adapters
are the peft method in `adapters`.
"""

import re
import warnings
from typing import TYPE_CHECKING, Any

from torch import nn

from ..errors import LearngeneError

if TYPE_CHECKING:
    from .dual_encoder import DualEncoderModel

RECIPES = {
    "full": "both encoders train",
    "lit": "the image encoder is frozen, the text encoder trains (LiT)",
    "projections": "both encoders are frozen",
    "layernorm": "the LayerNorms of both encoders train",
    "bitfit": "the biases of both encoders train (BitFit)",
    "adapters": "layer-wise adapters in both encoders train",
    "lilt": "layer-wise adapters and LayerNorms train (LilT)",
    "lora": "low-rank updates of both encoders' attention train (LoRA)",
}
# These may be joined by "+", such as "bitfit+layernorm"; "lilt" is "adapters+layernorm".
_JOINABLE = {"layernorm", "bitfit", "adapters", "lora"}
_ALIASES = {"lilt": frozenset({"adapters", "layernorm"})}
# Low-rank updates of this share of the width: rank 32 at BERT's width of 768.
_WIDTH_PER_RANK = 24

_HEADS = ("visual_projection.", "text_projection.", "logit_scale")
_INJECTED = {"adapters": ".layerwise_adapter_layers.", "lora": ".lora_", "layernorm": ".ln_tuning_layers."}


def parts_of(recipe: str) -> frozenset[str]:
    """Split a recipe into its parts: "lilt" is {"adapters", "layernorm"}, "lit" is {"lit"}.

    Raises:
        LearngeneError: if there is no such recipe (lists them), or its parts exclude each other.
    """
    names = recipe.split("+") if isinstance(recipe, str) else [recipe]
    for name in names:
        if name not in RECIPES:
            raise LearngeneError(
                f"there is no recipe {name!r}: it takes one of {', '.join(RECIPES)}, or several of "
                f"{', '.join(sorted(_JOINABLE))} joined by '+'"
            )
    parts = frozenset().union(*(_ALIASES.get(name, {name}) for name in names))
    if len(parts) > 1 and not parts <= _JOINABLE:
        alone = ", ".join(sorted(parts - _JOINABLE))
        raise LearngeneError(
            f"the recipe {recipe!r} joins {alone} with others: only {', '.join(sorted(_JOINABLE))} join"
        )
    if {"adapters", "lora"} <= parts:
        raise LearngeneError(f"the recipe {recipe!r} joins adapters with lora: a model takes one of the two")
    return parts


def add_trained_modules(model: "DualEncoderModel") -> None:
    """Put the recipe's new modules (adapters, low-rank updates, copies of LayerNorms) into both encoders."""
    config = model.config
    parts = parts_of(config.recipe)
    if "adapters" in parts:
        peft_config: Any = _adapter_config(model)
    elif "lora" in parts:
        peft_config = _lora_config(model)
    elif parts == {"layernorm"}:
        peft_config = _import_peft(config.recipe).LNTuningConfig(target_modules=_layer_norms(model))
    else:
        return
    with warnings.catch_warnings():
        # peft warns at LayerNorms, which are what its own LayerNorm tuning takes.
        warnings.filterwarnings("ignore", message="Unsupported layer type")
        _import_peft(config.recipe).inject_adapter_in_model(peft_config, model)


def mark_trainable(model: "DualEncoderModel") -> None:
    """Set `requires_grad` of every parameter as the recipe has it."""
    trained = trained_names(model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad = name in trained


def trained_names(model: "DualEncoderModel") -> set[str]:
    """Names of the parameters that the recipe trains."""
    parts = parts_of(model.config.recipe)
    norms = tuple(name + "." for name in _layer_norms(model)) if "layernorm" in parts else ()
    return {name for name, _ in model.named_parameters() if _is_trained(name, parts, norms)}


def frozen_names(model: "DualEncoderModel") -> set[str]:
    """Names of the parameters that neither the recipe trains nor the user has unfrozen.

    Judged by the recipe too, so that a model frozen for inference is still saved with all it learnt.
    """
    trained = trained_names(model)
    return {name for name, value in model.named_parameters() if not value.requires_grad and name not in trained}


def _is_trained(name: str, parts: frozenset[str], norms: tuple[str, ...]) -> bool:
    if "full" in parts or name.startswith(_HEADS) or any(_INJECTED.get(part, "\0") in name for part in parts):
        return True
    if "lit" in parts:
        return name.startswith("text_model.")
    # Alone, LayerNorm tuning trains peft's copies; the originals stay as they were.
    if "layernorm" in parts and len(parts) > 1 and name.startswith(norms):
        return True
    return "bitfit" in parts and name.endswith(".bias")


def _encoders(model: "DualEncoderModel") -> dict[str, nn.Module]:
    return {"vision_model": model.vision_model, "text_model": model.text_model}


def _layer_norms(model: "DualEncoderModel") -> list[str]:
    """Names of the LayerNorms of both encoders."""
    return [
        f"{prefix}.{name}"
        for prefix, encoder in _encoders(model).items()
        for name, module in encoder.named_modules()
        if type(module).__name__.endswith(("LayerNorm", "RMSNorm"))
    ]


def _adapter_config(model: "DualEncoderModel") -> Any:
    _import_peft(model.config.recipe)
    from .adapters import LayerwiseAdapterConfig, adapter_targets

    targets = [f"{prefix}.{name}" for prefix, encoder in _encoders(model).items() for name in adapter_targets(encoder)]
    return LayerwiseAdapterConfig(reduction=model.config.adapter_reduction, target_modules=targets)


def _lora_config(model: "DualEncoderModel") -> Any:
    """Low-rank updates of all linear maps of attention, their rank a share of each encoder's width."""
    encoder: Any
    targets, ranks = [], {}
    for prefix, encoder in _encoders(model).items():
        names = [name for name, module in encoder.named_modules() if _is_attention_map(name, module)]
        if not names:
            raise LearngeneError(
                f"{type(encoder).__name__} has no linear maps in attention for LoRA to update: use another recipe"
            )
        rank = model.config.lora_rank or max(1, encoder.config.hidden_size // _WIDTH_PER_RANK)
        targets += [f"{prefix}.{name}" for name in names]
        ranks[rf"{prefix}\..*"] = rank
    # The update is scaled by alpha / rank: equal, it starts as plain addition.
    return _import_peft(model.config.recipe).LoraConfig(
        r=max(ranks.values()), target_modules=targets, rank_pattern=ranks, alpha_pattern=dict(ranks)
    )


def _is_attention_map(name: str, module: nn.Module) -> bool:
    """Whether a module is a linear map inside the attention of a numbered layer."""
    is_linear = isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"
    return is_linear and re.search(r"\.\d+\..*att", "." + name) is not None


def _import_peft(recipe: str) -> Any:
    try:
        import peft
    except ImportError as error:
        raise LearngeneError(f"the recipe {recipe!r} needs peft: pip install 'mmlg_hf[peft]'") from error
    return peft
