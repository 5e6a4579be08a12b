"""Exporting models to the files that phones, browsers and servers run, and comparing sizes by what they cost."""

from .. import lazy_names

_MODULE_OF = {
    "FORMATS": "formats",
    "compare_models": "comparing",
    "export_model": "exporting",
    "load_exportable": "sources",
    "plot_comparison": "plots",
}

__all__ = list(_MODULE_OF)
__getattr__, __dir__ = lazy_names(__name__, _MODULE_OF)
