"""`make soak`: every kill and one long extraction, their results as tables.

    python tests/soak/run.py [--kills 50] [--minutes 30] [--work DIR]

Stopped, it goes on where it was: finished kills are in DIR/kills.jsonl, samples of the extraction in DIR/memory.jsonl.
Exit code 0 means that nothing was half-written, every result was the undisturbed one, and memory stayed flat.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent


def kills(number: int, work: Path) -> bool:
    """Run what is missing of the kills and print a line for each job."""
    command = [sys.executable, str(HERE / "kills.py"), "--kills", str(number), "--work", str(work)]
    done = subprocess.run(
        [*command, "--jobs", "descend,extract,upcycle,align,demo"], stdout=subprocess.PIPE, text=True
    )
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    print(f"{'job':<10} {'kills':>6} {'half-written':>13} {'other result':>13}")
    for job in dict.fromkeys(row["job"] for row in rows):
        of_job = [row for row in rows if row["job"] == job]
        bad, other = sum(bool(row["half_written"]) for row in of_job), sum(not row["same_result"] for row in of_job)
        print(f"{job:<10} {len(of_job):>6} {bad:>13} {other:>13}")
    return not done.returncode and all(row["same_result"] and not row["half_written"] for row in rows)


def extraction(minutes: float, work: Path) -> bool:
    """Extract for so long, and print resident memory and open files by the minute; both must stay flat."""
    record, output = work / "memory.jsonl", work / "long"
    samples = [json.loads(line) for line in record.read_text().splitlines()] if record.exists() else []
    lasted = samples[-1]["minutes"] if samples else 0.0
    words = ["extract", work / "clip", "--data", work / "pairs", "--output", output, "--max-steps", "100000000"]
    words += [
        "--batch-size",
        "4",
        "--use_cpu",
        "--report_to",
        "none",
        "--save_steps",
        "200",
        "--save_total_limit",
        "2",
    ]
    if (output / "extraction.json").exists():
        words.append("--resume")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    with (work / "long.txt").open("a") as log:
        child = subprocess.Popen(
            [sys.executable, "-m", "mmlg_hf", *map(str, words)], env=environment, stdout=log, stderr=log
        )
        started = time.monotonic()
        while lasted + (time.monotonic() - started) / 60 < minutes and child.poll() is None:
            time.sleep(min(30.0, minutes * 6))
            status = Path(f"/proc/{child.pid}/status")
            if child.poll() is None:
                resident = next(line for line in status.read_text().splitlines() if line.startswith("VmRSS"))
                sample = {
                    "minutes": round(lasted + (time.monotonic() - started) / 60, 2),
                    "megabytes": round(int(resident.split()[1]) / 1024, 1),
                    "files": len(os.listdir(f"/proc/{child.pid}/fd")),
                }
                samples.append(sample)
                with record.open("a") as file:
                    file.write(json.dumps(sample) + "\n")
        alive = child.poll() is None
        child.terminate()
        child.wait()
    print(f"{'minute':>8} {'MB':>9} {'files':>6}")
    for sample in samples[:: max(1, len(samples) // 12)]:
        print(f"{sample['minutes']:>8} {sample['megabytes']:>9} {sample['files']:>6}")
    if not alive and lasted < minutes:
        print(f"the extraction ended early: see {work / 'long.txt'}")
        return False
    settled = samples[len(samples) // 4 :]  # the first steps fill caches
    half = len(settled) // 2
    means = [
        {name: sum(sample[name] for sample in part) / max(1, len(part)) for name in ("megabytes", "files")}
        for part in (settled[:half], settled[half:])
    ]
    grown = means[1]["megabytes"] / max(1.0, means[0]["megabytes"]) - 1
    print(f"from the second to the last part: memory {grown:+.1%}, files {means[1]['files'] - means[0]['files']:+.1f}")
    return grown < 0.05 and means[1]["files"] - means[0]["files"] < 5


def main() -> None:
    """Run both and say by the exit code whether they held."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--minutes", type=float, default=30.0, help="of the long extraction; 0 leaves it out")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "soak")
    options = parser.parse_args()
    work = options.work.resolve()
    held = kills(options.kills, work)
    if options.minutes:
        held = extraction(options.minutes, work) and held
    raise SystemExit(0 if held else 1)


if __name__ == "__main__":
    main()
