"""Page and plot of the demo's comparison, from its results."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks.common.pages import fill, panels, spread, table, told
from benchmarks.common.results import read
from mmlg_hf.demo import STARTS

COLORS = {"gene": "C0", "scratch": "C7"}


def collect(results: dict[str, Any]) -> list[dict[str, Any]]:
    """For each size: what it is, and test accuracies and margin in per cent by seed."""
    found = []
    for rows in zip(*(run["classifiers"] for run in results["runs"].values()), strict=True):
        values = {start: 100 * np.array([row[f"accuracy_{start}"] for row in rows]) for start in STARTS}
        found.append({**rows[0], **values, "margin": values["gene"] - values["scratch"]})
    return found


def margins_table(sizes: list[dict[str, Any]]) -> str:
    rows = []
    for row in sizes:
        cells = [f"{row['parameters'] / 1e6:.2f} M", *(told(row[start]) for start in STARTS)]
        margins = [f"{row['margin'].mean():+.1f} ± {spread(row['margin'])['std']:.1f}", f"{row['margin'].min():+.1f}"]
        rows.append([row["name"], *cells, *margins])
    return table(["classifier", "parameters", "from the gene", "from scratch", "margin", "least margin"], rows)


def tuning_table(tuning: dict[str, Any]) -> str:
    """Accuracy at every rate; the best of each size and start is chosen, the first of equal ones."""
    cells: dict[tuple[str, str], dict[float, float]] = {}
    for key, run in tuning["runs"].items():
        name, start, _ = key.split("/")
        cells.setdefault((name, start), {})[run["learning_rate"]] = 100 * run["validation_accuracy"]
    rates, rows = sorted({rate for found in cells.values() for rate in found}), []
    for (name, start), found in sorted(
        cells.items(), key=lambda cell: (STARTS.index(cell[0][1]), list(cells).index(cell[0]))
    ):
        chosen = max(found, key=lambda rate: found[rate])
        rows.append([name, start, *(f"{found[rate]:.1f}" for rate in rates), f"{chosen:g}"])
    return table(["classifier", "start", *(f"{rate:g}" for rate in rates), "chosen"], rows)


def page(folder: Path) -> str:
    results, tuning = read(folder / "seeds.json"), folder / "tuning.json"
    sizes = collect(results)
    return fill(
        Path(__file__).parent / "page.md",
        results=results,
        settings=results["settings"],
        seeds=len(results["runs"]),
        least=f"{min(row['margin'].min() for row in sizes):.1f}",
        margins=margins_table(sizes),
        tuning=tuning_table(read(tuning)) if tuning.exists() else "Not measured.",
    )


def plots(folder: Path) -> dict[str, Figure]:
    results = read(folder / "seeds.json")
    sizes = collect(results)
    figure, (panel,) = panels(1, 5.2, 3.4)
    for offset, start in zip((-0.19, 0.19), STARTS, strict=True):
        found = [spread(row[start]) for row in sizes]
        means, stds = ([values[key] for values in found] for key in ("mean", "std"))
        drawn = {
            "width": 0.36,
            "color": COLORS[start],
            "capsize": 4,
            "label": f"from {'the ' * (start == 'gene')}{start}",
        }
        panel.bar(np.arange(len(sizes)) + offset, means, yerr=stds, **drawn)
    names = [f"{row['depth']} x {row['width']}\n{row['parameters'] / 1e6:.2f} M" for row in sizes]
    panel.set_xticks(range(len(sizes)), names)
    panel.set(ylim=(0, 100), ylabel="test accuracy (%)")
    title = f"After {sizes[0]['steps']} steps; mean and std of {len(results['runs'])} seeds"
    panel.set_title(title, fontsize="medium")
    panel.legend(loc="upper right", fontsize="small")
    return {"seeds": figure}
