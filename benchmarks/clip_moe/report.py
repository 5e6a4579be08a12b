"""Page and plots of the CLIP-MoE study, from its results."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks.common.pages import fill, panels, table, told
from benchmarks.common.results import read
from benchmarks.common.targets import target

ARMS = {"base": "base", "dense": "dense, same compute", "plain": "plain upcycling", "moe": "CLIP-MoE"}
COLORS = {"base": "#bbbbbb", "dense": "#4477aa", "plain": "#ccbb44", "moe": "#ee6677"}
FIGURES = {
    "mean_R@1": "mean R@1",
    "image_to_text_R@1": "image to text R@1",
    "text_to_image_R@1": "text to image R@1",
    "top1": "zero-shot article types",
    "clothing_top1": "zero-shot clothes",
}


class Arms:
    """The runs by arm, and what was measured of all of them."""

    def __init__(self, results: dict[str, Any]) -> None:
        self.results = results
        runs = {arm: [run for key, run in results["runs"].items() if key.startswith(f"{arm}/")] for arm in ARMS}
        self.runs = {arm: found for arm, found in runs.items() if found}
        self.figures = [name for name in FIGURES if name in self.runs["base"][0]["figures"]]

    def values(self, arm: str, figure: str) -> np.ndarray:
        """The figure of one arm, one value for each seed, in per cent."""
        return 100 * np.array([run["figures"][figure] for run in self.runs[arm]])

    def gain(self, arm: str, figure: str) -> float:
        """CLIP-MoE against another arm, in points."""
        return float(self.values("moe", figure).mean() - self.values(arm, figure).mean())

    def single(self, name: str) -> dict[str, Any] | None:
        """The only run of a name, None if there is none."""
        return next((run for key, run in self.results["runs"].items() if key.startswith(f"{name}/")), None)


def arms_table(arms: Arms) -> str:
    """Mean and standard deviation over seeds, in per cent."""
    rows = []
    for arm, runs in arms.runs.items():
        kind = "mixture" if arm in ("plain", "moe") else "dense"
        cells = [ARMS[arm], *(f"{runs[0]['parameters'][key] / 1e6:.2f} M" for key in ("total", "active"))]
        cells += [f"{arms.results['gflops_per_pair'][kind]:.3f}"]
        cells += [f"{np.mean([run['flops'] for run in runs]) / 1e12:.2f}"]
        rows.append([*cells, *(told(arms.values(arm, name), 2) for name in arms.figures)])
    titles = ["parameters", "active", "GFLOPs / pair", "training TFLOPs", *(FIGURES[name] for name in arms.figures)]
    return table(["", *titles], rows)


def verdicts(arms: Arms) -> list[str]:
    return [
        f"CLIP-MoE against {ARMS[arm]}, points: "
        + ", ".join(f"{FIGURES[name]} {arms.gain(arm, name):+.2f}" for name in arms.figures)
        for arm in arms.runs
        if arm != "moe"
    ]


def targets(folder: Path) -> list[dict[str, Any]]:
    arms = Arms(read(folder / "clip_moe.json"))
    return [
        target(
            f"CLIP-MoE ahead of {ARMS[arm]}: {FIGURES[name]}",
            arms.values("moe", name) - arms.values(arm, name),
            arms.gain(arm, name) > 0,
        )
        for arm in ("base", "dense", "plain")
        for name in ("mean_R@1", "top1")
    ]


def throughput_table(throughput: dict[str, Any]) -> str:
    speeds = throughput["pairs_per_second"]
    rows = []
    for kind, speed in speeds.items():
        rows.append([kind, *(f"{value:.1f} ({value / speed['dense']:.2f})" for value in speed.values())])
    return table(["", *(f"{name}, batch {throughput['batch_sizes'][name]}" for name in speeds["forward"])], rows)


def storage_table(storage: dict[str, Any]) -> str:
    rows = []
    for row in storage["rows"]:
        gene, deltas = row["bytes"]["gene"], row["bytes"]["deltas"]
        share = f"{(gene + deltas) / storage['mixture_bytes_float16']:.1%}"
        recall = f"{100 * row['figures']['mean_R@1']:.2f}"
        rows.append([row["rank"] or "full", f"{gene / 1e6:.2f}", f"{deltas / 1e6:.2f}", share, recall])
    return table(["rank of the deltas", "gene MB", "deltas MB", "together, share of the mixture", "mean R@1"], rows)


def page(folder: Path) -> str:
    results = read(folder / "clip_moe.json")
    arms = Arms(results)
    storage = arms.single("storage")
    return fill(
        Path(__file__).parent / "page.md",
        results=results,
        settings=results["settings"],
        seeds=len(arms.runs["moe"]),
        recall={arm: told(arms.values(arm, "mean_R@1"), 2) for arm in arms.runs},
        arms=arms_table(arms),
        verdicts=verdicts(arms),
        throughput=throughput_table(arms.single("throughput")),
        storage=storage and storage_table(storage),
        mixture=storage and f"{storage['mixture_bytes_float16'] / 1e6:.2f}",
    )


def plots(folder: Path) -> dict[str, Figure]:
    """All but those that training itself draws: the clusters, and the experts' usage."""
    arms = Arms(read(folder / "clip_moe.json"))
    drawn = {"arms": plot_arms(arms), "throughput": plot_throughput(arms.single("throughput"))}
    storage = arms.single("storage")
    return drawn | ({"storage": plot_storage(storage)} if storage else {})


def plot_arms(arms: Arms) -> Figure:
    """One panel for each figure: the mean of each arm, and a dot for each seed."""
    figure, drawn = panels(len(arms.figures), 3.1 * len(arms.figures), 3.8)
    for panel, name in zip(drawn, arms.figures, strict=True):
        found = {arm: arms.values(arm, name) for arm in arms.runs}
        for place, (arm, values) in enumerate(found.items()):
            panel.bar(place, values.mean(), color=COLORS[arm], width=0.75)
            panel.plot([place] * len(values), values, "o", color="black", markersize=3.5)
        every = np.concatenate(list(found.values()))
        margin = max(every.max() - every.min(), 0.5)
        panel.set_ylim(max(0.0, every.min() - margin), every.max() + 0.4 * margin)
        panel.set_title(FIGURES[name], fontsize=10)
        panel.set_xticks(range(len(found)), [ARMS[arm] for arm in found], rotation=30, ha="right", fontsize=8)
    drawn[0].set_ylabel("per cent (axis cut; dots are seeds)")
    return figure


def plot_throughput(throughput: dict[str, Any]) -> Figure:
    """Throughput relative to the dense base, forward and training."""
    speeds = throughput["pairs_per_second"]
    names = [name for name in speeds["forward"] if name != "dense"]
    figure, (panel,) = panels(1, 5.2, 3.4)
    for shift, (kind, speed) in zip((-0.2, 0.2), speeds.items(), strict=True):
        ratios = [speed[name] / speed["dense"] for name in names]
        bars = panel.bar(np.arange(len(names)) + shift, ratios, width=0.38, label=kind)
        panel.bar_label(bars, [f"{ratio:.2f}" for ratio in ratios], fontsize=8)
    panel.axhline(1.0, color="black", linewidth=0.8, linestyle="--")
    labels = [f"{name}\nbatch {throughput['batch_sizes'][name]}" for name in names]
    panel.set_xticks(range(len(names)), labels, fontsize=8)
    panel.set_ylabel("pairs per second, dense = 1")
    panel.set_title(f"mixture against its dense base at batch {throughput['batch_sizes']['dense']}", fontsize=10)
    panel.legend(fontsize=8)
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
