"""Silencing what transformers and datasets say while this package works with them."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from transformers.utils import logging


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the progress bars and notices of transformers and, where it is loaded, of datasets."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    datasets = sys.modules.get("datasets")  # not imported for this: growing a descendant needs none of it
    data_bars = datasets is not None and datasets.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if datasets is not None:
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
        if data_bars and datasets is not None:
            datasets.enable_progress_bars()
