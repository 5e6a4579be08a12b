"""The initialisation study's pictures: curves, maps of the family, accuracy against what is stored."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

STYLES = {"MM-LG, bundled": ("#c0392b", 2.8), "MM-LG": ("#e67e22", 2.2), "scratch": ("#555555", 1.6)}

OTHERS = ("#1f77b4", "#17a589", "#27ae60", "#8e44ad", "#7f6a4f", "#5dade2", "#d98cb3", "#a2b627", "#f0b90b")


def style(method: str, methods: list[str]) -> dict[str, Any]:
    others = [name for name in methods if name not in STYLES]
    if method in STYLES:
        color, width = STYLES[method]
    else:
        color, width = OTHERS[others.index(method) % len(OTHERS)], 1.4
    return {"color": color, "linewidth": width}


def plot_curves(family: Any, path: Path) -> None:
    """Accuracy against fine-tuning steps for each start."""
    depth, width = family.settings["curve_sizes"][0]
    figure = Figure(figsize=(9, 4.8), layout="constrained")
    axes = figure.subplots(1, 2)
    for axis, name, label in (
        (axes[0], "mean_R@10", "R@10, both directions (%)"),
        (axes[1], "top1", "zero-shot top-1 (%)"),
    ):
        for method in family.methods:
            steps, values = family.curve(method, name)
            drawn = style(method, family.methods)
            axis.plot(steps, values.mean(0), label=method, **drawn)
            if len(values) > 1:
                low, high = values.min(0), values.max(0)
                axis.fill_between(steps, low, high, color=drawn["color"], alpha=0.12, linewidth=0)
        axis.set(xlabel="fine-tuning steps", ylabel=label, xlim=(0, None), ylim=(0, None))
        axis.grid(alpha=0.25)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False, fontsize=8)
    figure.suptitle(f"Depth {depth}, width {width}: how far each start carries (validation, band: all seeds)")
    figure.savefig(path, dpi=110)


def plot_maps(family: Any, path: Path) -> None:
    """Depth x width maps of three starts, before and after fine-tuning."""
    depths = sorted({depth for depth, _ in family.settings["sizes"]})
    widths = sorted({width for _, width in family.settings["sizes"]})
    figure = Figure(figsize=(9, 6.4), layout="constrained")
    name = "image_to_text_R@10"
    ours = "MM-LG, bundled" if "MM-LG, bundled" in family.methods else "MM-LG"
    compared = [method for method in (ours, "TinyCLIP inheritance", "scratch") if method in family.methods]
    axes = figure.subplots(2, len(compared), squeeze=False)
    top = max(family.of(m, s, "after", name).mean() for m in compared for s in family.sizes)
    for row, when in enumerate(("before", "after")):
        for column, method in enumerate(compared):
            values = np.full((len(depths), len(widths)), np.nan)  # a family need not be a whole grid
            for depth, width in family.settings["sizes"]:
                cell = depths.index(depth), widths.index(width)
                values[cell] = family.of(method, f"{depth}x{width}", when, name).mean()
            axis = axes[row, column]
            image = axis.imshow(values, cmap="viridis", vmin=0, vmax=top, origin="lower", aspect="auto")
            axis.set_xticks(range(len(widths)), widths)
            axis.set_yticks(range(len(depths)), depths)
            axis.set(xlabel="width", ylabel="depth", title=f"{method}, {when} fine-tuning")
            axis.title.set_fontsize(9)
            for i, j in np.argwhere(~np.isnan(values)):
                value = values[i, j]
                axis.text(j, i, f"{value:.0f}", ha="center", va="center", color="w" if value < 0.6 * top else "k")
    figure.colorbar(image, ax=axes, label="image-to-text R@10 (%)")
    figure.savefig(path, dpi=110)


def plot_storage(family: Any, path: Path) -> None:
    """The family's mean accuracy against the megabytes that have to be kept to start it."""
    figure = Figure(figsize=(9, 4.4), layout="constrained")
    axes = figure.subplots(1, 2, sharex=True)
    for axis, when in zip(axes, ("before", "after"), strict=True):
        points = []
        for method in family.methods:
            stored = family.stored_megabytes(method) or 0.0
            values = family.mean(method, when, "image_to_text_R@10")
            points.append((stored, values.mean()))
            color = style(method, family.methods)["color"]
            axis.errorbar(
                stored, values.mean(), yerr=values.std(ddof=1) if len(values) > 1 else None, fmt="o", color=color,
                label=method, capsize=3,
            )  # fmt: skip
        best, front = -1.0, []
        for stored, value in sorted(points):
            if value > best:
                best, front = value, [*front, (stored, value)]
        axis.step(*zip(*front, strict=True), where="post", color="k", alpha=0.35, linestyle="--", linewidth=1)
        axis.set(title=f"{when} fine-tuning", xlabel="stored, MB (float16)", ylim=(0, None))
        axis.grid(alpha=0.25)
    axes[0].set_ylabel("R@10, mean of the family (%)")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False, fontsize=8)
    figure.suptitle("Accuracy against what is kept to start all sizes; dashed: no other start is smaller and better")
    figure.savefig(path, dpi=110)


def plot_choices(choices: dict[str, Any], path: Path) -> None:
    """R@10 of each arm of the ablation at each size, the default's as lines to compare with."""
    names = list(choices["runs"])
    figure = Figure(figsize=(9, 0.6 + 0.27 * len(names)), layout="constrained")
    axis = figure.subplots()
    for index, size in enumerate(choices["runs"]["default"]["sizes"]):
        values = [100 * choices["runs"][name]["sizes"][index]["image_to_text_R@10"] for name in names]
        color = ("#c0392b", "#e67e22", "#1f77b4", "#17a589")[index]
        axis.axvline(values[names.index("default")], color=color, linewidth=0.8, alpha=0.5)
        axis.plot(values, range(len(names)), "o", color=color, label=f"{size['depth']} x {size['width']}")
    axis.set_yticks(range(len(names)), names, fontsize=8)
    axis.set(xlabel="image-to-text R@10 before any fine-tuning (%, validation, one seed)", xlim=(0, None))
    axis.invert_yaxis()
    axis.grid(alpha=0.25)
    axis.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=110)


def plot_all(family: Any, results: Path) -> None:
    """Draw all three beside a results file, under its name."""
    for plot, name in ((plot_curves, "curves"), (plot_maps, "maps"), (plot_storage, "storage")):
        plot(family, results.with_name(f"{results.stem}_{name}.png"))
