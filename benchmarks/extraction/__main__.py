"""Measure the choices that `ExtractionArguments` has defaults for, on the validation split, in short runs.

    python -m benchmarks.extraction_choices --ancestor runs/ancestor [--data FOLDER] [--steps 80]

Each choice changes what its name says against the default extraction and nothing else; all runs see the same number of
pairs. Runs that are done are not repeated. Writes `benchmarks/results/extraction_choices.json`.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.fashion import HUB_ID, environment, load_splits, measure
from benchmarks.gene import arguments
from benchmarks.initialisers import WHOLE
from mmlg_hf import extract_learngene

CHOICES: dict[str, dict[str, Any]] = {
    "default": {},
    "AdamW": {"muon_learning_rate": None},
    "AdamW, rate 2e-3": {"muon_learning_rate": None, "learning_rate": 2e-3},
    "Muon at 2e-3": {"muon_learning_rate": 2e-3},
    "Muon at 8e-3": {"muon_learning_rate": 8e-3},
    "half the batch, twice the steps": {"share_of_batch": 1 / 2},
    "twice the batch, half the steps": {"share_of_batch": 2},
    "token embedding whole": {"token_embedding_rank": WHOLE},
    "token embedding of rank 16": {"token_embedding_rank": 16},
    "random start": {"initialisation": "random"},
    "channels not turned": {"rotate": False},
    "affinity": {"affinity_weight": 1.0, "feature_weight": 0.0},
    "affinity + feature": {"affinity_weight": 1.0},
    "feature + contrastive": {"contrastive_weight": 0.5},
    "shared base": {"mixing": "linear"},
    "learned mixing": {"mixing": "learned"},
    "no shared block, two for each encoder": {"num_multimodal_blocks": 0, "num_unimodal_blocks": 2},
    "shared block only": {"num_unimodal_blocks": 0},
    "Chebyshev, two blocks each": {"mixing": "chebyshev", "num_multimodal_blocks": 2, "num_unimodal_blocks": 2},
    "not elastic": {"elastic": False},
    "one smaller network a step": {"elastic_samples": 1},
    "paper: shared base, random start, affinity, AdamW": {
        "mixing": "linear",
        "initialisation": "random",
        "rotate": False,
        "affinity_weight": 1.0,
        "feature_weight": 0.0,
        "muon_learning_rate": None,
        "token_embedding_rank": WHOLE,
    },
}
SIZES = [(6, 192), (3, 192), (6, 96), (3, 96)]
RESULTS = Path(__file__).parent / "results" / "extraction_choices.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ancestor", default="runs/ancestor")
    parser.add_argument("--data", default=HUB_ID)
    parser.add_argument("--work", default="runs/choices")
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rows", type=int, default=600, help="validation pairs measured on")
    parser.add_argument("--only", nargs="+", default=list(CHOICES), choices=CHOICES, metavar="CHOICE")
    options = parser.parse_args()

    splits = load_splits(options.data)
    validation = splits["validation"].select(range(options.rows))
    class_names = sorted(set(validation["articleType"]))
    done = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name in options.only:
        if name in done.get("runs", {}):
            continue
        # The default weight decay is for long extractions; in one of 80 steps neither does anything.
        changes = {"weight_decay": 0.05} | CHOICES[name]
        share = changes.pop("share_of_batch", 1)
        changes |= {"max_steps": round(options.steps / share)}
        changes |= {"per_device_train_batch_size": round(options.batch_size * share)}
        # One folder of ancestor outputs serves all runs: they see the same data and the same ancestor.
        changes |= {"ancestor_cache_dir": f"{options.work}/ancestor_outputs", "save_strategy": "no"}
        gene: Any = extract_learngene(options.ancestor, splits["train"], arguments(options.work, **changes))
        run = {"seconds": gene.config.recipe["seconds"], "parameters": gene.num_parameters(), "sizes": []}
        for depth, width in SIZES:
            figures = measure(gene.descendant(depth, width), validation, gene.processor, class_names)
            run["sizes"].append({"depth": depth, "width": width, **figures})
        settings = {key: getattr(options, key) for key in ("steps", "batch_size", "rows")}
        done = {"settings": settings, **environment(), "runs": {**done.get("runs", {}), name: run}}
        RESULTS.parent.mkdir(parents=True, exist_ok=True)
        RESULTS.write_text(json.dumps(done, indent=1) + "\n")
        print(name, [{k: round(v, 4) for k, v in size.items()} for size in run["sizes"]], flush=True)


if __name__ == "__main__":
    main()
