"""Each numbered target of the study: what was asked, and what came out."""

from typing import Any

from benchmarks.common.targets import target
from benchmarks.family.arrays import Family, difference
from benchmarks.family.cost import family_cost
from benchmarks.family.starts import BUNDLED, BY_MUON

SHORT, EARLIER = "MM-LG", ("TLEG", "SWS", "Chebyshev")  # extracted with the same number of steps
SCRATCH = ("scratch", BY_MUON)
FIGURES = {"top1": "zero-shot", "image_to_text_R@10": "R@10", "mean_R@1": "R@1"}
SMALLER = {"half depth": (3, 192), "half width": (6, 96), "half of both": (3, 96)}

Rows = list[dict[str, Any]]


def targets(family: Family, long: Family, short: Family, zoo: dict[str, Any]) -> Rows:
    """Args:
    family: the study itself.
    long: the curves from scratch.
    short: the bundled gene's curve over a tenth of their steps.
    zoo: the bundled gene's own results.
    """
    scratch = [name for name in SCRATCH if name in long.methods]
    return [
        *retention(family, zoo),
        *lead(family),
        *(level(short, long, name) for name in scratch),
        *(row for name in scratch for row in cost(family_cost(family, long, name), name)),
        *storage(family),
    ]


def retention(family: Family, zoo: dict[str, Any]) -> Rows:
    """Shares of the ancestor's figures that untrained descendants keep: MM-LG's by seed, and the shipped gene's."""
    ancestor, shipped = family.results["ancestor"]["test"], zoo["models"][0]["figures"]
    by_size = {(m.get("depth"), m.get("width")): m["figures"] for m in zoo["models"] if m["role"] == "descendant"}
    rows = []
    for what, size in SMALLER.items():
        wanted = 60 if what == "half of both" else 80
        for name in ("top1", "image_to_text_R@10"):
            kept = 100 * by_size[size][name] / shipped[name]
            rows.append(
                target(
                    f"1. {what}, before fine-tuning: at least {wanted} % of the ancestor's {FIGURES[name]}",
                    family.of(SHORT, f"{size[0]}x{size[1]}", "before", name) / ancestor[name],
                    kept >= wanted,
                    f"the bundled gene, extracted longer, keeps {kept:.1f} % (one run, all test pairs); this decides",
                )
            )
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
    for ours, other in ((SHORT, "TLEG, our extraction"), *((BUNDLED, name) for name in inherited)):
        for name in ("top1", "mean_R@1"):
            margin = family.margin(ours, other, name)
            rows.append(
                target(f"2. fine-tuned: {FIGURES[name]} of {ours} ahead of {other}", margin, margin.mean() > 0)
            )
    return rows


def level(short: Family, long: Family, scratch: str) -> dict[str, Any]:
    (steps, ours), (scratch_steps, theirs) = short.curve(BUNDLED), long.curve(scratch)
    margin = difference(ours[:, -1], theirs[:, -1])
    asked = (
        f"2. level with pre-training and fine-tuning: R@10 (both directions) of {BUNDLED} after {steps[-1]} "
        f"steps, against {scratch} after {scratch_steps[-1]}"
    )
    return target(asked, margin, margin.mean() >= 0, "validation, the one size whose curve was measured")


def cost(price: dict[str, Any], scratch: str) -> Rows:
    """The family's price against one way of training from scratch."""
    limit = None if price["reached"] else "scratch had not got there by its last step: lower bounds"
    at = f"at R@10 {price['recall']:.0f} % than {scratch}"
    rows = []
    for name in ("teraflops", "seconds"):
        theirs, ours, times = price[name]
        note = f"extraction {price[f'extraction_{name}']:.0f} of ours, the rest fine-tuning twelve sizes"
        measured = {"scratch": round(theirs, 1), "ours": round(ours, 1), "ratio": round(times, 2)}
        note = "; ".join(filter(None, (note, limit)))
        rows.append(target(f"3. the family: at least 5x fewer {name} {at}", measured, times >= 5, note))
    ratio = price["scratch_steps"] / price["our_steps"]
    steps = {"scratch": price["scratch_steps"], "ours": price["our_steps"], "ratio": round(ratio, 2)}
    return [*rows, target(f"3. at least 5x fewer steps {at}", steps, ratio >= 5, limit)]


def storage(family: Family) -> Rows:
    gene = next(r["parameters"] for key, r in family.results["genes"].items() if key.split("/")[1] == BUNDLED)
    ancestor = family.results["ancestor"]
    everything = sum(family.results["sizes"][size]["parameters"] for size in family.sizes)
    note = f"{100 * gene / ancestor['parameters']:.1f} % of the ancestor with the same trimmed vocabulary"
    rows = []
    for limit, whole, what, said in (
        (25, ancestor["parameters_untrimmed"], "ancestor", note),
        (10, everything, "family", None),
    ):
        share = 100 * gene / whole
        asked = f"4. the gene takes at most {limit} % of the {what}'s bytes"
        rows.append(target(asked, {"per_cent": round(share, 1)}, share <= limit, said))
    return rows
