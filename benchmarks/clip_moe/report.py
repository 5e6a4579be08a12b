"""Tables and plots of the CLIP-MoE study (`benchmarks.clip_moe`)."""

import json
import shutil
import statistics
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

ARMS = {"base": "base", "dense": "dense, same compute", "plain": "plain upcycling", "moe": "CLIP-MoE"}
COLORS = {"base": "#bbbbbb", "dense": "#4477aa", "plain": "#ccbb44", "moe": "#ee6677"}
FIGURES = {
    "mean_R@1": "mean R@1",
    "image_to_text_R@1": "image to text R@1",
    "text_to_image_R@1": "text to image R@1",
    "top1": "zero-shot article types",
    "clothing_top1": "zero-shot clothes",
}


def values(results: dict[str, Any], arm: str, figure: str) -> list[float]:
    """The figure of one arm, one value for each seed, in per cent; empty if it was not measured."""
    runs = [run for run in results["runs"] if run["name"] == arm]
    return [100 * run["figures"][figure] for run in runs if figure in run["figures"]]


def arms_of(results: dict[str, Any]) -> dict[str, str]:
    """The arms that were run, and their titles."""
    return {arm: title for arm, title in ARMS.items() if any(run["name"] == arm for run in results["runs"])}


def write_report(results: dict[str, Any], folder: Path, seed_folder: Path) -> None:
    """Write clip_moe.json, clip_moe.md and the plots.

    Args:
        seed_folder: work folder of one seed, whose plots of clusters and of expert usage are taken along.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "clip_moe.json").write_text(json.dumps(results, indent=1) + "\n")
    (folder / "clip_moe.md").write_text(table(results))
    plot_arms(results, folder / "clip_moe.png")
    plot_throughput(results["throughput"], folder / "clip_moe_throughput.png")
    if results["storage"]:
        plot_storage(results["storage"], folder / "clip_moe_storage.png")
    shutil.copy(seed_folder / "experts" / "clusters.png", folder / "clip_moe_clusters.png")
    shutil.copy(seed_folder / "mixture" / "expert_usage.png", folder / "clip_moe_usage.png")
    print(table(results))


def table(results: dict[str, Any]) -> str:
    """The arms as a Markdown table: mean and standard deviation over seeds, in per cent."""
    figures = [name for name in FIGURES if values(results, "base", name)]
    titles = ["", "parameters", "active", "GFLOPs / pair", "training TFLOPs", *(FIGURES[name] for name in figures)]
    lines = ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
    for arm, title in arms_of(results).items():
        runs = [run for run in results["runs"] if run["name"] == arm]
        kind = "mixture" if arm in ("plain", "moe") else "dense"
        cells = [title, *(f"{runs[0]['parameters'][key] / 1e6:.2f} M" for key in ("total", "active"))]
        cells.append(f"{results['gflops_per_pair'][kind]:.3f}")
        cells.append(f"{statistics.mean(run['flops'] for run in runs) / 1e12:.2f}")
        for name in figures:
            found = values(results, arm, name)
            spread = f" ± {statistics.stdev(found):.2f}" if len(found) > 1 else ""
            cells.append(f"{statistics.mean(found):.2f}{spread}")
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", *verdicts(results), "", *throughput_lines(results["throughput"]), *storage_lines(results["storage"])]
    return "\n".join(lines) + "\n"


def verdicts(results: dict[str, Any]) -> list[str]:
    """CLIP-MoE against each other arm, in points."""
    lines = []
    for arm, title in arms_of(results).items():
        if arm == "moe":
            continue
        told = []
        for name in FIGURES:
            if values(results, arm, name):
                gain = statistics.mean(values(results, "moe", name)) - statistics.mean(values(results, arm, name))
                told.append(f"{FIGURES[name]} {gain:+.2f}")
        lines.append(f"- CLIP-MoE against {title}, points: {', '.join(told)}")
    return lines


def throughput_lines(throughput: dict[str, Any]) -> list[str]:
    speeds = throughput["pairs_per_second"]
    names = list(speeds["forward"])
    lines = [
        "Pairs per second, and as a ratio to dense:",
        "",
        "| | " + " | ".join(f"{name}, batch {throughput['batch_sizes'][name]}" for name in names) + " |",
        "|---" * (len(names) + 1) + "|",
    ]
    for kind, speed in speeds.items():
        cells = [f"{speed[name]:.1f} ({speed[name] / speed['dense']:.2f})" for name in names]
        lines.append(f"| {kind} | " + " | ".join(cells) + " |")
    return lines


def storage_lines(storage: dict[str, Any] | None) -> list[str]:
    if not storage:
        return []
    whole = storage["mixture_bytes_float16"]
    lines = [
        "",
        f"Storage (the mixture itself takes {whole / 1e6:.2f} MB in float16):",
        "",
        "| rank of the deltas | gene MB | deltas MB | together, share of the mixture | mean R@1 |",
        "|---|---|---|---|---|",
    ]
    for row in storage["rows"]:
        gene, deltas = row["bytes"]["gene"], row["bytes"]["deltas"]
        cells = [str(row["rank"] or "full"), f"{gene / 1e6:.2f}", f"{deltas / 1e6:.2f}"]
        cells += [f"{(gene + deltas) / whole:.1%}", f"{100 * row['figures']['mean_R@1']:.2f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def plot_arms(results: dict[str, Any], path: Path) -> None:
    """One panel for each figure: the mean of each arm, and a dot for each seed."""
    arms = arms_of(results)
    figures = [name for name in FIGURES if values(results, "base", name)]
    figure = Figure(figsize=(3.1 * len(figures), 3.8), layout="constrained")
    for panel, name in zip(figure.subplots(1, len(figures), squeeze=False)[0], figures, strict=True):
        for place, arm in enumerate(arms):
            found = values(results, arm, name)
            panel.bar(place, statistics.mean(found), color=COLORS[arm], width=0.75)
            panel.plot([place] * len(found), found, "o", color="black", markersize=3.5)
        lowest = min(min(values(results, arm, name)) for arm in arms)
        highest = max(max(values(results, arm, name)) for arm in arms)
        margin = max(highest - lowest, 0.5)
        panel.set_ylim(max(0.0, lowest - margin), highest + 0.4 * margin)
        panel.set_title(FIGURES[name], fontsize=10)
        panel.set_xticks(range(len(arms)), arms.values(), rotation=30, ha="right", fontsize=8)
    figure.axes[0].set_ylabel("per cent (axis cut; dots are seeds)")
    figure.savefig(path, dpi=120)


def plot_throughput(throughput: dict[str, Any], path: Path) -> None:
    """Throughput relative to the dense base, forward and training."""
    speeds = throughput["pairs_per_second"]
    names = [name for name in speeds["forward"] if name != "dense"]
    figure = Figure(figsize=(5.2, 3.4), layout="constrained")
    panel = figure.subplots()
    for shift, (kind, speed) in zip((-0.2, 0.2), speeds.items(), strict=True):
        ratios = [speed[name] / speed["dense"] for name in names]
        bars = panel.bar([place + shift for place in range(len(names))], ratios, width=0.38, label=kind)
        panel.bar_label(bars, [f"{ratio:.2f}" for ratio in ratios], fontsize=8)
    panel.axhline(1.0, color="black", linewidth=0.8, linestyle="--")
    labels = [f"{name}\nbatch {throughput['batch_sizes'][name]}" for name in names]
    panel.set_xticks(range(len(names)), labels, fontsize=8)
    panel.set_ylabel("pairs per second, dense = 1")
    panel.set_title(f"mixture against its dense base at batch {throughput['batch_sizes']['dense']}", fontsize=10)
    panel.legend(fontsize=8)
    figure.savefig(path, dpi=120)


def plot_storage(storage: dict[str, Any], path: Path) -> None:
    """Retrieval against size, by the rank of the deltas."""
    figure = Figure(figsize=(5.2, 3.4), layout="constrained")
    panel = figure.subplots()
    sizes = [(row["bytes"]["gene"] + row["bytes"]["deltas"]) / 1e6 for row in storage["rows"]]
    recalls = [100 * row["figures"]["mean_R@1"] for row in storage["rows"]]
    panel.plot(sizes, recalls, "o-", color=COLORS["moe"])
    for place, (size, recall, row) in enumerate(zip(sizes, recalls, storage["rows"], strict=True)):
        label = "whole" if row["rank"] is None else f"rank {row['rank']}"
        height = 8 if place % 2 else -14  # above and below in turns, for points that lie close together
        panel.annotate(label, (size, recall), textcoords="offset points", xytext=(0, height), fontsize=8, ha="center")
    panel.margins(0.1)
    panel.axvline(storage["mixture_bytes_float16"] / 1e6, color="black", linewidth=0.8, linestyle="--")
    panel.set_xlabel("MB of gene and deltas, float16 (dashed: the mixture itself)")
    panel.set_ylabel("mean R@1, per cent")
    figure.savefig(path, dpi=120)
