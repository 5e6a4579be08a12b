"""Make the zoo's mixture: a descendant of the bundled gene, diversified, upcycled, its routers trained.

    python -m benchmarks.make.mixture [--data FOLDER]

Goes on where it was stopped, in --work. Stored, from the mixture, is what its experts add to the gene; deltas and
`results.json`, measured on the test split from the stored files beside the base, come into --output.
"""

from pathlib import Path
from typing import Any

from benchmarks.common.fashion import IMAGE, TITLE, card_row, known_types, load_splits, write_card_results
from benchmarks.common.options import parse
from mmlg_hf import from_learngene
from mmlg_hf.clip_moe import (
    DiversifyArguments,
    RouterArguments,
    diversify,
    load_from_deltas,
    save_as_deltas,
    train_router,
    upcycle,
)
from mmlg_hf.descendants import load_learngene
from mmlg_hf.training import ImageTextCollator
from mmlg_hf.training.resuming import last_checkpoint


def main() -> None:
    options = parse(
        __doc__,
        *("data", "learngene"),
        depth=(3, "of the base"),
        width=(96, "of the base"),
        num_experts=(3, "of the mixture, the base included"),
        num_clusters=(2, "of the photos and of the titles in each stage"),
        batch_size=(64, "pairs a step"),
        learning_rate=(3e-4, "peak, of the experts"),
        router_learning_rate=(1e-3, "peak, of the routers"),
        rank=(int, "rank of the experts' deltas; whole if not given"),
        work=("runs/mixture", "folder of the stages"),
        output=("upload/artifacts/mmlg-fashion-48-moe-3x96", "folder of the deltas"),
    )
    gene: Any = load_learngene(options.learngene)
    size, splits = {"depth": options.depth, "width": options.width}, load_splits(options.data)
    base, collator = (
        from_learngene(gene, **size),
        ImageTextCollator(gene.processor, image_column=IMAGE, text_column=TITLE),
    )
    common = {"per_device_train_batch_size": options.batch_size, "logging_steps": 10, "report_to": "none", "seed": 42}
    settings = {name: getattr(options, name) for name in ("num_experts", "num_clusters", "learning_rate")}
    stages = DiversifyArguments(f"{options.work}/experts", **settings, **common)
    base = from_learngene(gene, **size)
    experts = diversify(base, splits["train"], stages, data_collator=collator, processor=gene.processor)
    last = RouterArguments(
        f"{options.work}/routers", learning_rate=options.router_learning_rate, save_total_limit=1, **common
    )
    goes_on = last_checkpoint(f"{options.work}/routers") is not None
    mixture = train_router(
        upcycle(base, experts), splits["train"], last, data_collator=collator, resume_from_checkpoint=goes_on
    )
    stored = save_as_deltas(mixture, gene, options.output, **size, rank=options.rank, with_gene=False)

    test = known_types(splits, "test")
    whole, loaded = gene.descendant(**size), load_from_deltas(options.output, gene)
    models = [
        card_row(f"depth {options.depth}, width {options.width}", "descendant", whole, test, gene.processor, **size),
        card_row("mixture", "mixture", loaded, test, gene.processor, **size),
    ]
    write_card_results(Path(options.output, "results.json"), test, models, bytes=stored)


if __name__ == "__main__":
    main()
