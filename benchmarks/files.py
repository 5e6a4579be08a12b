"""Writing what a study has measured, whole or not at all."""

import json
import time
from pathlib import Path
from typing import Any

from benchmarks.fashion import environment


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file beside its place and rename it, so that an interrupted study leaves the one before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(content, indent=1) + "\n")
    part.replace(path)


class Results:
    """The results file: a run is added whole or not at all, and never made twice."""

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self.path = path
        self.found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"runs": {}}
        if self.found["runs"] and self.found["settings"] != settings:
            raise SystemExit(f"{path} holds runs of other settings ({self.found['settings']}): move it away")
        self.found |= {"settings": settings, **environment(), "date": time.strftime("%Y-%m-%d")}

    def add(self, key: str, make: Any) -> dict[str, Any]:
        if key not in self.found["runs"]:
            self.found["runs"][key] = make()
            self.save()
            print(key, json.dumps(self.found["runs"][key])[:230], flush=True)
        return self.found["runs"][key]

    def save(self) -> None:
        write_json(self.path, self.found)
