"""Page, plots and verdicts of the alignment study, from its results."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

from benchmarks.common.pages import bars, error_bars, fill, panels
from benchmarks.common.results import Runs, read
from benchmarks.common.targets import target

FIGURES = {"mean_R@1": "R@1", "zero_shot_top1": "zero-shot"}


class Recipes(Runs):
    """The runs by recipe and share of the pairs, as their keys name it."""

    def __init__(self, folder: Path, name: str = "alignment") -> None:
        super().__init__(read(folder / f"{name}.json"))
        self.recipes = self.names("run")
        self.shares = sorted({share for recipe in self.recipes for share in self.names("run", recipe)}, key=float)

    def trained(self, recipe: str, part: str = "run") -> float:
        """Trained parameters in per cent."""
        run = self.all(part, recipe)[0]
        return 100 * run["trainable"] / run["parameters"]

    def shown(self, figure: str, recipe: str, share: str) -> np.ndarray:
        """A figure by seed, in per cent; empty where it was not measured. R@5 is the mean of both directions."""
        if figure == "mean_R@5":
            return np.mean([self.shown(f"{way}_R@5", recipe, share) for way in ("image_to_text", "text_to_image")], 0)
        measured = figure in self.all("run", recipe, share)[0]
        return self.values(figure, "run", recipe, share) if measured else np.zeros(0)

    def ratios(self, share: str, figure: str, part: str = "run") -> dict[str, float]:
        """What each recipe has at a share of the pairs, as a share of what training everything has."""
        full = max(self.values(figure, "run", "full", share).mean(), 1e-7)
        return {recipe: self.values(figure, part, recipe, share).mean() / full for recipe in self.names(part)}

    def best_below(self, ratios: dict[str, float], limit: float = 1.0, part: str = "run") -> str | None:
        """The best recipe among those that train less than so many per cent; None if none does."""
        frugal = [recipe for recipe in ratios if self.trained(recipe, part) < limit]
        return max(frugal, key=lambda recipe: ratios[recipe], default=None)


def frugal_above(ratios: dict[str, float]) -> list[str]:
    return [name for name in ratios if name not in ("full", "lit") and ratios[name] > 1]


def targets(folder: Path) -> list[dict[str, Any]]:
    runs = Recipes(folder)
    return [row for figure in FIGURES for row in recipe_targets(runs, figure)]


def recipe_targets(runs: Recipes, figure: str) -> list[dict[str, Any]]:
    """The study's three questions, by one figure."""
    name, most, least = FIGURES[figure], runs.ratios(runs.shares[-1], figure), runs.ratios(runs.shares[0], figure)
    share = {"share of full's": round(most["lilt"], 2)}
    rows = [target(f"lilt at least level with full, all pairs: {name}", share, most["lilt"] >= 1)]
    rows.append(frugal_target(runs, most, name))
    above = frugal_above(least)
    asked = f"the frugal recipes ahead of full at 1 % of the pairs: {name}"
    return [*rows, target(asked, {"ahead": ", ".join(above) or "none"}, len(above) == len(least) - 2)]


def frugal_target(
    runs: Recipes, most: dict[str, float], name: str, part: str = "run", kind: str = "recipe", label: str = "recipe"
) -> dict[str, Any]:
    """Whether what trains below 1 per cent comes near training everything, by the ratios of one figure."""
    best = runs.best_below(most, part=part)
    ratio = most.get(best, 0)
    asked = f"a {kind} that trains below 1 % at 75 % of full, all pairs: {name}"
    return target(asked, {"share of full's": round(ratio, 2), label: best}, ratio >= 0.75)


def page(folder: Path) -> str:
    """The study's three questions are answered by retrieval and by zero-shot accuracy, as means over seeds."""
    runs, verdicts = Recipes(folder), []
    for share in runs.shares:
        for figure, name in FIGURES.items():
            found = runs.ratios(share, figure)
            best, above = runs.best_below(found), ", ".join(frugal_above(found)) or "none"
            frugal = (
                f"{best}, the best below 1 % trained, {found[best]:.2f}" if best else "no recipe below 1 % trained"
            )
            verdicts.append(
                f"{float(share):.0%} of the pairs, {name} as a share of full's: "
                f"lilt ({runs.trained('lilt'):.1f}% trained) {found['lilt']:.2f}; "
                f"{frugal}; of the frugal recipes above full: {above}."
            )
    return fill(Path(__file__).parent, runs=runs, results=runs.results, verdicts=verdicts)


def plots(folder: Path) -> dict[str, Figure]:
    """R@1 and zero-shot against the share of the pairs, R@1 against the trained share, what each encoder forgot."""
    runs = Recipes(folder)
    most = runs.shares[-1]
    figure, (recall, accuracy, trained, forgotten) = panels(4, 19, 4.6)
    for recipe, color in zip(runs.recipes, colormaps["tab10"].colors, strict=False):
        drawn = {"label": recipe, "color": color, "marker": "o"}
        for panel, name in ((recall, "mean_R@1"), (accuracy, "zero_shot_top1")):
            values = [runs.values(name, "run", recipe, share) for share in runs.shares]
            error_bars(panel, [100 * float(share) for share in runs.shares], values, **drawn)
        values = runs.values("mean_R@1", "run", recipe, most)
        trained.scatter([runs.trained(recipe)] * len(values), values, color=color)
    for panel, name in ((recall, "R@1, mean of both directions, %"), (accuracy, "zero-shot accuracy, %")):
        panel.set(xscale="log", xlabel="training pairs, %", ylabel=name, title=f"{name.split(',')[0]} by data")
    title = f"R@1 by trained share ({float(most):.0%} of the pairs)"
    trained.set(xscale="log", xlabel="trained parameters, %", ylabel="R@1, %", title=title)
    for panel in (recall, accuracy, trained):
        panel.xaxis.set_major_formatter("{x:g}")
    recall.legend(fontsize=8)
    changes: dict[str, list[np.ndarray]] = {}
    for modality in ("image", "text"):
        name = f"probe_{modality}"
        before = 100 * runs.results["before"][name]
        changes[f"{modality} encoder"] = [runs.values(name, "run", recipe, most) - before for recipe in runs.recipes]
    bars(forgotten, runs.recipes, changes, ["C0", "C1"])
    forgotten.legend(fontsize=8)
    forgotten.tick_params("x", rotation=45)
    forgotten.axhline(0, color="black", linewidth=0.8)
    forgotten.set(ylabel="change of the linear probe, points", title="Forgetting")
    return {"alignment": figure}
