"""LilT: join any image encoder with any text encoder, and align them by training a few per cent of the weights."""

from importlib import import_module
from typing import Any

_MODULE_OF = {
    "align": "joining",
    "load_processor": "joining",
    "DualEncoderConfig": "dual_encoder",
    "DualEncoderModel": "dual_encoder",
    "LayerwiseAdapterConfig": "adapters",
    "LayerwiseAdapterModel": "adapters",
    "POOLINGS": "pooling",
    "RECIPES": "recipes",
}

__all__ = list(_MODULE_OF)


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'mmlg_hf.alignment' has no attribute {name!r}")
    return getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
