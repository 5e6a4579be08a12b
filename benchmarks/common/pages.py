"""A study's page and plots, from its results: tables, figures with their spread, and templates filled in."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined
from matplotlib.figure import Figure

from mmlg_hf.saving import whole_file, write_text


def spread(values: Any) -> dict[str, Any]:
    """Mean, standard deviation over seeds (0 for one) and number of seeds, as `mmlg_hf.cards.results` has them."""
    values = np.atleast_1d(values)
    std = float(values.std(ddof=1)) if len(values) > 1 else 0.0
    return {"mean": float(values.mean()), "std": std, "seeds": len(values)}


def told(values: Any, digits: int = 1) -> str:
    """Mean and standard deviation; the mean alone of one seed, nothing where nothing was measured."""
    if np.size(values) == 0:
        return ""
    found = spread(values)
    return f"{found['mean']:.{digits}f}" + (f" ± {found['std']:.{digits}f}" if found["seeds"] > 1 else "")


def table(titles: Iterable[Any], rows: Iterable[Iterable[Any]]) -> str:
    """A Markdown table; the first column is set to the left, the others to the right."""
    titles = list(titles)
    lines = [f"| {' | '.join(map(str, line))} |" for line in (titles, *rows)]
    return "\n".join([lines[0], "|---|" + "---:|" * (len(titles) - 1), *lines[1:]])


def grid(corner: str, rows: Iterable[Any], columns: Iterable[Any], cell: Callable[[Any, Any], str]) -> str:
    """A Markdown table of a cell for each row and column."""
    columns = list(columns)
    return table([corner, *columns], ([row, *(cell(row, column) for column in columns)] for row in rows))


def where(results: dict[str, Any]) -> str:
    """Where results were measured, and what else there is to know of them, as their file says."""
    hardware, commit = results.get("hardware") or results["processor"], (results["commit"] or "unknown")[:7]
    lines = [f"Measured on: {hardware}, torch {results['torch']}, at commit {commit}.", *results.get("notes", ())]
    return "\n\n".join(lines)


def fill(folder: Path, **values: Any) -> str:
    """A page from the template `page.md` of a folder; a name that it has and `values` lacks is an error.

    Templates know `told`, `grid` and `where`; `cell` of a grid can be a macro.
    """
    settings = {"undefined": StrictUndefined, "keep_trailing_newline": True}
    environment = Environment(**settings, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string((folder / "page.md").read_text(encoding="utf-8"))
    return template.render(told=told, grid=grid, where=where, **values)


def panels(count: int, width: float, height: float, **settings: Any) -> tuple[Figure, list[Any]]:
    """A figure of so many panels side by side, and these."""
    figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
    drawn = list(figure.subplots(1, count, squeeze=False, **settings)[0])
    for panel in drawn:
        panel.grid(alpha=0.25)
        panel.set_axisbelow(True)
    return figure, drawn


def error_bars(panel: Any, at: Iterable[float], values: Iterable[Any], **style: Any) -> None:
    """Means with bars of one standard deviation over seeds, at each point of the axis; `values` has those of each."""
    found = [spread(here) for here in values]
    means, stds = ([here[name] for here in found] for name in ("mean", "std"))
    panel.errorbar(list(at), means, stds, capsize=3, **style)


def bars(panel: Any, names: list[str], groups: dict[str, Iterable[Any]], colors: list[str], **style: Any) -> None:
    """Groups of bars side by side for each name, with their standard deviation over seeds."""
    width = 0.76 / len(groups)
    for index, (label, values) in enumerate(groups.items()):
        found = [spread(here) for here in values]
        places = np.arange(len(names)) + width * (index - (len(groups) - 1) / 2)
        means, stds = ([here[name] for here in found] for name in ("mean", "std"))
        errors = {"yerr": stds, "capsize": 3} if any(stds) else {}
        drawn = panel.bar(places, means, 0.95 * width, label=label, color=colors[index], **errors)
        if style.get("labels"):
            panel.bar_label(drawn, [style["labels"].format(mean) for mean in means], fontsize=8)
    panel.set_xticks(range(len(names)), names, fontsize=8)


def legend_below(figure: Figure, columns: int) -> None:
    """One legend for all panels, from the first one's lines."""
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=8)


def save(figure: Figure, path: Path) -> None:
    """Write a PNG that depends on the figure alone: without the software's version."""
    with whole_file(path) as partial:
        figure.savefig(partial, format="png", metadata={"Software": None})


def publish(folder: Path, report: Any) -> None:
    """Write README.md and the plots of a study's folder from its results."""
    for name, figure in report.plots(folder / "results").items():
        save(figure, folder / "results" / f"{name}.png")
    write_text(folder / "README.md", report.page(folder / "results"))
