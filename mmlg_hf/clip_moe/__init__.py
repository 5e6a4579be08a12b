"""CLIP-MoE: turn any CLIP into a mixture of experts by Diversified Multiplet Upcycling (arXiv 2409.19291)."""

from importlib import import_module
from typing import Any

_MODULE_OF = {
    "CLIPMoEConfig": "configuration_clip_moe",
    "CLIPMoEVisionConfig": "configuration_clip_moe",
    "CLIPMoETextConfig": "configuration_clip_moe",
    "CLIPMoEModel": "modeling_clip_moe",
    "CLIPMoEVisionModel": "modeling_clip_moe",
    "CLIPMoETextModel": "modeling_clip_moe",
    "CLIPMoEVisionModelWithProjection": "modeling_clip_moe",
    "CLIPMoETextModelWithProjection": "modeling_clip_moe",
    "CLIPMoEForImageClassification": "modeling_clip_moe",
    "upcycle": "upcycling",
    "count_parameters": "upcycling",
    "diversify": "diversification",
    "DiversifyArguments": "diversification",
    "train_router": "router",
    "RouterArguments": "router",
    "save_as_deltas": "deltas",
    "load_from_deltas": "deltas",
}

__all__ = list(_MODULE_OF)


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
