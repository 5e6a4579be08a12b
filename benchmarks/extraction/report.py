"""Page and plot of the study on extraction, from its results."""

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks.common.pages import fill, panels, table
from benchmarks.common.results import read

COLORS = ("#c0392b", "#e67e22", "#1f77b4", "#17a589")
FIGURES = ("mean_R@1", "image_to_text_R@10", "top1")


def size_names(choices: dict[str, Any]) -> list[str]:
    return [f"{size['depth']} x {size['width']}" for size in choices["runs"]["default"]["sizes"]]


def choices_table(choices: dict[str, Any]) -> str:
    """Each choice of extraction against the default, on validation pairs."""
    rows = []
    for name, run in choices["runs"].items():
        rows.append([name, *(" / ".join(f"{100 * size[figure]:.1f}" for figure in FIGURES) for size in run["sizes"])])
    return table(["extraction", *size_names(choices)], rows)


def sharing_table(shared: dict[str, Any], other: dict[str, Any]) -> str:
    """A gene beside one without a shared block, extracted alike: all test pairs, one run each."""
    rows = []
    for pair in zip(shared["models"][1:], other["models"][1:], strict=True):
        sizes = " and ".join(f"{model['parameters'] / 1e6:.2f} M" for model in pair)
        name = pair[0]["name"] + (f" ({sizes} parameters)" if pair[0]["role"] == "gene" else "")
        values = [100 * model["figures"][figure] for figure in ("top1", "image_to_text_R@10") for model in pair]
        rows.append([name, *(f"{value:.1f}" for value in values)])
    return table(["model", "zero-shot, shared", "zero-shot, not shared", "R@10, shared", "R@10, not shared"], rows)


def page(folder: Path) -> str:
    choices = read(folder / "choices.json")
    recalls = {name: 100 * run["sizes"][-1]["image_to_text_R@10"] for name, run in choices["runs"].items()}
    genes = [folder / f"{name}.json" for name in ("shared-block", "no-shared-block")]
    return fill(
        Path(__file__).parent / "page.md",
        results=choices,
        settings=choices["settings"],
        smallest=size_names(choices)[-1],
        recalls={name: f"{value:.1f}" for name, value in recalls.items()},
        ahead=[name for name, value in recalls.items() if value > recalls["default"]],
        choices=choices_table(choices),
        sharing=sharing_table(*map(read, genes)) if all(path.exists() for path in genes) else "Not measured.",
    )


def plots(folder: Path) -> dict[str, Figure]:
    """R@10 of each choice at each size, the default's as lines to compare with."""
    choices = read(folder / "choices.json")
    names = list(choices["runs"])
    figure, (axis,) = panels(1, 9, 0.6 + 0.27 * len(names))
    for index, (size, color) in enumerate(zip(size_names(choices), COLORS, strict=True)):
        values = [100 * choices["runs"][name]["sizes"][index]["image_to_text_R@10"] for name in names]
        axis.axvline(values[names.index("default")], color=color, linewidth=0.8, alpha=0.5)
        axis.plot(values, range(len(names)), "o", color=color, label=size)
    axis.set_yticks(range(len(names)), names, fontsize=8)
    axis.set(xlabel="image-to-text R@10 before any fine-tuning (%, validation, one seed)", xlim=(0, None))
    axis.invert_yaxis()
    axis.legend(frameon=False, fontsize=8)
    return {"choices": figure}
