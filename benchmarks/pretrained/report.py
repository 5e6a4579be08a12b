"""Page, plots and verdicts of the study of pretrained encoders, from its results."""

from pathlib import Path
from typing import Any

from matplotlib import colormaps
from matplotlib.figure import Figure

from benchmarks.alignment.report import FIGURES, Recipes, frugal_target, recipe_targets
from benchmarks.common.options import read_settings
from benchmarks.common.pages import error_bars, fill, legend_below, panels
from benchmarks.common.targets import target

SETTINGS = read_settings(__file__)


class Heads(Recipes):
    """The recipes, and beside them the heads on kept states, by arm and share."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, "pretrained")
        self.arms = self.names("kept")
        self.kept_shares = self.names("kept", self.arms[0])

    def teraflops(self, part: str, name: str, share: str) -> float:
        """What a run took; of an arm with the states of its pairs, each computed once."""
        run, gflops = self.all(part, name, share)[0], self.results["gflops"]
        seen = run["steps"] * (self.settings["batch_size"] if part == "run" else SETTINGS["kept"]["batch_size"])
        if part == "run":
            return seen * gflops["recipes"][name] / 1e3
        return (run["pairs"] * gflops["states"][name] + seen * gflops["heads"][name]) / 1e3

    def best_arm(self, figure: str, share: str) -> str:
        """The arm with the best mean at a share."""
        return max(self.arms, key=lambda arm: self.values(figure, "kept", arm, share).mean())


def targets(folder: Path) -> list[dict[str, Any]]:
    """The three questions of the alignment study, of the recipes and of heads on kept states."""
    runs, rows = Heads(folder), []
    for figure, name in FIGURES.items():
        most, least = (runs.ratios(runs.shares[at], figure, "kept") for at in (-1, 0))
        rows += recipe_targets(runs, figure)
        rows.append(frugal_target(runs, most, name, "kept", "head on kept states", "arm"))
        above = [arm for arm in least if least[arm] > 1]
        asked = f"the heads on kept states ahead of full at 1 % of the pairs: {name}"
        rows.append(target(asked, {"ahead": f"{len(above)} of {len(least)}"}, len(above) == len(least)))
    return rows


def page(folder: Path) -> str:
    runs = Heads(folder)
    arms = {arm: SETTINGS["arms"][arm] for arm in runs.arms}
    return fill(Path(__file__).parent, runs=runs, results=runs.results, arms=arms, kept=SETTINGS["kept"])


def plots(folder: Path) -> dict[str, Figure]:
    """R@1 and zero-shot against the share of the pairs: some recipes, and all heads on kept states."""
    runs = Heads(folder)
    figure, drawn = panels(len(FIGURES), 12, 5.4)
    recipes = [recipe for recipe in ("full", "lit", "lilt", "projections") if recipe in runs.recipes]
    lines = [("run", recipe, {"ls": "--", "marker": "s", "label": recipe}) for recipe in recipes]
    lines += [("kept", arm, {"marker": "o", "label": f"kept: {arm}"}) for arm in runs.arms]
    colors = colormaps["tab10"].colors
    for panel, (name, label) in zip(drawn, FIGURES.items(), strict=True):
        for part, arm, style in lines:
            number = (recipes if part == "run" else runs.arms).index(arm)
            shares = runs.shares if part == "run" else runs.kept_shares
            values = [runs.values(name, part, arm, share) for share in shares]
            error_bars(panel, [100 * float(share) for share in shares], values, color=colors[number], **style)
        panel.set(xscale="log", xlabel="training pairs, %", ylabel=f"{label}, %", title=f"{label} by data")
        panel.xaxis.set_major_formatter("{x:g}")
    legend_below(figure, 5)
    return {"pretrained": figure}
