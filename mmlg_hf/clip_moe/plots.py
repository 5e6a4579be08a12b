"""Plots of the two things to watch: how evenly clusters fill batches, and how evenly experts are used."""

import os
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import require
from .clusters import ClusterReport

Figure = require("matplotlib.figure", "demo").Figure  # now, not when everything is trained


def plot_clusters(reports: list[ClusterReport], path: str | os.PathLike) -> Path:
    """Draw the cluster sizes of each stage, largest first, and what of them fills no batch; return the path."""
    figure = Figure(figsize=(4.2 * len(reports), 3.4), layout="constrained")
    panels = figure.subplots(1, len(reports), squeeze=False)[0]
    for panel, report in zip(panels, reports, strict=True):
        sizes = np.array(report.sizes)
        used = sizes // report.batch_size * report.batch_size
        where = np.arange(len(sizes))
        panel.bar(where, used, width=0.9, color="#4477aa", label="in batches")
        panel.bar(where, sizes - used, bottom=used, width=0.9, color="#ee6677", label="dropped")
        panel.axhline(report.batch_size, color="black", linewidth=0.8, linestyle="--", label="one batch")
        panel.set_title(
            f"expert {report.stage}: {len(sizes)} clusters, {report.dropped_share:.1%} dropped", fontsize=10
        )
        panel.set_xlabel("cluster, by size")
    panels[0].set_ylabel("pairs")
    panels[0].legend(fontsize=8)
    return _save(figure, path)


def plot_expert_usage(history: list[dict[str, Any]], path: str | os.PathLike) -> Path:
    """Draw the share of tokens that each expert of each layer got, at the first and the last record.

    Args:
        history: records with `step` and, by encoder, `vision` and `text`: [layers][experts] shares that sum to 1.
    """
    encoders = [name for name in ("vision", "text") if history[-1].get(name)]
    figure = Figure(figsize=(7.5, 3.4 * len(encoders)), layout="constrained")
    panels = figure.subplots(len(encoders), 2, squeeze=False)
    for row, encoder in zip(panels, encoders, strict=True):
        for panel, record in zip(row, (history[0], history[-1]), strict=True):
            usage = np.array(record[encoder])  # [layers, experts]
            image = panel.imshow(usage, vmin=0, vmax=max(0.5, usage.max()), cmap="viridis", aspect="auto")
            for (layer, expert), share in np.ndenumerate(usage):
                ink = "black" if share > 0.35 else "white"
                panel.text(expert, layer, f"{share:.2f}", ha="center", va="center", fontsize=8, color=ink)
            panel.set_title(f"{encoder}, step {record['step']}", fontsize=10)
            panel.set_xticks(range(usage.shape[1]))
            panel.set_yticks(range(usage.shape[0]))
            panel.set_xlabel("expert (0 is the base)")
            panel.set_ylabel("mixture, from the input")
        figure.colorbar(image, ax=row, label="share of routed tokens")
    return _save(figure, path)


def _save(figure: Any, path: str | os.PathLike) -> Path:
    path = Path(path)
    figure.savefig(path, dpi=120)
    return path
