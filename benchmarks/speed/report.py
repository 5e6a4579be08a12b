"""Page, plot and targets of the speed study, from its results."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks.common.pages import fill, panels
from benchmarks.common.results import Runs, read
from benchmarks.common.targets import target
from benchmarks.speed import cost

# Pictures of the study's data set, of which the kept pixels were 26 GB.
ALL_PHOTOS = 44_000


def ratios(runs: Runs, key: tuple[str, ...], above: str, below: str) -> np.ndarray:
    """One figure over another within each run."""
    return runs.values(above, *key, scale=1) / runs.values(below, *key, scale=1)


def rows_of(runs: Runs) -> list[tuple[str, np.ndarray, float]]:
    """What was asked, what came out in each run, and the most that it may be."""
    growth, found = runs.names("growth"), []
    for size, memory, folder in (("12x768", 1.25, 1.5), ("6x384", 2.0, None)):
        if size not in growth:
            continue
        key = ("growth", size)
        found.append(
            (f"{size} grown from memory, over filling as many bytes", ratios(runs, key, "memory", "fill"), memory)
        )
        if folder:
            found.append((f"{size} grown from its folder, over filling", ratios(runs, key, "folder", "fill"), folder))
        else:
            asked = f"{size} grown from its folder, over `from_pretrained` of the saved one"
            found.append((asked, ratios(runs, key, "folder", "from_pretrained"), 1.0))
    for batch in runs.names("step"):
        asked = f"a gene's step over a plain CLIP's, batch of {batch}"
        found.append((asked, ratios(runs, ("step", batch), "gene", "clip"), 1.05))
    found.append(("seconds of fitting the blocks", runs.values("fitting", "start", scale=1), 8.0))
    found.append(("turning on 128 rows, over 64", ratios(runs, ("start",), "turning_128", "turning_64"), 2.1))
    grown = runs.values("grown_mib", "reading", scale=1) / runs.values("photos", "reading", scale=1)
    found.append(("GB that pixels of 44,000 photos stay in memory", grown * ALL_PHOTOS * 2**20 / 1e9, 2.0))
    return found


def targets(folder: Path) -> list[dict[str, Any]]:
    found = []
    for asked, values, most in rows_of(Runs(read(folder / "speed.json"))):
        row = target(f"{asked}: at most {most:g}", values, float(np.median(values)) <= most)
        row["measured"] |= {"median": round(float(np.median(values)), 2), "runs": len(values)}
        found.append(row)
    return found


def page(folder: Path) -> str:
    results = read(folder / "speed.json")
    runs = Runs(results)
    rows = [
        {"asked": asked, "median": np.median(v), "low": v.min(), "high": v.max(), "most": most, "runs": len(v)}
        for asked, v, most in rows_of(runs)
    ]
    sizes = [
        {"name": size, **runs.all("growth", size)[0]}
        | {name: np.median(runs.values(name, "growth", size, scale=1000)) for name in CURVES}
        for size in runs.names("growth")
    ]
    first = {
        name: float(np.median(runs.values(name, "start", scale=1))) for name in ("turning_128", "fitting", "outputs")
    }
    read_in = {name: float(np.median(photos_a_second(runs, name))) for name in ("reading", "large")}
    return fill(
        Path(__file__).parent, results=results, rows=rows, sizes=sizes, first=first, read_in=read_in, **priced(runs)
    )


def photos_a_second(runs: Runs, name: str) -> np.ndarray:
    return runs.values("photos", name, scale=1) / runs.values("seconds", name, scale=1)


def priced(runs: Runs) -> dict[str, Any]:
    """The cost model's prices by the median of each small extraction's runs, and what it says of each."""
    checked = "x".join(map(str, cost.CHECKED))
    steps = {}
    for size in runs.names("cost"):
        found = runs.all("cost", size)
        steps[size] = found[0] | {"seconds": float(np.median([run["seconds"] for run in found]))}
    prices = cost.fit([step for size, step in steps.items() if size != checked])
    told = [
        {"size": size, **step, "said": prices.seconds(step), "fitted": size != checked} for size, step in steps.items()
    ]
    return {"prices": prices, "steps": told}


CURVES = {
    "memory": ("grown from memory", "C0"),
    "folder": ("grown from its folder", "C1"),
    "from_pretrained": ("saved and loaded", "C2"),
    "loaded_and_read": ("loaded, and each weight read", "C3"),
    "fill": ("filling as many bytes", "C7"),
    "fill_again": ("filling memory that is there", "C9"),
    "table": ("the token table's product alone", "C4"),
}


def plots(folder: Path) -> dict[str, Figure]:
    runs = Runs(read(folder / "speed.json"))
    figure, (panel,) = panels(1, 6.8, 3.8)
    sizes = sorted(runs.names("growth"), key=lambda size: runs.all("growth", size)[0]["parameters"])
    megabytes = [runs.all("growth", size)[0]["parameters"] * 4e-6 for size in sizes]
    for name, (label, color) in CURVES.items():
        values = [runs.values(name, "growth", size, scale=1000) for size in sizes]
        middle = [np.median(value) for value in values]
        spread = [
            [m - v.min() for m, v in zip(middle, values, strict=True)],
            [v.max() - m for m, v in zip(middle, values, strict=True)],
        ]
        panel.errorbar(megabytes, middle, spread, capsize=3, marker="o", markersize=3, label=label, color=color)
    panel.set(xscale="log", yscale="log", xlabel="descendant (MB in float32)", ylabel="milliseconds")
    panel.set_xticks(megabytes, [f"{size:.0f}" for size in megabytes], rotation=45)
    panel.minorticks_off()
    panel.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return {"growth": figure}
