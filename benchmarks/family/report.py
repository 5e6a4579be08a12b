"""The page, the plots and the targets of the study, from its results and those of the bundled gene.

Pictures: curves, maps of the family, accuracy against what is stored.
"""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks.common.pages import fill, legend_below, panels, spread
from benchmarks.common.results import read
from benchmarks.family import targets as asked
from benchmarks.family.arrays import Family, probed_name
from benchmarks.family.cost import family_cost
from benchmarks.family.starts import BUNDLED, BY_MUON, CLIP_MAP, FRONT, LONGER, STUDENTS, TRAINED

ZOO = Path(__file__).parent.parent.parent / "mmlg_hf" / "zoo" / "mmlg-fashion-48" / "results.json"
STYLES = {
    "MM-LG, bundled": ("#c0392b", 2.8),
    "MM-LG, 800 steps": ("#e57368", 1.8),
    "MM-LG, 400 steps": ("#f0b3ac", 1.8),
    "MM-LG": ("#e67e22", 2.2),
    "scratch": ("#555555", 1.6),
}
# Lines of their own: the controls of 2026, dashed.
DASHED = {FRONT: "#5d6d7e", CLIP_MAP: "#0b5345", STUDENTS: "#4a235a"}
OTHERS = ("#1f77b4", "#17a589", "#27ae60", "#8e44ad", "#7f6a4f", "#5dade2", "#d98cb3", "#a2b627", "#f0b90b", "#34495e")
RECALL = "image_to_text_R@10"


def plots(folder: Path) -> dict[str, Figure]:
    return plots_of(Family(read(folder / "family.json")))


def measured(folder: Path) -> dict[str, Any]:
    """The study itself, the curves from scratch, the bundled gene's over fewer steps, its results."""
    names = {"family": "family", "long": "curves-3000", "short": "curves-300", "distilled": "curves-600"}
    return {key: Family(read(folder / f"{name}.json")) for key, name in names.items()} | {"zoo": read(ZOO)}


def targets(folder: Path) -> list[dict[str, Any]]:
    return asked.targets(**measured(folder))


def page(folder: Path) -> str:
    found = measured(folder)
    family = found["family"]
    gene = family.results["genes"][f"bundled/{BUNDLED}"]
    longer = [name for name in (*LONGER, BUNDLED) if name in family.curve_methods]
    longer += [name for name in TRAINED if name in family.curve_methods and family.made(name)]
    prices = {name: family_cost(family, found["long"], BY_MUON, name) for name in longer if len(longer) > 1}
    trained = {name: made[0] for name in TRAINED if (made := family.made(name))}
    about = {"gene": gene, "prices": prices, "trained": trained, "targets": asked.targets(**found), "recall": RECALL}
    about["probed_name"] = probed_name
    return fill(Path(__file__).parent, **about, **found)


def plots_of(family: Family) -> dict[str, Figure]:
    return {"curves": plot_curves(family), "maps": plot_maps(family), "storage": plot_storage(family)}


def styles(methods: list[str]) -> dict[str, dict[str, Any]]:
    others = [name for name in methods if name not in STYLES and name not in DASHED]
    known = STYLES | {name: (OTHERS[index % len(OTHERS)], 1.4) for index, name in enumerate(others)}
    known |= {name: (color, 1.8) for name, color in DASHED.items()}
    dashes = {name: {"linestyle": "--"} for name in DASHED}
    return {name: {"color": known[name][0], "linewidth": known[name][1], **dashes.get(name, {})} for name in methods}


def plot_curves(family: Family) -> Figure:
    """Accuracy against fine-tuning steps for each start."""
    figure, axes = panels(2, 9, 4.8)
    labels = {"mean_R@10": "R@10, both directions (%)", "top1": "zero-shot top-1 (%)"}
    for axis, (name, label) in zip(axes, labels.items(), strict=True):
        for method, style in styles(family.curve_methods).items():
            steps, values = family.curve(method, name)
            axis.plot(steps, values.mean(0), label=method, **style)
            axis.fill_between(steps, values.min(0), values.max(0), color=style["color"], alpha=0.12, linewidth=0)
        axis.set(xlabel="fine-tuning steps", ylabel=label, xlim=(0, None), ylim=(0, None))
    legend_below(figure, 5)
    size = family.curve_size.replace("x", ", width ")
    figure.suptitle(f"Depth {size}: how far each start carries (validation, band: all seeds)")
    return figure


def plot_maps(family: Family) -> Figure:
    """Depth x width maps of three starts, before and after fine-tuning."""
    depths, widths = (sorted({size[axis] for size in family.settings["sizes"]}) for axis in (0, 1))
    ours = "MM-LG, bundled" if "MM-LG, bundled" in family.methods else "MM-LG"
    compared = [method for method in (ours, "TinyCLIP inheritance", "scratch") if method in family.methods]
    figure = Figure(figsize=(9, 6.4), dpi=110, layout="constrained")
    axes = figure.subplots(2, len(compared), squeeze=False)
    top = max(family.of(m, s, "after", RECALL).mean() for m in compared for s in family.sizes)
    for (row, column), axis in np.ndenumerate(axes):
        method, when = compared[column], ("before", "after")[row]
        values = np.full((len(depths), len(widths)), np.nan)  # a family need not be a whole grid
        for depth, width in family.settings["sizes"]:
            mean = family.of(method, f"{depth}x{width}", when, RECALL).mean()
            values[depths.index(depth), widths.index(width)] = mean
        image = axis.imshow(values, cmap="viridis", vmin=0, vmax=top, origin="lower", aspect="auto")
        axis.set_xticks(range(len(widths)), widths)
        axis.set_yticks(range(len(depths)), depths)
        axis.set(xlabel="width", ylabel="depth")
        axis.set_title(f"{method}, {when} fine-tuning", fontsize=9)
        for i, j in np.argwhere(~np.isnan(values)):
            color = "w" if values[i, j] < 0.6 * top else "k"
            axis.text(j, i, f"{values[i, j]:.0f}", ha="center", va="center", color=color)
    figure.colorbar(image, ax=axes, label="image-to-text R@10 (%)")
    return figure


def plot_storage(family: Family) -> Figure:
    """The family's mean accuracy against the megabytes that have to be kept to start it."""
    figure, axes = panels(2, 9, 4.4, sharex=True)
    for axis, when in zip(axes, ("before", "after"), strict=True):
        points = []
        for method, style in styles(family.methods).items():
            stored, found = family.stored_megabytes(method) or 0.0, spread(family.mean(method, when, RECALL))
            points.append((stored, found["mean"]))
            axis.errorbar(*points[-1], yerr=found["std"], fmt="o", color=style["color"], label=method, capsize=3)
        best, front = -1.0, []
        for stored, value in sorted(points):
            if value > best:
                best, front = value, [*front, (stored, value)]
        axis.step(*zip(*front, strict=True), where="post", color="k", alpha=0.35, linestyle="--", linewidth=1)
        axis.set(title=f"{when} fine-tuning", xlabel="stored, MB (float16)", ylim=(0, None))
    axes[0].set_ylabel("R@10, mean of the family (%)")
    legend_below(figure, 5)
    figure.suptitle("Accuracy against what is kept to start all sizes; dashed: no other start is smaller and better")
    return figure
