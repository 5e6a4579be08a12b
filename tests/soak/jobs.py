"""What is killed: commands that write folders, and programs between a folder and a double of the Hub.

A job can run undisturbed, which tells how long it takes and what its result is, and it can be killed at a moment of
that and go on. The moments of a command are seconds of processor time, which a busy machine does not change; those of
a program that talks to the double are a request that arrived, one that was answered, and a piece of a file that was
sent.
"""

import hashlib
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from hub_double import HubDouble
from pico import pico_clip, pico_pairs, pico_processor
from pico_genes import multimodal_gene
from pico_zoo import write_zoo
from safetensors.torch import load_file
from tqdm.auto import tqdm
from typer.testing import CliRunner

from mmlg_hf.cli import app
from mmlg_hf.training.resuming import is_complete
from upload.manifest import read_manifest
from upload.staging import stage

ROOT = Path(__file__).resolve().parent.parent.parent
Result = dict[str, Any]


class Trial(NamedTuple):
    """How often a job was killed before it had ended, what was half-written then, and its result after it went on."""

    kills: int
    half_written: list[str]
    result: Result


def inputs(work: Path) -> None:
    """Write what the jobs read: a gene, a CLIP, a fine-tune of it, pairs, and an artifact ready to be published."""
    gene = multimodal_gene()
    gene.processor = pico_processor()
    gene.save_pretrained(work / "gene")
    for name in ("clip", "tuned"):
        pico_clip().save_pretrained(work / name)
        pico_processor().save_pretrained(work / name)
    manifest = read_manifest(write_zoo(work / "zoo"))
    stage(manifest["pico-gene"], manifest, work / "staged", "demo")
    pico_pairs(16, labels=True).save_to_disk(work / "pairs")


# --- commands --------------------------------------------------------------------------------------------------------

TRAINING = ("--max-steps", "4", "--batch-size", "4", "--limit", "16", "--seed", "3")
EXTRACTION = ("--use_cpu", "--report_to", "none", "--save_steps", "1", "--max-steps", "4", "--batch-size", "4")
# These folders appear as a whole: once they are there, nothing is left to go on with.
AT_ONCE = ("descend", "upcycle")


class Command:
    """A command of `mmlg`, killed after random processor times, now and then once more while it goes on."""

    def __init__(self, name: str, work: Path) -> None:
        self.name, self.work, self.output, self.log = name, work, work / f"{name}-output", work / "log.txt"

    def words(self) -> tuple:
        """The command as it is given the first time and, but for extract's --resume, every later time."""
        clip, output = self.work / "clip", ("--output", self.output)
        data = ("--data", self.work / "pairs", *output)
        resume = ("--resume",) if (self.output / "extraction.json").exists() else ()
        return {
            "descend": ("descend", self.work / "gene", "--depth", "2", *output),
            "extract": ("extract", clip, *data, *EXTRACTION, *resume),
            "upcycle": ("moe", "upcycle", clip, "--expert", self.work / "tuned", *output),
            "diversify": ("moe", "diversify", clip, *data, *TRAINING, "--num-experts", "2", "--num-clusters", "1"),
            "align": ("align", clip, clip, *data, *TRAINING, "--recipe", "lit", "--projection-dim", "8"),
            "demo": ("demo", "--gene", self.work / "gene", "--output-dir", self.output),
        }[self.name]

    def undisturbed(self) -> tuple[float, Result]:
        shutil.rmtree(self.output, ignore_errors=True)
        seconds = self._finish()
        return seconds, self._weights()

    def trial(self, draw: random.Random, span: float) -> Trial:
        shutil.rmtree(self.output, ignore_errors=True)
        kills, bad = 0, []
        for _ in range(draw.choice((1, 1, 2))):
            after = draw.uniform(0, span)
            if self.name in AT_ONCE and self.output.exists():
                break
            child = self._start()
            while processor_time(child) < after:
                time.sleep(0.005)
            os.kill(child, signal.SIGKILL)
            kills += os.WIFSIGNALED(os.waitpid(child, 0)[1])
            bad += half_written(self.output)
        if not (self.name in AT_ONCE and self.output.exists()):
            self._finish()
        return Trial(kills, bad, self._weights())

    def _start(self) -> int:
        """Run the command in a forked process, its output in a file, and return the process's id."""
        words = list(map(str, self.words()))
        child = os.fork()
        if child:
            return child
        code = 70
        try:
            # tqdm's own lock is shared with all forks: one that is killed while it draws a bar would hold it for good,
            # and every later one would wait for it.
            tqdm.set_lock(threading.RLock())
            handle = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(handle, 1)
            os.dup2(handle, 2)
            result = CliRunner().invoke(app, words)
            os.write(2, result.output.encode())
            if result.exc_info and not isinstance(result.exception, SystemExit):
                os.write(2, "".join(traceback.format_exception(*result.exc_info)).encode())
            code = result.exit_code
        finally:
            os._exit(code)

    def _finish(self) -> float:
        """Run the command to its end; return the processor time that it took."""
        words = " ".join(map(str, self.words()))
        _, status, used = os.wait4(self._start(), 0)
        if status:
            raise RuntimeError(f"{words} ended with {status}: {self.log.read_text()[-3000:]}")
        return used.ru_utime + used.ru_stime

    def _weights(self) -> Result:
        """A hash of each tensor in the output, checkpoints aside."""
        found = {}
        for path in sorted(self.output.rglob("*.safetensors")):
            name = path.relative_to(self.output)
            if not any(part.startswith((".", "checkpoint-")) for part in name.parts):
                found |= {f"{name}:{key}": sha256(tensor.numpy().tobytes()) for key, tensor in load_file(path).items()}
        return found


def processor_time(process: int) -> float:
    """Seconds that a process has used; infinite when it has ended."""
    state, *numbers = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return math.inf if state in "ZX" else (int(numbers[10]) + int(numbers[11])) / os.sysconf("SC_CLK_TCK")


def half_written(output: Path) -> list[str]:
    """Files under their final names that cannot be read; of checkpoints only those that count as complete."""
    bad = []
    for path in sorted(output.rglob("*")):
        parts = path.relative_to(output).parts
        folders = [output.joinpath(*parts[: depth + 1]) for depth in range(len(parts))]
        cut_off = any(folder.name.startswith("checkpoint-") and not is_complete(folder) for folder in folders)
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


# --- programs that talk to the Hub -----------------------------------------------------------------------------------

PUBLISH = """
import sys
from pathlib import Path
from huggingface_hub import HfApi
from upload.publishing import Plan, check_login, publish
api = HfApi()
check_login(api, "demo")
plan = Plan("demo/pico-gene", Path(sys.argv[1]), "Publish")
publish(api, plan, tag="v1", revision=None, create_pr=False, private=None)
"""
FETCH = """
import sys
from mmlg_hf.hub import fetch_learngene
fetch_learngene("demo/pico-gene", with_processor=True, cache_dir=sys.argv[1])
"""


class Publish:
    """What `upload publish` does with an artifact that is built and checked, killed at moments of the double."""

    name = "publish"
    code = PUBLISH

    def __init__(self, work: Path) -> None:
        self.work, self.staged, self.cache = work, work / "staged", work / "cache"

    def undisturbed(self) -> tuple[float, Result]:
        with HubDouble() as hub:
            self._prepare(hub)
            moments = self._run(hub, None)
            return moments, self._result(hub)

    def trial(self, draw: random.Random, span: float) -> Trial:
        with HubDouble() as hub:
            self._prepare(hub)
            kills = self._run(hub, draw.randint(1, int(span)))
            with hub.lock:  # what the double was doing for the one that is gone
                bad = self._half_done(hub)
            if self._run(hub, None) < 1:
                raise RuntimeError(f"{self.name} did not go on")
            return Trial(kills, bad, self._result(hub))

    def _run(self, hub: HubDouble, kill_at: int | None) -> int:
        """Run the program; return how many moments it had, or, with `kill_at`, whether it was killed at that one."""
        moments = 0
        command = [sys.executable, "-c", self.code, str(self._argument())]
        environment = hub.environment(self.work / "home", HubDouble.OWNER_TOKEN, PYTHONPATH=str(ROOT))

        def on_moment() -> None:
            nonlocal moments
            moments += 1
            if moments == kill_at:
                child.kill()

        hub.on_moment = on_moment
        child = subprocess.Popen(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        _, told = child.communicate()
        hub.on_moment = lambda: None
        if kill_at is not None:
            return int(child.returncode == -signal.SIGKILL)
        if child.returncode:
            raise RuntimeError(f"{self.name} ended with {child.returncode}: {told[-3000:]}")
        return moments

    def _prepare(self, hub: HubDouble) -> None:
        pass

    def _argument(self) -> Path:
        return self.staged

    def _half_done(self, hub: HubDouble) -> list[str]:
        """What main and the tag show other than nothing or the whole artifact."""
        repo = hub.state.repos.get("demo/pico-gene")
        shown = [] if repo is None else [*repo.branches.values(), *repo.tags.values()]
        of_the_hub = {".gitattributes"}
        trees = [set(repo.commits[oid].files) - of_the_hub for oid in shown if oid in repo.commits]
        whole = {path.relative_to(self.staged).as_posix() for path in self.staged.rglob("*") if path.is_file()}
        return [f"{len(tree)} of {len(whole)} files" for tree in trees if tree not in (set(), whole)]

    def _result(self, hub: HubDouble) -> Result:
        """The published files, and how many commits they took; the tag must be on the last."""
        repo = hub.repo("demo/pico-gene")
        files = {name: sha256(content) for name, content in hub.files("demo/pico-gene").items()}
        return files | {"commits": len(repo.commits), "tagged": repo.tags == {"v1": repo.branches["main"]}}


class Fetch(Publish):
    """A gene brought from the Hub into an empty cache, piece by piece, killed at moments of the double."""

    name = "fetch"
    code = FETCH

    def _prepare(self, hub: HubDouble) -> None:
        shutil.rmtree(self.cache, ignore_errors=True)
        user = hub.state.users[HubDouble.OWNER_TOKEN]
        hub.state.create_repo(user, "demo", "pico-gene", False)
        for path in self.staged.rglob("*"):
            if path.is_file():
                hub.put_file("demo/pico-gene", path.relative_to(self.staged).as_posix(), path.read_bytes())
        hub.plant("drip", path=r"\.safetensors", method="GET", times=10**6)

    def _argument(self) -> Path:
        return self.cache

    def _half_done(self, hub: HubDouble) -> list[str]:
        """Files of the cache that are not, under the name that loaders read, what the Hub has."""
        there = hub.files("demo/pico-gene")
        return [name for name, path in self._cached() if path.read_bytes() != there.get(name)]

    def _cached(self) -> Iterable[tuple[str, Path]]:
        for path in sorted(self.cache.rglob("snapshots/*/**/*")):
            if path.is_file():
                yield "/".join(path.relative_to(self.cache).parts[3:]), path

    def _result(self, hub: HubDouble) -> Result:
        return {name: sha256(path.read_bytes()) for name, path in self._cached()}


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


COMMANDS = ("descend", "extract", "upcycle", "diversify", "align", "demo")
JOBS = (*COMMANDS, "publish", "fetch")


def job(name: str, work: Path) -> Command | Publish:
    """The job of a name."""
    return {"publish": Publish, "fetch": Fetch}[name](work) if name not in COMMANDS else Command(name, work)
