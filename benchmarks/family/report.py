"""The page, the plots and the targets of the study, from its results and those of the bundled gene."""

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks.common.pages import fill, table, told
from benchmarks.common.results import read
from benchmarks.family import targets as asked
from benchmarks.family.arrays import ENCODER_TASKS, Family
from benchmarks.family.plots import plots_of
from benchmarks.family.starts import BUNDLED

ZOO = Path(__file__).parent.parent.parent / "mmlg_hf" / "zoo" / "mmlg-fashion-48" / "results.json"
RECALL = "image_to_text_R@10"


def plots(folder: Path) -> dict[str, Figure]:
    return plots_of(Family(read(folder / "family.json")))


def families(folder: Path) -> tuple[Family, Family, Family]:
    """The study itself, the curves from scratch, and the bundled gene's curve over a tenth of their steps."""
    family, long, short = (Family(read(folder / f"{name}.json")) for name in ("family", "curves-3000", "curves-300"))
    return family, long, short


def targets(folder: Path) -> list[dict[str, Any]]:
    return asked.targets(*families(folder), read(ZOO))


def page(folder: Path) -> str:
    family, long, short = families(folder)
    zoo, rows = read(ZOO), targets(folder)
    return fill(
        Path(__file__).parent / "page.md",
        results=family.results,
        settings=family.settings,
        gene=family.results["genes"][f"bundled/{BUNDLED}"],
        ancestor={name: f"{100 * value:.1f}" for name, value in family.results["ancestor"]["test"].items()},
        seeds=len(family.seeds[BUNDLED]),
        curve_size=family.curve_size.replace("x", " x "),
        met=sum(row["met"] for row in rows),
        targets=rows,
        after={method: told(family.mean(method, "after", RECALL)) for method in family.methods},
        retention=retention_table(zoo),
        family=family_table(family),
        sizes={when: size_table(family, when) for when in ("before", "after")},
        curves=curve_table(family),
        long=curve_table(long),
        short=curve_table(short),
        long_steps=long.settings["curve_steps"],
        short_steps=short.settings["curve_steps"],
        classifiers=classifier_table(family),
    )


def family_table(family: Family) -> str:
    rows = []
    for method in family.methods:
        stored = family.stored_megabytes(method)
        figures = [("before", "top1"), ("before", RECALL), ("after", "top1"), ("after", RECALL), ("after", "mean_R@1")]
        cells = [told(family.mean(method, *figure)) for figure in figures]
        rows.append([method, "none" if stored is None else f"{stored:.1f}", *cells])
    titles = ["zero-shot before", "R@10 before", "zero-shot after", "R@10 after", "R@1 after"]
    return table(["start", "stored, MB", *titles], rows)


def size_table(family: Family, when: str) -> str:
    """R@10 of every member."""
    rows = ([m, *(told(family.of(m, size, when, RECALL)) for size in family.sizes)] for m in family.methods)
    return table(["start", *family.sizes], rows)


def curve_table(family: Family) -> str:
    steps = family.curve(family.methods[0])[0]
    rows = ([method, *map(told, family.curve(method)[1].T)] for method in family.methods)
    return table(["start", *(f"{step} steps" for step in steps)], rows)


def classifier_table(family: Family) -> str:
    if not family.tasks:
        return "Not measured yet (`--parts encoders`)."
    rows = ([m, *(told(family.classifier(task, m)) for task in family.tasks)] for m in family.methods)
    return table(["start", *(f"{task}, {ENCODER_TASKS[task]}" for task in family.tasks)], rows)


def retention_table(zoo: dict[str, Any]) -> str:
    """The bundled gene's descendants before any fine-tuning, on all test pairs: one run."""
    ancestor, rows = zoo["models"][0]["figures"], []
    for model in zoo["models"]:
        shares = []
        for name in ("top1", RECALL):
            value = model["figures"][name]
            shares += [f"{100 * value:.1f}", f"{100 * value / ancestor[name]:.0f} %"]
        rows.append([model["name"], f"{model['parameters']:,}", *shares])
    return table(["model", "parameters", "zero-shot", "of the ancestor's", "R@10", "of the ancestor's"], rows)
