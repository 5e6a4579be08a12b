"""Page and plot of the study on extraction, from its results."""

from pathlib import Path

from matplotlib.figure import Figure

from benchmarks.common.pages import fill, panels
from benchmarks.common.results import read

COLORS = ("#c0392b", "#e67e22", "#1f77b4", "#17a589")


def page(folder: Path) -> str:
    found = {
        name: folder / f"{file}.json" for name, file in (("shared", "shared-block"), ("other", "no-shared-block"))
    }
    genes = {name: read(path)["models"][1:] if path.exists() else [] for name, path in found.items()}
    return fill(Path(__file__).parent, results=read(folder / "choices.json"), **genes)


def plots(folder: Path) -> dict[str, Figure]:
    """R@10 of each choice at each size, the default's as lines to compare with."""
    runs = read(folder / "choices.json")["runs"]
    figure, (axis,) = panels(1, 9, 0.6 + 0.27 * len(runs))
    for index, (size, color) in enumerate(zip(runs["default"]["sizes"], COLORS, strict=True)):
        values = [100 * run["sizes"][index]["image_to_text_R@10"] for run in runs.values()]
        axis.axvline(100 * size["image_to_text_R@10"], color=color, linewidth=0.8, alpha=0.5)
        axis.plot(values, range(len(runs)), "o", color=color, label=f"{size['depth']} x {size['width']}")
    axis.set_yticks(range(len(runs)), runs, fontsize=8)
    axis.set(xlabel="image-to-text R@10 before any fine-tuning (%, validation, one seed)", xlim=(0, None))
    axis.invert_yaxis()
    axis.legend(frameon=False, fontsize=8)
    return {"choices": figure}
