"""LilT: join any image encoder with any text encoder, and align them by training a few per cent of the weights."""

from .. import lazy_names

_MODULE_OF = {
    "align": "joining",
    "load_processor": "joining",
    "processor_of_pair": "joining",
    "DualEncoderConfig": "dual_encoder",
    "DualEncoderModel": "dual_encoder",
    "LayerwiseAdapterConfig": "adapters",
    "LayerwiseAdapterModel": "adapters",
    "POOLINGS": "pooling",
    "RECIPES": "recipes",
}

__all__ = list(_MODULE_OF)
__getattr__, __dir__ = lazy_names(__name__, _MODULE_OF)
