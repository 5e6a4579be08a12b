"""Saving a model's code along with it, for machines where this package is not installed."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def code_saved_along(model: Any, with_code: bool, auto_class: str) -> Iterator[None]:
    """Let `save_pretrained` save the code of a model, or none, for as long as this lasts.

    `auto_map` on a config says that the code lies beside it. It is written if the code is, and the model's config and
    the classes are left as they were: else every later save would name code that is not there, or save it too.

    Args:
        with_code: save the code, even where the classes are not registered for it.
        auto_class: the class of transformers that loads the model with its own code, such as "AutoModel".
    """
    config = model.config
    ours = [cls for cls in (type(model), type(config)) if not cls.__module__.startswith("transformers.")]
    before = {cls: cls._auto_class for cls in ours}
    auto_map = config.__dict__.pop("auto_map", None)
    if with_code:
        for cls in ours:
            cls.register_for_auto_class(auto_class if cls is type(model) else "AutoConfig")
    try:
        yield
    finally:
        for cls, registered in before.items():
            cls._auto_class = registered
        config.__dict__.pop("auto_map", None)
        if auto_map is not None:
            config.auto_map = auto_map
