"""Make `AutoConfig` and `AutoModel` know the gene as soon as they exist, without importing transformers ourselves."""

import importlib.abc
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any


def _register_configs(auto: Any) -> None:
    from .configuration_learngene import LearngeneConfig

    auto.AutoConfig.register(LearngeneConfig.model_type, LearngeneConfig, exist_ok=True)


def _register_models(auto: Any) -> None:
    from transformers import CLIPTextConfig

    from .alignment import dual_encoder  # noqa: F401 -- registers its config and model itself
    from .clip_moe import modeling_clip_moe  # noqa: F401 -- likewise
    from .configuration_learngene import LearngeneConfig
    from .modeling_learngene import LearngeneForImageClassification, LearngeneModel
    from .modeling_text_classification import CLIPTextForSequenceClassification

    auto.AutoModel.register(LearngeneConfig, LearngeneModel, exist_ok=True)
    auto.AutoModelForZeroShotImageClassification.register(LearngeneConfig, LearngeneModel, exist_ok=True)
    auto.AutoModelForImageClassification.register(LearngeneConfig, LearngeneForImageClassification, exist_ok=True)
    auto.AutoModelForSequenceClassification.register(CLIPTextConfig, CLIPTextForSequenceClassification, exist_ok=True)


# What is still to be registered, by the module of transformers that it is registered with.
_TO_DO: dict[str, Callable[[Any], None]] = {
    "transformers.models.auto.configuration_auto": _register_configs,
    "transformers.models.auto.modeling_auto": _register_models,
}


class _RegisterAfterImport(importlib.abc.MetaPathFinder):
    """Register as soon as no import of transformers' modules or ours is under way.

    Both import each other's parts in circles: only when the outermost import has ended is every module complete.
    """

    def __init__(self) -> None:
        self.under_way = 0

    def find_spec(self, fullname: str, path: Any = None, target: ModuleType | None = None) -> Any:
        if not fullname.startswith(("transformers.", f"{__package__}.")):
            return None
        others = [finder for finder in sys.meta_path if finder is not self]
        spec = next((found for finder in others if (found := finder.find_spec(fullname, path, target))), None)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            self.under_way += 1
            try:
                execute(module)
            finally:
                self.under_way -= 1
            self.register()

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec

    def register(self) -> None:
        """Register with the auto modules that are there, unless an import is under way."""
        for auto in list(_TO_DO):
            if not self.under_way and auto in sys.modules and auto in _TO_DO:
                _TO_DO.pop(auto)(sys.modules[auto])


def register() -> None:
    """Register now with the auto modules that are loaded, and with the others when they are."""
    if not any(isinstance(finder, _RegisterAfterImport) for finder in sys.meta_path):
        finder = _RegisterAfterImport()
        sys.meta_path.insert(0, finder)
        finder.register()
