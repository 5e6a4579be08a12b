"""Page, plot and verdicts of the study of a real ViT, from its results."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks.common.pages import bars, fill, legend_below, panels
from benchmarks.common.results import Runs, read
from benchmarks.common.targets import target

# Where a model starts from, and what the page calls it.
STARTS = {
    "gene": "the gene",
    "scratch": "scratch",
    "slices": "slices of the ancestor",
    "turned slices": "slices of the ancestor, turned",
    "ancestor": "the ancestor itself, whole",
}


def accuracies(runs: Runs) -> dict[str, dict[str, np.ndarray]]:
    """Test accuracy in per cent by seed, by task and start."""
    return {task: {start: runs.values("top1", "run", task, start) for start in STARTS} for task in runs.names("run")}


def targets(folder: Path) -> list[dict[str, Any]]:
    rows = []
    for task, found in accuracies(Runs(read(folder / "vit.json"))).items():
        for start in ("scratch", "slices", "turned slices"):
            margin = found["gene"] - found[start]
            asked = f"{task}: a descendant of the gene ahead of {STARTS[start]}"
            rows.append(target(asked, margin, margin.mean() > 0, "points of test accuracy"))
    return rows


def page(folder: Path) -> str:
    results = read(folder / "vit.json")
    runs = Runs(results)
    (extraction,) = runs.all("extraction")
    return fill(
        Path(__file__).parent, results=results, runs=runs, extraction=extraction, found=accuracies(runs), starts=STARTS
    )


def plots(folder: Path) -> dict[str, Figure]:
    results = read(folder / "vit.json")
    found = accuracies(Runs(results))
    figure, (panel,) = panels(1, 5.6, 3.4)
    groups = {name: [found[task][start] for task in found] for start, name in STARTS.items()}
    bars(panel, list(found), groups, ["C0", "C7", "C1", "C2", "C3"])
    legend_below(figure, 2)
    panel.set(ylim=(0, 100), ylabel="test accuracy (%)")
    panel.set_title(f"Linear probes; mean and std of {len(results['seeds'])} draws", fontsize="medium")
    return {"vit": figure}
