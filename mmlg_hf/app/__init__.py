"""The page on which anyone tries the sizes of a gene: grown, measured, and compared side by side."""

from .. import lazy_names

_MODULE_OF = {
    "Album": "pictures",
    "Sizes": "sizes",
    "build_page": "page",
    "serve": "page",
}

__all__ = list(_MODULE_OF)
__getattr__, __dir__ = lazy_names(__name__, _MODULE_OF)
