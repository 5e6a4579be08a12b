"""From a gene to a CLIP mixture of experts, and back to a gene plus deltas: all three stages in one program.

    python examples/clip_moe.py GENE --data DATASET --output runs/clip-moe [--depth 4] [--width 128] [--pairs 8192]

Grows a base from the gene, diversifies experts of it, assembles them, trains the routers, stores the mixture as the
gene plus what the experts add to it, and measures retrieval of all three on pairs that were not trained on.
"""

import argparse
from pathlib import Path

from transformers import AutoProcessor, CLIPModel

from mmlg_hf import LearngeneModel, from_learngene
from mmlg_hf.clip_moe import (
    CLIPMoEModel,
    DiversifyArguments,
    RouterArguments,
    count_parameters,
    diversify,
    load_from_deltas,
    save_as_deltas,
    train_router,
    upcycle,
)
from mmlg_hf.data import find_columns, load_image_text, process_pairs
from mmlg_hf.evaluation import evaluate_retrieval


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gene", help="folder of a gene with its processor")
    parser.add_argument("--data", required=True, help="image-text dataset: a Hub id, or a folder in datasets format")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--depth", type=int)
    parser.add_argument("--width", type=int)
    parser.add_argument("--pairs", type=int, default=8192)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    options = parser.parse_args()

    processor = AutoProcessor.from_pretrained(options.gene)
    rows = load_image_text(options.data).shuffle(seed=0)
    held_out = rows.select(range(len(rows) - min(1000, len(rows) // 10), len(rows)))
    pairs = process_pairs(rows.select(range(min(options.pairs, len(rows) - len(held_out)))), processor)
    training = {
        "per_device_train_batch_size": options.batch_size,
        "learning_rate": options.learning_rate,
        "report_to": "none",
    }

    # 1. Experts: fine-tunes of one base that each attend to other features.
    base: CLIPModel = from_learngene(options.gene, options.depth, options.width)
    args = DiversifyArguments(str(options.output / "experts"), num_clusters=2, max_dropped=0.8, **training)
    experts = diversify(base, pairs, args, processor=processor)

    # 2. The mixture: each MLP becomes the choice among the base's and the experts'.
    mixture: CLIPMoEModel = upcycle(base, experts)
    print("parameters", count_parameters(mixture), "of the base", count_parameters(base)["total"])

    # 3. Routers: only the gates train.
    args = RouterArguments(str(options.output / "mixture"), **training | {"learning_rate": 1e-3})
    train_router(mixture, pairs, args, processor=processor)

    # The mixture as the gene plus what its experts add.
    gene = LearngeneModel.from_pretrained(options.gene)
    folder = options.output / "deltas"
    sizes = save_as_deltas(mixture, gene, folder, depth=options.depth, width=options.width, rank=16)
    print(f"mixture {sizes['mixture'] / 1e6:.1f} MB, as gene plus deltas ", end="")
    print(f"{sizes['gene'] / 1e6:.1f} + {sizes['deltas'] / 1e6:.1f} MB")

    image_column, text_column = find_columns(held_out)
    for name, model in (("base", base), ("mixture", mixture), ("from deltas", load_from_deltas(folder))):
        figures = evaluate_retrieval(model, held_out, processor, image_column=image_column, text_column=text_column)
        print(f"{name:12} mean R@1 {figures['mean_R@1']:.1%}")


if __name__ == "__main__":
    main()
