"""The page, the plots and the targets of the study, from its results and those of the bundled gene."""

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks.common.pages import fill
from benchmarks.common.results import read
from benchmarks.family import targets as asked
from benchmarks.family.arrays import Family
from benchmarks.family.plots import plots_of
from benchmarks.family.starts import BUNDLED

ZOO = Path(__file__).parent.parent.parent / "mmlg_hf" / "zoo" / "mmlg-fashion-48" / "results.json"


def plots(folder: Path) -> dict[str, Figure]:
    return plots_of(Family(read(folder / "family.json")))


def measured(folder: Path) -> dict[str, Any]:
    """The study itself, the curves from scratch, the bundled gene's curve over a tenth of their steps, its results."""
    names = {"family": "family", "long": "curves-3000", "short": "curves-300"}
    return {key: Family(read(folder / f"{name}.json")) for key, name in names.items()} | {"zoo": read(ZOO)}


def targets(folder: Path) -> list[dict[str, Any]]:
    return asked.targets(**measured(folder))


def page(folder: Path) -> str:
    found = measured(folder)
    gene = found["family"].results["genes"][f"bundled/{BUNDLED}"]
    return fill(Path(__file__).parent, gene=gene, targets=asked.targets(**found), recall="image_to_text_R@10", **found)
