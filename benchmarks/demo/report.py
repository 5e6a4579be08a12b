"""Choose the demo's learning rates on validation images alone.

    python -m benchmarks.demo_tuning [--learngene GENE]

Every size, from the gene and from scratch, is fine-tuned at every learning rate of one grid, with the demo's own steps
and with a seed that no measurement uses; each takes its own best, so that neither start is held back. Test images are
not looked at. Resumes after an interruption.
"""

import argparse
import json
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

GRID = (2.5e-4, 5e-4, 1e-3, 2e-3, 4e-3)
SEED = 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--learngene", help="Hub id, folder or bundled name; the bundled one if left out")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/demo_tuning.json"))
    options = parser.parse_args()

    gene = load_gene(options.learngene)
    runs = json.loads(options.output.read_text())["runs"] if options.output.exists() else []
    done = {(run["name"], run["start"], run["learning_rate"]) for run in runs}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    settings = DemoSettings()
    _, tensors = load_digits_for(gene, settings)
    for (depth, width), start, rate in product(classifier_sizes(gene.config), STARTS, GRID):
        name = size_name(depth, width)
        if (name, start, rate) in done:
            continue
        model = make_classifier(gene, depth, width, start, SEED)
        with quiet():
            trainer = fine_tune_classifier(model, tensors, settings, rate, SEED)
        accuracy = curve(trainer)["validation_accuracy"][-1]
        runs.append({"name": name, "start": start, "learning_rate": rate, "validation_accuracy": accuracy})
        print(runs[-1], flush=True)
        options.output.write_text(json.dumps({"runs": runs}, indent=2) + "\n")
    chosen = choose(runs)
    options.output.write_text(
        json.dumps({"chosen": chosen, "runs": runs, "seed": SEED, **environment()}, indent=2) + "\n"
    )
    print(json.dumps(chosen, indent=2))


def choose(runs: list[dict]) -> dict[str, list[float]]:
    """Take for each start, in the order of the sizes, the learning rate of the best validation accuracy."""
    best: dict[tuple[str, str], dict] = {}
    for run in runs:
        key = (run["start"], run["name"])
        if key not in best or run["validation_accuracy"] > best[key]["validation_accuracy"]:
            best[key] = run
    return {start: [run["learning_rate"] for (s, _), run in best.items() if s == start] for start in STARTS}


if __name__ == "__main__":
    main()
