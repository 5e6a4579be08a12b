"""Extracting a gene from a CLIP (MM-LG, arXiv 2506.16673) or an image classifier (TLEG, arXiv 2312.05614)."""

from .. import lazy_names

_MODULE_OF = {
    "extract_learngene": "extracting",
    "ExtractionArguments": "arguments",
    "ExtractionTrainer": "trainer",
    "DistillationTrainer": "distillation",
    "load_ancestor": "ancestors",
    "rotate_channels": "rotation",
    "fit_gene": "fitting",
    "shorten_context": "context",
    "trim_embedding": "vocabulary",
    "trim_tokenizer": "vocabulary",
    "vit_of_dinov2": "vit",
    "load_open_clip": "open_clip",
    "load_open_clip_processor": "open_clip",
}

__all__ = list(_MODULE_OF)
__getattr__, __dir__ = lazy_names(__name__, _MODULE_OF)
