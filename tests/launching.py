"""Running a test's program on several processes under torchrun."""

import os
import re
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parent
# Launches at the same time may pick one free port, as it is let go before it is taken. Nothing else is tried again: a
# process that dies takes the other's connection with it, so that a lost one says nothing.
_PORT_TAKEN = re.compile(r"EADDRINUSE|[Aa]ddress already in use")


def launch(program: str, *arguments: object, processes: int = 2, config: Path | None = None) -> None:
    """Run a file under torchrun, with the package and these tests; again where its port was taken.

    With a `config`, accelerate's, it is run by `accelerate launch` as that says, and may be `-m` with a module.
    """
    path = os.pathsep.join([str(TESTS.parent), str(TESTS), os.environ.get("PYTHONPATH", "")])
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    if config is not None:
        launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config)]
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    for attempt in (1, 2, 3):
        done = subprocess.run(
            [*launcher, program, *map(str, arguments)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        if done.returncode == 0 or attempt == 3 or not _PORT_TAKEN.search(done.stderr):
            break
    assert done.returncode == 0, done.stderr[-5000:]
