"""Page and plot of the demo's comparison, from its results."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks.common.pages import bars, fill, legend_below, panels
from benchmarks.common.results import Runs, read
from mmlg_hf.demo.demo import STARTS


def collect(results: dict[str, Any]) -> list[dict[str, Any]]:
    """For each size: what it is, and test accuracies and margin in per cent by seed."""
    found = []
    for rows in zip(*(run["classifiers"] for run in results["runs"].values()), strict=True):
        values = {start: 100 * np.array([row[f"accuracy_{start}"] for row in rows]) for start in STARTS}
        found.append({**rows[0], **values, "margin": values["gene"] - values["scratch"]})
    return found


def page(folder: Path) -> str:
    results, path = read(folder / "seeds.json"), folder / "tuning.json"
    tuning = Runs(read(path) if path.exists() else {"settings": {}, "runs": {}})
    rates = sorted({rate for name in tuning.names() for rate in tuning.names(name, "gene")}, key=float)
    return fill(Path(__file__).parent, results=results, sizes=collect(results), tuning=tuning, rates=rates)


def plots(folder: Path) -> dict[str, Figure]:
    results = read(folder / "seeds.json")
    sizes = collect(results)
    figure, (panel,) = panels(1, 5.2, 3.4)
    names = [f"{row['depth']} x {row['width']}\n{row['parameters'] / 1e6:.2f} M" for row in sizes]
    groups = {
        f"from {label}": [row[key] for row in sizes]
        for key, label in zip(STARTS, ("the gene", "scratch"), strict=True)
    }
    bars(panel, names, groups, ["C0", "C7"])
    legend_below(figure, 2)
    panel.set(ylim=(0, 100), ylabel="test accuracy (%)")
    panel.set_title(
        f"After {sizes[0]['steps']} steps; mean and std of {len(results['runs'])} seeds", fontsize="medium"
    )
    return {"seeds": figure}
