"""mmlg_hf: extract a learngene from a CLIP once, grow CLIP models of any depth, width and modality from it."""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from . import _auto

_MODULE_OF = {
    "LearngeneConfig": "configuration_learngene",
    "LearngeneModel": "modeling_learngene",
    "LearngeneForImageClassification": "modeling_learngene",
    "CLIPTextForSequenceClassification": "modeling_text_classification",
    "from_learngene": "descendants",
    "load_learngene": "descendants",
    "load_processor": "descendants",
    "extract_learngene": "extraction",
    "ExtractionArguments": "extraction",
    "ContrastiveTrainer": "training",
    "ImageTextCollator": "training",
    "evaluate_zero_shot": "evaluation",
    "evaluate_retrieval": "evaluation",
    "evaluate_classification": "classification",
    "create_model_card": "cards",
    "save_model_card": "cards",
    "align": "alignment.joining",
    "LearngeneError": "errors",
}

__all__ = ["__version__", *_MODULE_OF]

try:
    __version__ = version("mmlg_hf")
except PackageNotFoundError:  # run from a checkout that is not installed
    __version__ = "0+unknown"


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'mmlg_hf' has no attribute {name!r}")
    return getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)


_auto.register()
