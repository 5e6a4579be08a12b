"""Settings of every test process."""

import os

# Each worker of pytest-xdist has one core to itself, and so have the processes that its tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")
