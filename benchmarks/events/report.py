"""Page, plots and verdicts of the study on events, from its results."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks.common.pages import fill, legend_below, panels, spread, table, told
from benchmarks.common.results import read
from benchmarks.common.targets import target

OURS = ("descendant", "descendant, richer pooling")
TARGET_SIZES = (50, 200)
Scores = dict[tuple[str, str, int], np.ndarray]


def collect(results: dict[str, Any]) -> Scores:
    """F1 in per cent by seed, for each panel (data and test set), method and number of training events."""
    found: dict[tuple[str, str, int], list[float]] = {}
    for key, run in results["runs"].items():
        if key.startswith("run/"):
            _, data, method, size, _ = key.split("/")
            for test, result in run["tests"].items():
                found.setdefault((f"{data}, test set {test}", method, int(size)), []).append(100 * result["f1"])
    return {key: np.array(values) for key, values in found.items()}


def panels_of(scores: Scores) -> list[str]:
    return list(dict.fromkeys(panel for panel, _, _ in scores))


def margins(results: dict[str, Any], scores: Scores) -> dict[tuple[str, int, str], dict[str, float]]:
    """Points of mean F1 over each baseline, for each data set's first test set, number of events and descendant."""
    first = {panel.split(",")[0]: panel for panel in reversed(panels_of(scores))}
    others = [method for method in results["methods"] if method not in OURS]
    return {
        (panel, size, ours): {
            other: float(scores[panel, ours, size].mean() - scores[panel, other, size].mean())
            for other in others
            if (panel, other, size) in scores
        }
        for panel in reversed(first.values())
        for size in TARGET_SIZES
        for ours in OURS
        if (panel, ours, size) in scores
    }


def verdicts(results: dict[str, Any], scores: Scores) -> list[str]:
    lines = []
    for (panel, size, ours), found in margins(results, scores).items():
        told_margins = ", ".join(f"{other} {margin:+.1f}" for other, margin in found.items())
        lines.append(f"{panel.split(',')[0]}, {size} events, {ours} against: {told_margins}")
    return lines


def targets(folder: Path) -> list[dict[str, Any]]:
    results = read(folder / "events.json")
    rows = []
    for (panel, size, ours), found in margins(results, collect(results)).items():
        nearest = min(found, key=lambda other: found[other])
        asked = f"{panel.split(',')[0]}, {size} events: {ours} ahead of every baseline"
        measured = {"least margin": round(found[nearest], 2), "over": nearest}
        rows.append(target(asked, measured, found[nearest] > 0, "points of mean F1"))
    return rows


def score_table(results: dict[str, Any], scores: Scores, panel: str) -> str:
    """Methods in rows, numbers of training events in columns, F1 in per cent."""
    rows = [[m, *(told(scores.get((panel, m, size), ())) for size in results["sizes"])] for m in results["methods"]]
    return table(["method", *(f"{size} events" for size in results["sizes"])], rows)


def page(folder: Path) -> str:
    results = read(folder / "events.json")
    scores = collect(results)
    first = panels_of(scores)[0]
    return fill(
        Path(__file__).parent / "page.md",
        results=results,
        f1={
            m: {size: told(scores.get((first, m, size), ())) for size in results["sizes"]} for m in results["methods"]
        },
        verdicts=verdicts(results, scores),
        tables={panel: score_table(results, scores, panel) for panel in panels_of(scores)},
    )


def plots(folder: Path) -> dict[str, Figure]:
    """F1 against the number of training events, one panel per test set, bars of one standard deviation."""
    results = read(folder / "events.json")
    scores = collect(results)
    names, methods = panels_of(scores), results["methods"]
    figure, drawn = panels(len(names), 4.2 * len(names), 4.0)
    for axis, panel in zip(drawn, names, strict=True):
        for index, method in enumerate(methods):
            sizes = [size for size in results["sizes"] if (panel, method, size) in scores]
            found = [spread(scores[panel, method, size]) for size in sizes]
            # Slightly apart, so that the bars of equal methods do not hide each other.
            at = [size * 1.03 ** (index - len(methods) / 2) for size in sizes]
            means, stds = ([values[key] for values in found] for key in ("mean", "std"))
            style = {"linewidth": 2.2, "marker": "o"} if method in OURS else {"linewidth": 1.2, "marker": "."}
            axis.errorbar(at, means, yerr=stds, capsize=2, label=method, **style)
        axis.set(
            xscale="log", xlabel="training events", ylabel="F1 (%)", title=panel.replace(", test set", "\ntested on")
        )
        axis.set_xticks(results["sizes"], [str(size) for size in results["sizes"]])
        axis.minorticks_off()
    legend_below(figure, 6)
    return {"events": figure}
