"""Settings of every test process."""

import logging
import os

import pytest

# Each worker of pytest-xdist has one core to itself, and so have the processes that its tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture
def caplog(caplog, monkeypatch):
    """pytest's own, which sees our warnings too: they go the way of transformers', which it keeps from the root."""
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    return caplog
