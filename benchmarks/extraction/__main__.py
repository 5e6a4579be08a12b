"""Measure the choices that `ExtractionArguments` has defaults for, on the validation split, in short runs.

    python -m benchmarks.extraction [--data FOLDER] [--steps 80]

Each choice (`settings.yaml`) changes what its name says against the default extraction and nothing else; all runs see
the same number of pairs. Runs that the results file holds are not repeated.
"""

from argparse import Namespace
from typing import Any

from benchmarks.common.fashion import load_splits, measure
from benchmarks.common.options import output_folder, parse, read_settings, settings_of
from benchmarks.common.pages import publish
from benchmarks.common.results import Results
from benchmarks.extraction import report
from benchmarks.make.gene import arguments
from mmlg_hf import extract_learngene

SETTINGS = read_settings(__file__)


def measure_choice(options: Namespace, splits: Any, name: str) -> dict[str, Any]:
    """Extract with one choice, and measure descendants before any fine-tuning."""
    # The default weight decay is for long extractions; in one of 80 steps neither does anything.
    changes = {"weight_decay": 0.05} | SETTINGS["choices"][name]
    share = changes.pop("share_of_batch", 1)
    changes |= {"max_steps": round(options.steps / share)}
    changes |= {"per_device_train_batch_size": round(options.batch_size * share)}
    # One folder of ancestor outputs serves all runs: they see the same data and the same ancestor.
    changes |= {"ancestor_cache_dir": f"{options.work}/ancestor_outputs", "save_strategy": "no"}
    gene: Any = extract_learngene(options.ancestor, splits["train"], arguments(options.work, **changes))
    validation = splits["validation"].select(range(options.rows))
    sizes = [
        {"depth": depth, "width": width, **measure(gene.descendant(depth, width), validation, gene.processor)}
        for depth, width in SETTINGS["sizes"]
    ]
    return {"seconds": gene.config.recipe["seconds"], "parameters": gene.num_parameters(), "sizes": sizes}


def main() -> None:
    names = list(SETTINGS["choices"])
    options = parse(__doc__, "data", "output", settings=SETTINGS, only=(names, "some of the choices", names))
    folder = output_folder(options, "extraction")
    results = Results(folder / "results" / "choices.json", settings_of(options, "data", "ancestor", "only"))
    splits = load_splits(options.data)
    for name in options.only:
        results.run(name, measure_choice, options, splits, name)
    publish(folder, report)


if __name__ == "__main__":
    main()
