"""Kill commands at random moments, look at what they left, and let them go on.

    python tests/soak/kills.py [--kills 64] [--jobs descend,extract,...] [--work DIR] [--seed 0]

Each job runs once undisturbed, then again and again and gets SIGKILL at a moment drawn at random. After each kill
every file under its final name must be whole, and the same command, given again, must end with the result of the
undisturbed run, bit for bit. Prints a JSON row for each trial; those in DIR/kills.jsonl already are not made again.
"""

import argparse
import json
import os
import random
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "hub"), str(ROOT / "tests" / "soak")]
os.environ.setdefault("OMP_NUM_THREADS", "1")  # a fork of a process with threads would hang

from jobs import JOBS, inputs, job  # noqa: E402


def kill(number: int, names: list[str], work: Path, seed: int) -> list[dict[str, Any]]:
    """Make the trials that are missing, a job after another, until so many runs were killed; return a row for each."""
    work.mkdir(parents=True, exist_ok=True)
    if not (work / "pairs").exists():
        inputs(work)
    record = work / "kills.jsonl"
    rows = [json.loads(line) for line in record.read_text().splitlines()] if record.exists() else []
    measured: dict[str, tuple[float, dict]] = {}
    while sum(row["kills"] for row in rows) < number:
        name = names[len(rows) % len(names)]
        killed = job(name, work)
        if name not in measured:
            measured[name] = killed.undisturbed()
        span, expected = measured[name]
        trial = killed.trial(random.Random(f"{seed} {len(rows)}"), span)
        same = bool(expected) and trial.result == expected
        row = {"job": name, "kills": trial.kills, "of": round(span, 2), "half_written": trial.half_written}
        rows.append(row | {"same_result": same})
        with record.open("a") as file:
            file.write(json.dumps(rows[-1]) + "\n")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=64, help="in all, over the jobs in turn")
    parser.add_argument("--jobs", default=",".join(JOBS))
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "soak")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    for row in kill(options.kills, options.jobs.split(","), options.work.resolve(), options.seed):
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
