"""Choose the demo's learning rates, and how its digits are drawn, on validation images alone.

    python -m benchmarks.demo_tuning [--learngene GENE]

Every size, from the gene and from scratch, is fine-tuned at every learning rate of one grid, with the demo's own steps
and with a seed that no measurement uses; each takes its own best, so that neither start is held back. Test images are
not looked at. Resumes after an interruption.
"""

import argparse
import json
from dataclasses import replace
from itertools import product
from pathlib import Path

from benchmarks.fashion import environment
from mmlg_hf.demo import (
    STARTS,
    DemoSettings,
    classifier_sizes,
    curve,
    fine_tune_classifier,
    load_digits_for,
    load_gene,
    make_classifier,
    size_name,
)
from mmlg_hf.model_loading import quiet

GRID = (2e-4, 5e-4, 1e-3, 2e-3, 4e-3)
SEED = 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--learngene", help="Hub id, folder or bundled name; the bundled one if left out")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/demo_tuning.json"))
    options = parser.parse_args()

    gene = load_gene(options.learngene)
    runs = json.loads(options.output.read_text())["runs"] if options.output.exists() else []
    done = {(run["name"], run["start"], run["dark_on_white"], run["learning_rate"]) for run in runs}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    for dark_on_white in (True, False):
        settings = replace(DemoSettings(), dark_on_white=dark_on_white)
        _, tensors = load_digits_for(gene, settings)
        for (depth, width), start, rate in product(classifier_sizes(gene.config), STARTS, GRID):
            name = size_name(depth, width)
            if (name, start, dark_on_white, rate) in done:
                continue
            model = make_classifier(gene, depth, width, start, SEED)
            with quiet():
                trainer = fine_tune_classifier(model, tensors, settings, rate, SEED)
            accuracies = curve(trainer)["validation_accuracy"]
            drawn = {"dark_on_white": dark_on_white, "learning_rate": rate, "validation_accuracy": accuracies[-1]}
            runs.append({"name": name, "start": start, **drawn})
            print(runs[-1], flush=True)
            options.output.write_text(json.dumps({"runs": runs}, indent=2) + "\n")
    chosen = choose(runs)
    options.output.write_text(
        json.dumps({"chosen": chosen, "runs": runs, "seed": SEED, **environment()}, indent=2) + "\n"
    )
    print(json.dumps(chosen, indent=2))


def choose(runs: list[dict]) -> dict:
    """Take the drawing with the better mean over sizes and starts at their best rates, and those rates."""

    def best(dark_on_white: bool) -> dict[tuple[str, str], dict]:
        found: dict[tuple[str, str], dict] = {}
        for run in runs:
            key = (run["name"], run["start"])
            if run["dark_on_white"] is dark_on_white and (
                key not in found or run["validation_accuracy"] > found[key]["validation_accuracy"]
            ):
                found[key] = run
        return found

    both = {dark: best(dark) for dark in (True, False)}
    means = {
        dark: sum(run["validation_accuracy"] for run in found.values()) / len(found) for dark, found in both.items()
    }
    dark = max(means, key=lambda key: means[key])
    rates = {start: [run["learning_rate"] for (_, s), run in both[dark].items() if s == start] for start in STARTS}
    return {"dark_on_white": dark, "learning_rates": rates, "best": list(both[dark].values()), "mean": means[dark]}


if __name__ == "__main__":
    main()
