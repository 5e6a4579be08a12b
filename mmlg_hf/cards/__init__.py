"""Model cards and the measured results on them."""

from .. import lazy_names

_MODULE_OF = {
    "HUB_ID": "cards",
    "KINDS": "cards",
    "create_model_card": "cards",
    "save_model_card": "cards",
    "plot_results": "results",
    "read_results": "results",
    "results_table": "results",
}

__all__ = list(_MODULE_OF)
__getattr__, __dir__ = lazy_names(__name__, _MODULE_OF)
