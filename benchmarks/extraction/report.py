"""Page and plot of the study on extraction, from its results."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks.common.options import read_settings
from benchmarks.common.pages import fill, panels
from benchmarks.common.results import read

COLORS = ("#c0392b", "#e67e22", "#1f77b4", "#17a589")
FIGURES = {"R@1": "mean_R@1", "R@10": "image_to_text_R@10", "zero-shot": "top1"}
# What the page compares in words, under the names that its template knows them by.
COMPARED = {
    "default": "default",
    "tleg": "no shared block, two for each encoder",
    "scaled": "scales of rows and columns",
    "low": "two for each encoder, second of low rank",
    "low_scaled": "two for each encoder, second of low rank, scales",
}
PARTS: dict[str, list[str]] = read_settings(__file__)["parts"]  # the choices under each of the page's headings


def by_name(results: dict[str, Any]) -> dict[str, dict[int, Any]]:
    """The runs of each choice by their seeds, the choices in the order of the settings."""
    found: dict[str, dict[int, Any]] = {name: {} for names in PARTS.values() for name in names}
    for key, run in results["runs"].items():
        name, seed = key.rsplit("/", 1)
        found[name][int(seed)] = run
    return {name: dict(sorted(runs.items())) for name, runs in found.items() if runs}


def means(runs: dict[int, Any], figure: str) -> np.ndarray:
    """Mean over the sizes of one of `FIGURES`, in per cent, one value for each seed."""
    return np.array([100 * np.mean([size[FIGURES[figure]] for size in run["sizes"]]) for run in runs.values()])


def ahead(runs: dict[int, Any], others: dict[int, Any], figure: str) -> np.ndarray:
    """By how much runs are ahead of others with the same seeds, in points."""
    both = [seed for seed in runs if seed in others]
    return means({seed: runs[seed] for seed in both}, figure) - means({seed: others[seed] for seed in both}, figure)


def page(folder: Path) -> str:
    found = {
        name: folder / f"{file}.json" for name, file in (("shared", "shared-block"), ("other", "no-shared-block"))
    }
    genes = {name: read(path)["models"][1:] if path.exists() else [] for name, path in found.items()}
    results = read(folder / "choices.json")
    named = {"runs": by_name(results), "parts": PARTS, "figures": FIGURES}
    return fill(Path(__file__).parent, results=results, means=means, ahead=ahead, **named, **COMPARED, **genes)


def plots(folder: Path) -> dict[str, Figure]:
    """R@10 of each choice at each size with its spread, the default's as lines to compare with."""
    runs = by_name(read(folder / "choices.json"))
    figure, (axis,) = panels(1, 9, 0.6 + 0.27 * len(runs))
    first = next(iter(runs[COMPARED["default"]].values()))
    for index, (size, color) in enumerate(zip(first["sizes"], COLORS, strict=True)):
        values = [[100 * run["sizes"][index][FIGURES["R@10"]] for run in seeds.values()] for seeds in runs.values()]
        axis.axvline(np.mean(values[list(runs).index(COMPARED["default"])]), color=color, linewidth=0.8, alpha=0.5)
        found = [(np.mean(here), np.std(here, ddof=1) if len(here) > 1 else 0.0) for here in values]
        axis.errorbar(
            [mean for mean, _ in found],
            range(len(runs)),
            xerr=[std for _, std in found],
            fmt="o",
            color=color,
            capsize=2,
            label=f"{size['depth']} x {size['width']}",
        )
    names = [f"{name} ({next(iter(seeds.values()))['megabytes']:.1f} MB)" for name, seeds in runs.items()]
    axis.set_yticks(range(len(runs)), names, fontsize=8)
    axis.set(xlabel="image-to-text R@10 before any fine-tuning (%, validation)", xlim=(0, None))
    axis.invert_yaxis()
    axis.legend(frameon=False, fontsize=8)
    return {"choices": figure}
