"""Make `AutoConfig` and `AutoModel` know the gene as soon as they exist, without importing transformers ourselves."""

import importlib.abc
import importlib.util
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any


def _register_configs(auto: Any) -> None:
    from .configuration_learngene import LearngeneConfig

    auto.AutoConfig.register(LearngeneConfig.model_type, LearngeneConfig, exist_ok=True)


def _register_models(auto: Any) -> None:
    from transformers import CLIPTextConfig

    from .configuration_learngene import LearngeneConfig
    from .modeling_learngene import LearngeneForImageClassification, LearngeneModel
    from .modeling_text_classification import CLIPTextForSequenceClassification

    auto.AutoModel.register(LearngeneConfig, LearngeneModel, exist_ok=True)
    auto.AutoModelForImageClassification.register(LearngeneConfig, LearngeneForImageClassification, exist_ok=True)
    auto.AutoModelForSequenceClassification.register(CLIPTextConfig, CLIPTextForSequenceClassification, exist_ok=True)


# transformers' auto module -> the modules of ours that its registration needs, and the registration.
_REGISTRATIONS: dict[str, tuple[tuple[str, ...], Callable[[Any], None]]] = {
    "transformers.models.auto.configuration_auto": (("configuration_learngene",), _register_configs),
    "transformers.models.auto.modeling_auto": (
        ("configuration_learngene", "modeling_text_classification", "growth", "loading", "modeling_learngene"),
        _register_models,
    ),
}
_WATCHED = {*_REGISTRATIONS, *(f"{__package__}.{name}" for needs, _ in _REGISTRATIONS.values() for name in needs)}
_half_imported: set[str] = set()
_done: set[str] = set()


def _register_what_is_ready() -> None:
    """Register with each auto module that is loaded, unless a module of ours that it needs is half imported.

    transformers' CLIP modules import the auto modules while they are themselves imported by ours: then the
    registration waits until ours is complete.
    """
    for auto, (needs, registration) in _REGISTRATIONS.items():
        ours = {f"{__package__}.{need}" for need in needs}
        if auto in _done or auto not in sys.modules or _half_imported & {auto, *ours}:
            continue
        _done.add(auto)
        registration(sys.modules[auto])


class _RegisterAfterImport(importlib.abc.MetaPathFinder):
    """Look whether there is something to register after one of the watched modules has been executed."""

    def __init__(self) -> None:
        self._under_way: set[str] = set()

    def find_spec(self, fullname: str, path: Any = None, target: ModuleType | None = None) -> Any:
        if fullname not in _WATCHED or fullname in self._under_way:
            return None
        self._under_way.add(fullname)
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self._under_way.discard(fullname)
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            _half_imported.add(fullname)
            try:
                execute(module)
            finally:
                _half_imported.discard(fullname)
            _register_what_is_ready()

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def register() -> None:
    """Register now with the auto modules that are loaded, and with the others when they are."""
    if not any(isinstance(finder, _RegisterAfterImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, _RegisterAfterImport())
    _register_what_is_ready()
