"""Tables, plots and verdicts of the alignment study, from its results file.

python -m benchmarks.alignment_report benchmarks/results/alignment.json
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

FIGURES = {
    "mean_R@1": "R@1",
    "mean_R@5": "R@5",
    "zero_shot_top1": "zero-shot",
    "probe_image": "image probe",
    "probe_text": "text probe",
    "seconds_per_step": "s / step",
    "peak_megabytes": "peak MB",
}


def collect(results: dict[str, Any]) -> dict[tuple[str, float], dict[str, np.ndarray]]:
    """Figures of all seeds for each recipe and share of the pairs."""
    found: dict[tuple[str, float], dict[str, list]] = {}
    for run in results["runs"]:
        if run["kind"] != "run":
            continue
        run = {**run, "mean_R@5": (run["image_to_text_R@5"] + run["text_to_image_R@5"]) / 2}
        cell = found.setdefault((run["recipe"], run["share"]), {})
        for name in (*FIGURES, "learning_rate"):
            if name in run:
                cell.setdefault(name, []).append(run[name])
        cell.setdefault("trainable_share", []).append(run["trainable"] / run["parameters"])
    return {key: {name: np.array(values) for name, values in cell.items()} for key, cell in found.items()}


def table(results: dict[str, Any]) -> str:
    """A Markdown table: mean and standard deviation over seeds for each recipe and share of the pairs."""
    cells = collect(results)
    before = results["before"]
    lines = [
        f"Probes before alignment: image {before['probe_image']:.3f}, text {before['probe_text']:.3f}.",
        "",
        f"| pairs | recipe | trainable | rate | {' | '.join(FIGURES.values())} |",
        f"|---|---|---|---|{'---|' * len(FIGURES)}",
    ]
    for (recipe, share), cell in sorted(cells.items(), key=lambda item: (item[0][1], list(cells).index(item[0]))):
        values = [_mean_std(cell.get(name), 0 if name == "peak_megabytes" else 3) for name in FIGURES]
        trainable = f"{100 * cell['trainable_share'][0]:.2f} %"
        rate = f"{cell['learning_rate'][0]:g}"
        lines.append(f"| {share:.0%} | {recipe} | {trainable} | {rate} | {' | '.join(values)} |")
    return "\n".join(lines)


def _mean_std(values: np.ndarray | None, digits: int) -> str:
    if values is None:
        return ""
    spread = f" ± {_deviation(values):.{digits}f}" if len(values) > 1 else ""
    return f"{values.mean():.{digits}f}{spread}"


def _deviation(values: np.ndarray) -> float:
    """Standard deviation over seeds; 0 for a single one."""
    return float(values.std(ddof=1)) if len(values) > 1 else 0.0


def verdicts(results: dict[str, Any]) -> list[str]:
    """The study's three questions, answered by retrieval and by zero-shot accuracy, as means over seeds."""
    cells = collect(results)
    shares = {recipe: float(cell["trainable_share"][0]) for (recipe, _), cell in cells.items()}
    small = [recipe for recipe in shares if shares[recipe] < 0.01]
    told = []
    for share in sorted({share for _, share in cells}):
        here = {recipe: cells[recipe, share] for recipe in shares if (recipe, share) in cells}
        if "full" not in here:
            continue
        for figure in ("mean_R@1", "zero_shot_top1"):
            # What each recipe has, as a share of what training everything has.
            ratios = {
                name: cell[figure].mean() / max(here["full"][figure].mean(), 1e-9) for name, cell in here.items()
            }
            parts = [f"lilt ({shares['lilt']:.1%} trained) {ratios['lilt']:.2f}"] if "lilt" in ratios else []
            if known := [name for name in small if name in ratios]:
                best = max(known, key=lambda name: ratios[name])
                parts.append(f"{best}, the best below 1 % trained, {ratios[best]:.2f}")
            above = [name for name in ratios if name not in ("full", "lit") and ratios[name] > 1]
            parts.append(f"of the frugal recipes above full: {', '.join(above) or 'none'}")
            told.append(f"{share:.0%} of the pairs, {FIGURES[figure]} as a share of full's: {'; '.join(parts)}.")
    return told


def plot(results: dict[str, Any], path: Path) -> None:
    """R@1 against the share of the pairs, R@1 against the trained share, and what each encoder forgot."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    cells = collect(results)
    recipes = list(dict.fromkeys(recipe for recipe, _ in cells))
    shares = sorted({share for _, share in cells})
    colors = dict(zip(recipes, pyplot.get_cmap("tab10").colors, strict=False))
    figure, (recall, accuracy, trained, right) = pyplot.subplots(1, 4, figsize=(19, 4.6), constrained_layout=True)
    for recipe in recipes:
        known = [share for share in shares if (recipe, share) in cells]
        percent = [100 * share for share in known]
        for panel, figure_name in ((recall, "mean_R@1"), (accuracy, "zero_shot_top1")):
            values = [100 * cells[recipe, share][figure_name] for share in known]
            means, spreads = [value.mean() for value in values], [_deviation(value) for value in values]
            panel.errorbar(percent, means, spreads, label=recipe, color=colors[recipe], marker="o", capsize=3)
        cell = cells[recipe, known[-1]]
        trained.scatter(100 * cell["trainable_share"], 100 * cell["mean_R@1"], color=colors[recipe], label=recipe)
    for panel, name in ((recall, "R@1, mean of both directions, %"), (accuracy, "zero-shot accuracy, %")):
        panel.set(xscale="log", xlabel="training pairs, %", ylabel=name, title=f"{name.split(',')[0]} by data")
    trained.set(xscale="log", xlabel="trained parameters, %", ylabel="R@1, %")
    trained.set_title(f"R@1 by trained share ({shares[-1]:.0%} of the pairs)")
    for panel in (recall, accuracy, trained):
        panel.xaxis.set_major_formatter("{x:g}")
    recall.legend(fontsize=8)
    positions = np.arange(len(recipes))
    for offset, modality in ((-0.2, "image"), (0.2, "text")):
        last = [cells.get((recipe, shares[-1]), {}).get(f"probe_{modality}", np.zeros(0)) for recipe in recipes]
        before = results["before"][f"probe_{modality}"]
        change = [100 * (value.mean() - before) if len(value) else np.nan for value in last]
        error = [100 * _deviation(value) for value in last]
        right.bar(positions + offset, change, 0.4, yerr=error, label=f"{modality} encoder", capsize=2)
    right.axhline(0, color="black", linewidth=0.8)
    right.set_xticks(positions, recipes, rotation=45, ha="right")
    right.set(ylabel="change of the linear probe, points", title="Forgetting")
    right.legend(fontsize=8)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def write_report(path: str | Path) -> None:
    """Write NAME.md and NAME.png beside the results file, and print the table."""
    path = Path(path)
    results = json.loads(path.read_text())
    text = "\n".join([table(results), "", *(f"- {line}" for line in verdicts(results)), ""])
    path.with_suffix(".md").write_text(text)
    plot(results, path.with_suffix(".png"))
    print(text)


if __name__ == "__main__":
    write_report(sys.argv[1])
