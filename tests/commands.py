"""The commands of `mmlg` on pico models: what each reads, its words, and the sentence it ends with."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pico import pico_clip, pico_pairs, pico_processor
from pico_genes import multimodal_gene
from typer.testing import CliRunner

from mmlg_hf.cli import app


def write_inputs(root: Path) -> Path:
    """Write a gene, a CLIP and a labelled dataset into a folder, which is returned."""
    gene = multimodal_gene()
    gene.processor = pico_processor()
    gene.save_pretrained(root / "gene")
    pico_clip().save_pretrained(root / "clip")
    pico_processor().save_pretrained(root / "clip")
    pico_pairs(16, labels=True).save_to_disk(root / "pairs")
    return root


def run(*words: object) -> Any:
    """Run `mmlg` in this process."""
    return CliRunner().invoke(app, list(map(str, words)))


def sentence(result: Any, code: int) -> str:
    """The sentence on stderr of a command that ended with this exit code."""
    assert result.exit_code == code, (result.output, result.exception)
    assert "Traceback" not in result.stderr
    return result.stderr.strip().splitlines()[-1]


def commands(root: Path, output: Path) -> dict[str, tuple]:
    """Every command that writes a folder, short of what would make it run for long."""
    data = ("--data", root / "pairs")
    return {
        "extract": ("extract", root / "clip", *data, "--output", output),
        "descend": ("descend", root / "gene", "--output", output),
        "demo": ("demo", "--output-dir", output),
        "export": ("export", root / "clip", "--output", output),
        "compare": ("compare", root / "clip", "--output", output),
        "evaluate": ("evaluate", root / "clip", *data, "--task", "retrieval", "--output", output / "figures.json"),
        "align": ("align", root / "clip", root / "clip", *data, "--output", output),
        "diversify": ("moe", "diversify", root / "clip", *data, "--output", output),
        "upcycle": ("moe", "upcycle", root / "clip", "--expert", root / "clip", "--output", output),
        "train-router": ("moe", "train-router", root / "clip", *data, "--output", output),
    }


# An export first asks for its libraries, which the lowest versions do without.
WRITERS = [name for name in commands(Path(), Path()) if name != "export" or find_spec("onnx")]
