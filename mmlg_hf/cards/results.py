"""Measured results of a family of models: read and checked, as a table, as a plot, and as the Hub's result entries."""

import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import LearngeneError, require

RESULTS_FILE = "results.json"
PLOT_FILE = "results.png"
ROLES = ("ancestor", "gene", "descendant", "fine-tuned", "scratch", "mixture", "aligned-pair")
# Column titles of what a row says beside its figures, in the order they are shown.
SIZES = {
    "parameters": "Parameters",
    "megabytes": "MB",
    "gflops_image": "GFLOPs / image",
    "gflops_text": "GFLOPs / text",
    "steps": "Steps",
}


def read_results(results: Mapping[str, Any] | str | os.PathLike) -> dict[str, Any]:
    """Read results and check that the cards can use them.

    Args:
        results: the mapping itself, or a JSON file with it. Keys: `dataset` (a mapping with `id`, `split` and
            optionally `revision` and `license`), `models` (rows, see below), and optionally `date`, `commit`,
            `hardware` and `shown`, the names of the figures that cards show, in order, where not all. A row has
            `name`, `role` (one of `ROLES`) and optionally `depth`, `width`, `modality`, `parameters`, `megabytes`,
            `gflops_image`, `gflops_text`, `steps` and `figures`. A figure is a number from one run, or a mapping of
            `mean`, `std` and `seeds`. Figures are shares of 1; those with "rank" or "loss" in their name are not.

    Raises:
        LearngeneError: the file is missing or no JSON, a key is missing, or a number is not finite.
    """
    source = "results"
    if not isinstance(results, Mapping):
        source = str(results)
        try:
            results = json.loads(Path(results).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise LearngeneError(f"There is no results file {source}") from None
        except ValueError as error:
            raise LearngeneError(f"{source} is not JSON: {error}") from None
    if not isinstance(results, Mapping) or not isinstance(results.get("models"), list) or not results["models"]:
        raise LearngeneError(f'{source} has no "models": a list with one entry for each measured model')
    dataset = results.get("dataset")
    if not isinstance(dataset, Mapping) or not dataset.get("id") or not dataset.get("split"):
        raise LearngeneError(f'{source} has no "dataset" with the "id" and "split" that the figures were measured on')
    for row in results["models"]:
        _check_row(row, source)
    names = [row["name"] for row in results["models"]]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise LearngeneError(f"{source} has more than one model named {', '.join(map(repr, repeated))}")
    return dict(results)


def _check_row(row: Any, source: str) -> None:
    if not isinstance(row, Mapping) or not row.get("name") or row.get("role") not in ROLES:
        raise LearngeneError(f'{source}: a model needs a "name" and a "role" from {", ".join(ROLES)}; got {row!r}')
    numbers = {key: row[key] for key in SIZES if row.get(key) is not None}
    for name, figure in row.get("figures", {}).items():
        mean, std, seeds = spread(figure)
        numbers |= {name: mean, f"{name} std": std, f"{name} seeds": seeds}
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise LearngeneError(f"{source}: {name} of {row['name']!r} is {value!r}: it must be a finite number")


def spread(figure: Any) -> tuple[Any, Any, Any]:
    """Mean, standard deviation over seeds and number of seeds of a figure; one run has deviation 0 and one seed."""
    if isinstance(figure, Mapping):
        return figure.get("mean"), figure.get("std", 0.0), figure.get("seeds", 1)
    return figure, 0.0, 1


def figure_names(results: Mapping[str, Any]) -> list[str]:
    """The names of the figures to show: `shown` as far as measured, or all in the order the rows bring them."""
    names = list(dict.fromkeys(name for row in results["models"] for name in row.get("figures", {})))
    return [name for name in results["shown"] if name in names] if results.get("shown") else names


def is_share(name: str) -> bool:
    """Whether a figure is a share of 1, shown as a percentage."""
    return not re.search("rank|loss", name)


def figure_title(name: str) -> str:
    """A figure's name as a column title, with the unit."""
    words = {"top1": "zero-shot top-1", "top5": "zero-shot top-5", "mean_per_class": "zero-shot mean per class"}.get(
        name, name.replace("_to_", "→").replace("_", " ")
    )
    return words[0].upper() + words[1:] + (" (%)" if is_share(name) else "")


def format_figure(name: str, figure: Any) -> str:
    """A figure as the tables show it: percent for shares, with the spread over seeds when there is more than one."""
    mean, std, seeds = spread(figure)
    scale = 100 if is_share(name) else 1
    return f"{mean * scale:.1f}" + (f" ± {std * scale:.1f}" if seeds > 1 else "")


def _format_cell(key: str, value: float) -> str:
    """One of `SIZES` as the tables show it; parameters in millions."""
    if key == "parameters":
        return f"{value / 1e6:.2f} M"
    if key == "steps":
        return f"{value:,}"
    return f"{value:.3f}" if key.startswith("gflops") else f"{value:.1f}"


def results_table(results: Mapping[str, Any]) -> str:
    """The results as a Markdown table, one row for each model, with the columns that at least one row fills."""
    rows = results["models"]
    sizes = [key for key in SIZES if any(row.get(key) is not None for row in rows)]
    if all(not row.get("steps") for row in rows):
        sizes = [key for key in sizes if key != "steps"]
    figures = figure_names(results)
    lines = [["Model", *(SIZES[key] for key in sizes), *map(figure_title, figures)]]
    lines.append(["---", *["---:"] * (len(sizes) + len(figures))])
    for row in rows:
        cells = [_format_cell(key, row[key]) if row.get(key) is not None else "" for key in sizes]
        measured = row.get("figures", {})
        cells += [format_figure(name, measured[name]) if name in measured else "" for name in figures]
        lines.append([row["name"], *cells])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def seeds_sentence(results: Mapping[str, Any]) -> str:
    """What the spread in the table means, in words."""
    seeds = {spread(figure)[2] for row in results["models"] for figure in row.get("figures", {}).values()}
    if not seeds or seeds == {1}:
        return "Each figure is from one run."
    numbers = " or ".join(str(count) for count in sorted(seeds - {1}))
    single = " Figures without ± are from one run." if 1 in seeds else ""
    return f"Figures with ± are mean and standard deviation over {numbers} seeds.{single}"


def plotted_figures(results: Mapping[str, Any]) -> list[str]:
    """The names of the figures that `plot_results` draws: shares, at most four; none without any parameters."""
    if not any(row.get("parameters") for row in results["models"]):
        return []
    return [name for name in figure_names(results) if is_share(name)][:4]


def plot_results(results: Mapping[str, Any], path: str | os.PathLike) -> None:
    """Draw each of `plotted_figures` against the number of parameters, one panel each, and write a PNG.

    Raises:
        LearngeneError: there is nothing to draw.
    """
    rows, shares = [row for row in results["models"] if row.get("parameters")], plotted_figures(results)
    if not shares:
        raise LearngeneError("There is nothing to draw: the results have no parameters, or no figure that is a share")
    ticker = require("matplotlib.ticker", "demo")
    smallest, largest = (pick(row["parameters"] for row in rows) / 1e6 for pick in (min, max))
    figure = require("matplotlib.figure", "demo").Figure(
        figsize=(3.6 * len(shares), 3.2), dpi=110, layout="constrained"
    )
    panels = figure.subplots(1, len(shares), squeeze=False)[0]
    roles = [role for role in ROLES if any(row["role"] == role for row in rows)]
    for panel, name in zip(panels, shares, strict=True):
        for index, role in enumerate(roles):
            points = [row for row in rows if row["role"] == role and name in row.get("figures", {})]
            x = [row["parameters"] / 1e6 for row in points]
            mean, std = zip(*[spread(row["figures"][name])[:2] for row in points], strict=True) if points else ((), ())
            values, errors = [100 * value for value in mean], [100 * value for value in std]
            panel.errorbar(x, values, yerr=errors, fmt="osD^vPX"[index], color=f"C{index}", capsize=3, label=role)
        panel.set(xscale="log", xlabel="parameters (millions)", ylabel=figure_title(name))
        highest = max(sum(spread(row["figures"][name])[:2]) for row in rows if name in row.get("figures", {}))
        panel.set_ylim(0, 110 * highest or 1)  # room above the highest point
        # Labels at 1, 2 and 5 do not overlap, and so wide a range has one of them, however close the models lie.
        panel.set_xlim(smallest / 1.6, largest * 1.6)
        panel.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        panel.xaxis.set_major_formatter("{x:g}")
        panel.xaxis.set_minor_formatter(ticker.NullFormatter())
        panel.grid(alpha=0.3)
    panels[0].legend(fontsize="small")
    # Without the software's version in its header the file depends on the results alone.
    figure.savefig(path, format="png", metadata={"Software": None})


def eval_results(results: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    """The figures of one row in the form of the Hub's `.eval_results/*.yaml`; empty when the row has none."""
    from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

    row = next((row for row in results["models"] if row["name"] == name), None)
    if row is None:
        raise LearngeneError(f"The results have no model {name!r}; they have {[m['name'] for m in results['models']]}")
    dataset = results["dataset"]
    entries = []
    for figure_name, figure in row.get("figures", {}).items():
        mean, std, seeds = spread(figure)
        notes = f"split: {dataset['split']}" + (
            f"; mean over {seeds} seeds, standard deviation {std}" if seeds > 1 else ""
        )
        revision, date = dataset.get("revision"), results.get("date")
        entry = EvalResultEntry(dataset["id"], figure_name, mean, dataset_revision=revision, date=date, notes=notes)
        entries.append(entry)
    return eval_result_entries_to_yaml(entries)
