"""CLIP-MoE: turn any CLIP into a mixture of experts by Diversified Multiplet Upcycling (arXiv 2409.19291)."""

from .. import lazy_names

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
    "upcycle_by_clusters": "cluster_upcycling",
    "diversify": "diversification",
    "DiversifyArguments": "diversification",
    "train_router": "router_training",
    "RouterArguments": "router_training",
    "save_as_deltas": "deltas",
    "load_from_deltas": "deltas",
}

__all__ = list(_MODULE_OF)
__getattr__, __dir__ = lazy_names(__name__, _MODULE_OF)
