"""Command lines: the options that studies share, and each study's own from their defaults."""

import argparse
from pathlib import Path
from typing import Any

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


def parse(
    doc: str | None, *shared: str, arguments: list[str] | None = None, **own: tuple
) -> tuple[argparse.Namespace, argparse.ArgumentParser]:
    """Read a command line.

    Args:
        doc: of the program, shown by --help.
        shared: names of `SHARED` options.
        arguments: None reads the program's own.
        own: options in the form of `SHARED`.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, (default, about, *choices) in ({key: SHARED[key] for key in shared} | own).items():
        settings: dict[str, Any] = {"help": about, "default": None if isinstance(default, type) else default}
        if isinstance(default, bool):
            settings["action"] = argparse.BooleanOptionalAction if default else "store_true"
        elif default is list or isinstance(default, list):
            settings |= {"nargs": "+", "type": str if default is list else type(default[0])}
        else:
            settings["type"] = default if isinstance(default, type) else type(default)
        if choices:
            settings["choices"] = choices[0]
        parser.add_argument(f"--{name.replace('_', '-')}", **settings)
    return parser.parse_args(arguments), parser


def output_folder(options: argparse.Namespace, study: str) -> Path:
    """Where a study writes its results and page: beside its program, unless asked otherwise or run small."""
    own = f"runs/{study}-quick" if getattr(options, "quick", False) else Path(__file__).parent.parent / study
    return Path(options.output or own)


def settings_of(options: argparse.Namespace, *left_out: str) -> dict[str, Any]:
    """What a results file says about the options; of a folder its name alone, since where it lies says nothing."""
    kept = {name: value for name, value in vars(options).items() if name not in ("output", "work", *left_out)}
    is_folder = {name: isinstance(value, str) and Path(value).is_dir() for name, value in kept.items()}
    return {name: Path(value).name if is_folder[name] else value for name, value in kept.items()}
