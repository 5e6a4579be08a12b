"""LilT: join any image encoder with any text encoder, and align them by training a few per cent of the weights."""

from .. import lazy_names

_MODULE_OF = {
    "align": "joining",
    "load_processor": "joining",
    "processor_of_pair": "joining",
    "choose_layers": "layers",
    "layer_similarities": "layers",
    "keep_states": "states",
    "structure_loss": "structure",
    "DualEncoderConfig": "configuration",
    "DualEncoderModel": "dual_encoder",
    "LayerwiseAdapterConfig": "adapters",
    "LayerwiseAdapterModel": "adapters",
    "HEADS": "heads",
    "POOLINGS": "pooling",
    "RECIPES": "recipes",
}

__all__ = list(_MODULE_OF)
__getattr__, __dir__ = lazy_names(__name__, _MODULE_OF)
