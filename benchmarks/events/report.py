"""Page, plots and verdicts of the study on events, from its results."""

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks.common.pages import error_bars, fill, legend_below, panels
from benchmarks.common.results import Runs, read
from benchmarks.common.targets import target

OURS = ("descendant", "descendant, richer pooling")
TARGET_SIZES = (50, 200)


class Events(Runs):
    """F1 of the runs.

    Attributes:
        tests: by data, the sets tested on; the first one counts.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(read(folder / "events.json"))
        self.sizes, self.methods = self.results["sizes"], self.results["methods"]
        self.tests = {data: list(self.all("run", data)[0]["tests"]) for data in self.names("run")}

    def columns(self) -> list[str]:
        return [f"{size} events" for size in self.sizes]

    def f1(self, data: str, test: str, method: str, size: int) -> np.ndarray:
        """In per cent, by seed."""
        return self.values(f"tests/{test}/f1", "run", data, method, size)

    def margins(self) -> dict[tuple[str, int, str], dict[str, float]]:
        """Points of mean F1 over each baseline, for each data set's first test set, number of events and ours."""
        found: dict[tuple[str, int, str], dict[str, float]] = {}
        for (data, (test, *_)), size in product(self.tests.items(), TARGET_SIZES):
            f1 = {method: self.f1(data, test, method, size) for method in self.methods}
            means = {method: float(values.mean()) for method, values in f1.items() if len(values)}
            for ours in (method for method in OURS if method in means):
                others = {method: mean for method, mean in means.items() if method not in OURS}
                found[data, size, ours] = {other: means[ours] - mean for other, mean in others.items()}
        return found


def targets(folder: Path) -> list[dict[str, Any]]:
    rows = []
    for (data, size, ours), found in Events(folder).margins().items():
        nearest = min(found, key=lambda other: found[other])
        measured = {"least margin": round(found[nearest], 2), "over": nearest}
        asked = f"{data}, {size} events: {ours} ahead of every baseline"
        rows.append(target(asked, measured, found[nearest] > 0, "points of mean F1"))
    return rows


def page(folder: Path) -> str:
    runs = Events(folder)
    return fill(Path(__file__).parent, runs=runs, results=runs.results)


def plots(folder: Path) -> dict[str, Figure]:
    """F1 against the number of training events, one panel per test set, bars of one standard deviation."""
    runs = Events(folder)
    names = [(data, test) for data, tests in runs.tests.items() for test in tests]
    figure, drawn = panels(len(names), 4.2 * len(names), 4.0)
    for axis, (data, test) in zip(drawn, names, strict=True):
        for index, method in enumerate(runs.methods):
            # Slightly apart, so that the bars of equal methods do not hide each other.
            at = [size * 1.03 ** (index - len(runs.methods) / 2) for size in runs.sizes]
            style = {"linewidth": 2.2, "marker": "o"} if method in OURS else {"linewidth": 1.2, "marker": "."}
            error_bars(axis, at, [runs.f1(data, test, method, size) for size in runs.sizes], label=method, **style)
        axis.set(xscale="log", xlabel="training events", ylabel="F1 (%)", title=f"{data}\ntested on {test}")
        axis.set_xticks(runs.sizes, map(str, runs.sizes))
        axis.minorticks_off()
    legend_below(figure, 6)
    return {"events": figure}
