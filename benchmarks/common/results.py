"""Results files: written whole or not at all, a run on a line of its own, and no run made twice."""

import json
import os
import platform
import subprocess
import time
from collections.abc import Callable
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from mmlg_hf.saving import write_text


def environment() -> dict[str, Any]:
    """What a result says about where and when it was measured."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    return {
        "commit": commit or None,
        "hardware": torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def compact(content: dict[str, Any] | list) -> str:
    """JSON with a line for each entry, and for each entry of an entry that itself holds lists or mappings."""
    return _lines(content, 2) + "\n"


def _lines(content: Any, depth: int) -> str:
    named = isinstance(content, dict)
    values = list(content.values() if named else content) if isinstance(content, (dict, list)) else []
    if not depth or not any(isinstance(value, (dict, list)) for value in values):
        return json.dumps(content)
    names = [f"{json.dumps(name)}: " for name in content] if named else [""] * len(values)
    entries = [name + _lines(value, depth - 1) for name, value in zip(names, values, strict=True)]
    opening, closing = "{}" if named else "[]"
    return f"{opening}\n" + ",\n".join(entries) + f"\n{closing}"


def write(path: Path, content: dict[str, Any] | list) -> None:
    write_text(path, compact(content))


class Results:
    """The results file of a study, gone on with where it is there already.

    Args:
        path: of the JSON file, with `settings`, where it was measured, and `runs` by their keys.
        settings: what all runs share. A file with runs of other settings is refused.
    """

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self.path = path
        self.found: dict[str, Any] = read(path) if path.exists() else {"runs": {}}
        settings = json.loads(json.dumps(settings))  # as they are read again: tuples become lists
        if self.found["runs"] and self.found["settings"] != settings:
            raise SystemExit(f"{path} holds runs of other settings ({self.found['settings']}): move it away")
        self.found["settings"] = settings

    def run(self, key: str, make: Callable[..., dict[str, Any]], *args: Any) -> dict[str, Any]:
        """The run of this key: read, or else made by `make(*args)` and written."""
        runs = self.found["runs"]
        if key not in runs:
            runs[key] = make(*args)
            self.save(**environment())
            print(key, json.dumps(runs[key])[:230], flush=True)
        return runs[key]

    def save(self, **about: Any) -> None:
        """Write the file, with what else there is to say; the runs come last."""
        self.found = {"settings": None, **self.found, **about}
        self.found["runs"] = self.found.pop("runs")
        write(self.path, self.found)


class Runs:
    """The runs of a results file by the parts of their keys, such as part, method, size and seed."""

    def __init__(self, results: dict[str, Any]) -> None:
        self.results, self.settings = results, results["settings"]
        self.runs: dict[tuple[str, ...], list[dict[str, Any]]] = {}
        for key, run in results["runs"].items():
            parts = tuple(key.split("/"))
            for length in range(1, len(parts) + 1):
                self.runs.setdefault(parts[:length], []).append(run)

    def all(self, *key: Any) -> list[dict[str, Any]]:
        """The runs whose keys begin so, none if there are none."""
        return self.runs.get(tuple(map(str, key)), [])

    def names(self, *key: str) -> list[str]:
        """What the next part of the keys that begin so is, in order."""
        return [parts[-1] for parts in self.runs if parts[:-1] == key]

    def values(self, figure: str, *key: Any, scale: float = 100) -> np.ndarray:
        """A figure of all runs whose keys begin so, such as "after/top1": one value for each seed, in per cent."""
        return scale * np.array([reduce(getitem, figure.split("/"), run) for run in self.all(*key)])
