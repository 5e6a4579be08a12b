"""One long extraction, whose resident memory, open files and steps are sampled while it runs."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from mmlg_hf.training.resuming import last_checkpoint

ROOT = Path(__file__).resolve().parent.parent.parent
SECONDS = 20.0  # between samples
SETTINGS = "--max-steps 100000000 --batch-size 4 --use_cpu --report_to none --save_steps 100 --save_total_limit 2"


def watch(minutes: float, work: Path) -> list[dict[str, Any]]:
    """Extract for so long and return the samples, those of earlier calls first: it goes on from their checkpoints.

    A sample has the `minute`, `megabytes` of resident memory, open `files`, `steps` up to the last checkpoint, and
    `start`, which counts how often the extraction was started.

    Raises:
        RuntimeError: the extraction ended by itself.
    """
    record, output = work / "memory.jsonl", work / "long"
    samples = [json.loads(line) for line in record.read_text().splitlines()] if record.exists() else []
    before = samples[-1]["minute"] if samples else 0.0
    if before >= minutes:
        return samples
    words = [work / "clip", "--data", work / "pairs", "--output", output, *SETTINGS.split()]
    resume = ["--resume"] if last_checkpoint(output) else []
    command = [sys.executable, "-m", "mmlg_hf", "extract", *map(str, words), *resume]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    start = samples[-1]["start"] + 1 if samples else 1
    with (work / "long.txt").open("a") as log:
        child = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        began = time.monotonic()
        try:
            while not samples or samples[-1]["minute"] < minutes:
                time.sleep(SECONDS)
                if child.poll() is not None:
                    raise RuntimeError(f"the extraction ended by itself: see {work / 'long.txt'}")
                minute = before + (time.monotonic() - began) / 60
                samples.append({"start": start, "minute": round(minute, 2), **_sample(child.pid, output)})
                with record.open("a") as file:
                    file.write(json.dumps(samples[-1]) + "\n")
        finally:
            child.terminate()
            child.wait()
    return samples


def _sample(process: int, output: Path) -> dict[str, Any]:
    status = Path(f"/proc/{process}/status").read_text()
    kilobytes = int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1])
    steps = int((last_checkpoint(output) or "0").rpartition("-")[2])
    files = len(os.listdir(f"/proc/{process}/fd"))
    return {"megabytes": round(kilobytes / 1024, 1), "files": files, "steps": steps}
