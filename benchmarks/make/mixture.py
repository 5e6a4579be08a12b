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

from pathlib import Path
from typing import Any

from benchmarks.common.fashion import card_row, known_types, load_splits, write_card_results
from benchmarks.common.options import parse
from mmlg_hf.clip_moe import CLIPMoEModel, load_from_deltas, save_as_deltas
from mmlg_hf.descendants import load_learngene


def main() -> None:
    options = parse(
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

    test = known_types(load_splits(options.data), "test")
    whole, loaded = gene.descendant(**size), load_from_deltas(options.output, gene)
    models = [
        card_row(f"depth {options.depth}, width {options.width}", "descendant", whole, test, gene.processor, **size),
        card_row("mixture", "mixture", loaded, test, gene.processor, **size),
    ]
    write_card_results(Path(options.output, "results.json"), test, models, bytes=stored)


if __name__ == "__main__":
    main()
