"""The genes that come with the package, and what a name stands for."""

import os
from pathlib import Path

from .errors import LearngeneError

ZOO = Path(__file__).parent / "zoo"


def bundled_learngenes() -> list[str]:
    """Name the genes that come with the package; none for code that was loaded from the Hub without it."""
    return sorted(path.parent.name for path in ZOO.glob("*/config.json"))


def locate_learngene(learngene: str | os.PathLike) -> str:
    """Return the folder of a bundled gene for its name; a folder or Hub id is returned as it is."""
    name = os.fspath(learngene)
    if not os.path.isdir(name) and name in bundled_learngenes():
        return str(ZOO / name)
    if os.path.exists(name) and not os.path.isdir(name):
        raise LearngeneError(f"{name!r} is a file: give the folder that a gene was saved to, or a Hub id")
    return name
