"""Store a small mixture for the zoo as what its experts add to the bundled gene, and measure it beside its base.

    mmlg descend mmlg-fashion-48 --depth 3 --width 96 --output runs/base
    mmlg moe diversify runs/base --data PAIRS --output runs/experts --num-experts 3 --num-clusters 2 --batch-size 64 \\
        --learning-rate 3e-4
    mmlg moe upcycle runs/base --experts runs/experts --output runs/mixture
    mmlg moe train-router runs/mixture --data PAIRS --output runs/clip-moe --batch-size 64 --learning-rate 1e-3
    python -m benchmarks.make.mixture --mixture runs/clip-moe --depth 3 --width 96 [--data FOLDER]

Writes deltas and `results.json`, measured on the test split of the product photos from the stored files, to --output.
PAIRS is a folder with the training split alone, photos and titles (`benchmarks.common.fashion.load_splits`).
"""

import json
from pathlib import Path
from typing import Any

from benchmarks.common.fashion import described, known_types, load_splits, measure
from benchmarks.common.options import parse
from benchmarks.common.results import environment, write
from mmlg_hf.clip_moe import CLIPMoEModel, count_parameters, load_from_deltas, save_as_deltas
from mmlg_hf.descendants import load_learngene


def main() -> None:
    options, _ = parse(
        __doc__,
        *("data", "learngene"),
        mixture=("runs/clip-moe", "folder of the trained mixture"),
        depth=(3, "of the base"),
        width=(96, "of the base"),
        rank=(int, "rank of the experts' deltas; whole if not given"),
        output=("upload/artifacts/mmlg-fashion-48-moe-3x96", "folder of the deltas"),
    )
    gene: Any = load_learngene(options.learngene)
    size = {"depth": options.depth, "width": options.width}
    mixture = CLIPMoEModel.from_pretrained(options.mixture)
    stored = save_as_deltas(mixture, gene, options.output, **size, rank=options.rank, with_gene=False)

    test, models = known_types(load_splits(options.data), "test"), []
    for name, role, model in (
        (f"depth {options.depth}, width {options.width}", "descendant", gene.descendant(**size)),
        ("mixture", "mixture", load_from_deltas(options.output, gene)),
    ):
        parameters = count_parameters(model)["total"]
        row = {"name": name, "role": role, **size, "parameters": parameters, "megabytes": round(parameters * 4e-6, 2)}
        models.append(row | {"figures": measure(model, test, gene.processor)})
    results = {**described(test), **environment(), "bytes": stored, "models": models}
    write(Path(options.output, "results.json"), results)
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
