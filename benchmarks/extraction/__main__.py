"""Measure the choices that extraction has defaults for, and other formulas, on the validation split, in short runs.

    python -m benchmarks.extraction [--data FOLDER] [--steps 80] [--only "default" "AdamW"]

Each choice (`settings.yaml`) changes what its name says against the default extraction and nothing else; all runs see
the same number of pairs, unless the choice says otherwise. The finalists have all seeds, other choices the first one.
Runs that the results file holds are not repeated.
"""

import time
from argparse import Namespace
from typing import Any

from benchmarks.common.fashion import load_splits
from benchmarks.common.options import output_folder, parse, read_settings, settings_of
from benchmarks.common.pages import publish
from benchmarks.common.results import Results
from benchmarks.extraction import report
from benchmarks.extraction.runs import Measured, Source, extract
from benchmarks.make.gene import arguments

SETTINGS = read_settings(__file__)
OF_RUNS = ("formula", "rate", "first", "stop_after")  # what of a choice is no argument of an extraction


def measure_choice(options: Namespace, source: Source, validation: Measured, name: str, seed: int) -> dict[str, Any]:
    """Extract with one choice, and measure descendants before any fine-tuning."""
    changes = {**SETTINGS["choices"][name]}
    ours = {key: changes.pop(key) for key in OF_RUNS if key in changes}
    share = changes.pop("share_of_batch", 1)
    if not changes.pop("whole", False):
        # The default weight decay is for long extractions; in one of 80 steps neither does anything.
        changes = {"weight_decay": 0.05} | changes
        changes |= {"max_steps": round(options.steps / share)}
        changes |= {"per_device_train_batch_size": round(options.batch_size * share)}
    changes |= {"save_strategy": "no", "disable_tqdm": True, "seed": seed}
    begun = time.process_time()
    gene, losses = extract(source, arguments(options.work, **changes), **ours)
    seconds = time.process_time() - begun
    sizes = [
        {"depth": depth, "width": width, **validation.figures(gene.descendant(depth, width))}
        for depth, width in SETTINGS["sizes"]
    ]
    parameters = gene.num_parameters()
    about = {"parameters": parameters, "megabytes": round(parameters * 2e-6, 2)}  # it is stored in float16
    return {"processor_seconds": round(seconds, 1), **about, "loss": round(losses[-1], 4), "sizes": sizes}


def main() -> None:
    names = list(SETTINGS["choices"])
    options = parse(__doc__, "data", "output", "seeds", settings=SETTINGS, only=(names, "some of the choices", names))
    folder = output_folder(options, "extraction")
    results = Results(folder / "results" / "choices.json", settings_of(options, "data", "ancestor", "only", "seeds"))
    splits = load_splits(options.data)
    source = Source.load(options.ancestor, splits["train"], f"{options.work}/ancestor_outputs")
    validation = Measured(splits["validation"].select(range(options.rows)), source.processor)
    wanted = [(name, options.seeds[0]) for name in options.only]
    wanted += [(name, seed) for seed in options.seeds[1:] for name in options.only if name in SETTINGS["finalists"]]
    for name, seed in wanted:
        results.run(f"{name}/{seed}", measure_choice, options, source, validation, name, seed)
    publish(folder, report)


if __name__ == "__main__":
    main()
