"""The picture that chooses a size: how good each model is against what it costs."""

import os
from typing import Any

from ..errors import require
from ..saving import whole_file
from .comparing import SHOWN, megabytes_of


def plot_comparison(record: dict[str, Any], path: str | os.PathLike) -> None:
    """Draw figures (parameters where nothing was measured) against milliseconds and megabytes, as a PNG.

    Args:
        record: from `compare_models`.

    Raises:
        LearngeneError: matplotlib is missing.
    """
    figure_class = require("matplotlib.figure", "demo").Figure
    figure = figure_class(figsize=(9.6, 4.2), dpi=130, layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    rows = record["models"]
    shown = SHOWN[record["task"]][0] if record["task"] else None
    heights = [100 * row["figures"][shown] if shown else row["parameters"] / 1e6 for row in rows]
    taken = "picture" if all(row["milliseconds_picture"] is not None for row in rows) else "text"
    times = [row[f"milliseconds_{taken}"] for row in rows]
    if any(time is None for time in times):  # some take pictures alone, others texts alone
        taken = "input"
        times = [row["milliseconds_picture"] or row["milliseconds_text"] for row in rows]
    names, gene = _short_names([row["name"] for row in rows])
    _panel(panels[0], times, heights, names, f"milliseconds for one {taken}, in torch")
    _panel(panels[1], [row["megabytes"] for row in rows], heights, names, "megabytes")
    small = [(megabytes_of(row, "int8"), height) for row, height in zip(rows, heights, strict=True)]
    if shown is None and all(size is not None for size, _ in small):
        panels[1].plot(*zip(*small, strict=True), "s", color="C1", label="exported in int8")
        panels[1].legend(loc="lower right", fontsize="small")
    title = _title(shown) if shown else "million parameters"
    panels[0].set_ylabel(title)
    panels[0].set_ylim(0, None)
    figure.suptitle(", ".join(filter(None, (gene, record["machine"]))), fontsize="small", color="0.4")
    with whole_file(path) as partial:
        figure.savefig(partial, format="png", metadata={"Software": None})


def _title(figure: str) -> str:
    words = {"top1": "zero-shot accuracy"}.get(figure, figure.replace("image_to_text_", "image-to-text "))
    return f"{words} (%)"


def _short_names(names: list[str]) -> tuple[list[str], str | None]:
    """Sizes alone, and the gene's name, where all are sizes of one gene; else the names as they are, and None."""
    genes = {name.rpartition("@")[0] for name in names}
    gene = next(iter(genes)) if len(genes) == 1 else ""
    return ([name.rpartition("@")[2] for name in names], gene) if gene else (names, None)


def _panel(panel: Any, costs: list[float], heights: list[float], names: list[str], title: str) -> None:
    order = sorted(range(len(costs)), key=costs.__getitem__)
    panel.plot([costs[i] for i in order], [heights[i] for i in order], "-", color="0.8", linewidth=1, zorder=1)
    panel.plot(costs, heights, "o", color="C0", markersize=6, zorder=2)
    limit = max(costs)
    for cost, height, name in zip(costs, heights, names, strict=True):
        right = cost > 0.6 * limit
        panel.annotate(
            name,
            (cost, height),
            (-8, 5) if right else (7, -12),
            textcoords="offset points",
            ha="right" if right else "left",
            fontsize="x-small",
            color="0.25",
        )
    panel.set(xlabel=title, xlim=(0, 1.08 * limit))
    panel.margins(y=0.15)
    panel.grid(alpha=0.3)
