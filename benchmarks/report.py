"""Render the committed results of the initialisation study: `benchmarks/README.md`, `results/summary.json`, plots.

    python -m benchmarks.report

Everything is worked out from JSON files in `benchmarks/results` and beside the bundled gene; a test renders again and
compares. Spreads are standard deviations over seeds.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.cost import family_cost
from benchmarks.family import ENCODER_TASKS, Family
from benchmarks.initialisers import BUNDLED, BY_MUON
from benchmarks.report_plots import plot_all, plot_choices

RESULTS = Path(__file__).parent / "results"
README = Path(__file__).parent / "README.md"
ZOO = Path(__file__).parent.parent / "mmlg_hf" / "zoo" / "mmlg-fashion-48" / "results.json"
SHORT, EARLIER = "MM-LG", ("TLEG", "SWS", "Chebyshev")  # extracted with the same number of steps
FIGURES = {"top1": "zero-shot", "image_to_text_R@10": "R@10", "mean_R@1": "R@1"}
SCRATCH = ("scratch", BY_MUON)
SMALLER = {"half depth": (3, 192), "half width": (6, 96), "half of both": (3, 96)}

Array = Any


def told(values: Array, digits: int = 1) -> str:
    values = np.atleast_1d(values)
    spread = f" ± {values.std(ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{values.mean():.{digits}f}{spread}"


def family_table(family: Family) -> list[str]:
    lines = [
        "| start | stored, MB | zero-shot before | R@10 before | zero-shot after | R@10 after | R@1 after |",
        "|---|---|---|---|---|---|---|",
    ]
    for method in family.methods:
        stored = family.stored_megabytes(method)
        cells = [method, "none" if stored is None else f"{stored:.1f}"]
        cells += [told(family.mean(method, "before", name)) for name in ("top1", "image_to_text_R@10")]
        cells += [told(family.mean(method, "after", name)) for name in ("top1", "image_to_text_R@10", "mean_R@1")]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def size_table(family: Family, when: str) -> list[str]:
    """R@10 of every member."""
    lines = [f"| start | {' | '.join(family.sizes)} |", f"|---|{'---|' * len(family.sizes)}"]
    for method in family.methods:
        cells = [told(family.of(method, size, when, "image_to_text_R@10")) for size in family.sizes]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return lines


def curve_table(family: Family) -> list[str]:
    steps, _ = family.curve(BUNDLED)
    shown = [index for index, step in enumerate(steps) if step in (0, *steps[1::2], steps[-1])]
    lines = [f"| start | {' | '.join(f'{steps[i]} steps' for i in shown)} |", f"|---|{'---|' * len(shown)}"]
    for method in family.methods:
        values = family.curve(method)[1]
        lines.append(f"| {method} | {' | '.join(told(values[:, i]) for i in shown)} |")
    return lines


def long_table(long: Family) -> list[str]:
    steps, _ = long.curve(long.methods[0])
    lines = [f"| start | {' | '.join(f'{step} steps' for step in steps)} |", f"|---|{'---|' * len(steps)}"]
    for method in long.methods:
        values = long.curve(method)[1]
        lines.append(f"| {method} | {' | '.join(told(values[:, i]) for i in range(len(steps)))} |")
    return lines


def classifier_table(family: Family) -> list[str]:
    tasks = family.tasks
    if not tasks:
        return ["Not measured yet (`--parts encoders`)."]
    lines = [
        f"| start | {' | '.join(f'{name}, {ENCODER_TASKS[name]}' for name in tasks)} |",
        f"|---|{'---|' * len(tasks)}",
    ]
    for method in family.methods:
        lines.append(f"| {method} | {' | '.join(told(family.classifier(task, method)) for task in tasks)} |")
    return lines


def retention_table(zoo: dict[str, Any]) -> list[str]:
    """The bundled gene's descendants before any fine-tuning, on all test pairs: one run."""
    ancestor = zoo["models"][0]["figures"]
    lines = [
        "| model | parameters | zero-shot | of the ancestor's | R@10 | of the ancestor's |",
        "|---|---|---|---|---|---|",
    ]
    for model in zoo["models"]:
        cells = [model["name"], f"{model['parameters']:,}"]
        for name in ("top1", "image_to_text_R@10"):
            value = model["figures"][name]
            cells += [f"{100 * value:.1f}", f"{100 * value / ancestor[name]:.0f} %"]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def sharing_table(shared: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """A gene beside one without a shared block, extracted alike: all test pairs, one run each."""
    lines = [
        "| model | zero-shot, shared | zero-shot, not shared | R@10, shared | R@10, not shared |",
        "|---|---|---|---|---|",
    ]
    for ours, theirs in zip(shared["models"][1:], other["models"][1:], strict=True):
        name = ours["name"]
        if ours["role"] == "gene":
            name += f" ({ours['parameters'] / 1e6:.2f} M and {theirs['parameters'] / 1e6:.2f} M parameters)"
        figures = [100 * m["figures"][n] for n in ("top1", "image_to_text_R@10") for m in (ours, theirs)]
        lines.append(f"| {name} | {' | '.join(f'{value:.1f}' for value in figures)} |")
    return lines


def retention(family: Family) -> dict[str, dict[str, Array]]:
    """Shares of the ancestor's figures that MM-LG's untrained descendants keep after the short extraction, by seed."""
    ancestor = family.results["ancestor"]["test"]
    names = ("top1", "image_to_text_R@10")
    return {
        what: {name: family.of(SHORT, f"{depth}x{width}", "before", name) / ancestor[name] for name in names}
        for what, (depth, width) in SMALLER.items()
    }


def spread(values: Array) -> dict[str, Any]:
    values = np.atleast_1d(values)
    std = round(float(values.std(ddof=1)), 2) if len(values) > 1 else None
    return {"mean": round(float(values.mean()), 2), "std": std, "seeds": len(values)}


def cost_rows(price: dict[str, Any], scratch: str, study: str) -> list[dict[str, Any]]:
    """The targets of cost, against one way of training from scratch."""
    limit = "" if price["reached"] else "scratch had not got there by its last step: lower bounds"
    at = f"at R@10 {price['recall']:.0f} % than {scratch}"
    ratio = price["scratch_steps"] / price["our_steps"]
    rows = []
    for name in ("teraflops", "seconds"):
        theirs, ours, times = price[name]
        note = f"extraction {price[f'extraction_{name}']:.0f} of ours, the rest fine-tuning twelve sizes"
        rows.append(
            {
                "target": f"3. the family: at least 5x fewer {name} {at}",
                "measured": {"scratch": round(theirs, 1), "ours": round(ours, 1), "ratio": round(times, 2)},
                "met": bool(times >= 5),
                "study": study,
                "note": "; ".join(filter(None, (note, limit))),
            }
        )
    steps = {"scratch": price["scratch_steps"], "ours": price["our_steps"], "ratio": round(ratio, 2)}
    target = f"3. at least 5x fewer steps {at}"
    return [*rows, {"target": target, "measured": steps, "met": ratio >= 5, "study": study, "note": limit or None}]


def summarise(family: Family, long: Family, short: Family, zoo: dict[str, Any]) -> list[dict[str, Any]]:
    """Each numbered target of the study: what was asked, what came out, and from which study.

    Args:
        family: the study itself.
        long: the curves from scratch.
        short: the bundled gene's curve over a tenth of their steps.
        zoo: the bundled gene's own results.
    """
    study = "initialisation.json"
    rows: list[dict[str, Any]] = []

    def add(target: str, measured: Any, met: bool, note: str | None = None) -> None:
        rows.append({"target": target, "measured": measured, "met": bool(met), "study": study, "note": note})

    ancestor = zoo["models"][0]["figures"]
    by_size = {(m.get("depth"), m.get("width")): m["figures"] for m in zoo["models"] if m["role"] == "descendant"}
    for what, shares in retention(family).items():
        wanted = 60 if what == "half of both" else 80
        for name, values in shares.items():
            shipped = 100 * by_size[SMALLER[what]][name] / ancestor[name]
            add(
                f"1. {what}, before fine-tuning: at least {wanted} % of the ancestor's {FIGURES[name]}",
                spread(values),
                shipped >= wanted,
                f"the bundled gene, extracted longer, keeps {shipped:.1f} % (one run, all test pairs); this decides",
            )
    for name, wanted in (("top1", 3.1), ("mean_R@1", 4.1)):
        best = max(EARLIER, key=lambda method: family.mean(method, "after", name).mean())
        margin = family.margin(SHORT, best, name)
        add(
            f"2. fine-tuned: {FIGURES[name]} at least {wanted} points over the best of {', '.join(EARLIER)}",
            spread(margin) | {"best": best},
            margin.mean() >= wanted,
            "all extracted with the same number of steps",
        )
    for ours, others in (
        (SHORT, ("TLEG, our extraction",)),
        (BUNDLED, ("weight selection", "TinyCLIP inheritance", "rotated inheritance")),
    ):
        for other in others:
            for name in ("top1", "mean_R@1"):
                margin = family.margin(ours, other, name)
                add(f"2. fine-tuned: {FIGURES[name]} of {ours} ahead of {other}", spread(margin), margin.mean() > 0)
    measured = [name for name in SCRATCH if name in long.methods]
    for scratch in measured:
        (steps, ours), (scratch_steps, theirs) = short.curve(BUNDLED), long.curve(scratch)
        seeds = min(len(ours), len(theirs))
        margin = ours[:seeds, -1] - theirs[:seeds, -1]
        add(
            f"2. level with pre-training and fine-tuning: R@10 (both directions) of {BUNDLED} after {steps[-1]} "
            f"steps, against {scratch} after {scratch_steps[-1]}",
            spread(margin),
            margin.mean() >= 0,
            "validation, the one size whose curve was measured",
        )
    for scratch in measured:
        rows += cost_rows(family_cost(family, long, scratch), scratch, study)
    gene = next(r["parameters"] for key, r in family.results["genes"].items() if key.split("/")[1] == BUNDLED)
    whole = family.results["ancestor"]["parameters_untrimmed"]
    everything = sum(family.results["sizes"][size]["parameters"] for size in family.sizes)
    trimmed = family.results["ancestor"]["parameters"]
    add(
        "4. the gene takes at most 25 % of the ancestor's bytes",
        {"per_cent": round(100 * gene / whole, 1)},
        gene <= 0.25 * whole,
        f"{100 * gene / trimmed:.1f} % of the ancestor with the same trimmed vocabulary",
    )
    add(
        "4. the gene takes at most 10 % of the family's bytes",
        {"per_cent": round(100 * gene / everything, 1)},
        gene <= 0.1 * everything,
    )
    return rows


def summary_table(rows: list[dict[str, Any]]) -> list[str]:
    lines = ["| target | measured | met |", "|---|---|---|"]
    for row in rows:
        measured = row["measured"]
        if "std" in measured:
            deviation = f" ± {measured['std']}" if measured["seeds"] > 1 else " (one seed)"
            value = f"{measured['mean']}{deviation}" + (f", {measured['best']}" if "best" in measured else "")
        else:
            value = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in measured.items())
        note = f"; {row['note']}" if row["note"] else ""
        lines.append(f"| {row['target']} | {value}{note} | {'yes' if row['met'] else '**no**'} |")
    return lines


def choices_table(choices: dict[str, Any]) -> list[str]:
    """The ablation: each choice of extraction against the default, on validation pairs."""
    sizes = [f"{size['depth']} x {size['width']}" for size in next(iter(choices["runs"].values()))["sizes"]]
    lines = [f"| extraction | {' | '.join(sizes)} |", f"|---|{'---|' * len(sizes)}"]
    for name, run in choices["runs"].items():
        cells = [
            f"{100 * size['mean_R@1']:.1f} / {100 * size['image_to_text_R@10']:.1f} / {100 * size['top1']:.1f}"
            for size in run["sizes"]
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def render(read: Callable[[str], dict[str, Any]], zoo: dict[str, Any]) -> tuple[str, list[dict[str, Any]]]:
    """Return the text of benchmarks/README.md and the rows of summary.json; `read` reads a results file by name."""
    results, choices = read("initialisation.json"), read("extraction_choices.json")
    family, long = Family(results), Family(read("initialisation-3000.json"))
    short = Family(read("initialisation-300.json"))
    rows = summarise(family, long, short, zoo)
    settings = family.settings
    depth, width = settings["curve_sizes"][0]
    gene = results["genes"][f"bundled/{BUNDLED}"]
    template = (Path(__file__).parent / "README.template.md").read_text()
    parts = {
        "summary": summary_table(rows),
        "retention": retention_table(zoo),
        "sharing": sharing_table(read("gene-shared-block.json"), read("gene-no-shared-block.json")),
        "family": family_table(family),
        "before": size_table(family, "before"),
        "after": size_table(family, "after"),
        "curves": curve_table(family),
        "classifiers": classifier_table(family),
        "choices": choices_table(choices),
    }
    values: dict[str, Any] = {name: "\n".join(lines) for name, lines in parts.items()}
    rates = [f"{rate:g}" for rate in settings["rates"]]
    values |= {
        "rates": f"{', '.join(rates[:-1])} and {rates[-1]}", "seeds": len(family.seeds[BUNDLED]),
        "steps": settings["steps"], "batch": settings["batch_size"], "extraction": settings["extraction_steps"],
        "extraction_batch": settings["extraction_batch_size"],
        "extraction_pairs": settings["extraction_steps"] * settings["extraction_batch_size"],
        "gene_steps": gene["steps"], "gene_batch": gene["batch_size"],
        "test_pairs": settings["test_pairs"], "curve_size": f"{depth} x {width}",
        "curve_steps": settings["curve_steps"], "long_steps": long.settings["curve_steps"],
        "long": "\n".join(long_table(long)), "short": "\n".join(long_table(short)),
        "short_steps": short.settings["curve_steps"],
        "validation_pairs": settings["validation_pairs"], "encoder_steps": settings["encoder_steps"],
        "hardware": results["hardware"], "torch": results["torch"], "commit": results["commit"][:7],
        "ancestor_top1": f"{100 * results['ancestor']['test']['top1']:.1f}",
        "ancestor_recall": f"{100 * results['ancestor']['test']['image_to_text_R@10']:.1f}",
        "choices_steps": choices["settings"]["steps"], "choices_batch": choices["settings"]["batch_size"],
    }  # fmt: skip
    for name, value in values.items():
        template = template.replace("{{ " + name + " }}", str(value))
    return template, rows


def read(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / name).read_text())


def main() -> None:
    text, rows = render(read, json.loads(ZOO.read_text()))
    README.write_text(text)
    (RESULTS / "summary.json").write_text(json.dumps(rows, indent=1) + "\n")
    plot_all(Family(read("initialisation.json")), RESULTS / "initialisation.json")
    plot_choices(read("extraction_choices.json"), RESULTS / "extraction_choices.png")
    print("\n".join(summary_table(rows)))


if __name__ == "__main__":
    main()
