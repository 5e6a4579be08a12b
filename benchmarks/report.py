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

from benchmarks.family import ENCODER_TASKS, Family
from benchmarks.initialisers import BUNDLED
from benchmarks.report_plots import plot_all

RESULTS = Path(__file__).parent / "results"
README = Path(__file__).parent / "README.md"
ZOO = Path(__file__).parent.parent / "mmlg_hf" / "zoo" / "mmlg-fashion-48" / "results.json"
SHORT, EARLIER = "MM-LG", ("TLEG", "SWS", "Chebyshev")  # extracted with the same number of steps
FIGURES = {"top1": "zero-shot", "image_to_text_R@10": "R@10", "mean_R@1": "R@1"}
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
    steps, _ = long.curve("scratch")
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


def sharing_table(zoo: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """The bundled gene beside one without a shared block, extracted alike: all test pairs, one run each."""
    lines = [
        "| model | zero-shot, shared | zero-shot, not shared | R@10, shared | R@10, not shared |",
        "|---|---|---|---|---|",
    ]
    for ours, theirs in zip(zoo["models"][1:], other["models"][1:], strict=True):
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


def cost(family: Family, long: Family) -> dict[str, Any]:
    """The price of the family at one accuracy: extracting the bundled gene and fine-tuning, or training each size.

    The accuracy is what one size has after the family's fine-tuning, and scratch's steps to it are read off that
    size's long curve: the first of its points that is as good, or its last one. All sizes are charged as many.
    """
    steps, ours = family.curve(BUNDLED)
    wanted = ours.mean(0)[list(steps).index(family.settings["steps"])]
    long_steps, scratch = long.curve("scratch")
    good = scratch.mean(0) >= wanted
    needed = int(long_steps[np.argmax(good)] if good.any() else long_steps[-1])
    results, batch = family.results, family.settings["batch_size"]
    gflops = [results["sizes"][size]["gflops"] for size in family.sizes]
    each = 3 * batch * sum(gflops) / 1e3  # teraflops of one step of every size, backward counted twice the forward
    gene = results["genes"][f"bundled/{BUNDLED}"]
    extraction = gene["steps"] * gene["batch_size"] * results["extraction_gflops_per_pair"] / 1e3
    one_step = sum(
        np.median([results["runs"][f"family/scratch/{size}/{seed}"]["seconds"] for seed in family.seeds["scratch"]])
        for size in family.sizes
    )
    one_step /= family.settings["steps"]
    tuned = family.settings["steps"]
    teraflops = [needed * each, extraction + tuned * each]
    seconds = [needed * one_step, gene["seconds"] + tuned * one_step]
    return {
        "recall": float(wanted), "reached": bool(good.any()), "scratch_steps": needed, "our_steps": int(tuned),
        "teraflops": [*teraflops, teraflops[0] / teraflops[1]], "seconds": [*seconds, seconds[0] / seconds[1]],
        "extraction_teraflops": extraction, "extraction_seconds": gene["seconds"],
    }  # fmt: skip


def spread(values: Array) -> dict[str, Any]:
    values = np.atleast_1d(values)
    std = round(float(values.std(ddof=1)), 2) if len(values) > 1 else None
    return {"mean": round(float(values.mean()), 2), "std": std, "seeds": len(values)}


def summarise(family: Family, long: Family, zoo: dict[str, Any]) -> list[dict[str, Any]]:
    """Each numbered target of the study: what was asked, what came out, and from which study."""
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
    price, curves = cost(family, long), (family.curve(BUNDLED), long.curve("scratch"))
    seeds = min(len(curves[0][1]), len(curves[1][1]))
    margin = curves[0][1][:seeds, -1] - curves[1][1][:seeds, -1]
    add(
        f"2. level with pre-training and fine-tuning: R@10 (both directions) of {BUNDLED} after {curves[0][0][-1]} "
        f"steps, against scratch after {curves[1][0][-1]}",
        spread(margin),
        margin.mean() >= 0,
        "validation, the one size whose curve was measured",
    )
    limit = "" if price["reached"] else "; scratch had not got there by its last step: lower bounds"
    for name in ("teraflops", "seconds"):
        add(
            f"3. the family at R@10 {price['recall']:.0f} %: at least 5x fewer {name}",
            {"scratch": round(price[name][0], 1), "ours": round(price[name][1], 1), "ratio": round(price[name][2], 2)},
            price[name][2] >= 5,
            f"extraction {price[f'extraction_{name}']:.0f} of ours, the rest fine-tuning twelve sizes{limit}",
        )
    ratio = price["scratch_steps"] / price["our_steps"]
    add(
        f"3. at least 5x fewer steps to R@10 {price['recall']:.0f} %",
        {"scratch": price["scratch_steps"], "ours": price["our_steps"], "ratio": round(ratio, 2)},
        ratio >= 5,
        limit.removeprefix("; ") or None,
    )
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
    family, long = Family(results), Family(read("initialisation-long.json"))
    rows = summarise(family, long, zoo)
    settings = family.settings
    depth, width = settings["curve_sizes"][0]
    gene = results["genes"][f"bundled/{BUNDLED}"]
    template = (Path(__file__).parent / "README.template.md").read_text()
    parts = {
        "summary": summary_table(rows),
        "retention": retention_table(zoo),
        "sharing": sharing_table(zoo, read("gene-no-shared-block.json")),
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
        "long": "\n".join(long_table(long)),
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
    print("\n".join(summary_table(rows)))


if __name__ == "__main__":
    main()
