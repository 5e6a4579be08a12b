"""Each numbered target of the study: what was asked, and what came out."""

from itertools import product
from typing import Any

from benchmarks.common.targets import target
from benchmarks.family.arrays import Family, difference, probed_name
from benchmarks.family.cost import family_cost
from benchmarks.family.starts import BUNDLED, BY_MUON, CONTROLS, DISTILLED, LONGER

SHORT, EARLIER = "MM-LG", ("TLEG", "SWS", "Chebyshev")  # extracted with the same number of steps
SCRATCH, INHERITED = ("scratch", BY_MUON), "rotated inheritance"
FIGURES = {"top1": "zero-shot", "image_to_text_R@10": "R@10", "mean_R@1": "R@1"}
SMALLER = {"half depth": (3, 192), "half width": (6, 96), "half of both": (3, 96)}

Rows = list[dict[str, Any]]


def targets(family: Family, long: Family, short: Family, distilled: Family, zoo: dict[str, Any]) -> Rows:
    """Args:
    family: the study itself.
    long: the curves from scratch.
    short: the bundled gene's curve over a tenth of their steps.
    distilled: the curve of its descendants that imitate the ancestor, over a fifth.
    zoo: the bundled gene's own results.
    """
    scratch = [name for name in SCRATCH if name in long.methods]
    longer = [name for name in LONGER if name in family.curve_methods and BY_MUON in scratch]
    return [
        *retention(family, zoo),
        *lead(family),
        *(level(short, BUNDLED, long, name) for name in scratch),
        *(level(distilled, DISTILLED, long, name) for name in scratch),
        *(row for name in scratch for row in cost(family_cost(family, long, name), name)),
        *(row for gene in longer for row in cost(family_cost(family, long, BY_MUON, gene), BY_MUON, gene)),
        *storage(family),
        *transfer(family),
    ]


def retention(family: Family, zoo: dict[str, Any]) -> Rows:
    """Shares of the ancestor's figures that untrained descendants keep: MM-LG's by seed, and the shipped gene's."""
    ancestor, shipped = family.results["ancestor"]["test"], zoo["models"][0]["figures"]
    by_size = {(m.get("depth"), m.get("width")): m["figures"] for m in zoo["models"] if m["role"] == "descendant"}
    rows = []
    for (what, size), name in product(SMALLER.items(), ("top1", "image_to_text_R@10")):
        wanted = 60 if what == "half of both" else 80
        kept = 100 * by_size[size][name] / shipped[name]
        asked = f"1. {what}, before fine-tuning: at least {wanted} % of the ancestor's {FIGURES[name]}"
        shares = family.of(SHORT, f"{size[0]}x{size[1]}", "before", name) / ancestor[name]
        note = f"the bundled gene, extracted longer, keeps {kept:.1f} % (one run, all test pairs); this decides"
        rows.append(target(asked, shares, kept >= wanted, note))
    return rows


def lead(family: Family) -> Rows:
    """Points after fine-tuning over other starts."""
    rows = []
    for name, wanted in (("top1", 3.1), ("mean_R@1", 4.1)):
        best = max(EARLIER, key=lambda method: family.mean(method, "after", name).mean())
        margin = family.margin(SHORT, best, name)
        asked = f"2. fine-tuned: {FIGURES[name]} at least {wanted} points over the best of {', '.join(EARLIER)}"
        note = "all extracted with the same number of steps"
        rows.append(target(asked, margin, margin.mean() >= wanted, note, best=best))
    inherited = ("weight selection", "TinyCLIP inheritance", "rotated inheritance")
    later = (name for name in CONTROLS if name in family.methods)
    pairs = [(SHORT, "TLEG, our extraction"), *((BUNDLED, name) for name in (*inherited, *later))]
    for (ours, other), name in product(pairs, ("top1", "mean_R@1")):
        margin = family.margin(ours, other, name)
        asked = f"2. fine-tuned: {FIGURES[name]} of {ours} ahead of {other}"
        rows.append(target(asked, margin, margin.mean() > 0))
    return rows


def level(short: Family, method: str, long: Family, scratch: str) -> dict[str, Any]:
    (steps, ours), (scratch_steps, theirs) = short.curve(method), long.curve(scratch)
    margin = difference(ours[:, -1], theirs[:, -1])
    asked = (
        f"2. level with pre-training and fine-tuning: R@10 (both directions) of {method} after {steps[-1]} "
        f"steps, against {scratch} after {scratch_steps[-1]}"
    )
    return target(asked, margin, margin.mean() >= 0, "validation, the one size whose curve was measured")


def cost(price: dict[str, Any], scratch: str, gene: str = BUNDLED) -> Rows:
    """The family's price against one way of training from scratch; of the bundled gene in steps, too."""
    family = "the family: " if gene == BUNDLED else f"the family from {gene}: "
    limits = [] if price["reached"] else ["scratch had not got there by its last step: lower bounds"]
    rows = []
    for unit, what in (("teraflops", family), ("seconds", family), *((("steps", ""),) if gene == BUNDLED else ())):
        theirs, ours = (round(value, 1) for value in price[unit])
        ratio = price[unit][0] / price[unit][1]
        extraction = price["extraction"][unit]
        note = [f"extraction {extraction:.0f} of ours, the rest fine-tuning twelve sizes"] if unit != "steps" else []
        asked = f"3. {what}at least 5x fewer {unit} at R@10 {price['recall']:.0f} % than {scratch}"
        measured = {"scratch": theirs, "ours": ours, "ratio": round(ratio, 2)}
        rows.append(target(asked, measured, ratio >= 5, "; ".join([*note, *limits]) or None))
    return rows


def storage(family: Family) -> Rows:
    gene, ancestor = family.results["genes"][f"bundled/{BUNDLED}"]["parameters"], family.results["ancestor"]
    everything = sum(family.results["sizes"][size]["parameters"] for size in family.sizes)
    trimmed = f"{100 * gene / ancestor['parameters']:.1f} % of the ancestor with the same trimmed vocabulary"
    wholes = {"ancestor": (25, ancestor["parameters_untrimmed"], trimmed), "family": (10, everything, None)}
    rows = []
    for what, (limit, whole, note) in wholes.items():
        asked = f"4. the gene takes at most {limit} % of the {what}'s bytes"
        rows.append(target(asked, {"per_cent": round(100 * gene / whole, 1)}, 100 * gene / whole <= limit, note))
    return rows


def transfer(family: Family) -> Rows:
    """Points over inheritance on each task for one encoder, under a random head and under a probed one."""
    rows, steps = [], family.settings["encoder_steps"]
    for task, probed in product(family.tasks, (False, True)):
        name, head = (probed_name(task), "probed first") if probed else (task, "random")
        ours, theirs = (family.classifier(method, name) for method in (BUNDLED, INHERITED))
        if len(ours) and len(theirs):
            margin = difference(ours, theirs)
            asked = f"5. {task} in {steps} steps, head {head}: {BUNDLED} ahead of {INHERITED}"
            rows.append(target(asked, margin, margin.mean() > 0))
    return rows
