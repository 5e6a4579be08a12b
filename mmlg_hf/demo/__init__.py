"""`mmlg demo`: models of several sizes from one gene, fine-tuned beside the same from scratch."""

from .. import lazy_names

_MODULE_OF = {
    "DemoSettings": "demo",
    "classifier_sizes": "demo",
    "make_classifier": "demo",
    "run_demo": "demo",
    "DIGITS": "digits",
    "digit_splits": "digits",
}

__all__ = list(_MODULE_OF)
__getattr__, __dir__ = lazy_names(__name__, _MODULE_OF)
