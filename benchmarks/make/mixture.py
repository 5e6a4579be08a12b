"""Store a small mixture for the zoo as what its experts add to the bundled gene, and measure it beside its base.

    mmlg descend mmlg-fashion-48 --depth 3 --width 96 --output runs/base
    mmlg moe diversify runs/base --data PAIRS --output runs/experts --num-experts 3 --num-clusters 2 --batch-size 64 \\
        --learning-rate 3e-4
    mmlg moe upcycle runs/base --experts runs/experts --output runs/mixture
    mmlg moe train-router runs/mixture --data PAIRS --output runs/clip-moe --batch-size 64 --learning-rate 1e-3
    python -m benchmarks.mixture --mixture runs/clip-moe --depth 3 --width 96 [--data FOLDER]

Writes deltas and `results.json`, measured on the test split of the product photos from the stored files, to --output.
PAIRS is a folder with the training split alone, photos and titles (`benchmarks.fashion.load_splits`).
"""

import argparse
import json
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks.fashion import HUB_ID, TYPE, environment, load_splits, measure
from mmlg_hf.clip_moe import CLIPMoEModel, count_parameters, load_from_deltas, save_as_deltas
from mmlg_hf.descendants import load_learngene


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gene", default="mmlg-fashion-48")
    parser.add_argument("--mixture", default="runs/clip-moe", help="folder of the trained mixture")
    parser.add_argument("--depth", type=int, required=True)
    parser.add_argument("--width", type=int, required=True)
    parser.add_argument("--rank", type=int, help="rank of the experts' deltas; whole if not given")
    parser.add_argument("--data", default=HUB_ID, help="Hub id or folder of the product photos")
    parser.add_argument("--output", default="upload/artifacts/mmlg-fashion-48-moe-3x96")
    options = parser.parse_args()

    gene: Any = load_learngene(options.gene)
    size = {"depth": options.depth, "width": options.width}
    mixture = CLIPMoEModel.from_pretrained(options.mixture)
    stored = save_as_deltas(mixture, gene, options.output, **size, rank=options.rank, with_gene=False)
    print(json.dumps(stored))

    splits = load_splits(options.data)
    present = sorted(set(splits["test"][TYPE]) & set(splits["train"][TYPE]))
    test = splits["test"].filter(lambda row: row[TYPE] in present)
    models = []
    for name, role, model in (
        (f"depth {options.depth}, width {options.width}", "descendant", gene.descendant(**size)),
        ("mixture", "mixture", load_from_deltas(options.output, gene)),
    ):
        parameters = count_parameters(model)["total"]
        row = {"name": name, "role": role, **size, "parameters": parameters, "megabytes": round(parameters * 4e-6, 2)}
        models.append(row | {"figures": measure(model, test, gene.processor, present)})
    results = {
        "dataset": {
            "id": HUB_ID,
            "split": f"test (one in ten by hash of the id: {len(test)} pairs, {len(present)} classes)",
        },
        "shown": ["top1", "mean_per_class", "image_to_text_R@1", "text_to_image_R@1"],
        **environment(),
        "date": date.today().isoformat(),
        "bytes": stored,
        "models": models,
    }
    Path(options.output, "results.json").write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
