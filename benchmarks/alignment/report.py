"""Page, plots and verdicts of the alignment study, from its results."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

from benchmarks.common.pages import fill, panels, spread, table, told
from benchmarks.common.results import read
from benchmarks.common.targets import target

FIGURES = {
    "mean_R@1": "R@1",
    "mean_R@5": "R@5",
    "zero_shot_top1": "zero-shot",
    "probe_image": "image probe",
    "probe_text": "text probe",
    "seconds_per_step": "s / step",
    "peak_megabytes": "peak MB",
}
DIGITS = {"seconds_per_step": 3, "peak_megabytes": 0}  # all others are shares, told in per cent
Cells = dict[tuple[str, float], dict[str, np.ndarray]]


def collect(results: dict[str, Any]) -> Cells:
    """Figures of all seeds for each recipe and share of the pairs; shares in per cent."""
    found: dict[tuple[str, float], dict[str, list]] = {}
    for key, run in results["runs"].items():
        if not key.startswith("run/"):
            continue
        more = {
            "mean_R@5": (run["image_to_text_R@5"] + run["text_to_image_R@5"]) / 2,
            "trained": run["trainable"] / run["parameters"],
        }
        cell = found.setdefault((run["recipe"], run["share"]), {})
        for name, value in (run | more).items():
            if name in (*FIGURES, "trained"):
                cell.setdefault(name, []).append(value if name in DIGITS else 100 * value)
        cell["learning_rate"] = [run["learning_rate"]]
    return {key: {name: np.array(values) for name, values in cell.items()} for key, cell in found.items()}


def recipes_table(cells: Cells) -> str:
    """Mean and standard deviation over seeds for each recipe and share of the pairs."""
    recipes, rows = list(dict.fromkeys(recipe for recipe, _ in cells)), []
    for recipe, share in sorted(cells, key=lambda key: (key[1], recipes.index(key[0]))):
        cell = cells[recipe, share]
        values = [told(cell.get(name, ()), DIGITS.get(name, 1)) for name in FIGURES]
        about = [f"{share:.0%}", recipe, f"{cell['trained'][0]:.2f} %", f"{cell['learning_rate'][0]:g}"]
        rows.append([*about, *values])
    return table(["pairs", "recipe", "trainable", "rate", *FIGURES.values()], rows)


def ratios(cells: Cells, share: float, figure: str) -> dict[str, float]:
    """What each recipe has at a share of the pairs, as a share of what training everything has."""
    here = {recipe: cell[figure].mean() for (recipe, at), cell in cells.items() if at == share}
    return {recipe: value / max(here["full"], 1e-7) for recipe, value in here.items()} if "full" in here else {}


def best_below(cells: Cells, found: dict[str, float], limit: float = 1.0) -> str:
    """The best recipe among those that train less than so many per cent."""
    trained = {recipe: cell["trained"][0] for (recipe, _), cell in cells.items()}
    return max((recipe for recipe in found if trained[recipe] < limit), key=lambda recipe: found[recipe])


def frugal_above(found: dict[str, float]) -> list[str]:
    return [name for name in found if name not in ("full", "lit") and found[name] > 1]


def verdicts(cells: Cells) -> list[str]:
    """The study's three questions, answered by retrieval and by zero-shot accuracy, as means over seeds."""
    lines = []
    for share in sorted({share for _, share in cells}):
        for figure in ("mean_R@1", "zero_shot_top1"):
            found = ratios(cells, share, figure)
            if not {"full", "lilt"} <= set(found):
                continue
            best, trained = best_below(cells, found), cells["lilt", share]["trained"][0]
            parts = [
                f"lilt ({trained:.1f}% trained) {found['lilt']:.2f}",
                f"{best}, the best below 1 % trained, {found[best]:.2f}",
                f"of the frugal recipes above full: {', '.join(frugal_above(found)) or 'none'}",
            ]
            lines.append(f"{share:.0%} of the pairs, {FIGURES[figure]} as a share of full's: {'; '.join(parts)}.")
    return lines


def targets(folder: Path) -> list[dict[str, Any]]:
    cells = collect(read(folder / "alignment.json"))
    rows = []
    for figure in ("mean_R@1", "zero_shot_top1"):
        name, most, least = FIGURES[figure], ratios(cells, 1.0, figure), ratios(cells, 0.01, figure)
        best, above = best_below(cells, most), frugal_above(least)
        share = {"share of full's": round(most["lilt"], 2)}
        rows.append(target(f"lilt at least level with full, all pairs: {name}", share, most["lilt"] >= 1))
        share = {"share of full's": round(most[best], 2), "recipe": best}
        asked = f"a recipe that trains below 1 % at 75 % of full, all pairs: {name}"
        rows.append(target(asked, share, most[best] >= 0.75))
        asked = f"the frugal recipes ahead of full at 1 % of the pairs: {name}"
        rows.append(target(asked, {"ahead": ", ".join(above) or "none"}, len(above) == len(least) - 2))
    return rows


def plots(folder: Path) -> dict[str, Figure]:
    """R@1 and zero-shot against the share of the pairs, R@1 against the trained share, what each encoder forgot."""
    results = read(folder / "alignment.json")
    cells = collect(results)
    recipes = list(dict.fromkeys(recipe for recipe, _ in cells))
    shares = sorted({share for _, share in cells})
    colors = dict(zip(recipes, colormaps["tab10"].colors, strict=False))
    figure, (recall, accuracy, trained, forgotten) = panels(4, 19, 4.6)
    for recipe in recipes:
        known = [share for share in shares if (recipe, share) in cells]
        for panel, name in ((recall, "mean_R@1"), (accuracy, "zero_shot_top1")):
            found = [spread(cells[recipe, share][name]) for share in known]
            drawn = {"label": recipe, "color": colors[recipe], "marker": "o", "capsize": 3}
            means, stds = ([values[key] for values in found] for key in ("mean", "std"))
            panel.errorbar([100 * share for share in known], means, stds, **drawn)
        cell = cells[recipe, known[-1]]
        trained.scatter(cell["trained"], cell["mean_R@1"], color=colors[recipe], label=recipe)
    for panel, name in ((recall, "R@1, mean of both directions, %"), (accuracy, "zero-shot accuracy, %")):
        panel.set(xscale="log", xlabel="training pairs, %", ylabel=name, title=f"{name.split(',')[0]} by data")
    trained.set(xscale="log", xlabel="trained parameters, %", ylabel="R@1, %")
    trained.set_title(f"R@1 by trained share ({shares[-1]:.0%} of the pairs)")
    for panel in (recall, accuracy, trained):
        panel.xaxis.set_major_formatter("{x:g}")
    recall.legend(fontsize=8)
    known = [recipe for recipe in recipes if "probe_image" in cells.get((recipe, shares[-1]), {})]
    for offset, modality in ((-0.2, "image"), (0.2, "text")):
        found = [spread(cells[recipe, shares[-1]][f"probe_{modality}"]) for recipe in known]
        change = [values["mean"] - 100 * results["before"][f"probe_{modality}"] for values in found]
        places, errors = np.arange(len(known)) + offset, [values["std"] for values in found]
        forgotten.bar(places, change, 0.4, yerr=errors, label=f"{modality} encoder", capsize=2)
    forgotten.axhline(0, color="black", linewidth=0.8)
    forgotten.set_xticks(range(len(known)), known, rotation=45, ha="right")
    forgotten.set(ylabel="change of the linear probe, points", title="Forgetting")
    forgotten.legend(fontsize=8)
    return {"alignment": figure}


def page(folder: Path) -> str:
    results = read(folder / "alignment.json")
    cells = collect(results)
    return fill(
        Path(__file__).parent / "page.md",
        results=results,
        before={name: f"{100 * value:.1f}" for name, value in results["before"].items()},
        cells={name: {key: told(cell[key]) for key in ("mean_R@1", "zero_shot_top1")} for name, cell in cells.items()},
        most=max(share for _, share in cells),
        recipes=recipes_table(cells),
        verdicts=verdicts(cells),
    )
