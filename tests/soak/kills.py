"""Kill commands at random moments, look at what they left, and let them go on.

    python tests/soak/kills.py [--kills 50] [--jobs descend,extract,...] [--work DIR] [--seed 0]

Each job runs once undisturbed, then again and again in a forked process that gets SIGKILL at a moment drawn at random
from the time the job takes. After each kill every file under its final name must be whole, and the same command, given
again, must end with the weights of the undisturbed run, bit for bit. Prints a JSON row for each kill; rows that are in
DIR/kills.jsonl already are not run again.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
os.environ.setdefault("OMP_NUM_THREADS", "1")  # a fork of a process with threads would hang

from pico import pico_clip, pico_pairs, pico_processor  # noqa: E402
from pico_genes import multimodal_gene  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from typer.testing import CliRunner  # noqa: E402

from mmlg_hf.cli import app  # noqa: E402
from mmlg_hf.training.resuming import is_complete  # noqa: E402

TRAINING = ("--max-steps", "4", "--batch-size", "4", "--limit", "16", "--seed", "3")


def inputs(work: Path) -> None:
    """Write what the jobs read: a gene, a CLIP, a fine-tune of it, and pairs."""
    gene = multimodal_gene()
    gene.processor = pico_processor()
    gene.save_pretrained(work / "gene")
    for name in ("clip", "tuned"):
        pico_clip().save_pretrained(work / name)
        pico_processor().save_pretrained(work / name)
    pico_pairs(16, labels=True).save_to_disk(work / "pairs")


def words_of(job: str, work: Path, output: Path) -> tuple:
    """The command of a job, as it is given the first time and, but for extract's --resume, every later time."""
    data = ("--data", work / "pairs", "--output", output)
    extraction = ("--use_cpu", "--report_to", "none", "--save_steps", "1", "--max-steps", "4", "--batch-size", "4")
    if job == "extract" and (output / "extraction.json").exists():
        extraction = (*extraction, "--resume")
    return {
        "descend": ("descend", work / "gene", "--depth", "2", "--output", output),
        "extract": ("extract", work / "clip", *data, *extraction),
        "align": ("align", work / "clip", work / "clip", *data, *TRAINING, "--recipe", "lit", "--projection-dim", "8"),
        "upcycle": ("moe", "upcycle", work / "clip", "--expert", work / "tuned", "--output", output),
        "demo": ("demo", "--gene", work / "gene", "--output-dir", output),
    }[job]


JOBS = ("descend", "extract", "upcycle", "align", "demo")


def start(words: tuple, log: Path) -> int:
    """Run a command in a forked process, its output in a file, and return the process's id."""
    child = os.fork()
    if child:
        return child
    code = 70
    try:
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        result = CliRunner().invoke(app, list(map(str, words)))
        os.write(2, result.output.encode())
        if result.exc_info and not isinstance(result.exception, SystemExit):
            os.write(2, "".join(traceback.format_exception(*result.exc_info)).encode())
        code = result.exit_code
    finally:
        os._exit(code)


def finish(words: tuple, log: Path) -> None:
    """Run a command to its end."""
    _, status = os.waitpid(start(words, log), 0)
    if status:
        raise RuntimeError(f"{' '.join(map(str, words))} ended with {status}: {log.read_text()[-3000:]}")


def weights(output: Path) -> dict[str, str]:
    """A hash of each tensor in the output, checkpoints aside."""
    found = {}
    for path in sorted(output.rglob("*.safetensors")):
        if not any(part.startswith((".", "checkpoint-")) for part in path.relative_to(output).parts):
            for name, tensor in load_file(path).items():
                found[f"{path.relative_to(output)}:{name}"] = hashlib.sha256(tensor.numpy().tobytes()).hexdigest()
    return found


def half_written(output: Path) -> list[str]:
    """Files under their final names that cannot be read; of checkpoints only those that count as complete."""
    bad = []
    for path in sorted(output.rglob("*")):
        parts = path.relative_to(output).parts
        cut_off = parts[0].startswith("checkpoint-") and not is_complete(output / parts[0])
        if cut_off or any(part.startswith(".") for part in parts) or not path.is_file():
            continue
        try:
            if path.suffix == ".json":
                json.loads(path.read_text())
            elif path.suffix == ".safetensors":
                load_file(path)
        except Exception as error:
            bad.append(f"{path.relative_to(output)}: {error}")
    return bad


def one_kill(job: str, work: Path, output: Path, after: float, expected: dict[str, str]) -> dict:
    """Kill a job after so many seconds, look, and go on."""
    shutil.rmtree(output, ignore_errors=True)
    log = work / "log.txt"
    child = start(words_of(job, work, output), log)
    time.sleep(after)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    bad = half_written(output) if output.exists() else []
    whole = job in ("descend", "upcycle") and output.exists()  # these folders appear as a whole
    if not whole:
        finish(words_of(job, work, output), log)
    return {"half_written": bad, "same_result": weights(output) == expected}


def main() -> None:
    """Run the kills that are missing and print a row for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="in all, over the jobs in turn")
    parser.add_argument("--jobs", default="descend,extract,upcycle,align")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "soak")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    jobs, work = options.jobs.split(","), options.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    if not (work / "pairs").exists():
        inputs(work)
    record = work / "kills.jsonl"
    rows = [json.loads(line) for line in record.read_text().splitlines()] if record.exists() else []
    done = {row["kill"] for row in rows}
    undisturbed: dict[str, tuple[float, dict[str, str]]] = {}
    for kill in range(options.kills):
        job = jobs[kill % len(jobs)]
        if kill in done:
            continue
        if job not in undisturbed:
            output, started = work / f"{job}-undisturbed", time.monotonic()
            shutil.rmtree(output, ignore_errors=True)
            finish(words_of(job, work, output), work / "log.txt")
            undisturbed[job] = time.monotonic() - started, weights(output)
        seconds, expected = undisturbed[job]
        after = random.Random(f"{options.seed} {kill}").uniform(0, seconds)
        row = {"kill": kill, "job": job, "after": round(after, 3), "of": round(seconds, 3)}
        row |= one_kill(job, work, work / f"{job}-killed", after, expected)
        rows.append(row)
        with record.open("a") as file:
            file.write(json.dumps(row) + "\n")
    for row in rows:
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
