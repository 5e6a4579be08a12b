"""Command lines: the options that studies share, and each study's own from the `settings.yaml` beside it."""

import argparse
from pathlib import Path
from typing import Any

import yaml

from benchmarks.common.fashion import HUB_ID, TOKENIZER_ID

# Name -> default, help and perhaps choices; a type stands for an option that may be left out.
SHARED: dict[str, tuple] = {
    "data": (HUB_ID, "Hub id or folder of the data set"),
    "tokenizer": (TOKENIZER_ID, "Hub id or folder with CLIP's BPE vocabulary"),
    "clothing": (str, "folder of the clothing photos; not measured on if left out"),
    "learngene": ("mmlg-fashion-48", "Hub id, folder or bundled name of the gene"),
    "output": (str, "folder of results and page; by default the study's own, and runs/STUDY-quick with --quick"),
    "seeds": ([0, 1, 2], "seeds that are measured"),
    "quick": (False, "a few steps on a few rows, to see that everything runs"),
}
TYPES = {"text": str, "number": int}  # of options without a default, as settings.yaml names them


def parse(doc: str | None, *shared: str, settings: dict[str, Any] | None = None, **own: tuple) -> argparse.Namespace:
    """Read a command line.

    Args:
        doc: of the program, shown by --help.
        shared: names of `SHARED` options.
        settings: of `read_settings`: `options` from names to `default` or `type`, and `help`; what --quick sets.
        own: options in the form of `SHARED`.
    """
    settings = settings or {}
    for name, option in settings.get("options", {}).items():
        own[name] = (TYPES[option["type"]] if "type" in option else option["default"], option["help"])
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, (default, about, *choices) in ({key: SHARED[key] for key in shared} | own).items():
        given: dict[str, Any] = {"help": about, "default": None if isinstance(default, type) else default}
        if isinstance(default, bool):
            given["action"] = argparse.BooleanOptionalAction if default else "store_true"
        elif default is list or isinstance(default, list):
            given |= {"nargs": "+", "type": str if default is list else type(default[0])}
        else:
            given["type"] = default if isinstance(default, type) else type(default)
        if choices:
            given["choices"] = choices[0]
        parser.add_argument(f"--{name.replace('_', '-')}", **given)
    options = parser.parse_args()
    if getattr(options, "quick", False):  # what was asked for goes before what --quick sets
        parser.set_defaults(**settings.get("quick", {}))
        options = parser.parse_args()
    return options


def read_settings(program: str) -> dict[str, Any]:
    """The `settings.yaml` beside a program, given its `__file__`."""
    return yaml.safe_load((Path(program).parent / "settings.yaml").read_text(encoding="utf-8"))


def output_folder(options: argparse.Namespace, study: str) -> Path:
    """Where a study writes its results and page: beside its program, unless asked otherwise or run small."""
    own = f"runs/{study}-quick" if getattr(options, "quick", False) else Path(__file__).parent.parent / study
    return Path(options.output or own)


def settings_of(options: argparse.Namespace, *left_out: str) -> dict[str, Any]:
    """What a results file says about the options; of a folder its name alone, since where it lies says nothing."""
    kept = {name: value for name, value in vars(options).items() if name not in ("output", "work", *left_out)}
    is_folder = {name: isinstance(value, str) and Path(value).is_dir() for name, value in kept.items()}
    return {name: Path(value).name if is_folder[name] else value for name, value in kept.items()}
