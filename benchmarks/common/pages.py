"""A study's page and plots, from its results: tables, figures with their spread, and templates filled in."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined
from matplotlib.figure import Figure

from mmlg_hf.writing import whole_file, write_text


def spread(values: Any) -> dict[str, Any]:
    """Mean, standard deviation over seeds (0 for one) and number of seeds, as `mmlg_hf.results` has them."""
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
    lines = [titles, ["---", *["---:"] * (len(titles) - 1)], *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def fill(template: Path, **values: Any) -> str:
    """A page from its template; a name that the template has and `values` lacks is an error."""
    environment = Environment(
        undefined=StrictUndefined, keep_trailing_newline=True, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(template.read_text(encoding="utf-8")).render(values)


def panels(count: int, width: float, height: float, **settings: Any) -> tuple[Figure, list[Any]]:
    """A figure of so many panels side by side, and these."""
    figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
    drawn = list(figure.subplots(1, count, squeeze=False, **settings)[0])
    for panel in drawn:
        panel.grid(alpha=0.25)
        panel.set_axisbelow(True)
    return figure, drawn


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
