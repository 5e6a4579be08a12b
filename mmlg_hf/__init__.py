"""mmlg_hf: extract a learngene from a CLIP once, grow CLIP models of any depth, width and modality from it."""

from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from logging import getLogger
from typing import Any


def lazy_names(package: str, module_of: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return `__getattr__` and `__dir__` of a package whose names are imported when they are used.

    torch and transformers take seconds to import: `import mmlg_hf` and `mmlg --help` should not wait for them.

    Args:
        package: the package's `__name__`.
        module_of: for each public name the module below the package that holds it.
    """

    def get(name: str) -> Any:
        if name not in module_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f".{module_of[name]}", package), name)

    return get, lambda: sorted(module_of)


_MODULE_OF = {
    "LearngeneConfig": "configuration_learngene",
    "LearngeneModel": "modeling_learngene",
    "LearngeneForImageClassification": "modeling_learngene",
    "CLIPTextForSequenceClassification": "modeling_text_classification",
    "from_learngene": "descendants",
    "load_learngene": "genes",
    "load_processor": "genes",
    "extract_learngene": "extraction.extracting",
    "ExtractionArguments": "extraction.arguments",
    "ContrastiveTrainer": "training.trainer",
    "DistillationTrainer": "extraction.distillation",
    "ImageTextCollator": "data.collation",
    "evaluate_zero_shot": "evaluation.dual_encoders",
    "evaluate_retrieval": "evaluation.dual_encoders",
    "evaluate_classification": "evaluation.classification",
    "create_model_card": "cards.cards",
    "save_model_card": "cards.cards",
    "align": "alignment.joining",
    "LearngeneError": "errors",
}

__all__ = ["__version__", *_MODULE_OF]
__getattr__, _ = lazy_names(__name__, _MODULE_OF)


def __dir__() -> list[str]:
    return sorted(__all__)


try:
    __version__ = version("mmlg_hf")
except PackageNotFoundError:  # run from a checkout that is not installed
    __version__ = "0+unknown"

# What this package warns of follows transformers' verbosity (`transformers.logging.set_verbosity_error()` and so on).
getLogger(__name__).parent = getLogger("transformers")

from . import _auto  # noqa: E402  what it registers imports this package

_auto.register()
