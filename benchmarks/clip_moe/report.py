"""Page and plots of the CLIP-MoE study, from its results."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks.common.pages import bars, fill, legend_below, panels
from benchmarks.common.results import Runs, read
from benchmarks.common.targets import target

ARMS = {
    "base": "base",
    "dense": "dense, same compute",
    "plain": "plain upcycling",
    "moe": "CLIP-MoE",
    "clusters": "cluster-aware",
    "imitation": "cluster-aware + imitation",
    "dense, imitation": "dense + imitation",
}
COLORS = {
    "base": "#bbbbbb",
    "dense": "#4477aa",
    "plain": "#ccbb44",
    "moe": "#ee6677",
    "clusters": "#228833",
    "imitation": "#aa3377",
    "dense, imitation": "#66ccee",
}
MIXTURES = ("plain", "moe", "clusters", "imitation")
# What CLIP-MoE is compared with; and the remedies, each with the dense control of the same loss.
CONTROLS = ("base", "dense", "plain")
REMEDIES = {"clusters": "dense", "imitation": "dense, imitation"}
FIGURES = {
    "mean_R@1": "mean R@1",
    "image_to_text_R@1": "image to text R@1",
    "text_to_image_R@1": "text to image R@1",
    "top1": "zero-shot article types",
    "clothing_top1": "zero-shot clothes",
}


class Arms(Runs):
    """The runs by arm, and what was measured of all of them."""

    def __init__(self, folder: Path) -> None:
        super().__init__(read(folder / "clip_moe.json"))
        self.arms = {arm: title for arm, title in ARMS.items() if self.all(arm)}
        self.controls = [arm for arm in CONTROLS if arm in self.arms]
        measured = self.all("base")[0]["figures"]
        self.figures = {name: title for name, title in FIGURES.items() if name in measured}
        self.throughput, storage = self.all("throughput")[0], self.all("storage")
        self.storage = storage[0] if storage else None

    def of(self, arm: str, figure: str) -> np.ndarray:
        """The figure of one arm, one value for each seed, in per cent."""
        return self.values(f"figures/{figure}", arm)

    def gain(self, arm: str, other: str, figure: str) -> np.ndarray:
        """Points by which one arm is ahead of another, one value for each seed that both have; the base has one."""
        if other == "base":
            return self.of(arm, figure) - self.of("base", figure)
        seeds = [seed for seed in self.names(arm) if self.all(other, seed)]
        own, theirs = ([self.values(f"figures/{figure}", name, seed) for seed in seeds] for name in (arm, other))
        return np.ravel(own) - np.ravel(theirs)

    def best_remedy(self) -> str | None:
        """The remedy with the best R@1 on the validation split among those measured."""

        def validated(arm: str) -> float:
            return max(self.values("figures/mean_R@1", "tuning", arm), default=0.0)

        return max(filter(self.all, REMEDIES), key=validated, default=None)

    def speeds(self, kind: str) -> dict[str, float]:
        """Pairs per second by experts implementation as a ratio to dense."""
        speeds = self.throughput["pairs_per_second"][kind]
        return {name: speed / speeds["dense"] for name, speed in speeds.items()}


def targets(folder: Path) -> list[dict[str, Any]]:
    runs, rows = Arms(folder), []
    for arm in runs.controls:
        for name in ("mean_R@1", "top1"):
            gain = runs.gain("moe", arm, name)
            rows.append(target(f"CLIP-MoE ahead of {ARMS[arm]}: {FIGURES[name]}", gain, gain.mean() > 0))
    best = runs.best_remedy()
    return rows if best is None else rows + remedy_targets(runs, best)


def remedy_targets(runs: Arms, best: str) -> list[dict[str, Any]]:
    """What is asked of the remedy that did best on the validation split."""
    title, control = ARMS[best], REMEDIES[best]
    gain, kept = runs.gain(best, "base", "mean_R@1"), runs.gain(best, "base", "top1")
    rows = [target(f"{title} ahead of base by 2 points: {FIGURES['mean_R@1']}", gain, gain.mean() >= 2)]
    ahead = runs.gain(best, control, "mean_R@1")
    if len(ahead):
        asked = f"{title} ahead of {ARMS[control]} by the same loss: {FIGURES['mean_R@1']}"
        rows.append(target(asked, ahead, ahead.mean() > 0))
    rows.append(target(f"{title} at most 1 point behind base: {FIGURES['top1']}", kept, kept.mean() >= -1))
    return rows


def page(folder: Path) -> str:
    runs = Arms(folder)
    told = {"controls": runs.controls, "remedies": REMEDIES, "mixtures": MIXTURES, "titles": ARMS}
    return fill(Path(__file__).parent, runs=runs, results=runs.results, settings=runs.settings, **told)


def plots(folder: Path) -> dict[str, Figure]:
    """All but those that training itself draws: the clusters, and the experts' usage."""
    runs = Arms(folder)
    drawn = {"arms": plot_arms(runs), "throughput": plot_throughput(runs)}
    return drawn | ({"storage": plot_storage(runs.storage)} if runs.storage else {})


def plot_arms(runs: Arms) -> Figure:
    """One panel for each figure: the mean of each arm, and a dot for each seed."""
    figure, drawn = panels(len(runs.figures), 3.1 * len(runs.figures), 3.8)
    for panel, (name, title) in zip(drawn, runs.figures.items(), strict=True):
        found = {arm: runs.of(arm, name) for arm in runs.arms}
        for place, (arm, values) in enumerate(found.items()):
            panel.bar(place, values.mean(), color=COLORS[arm], width=0.75)
            panel.plot([place] * len(values), values, "o", color="black", markersize=3.5)
        every = np.concatenate(list(found.values()))
        margin = max(np.ptp(every), 0.5)
        panel.set_ylim(max(0.0, every.min() - margin), every.max() + 0.4 * margin)
        panel.set_title(title, fontsize=10)
        panel.set_xticks(range(len(found)), runs.arms.values(), rotation=30, ha="right", fontsize=8)
    drawn[0].set_ylabel("per cent (axis cut; dots are seeds)")
    return figure


def plot_throughput(runs: Arms) -> Figure:
    """Throughput relative to the dense base, forward and training."""
    figure, (panel,) = panels(1, 5.2, 3.4)
    sizes = {name: size for name, size in runs.throughput["batch_sizes"].items() if name != "dense"}
    ratios = {kind: [runs.speeds(kind)[name] for name in sizes] for kind in ("forward", "training")}
    names = [f"{name}\nbatch {size}" for name, size in sizes.items()]
    bars(panel, names, ratios, ["C0", "C1"], labels="{:.2f}")
    legend_below(figure, 2)
    panel.axhline(1.0, color="black", linewidth=0.8, linestyle="--")
    panel.set_ylabel("pairs per second, dense = 1")
    dense = runs.throughput["batch_sizes"]["dense"]
    panel.set_title(f"mixture against its dense base at batch {dense}", fontsize=10)
    return figure


def plot_storage(storage: dict[str, Any]) -> Figure:
    """Retrieval against size, by the rank of the deltas."""
    figure, (panel,) = panels(1, 5.2, 3.4)
    sizes = [(row["bytes"]["gene"] + row["bytes"]["deltas"]) / 1e6 for row in storage["rows"]]
    recalls = [100 * row["figures"]["mean_R@1"] for row in storage["rows"]]
    panel.plot(sizes, recalls, "o-", color=COLORS["moe"])
    for place, (size, recall, row) in enumerate(zip(sizes, recalls, storage["rows"], strict=True)):
        label = "whole" if row["rank"] is None else f"rank {row['rank']}"
        height = 8 if place % 2 else -14  # above and below in turns, for points that lie close together
        panel.annotate(label, (size, recall), textcoords="offset points", xytext=(0, height), fontsize=8, ha="center")
    panel.margins(0.15)
    panel.axvline(storage["mixture_bytes_float16"] / 1e6, color="black", linewidth=0.8, linestyle="--")
    panel.set(xlabel="MB of gene and deltas, float16 (dashed: the mixture itself)", ylabel="mean R@1, per cent")
    return figure
