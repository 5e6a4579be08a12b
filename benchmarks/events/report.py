"""Tables, plots and the verdict of `benchmarks.event_classification`."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

OURS = ("descendant", "descendant, richer pooling")
TARGET_SIZES = (50, 200)


def summarise(results: dict) -> dict[str, dict]:
    """ "<data>/<test set>/<method>/<size>" -> mean and standard deviation of F1 over the seeds, and their number."""
    groups: dict[str, list[float]] = {}
    for key, run in results["runs"].items():
        data, method, size, _ = key.split("/")
        for test, result in run["tests"].items():
            groups.setdefault(f"{data}/{test}/{method}/{size}", []).append(result["f1"])
    return {
        key: {"mean": float(np.mean(f1)), "std": float(np.std(f1, ddof=1)) if len(f1) > 1 else 0.0, "seeds": len(f1)}
        for key, f1 in groups.items()
    }


def verdict(summary: dict[str, dict]) -> list[dict]:
    """For 50 and 200 events and each data set's first test set: does a descendant's mean F1 beat each baseline's?"""
    lines, seen = [], {}
    for key, figure in summary.items():
        data, test, method, size = key.split("/")
        if seen.setdefault(data, test) != test or method in OURS or int(size) not in TARGET_SIZES:
            continue
        for ours in OURS:
            if f"{data}/{test}/{ours}/{size}" not in summary:
                continue
            margin = summary[f"{data}/{test}/{ours}/{size}"]["mean"] - figure["mean"]
            line = {"data": data, "events": int(size), "method": ours, "baseline": method}
            lines.append({**line, "margin": margin, "beats": margin > 0})
    return lines


def markdown(results: dict, summary: dict[str, dict]) -> str:
    """One table per test set: methods in rows, numbers of training events in columns, F1 in per cent."""
    parts = []
    for panel in dict.fromkeys("/".join(key.split("/")[:2]) for key in summary):
        parts += [f"\nF1 (%), {panel.replace('/', ', test set ')}\n"]
        parts += ["| method | " + " | ".join(f"{size} events" for size in results["sizes"]) + " |"]
        parts += ["|---|" + "---:|" * len(results["sizes"])]
        for method in results["methods"]:
            figures = [summary.get(f"{panel}/{method}/{size}") for size in results["sizes"]]
            cells = [f"{100 * f['mean']:.1f} ± {100 * f['std']:.1f}" if f else "" for f in figures]
            parts += [f"| {method} | " + " | ".join(cells) + " |"]
    return "\n".join(parts) + "\n"


def write_report(results: dict, folder: Path) -> None:
    """Add `summary` and `targets` to the results, print the tables and draw the learning curves to a PNG."""
    results["summary"] = summary = summarise(results)
    results["targets"] = verdict(summary)
    table = markdown(results, summary)
    (folder / "event_classification.md").write_text(table.lstrip())
    print(table)
    for line in results["targets"]:
        word = "beats" if line["beats"] else "does NOT beat"
        compared = f"{line['method']} {word} {line['baseline']} ({100 * line['margin']:+.1f} points)"
        print(f"{line['data']}, {line['events']} events: {compared}")
    draw_curves(results, summary, folder / "event_classification.png")


def draw_curves(results: dict, summary: dict[str, dict], path: Path) -> None:
    """F1 against the number of training events, one panel per test set, bars of one standard deviation."""
    panels = list(dict.fromkeys("/".join(key.split("/")[:2]) for key in summary))
    figure = Figure(figsize=(4.2 * len(panels), 3.6), dpi=120, layout="constrained")
    for axis, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for index, method in enumerate(results["methods"]):
            sizes = [size for size in results["sizes"] if f"{panel}/{method}/{size}" in summary]
            figures = [summary[f"{panel}/{method}/{size}"] for size in sizes]
            # Slightly apart, so that the bars of equal methods do not hide each other.
            at = [size * 1.03 ** (index - len(results["methods"]) / 2) for size in sizes]
            means, spreads = [f["mean"] for f in figures], [f["std"] for f in figures]
            style = {"linewidth": 2.2, "marker": "o"} if method in OURS else {"linewidth": 1.2, "marker": "."}
            axis.errorbar(at, means, yerr=spreads, capsize=2, label=method, **style)
        axis.set(xscale="log", xlabel="training events", ylabel="F1", title=panel.replace("/", "\ntested on "))
        axis.set_xticks(results["sizes"], [str(size) for size in results["sizes"]])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    figure.axes[0].legend(fontsize="small")
    figure.savefig(path, metadata={"Software": None})
