"""Make the gene that comes with the package, from the kept ancestor, see `benchmarks.make.ancestor`.

    python -m benchmarks.make.gene --output mmlg_hf/zoo/mmlg-fashion-48 [--data FOLDER]

Extracts (resuming from the last checkpoint in --work), stores the gene in float16, and measures on the test split: the
ancestor, the gene at full size, and descendants before any fine-tuning, into `results.json` beside the gene. A gene of
other blocks for comparison:

    python -m benchmarks.make.gene --num-multimodal-blocks 0 --num-unimodal-blocks 2 --work runs/two \\
        --output runs/gene-two --results benchmarks/extraction/results/no-shared-block.json
"""

import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPModel, CLIPProcessor
from transformers.trainer_utils import get_last_checkpoint

from benchmarks.common.fashion import (
    ANCESTOR,
    HUB_ID,
    IMAGE,
    TITLE,
    card_row,
    known_types,
    load_splits,
    write_card_results,
)
from benchmarks.common.options import parse
from mmlg_hf import ExtractionArguments, LearngeneModel, extract_learngene, from_learngene
from mmlg_hf.inspection import measure_size

# (depth, width) of the descendants measured before any fine-tuning.
SIZES = [(6, 192), (3, 192), (6, 96), (3, 96), (2, 192), (6, 64), (2, 96), (12, 192)]
STEPS = 1600


def arguments(output: str, **changes: Any) -> ExtractionArguments:
    """Return the settings of the bundled gene, with changes."""
    settings = {
        "max_steps": STEPS,
        "per_device_train_batch_size": 16,
        "logging_steps": 20,
        "save_steps": 100,
        "save_total_limit": 1,
        "report_to": "none",
        "seed": 0,
        "image_column": IMAGE,
        "text_column": TITLE,
        "trim_vocabulary": True,
    }
    return ExtractionArguments(output, **(settings | changes))


def main() -> None:
    options = parse(
        __doc__,
        "data",
        ancestor=(ANCESTOR, "folder or Hub id"),
        work=("runs/gene", "folder of checkpoints"),
        output=("mmlg_hf/zoo/mmlg-fashion-48", "folder of the gene"),
        results=(str, "JSON of the figures; by default results.json beside the gene"),
        steps=(STEPS, "of extraction"),
        num_multimodal_blocks=(int, "blocks that both encoders share; 1 if not given"),
        num_unimodal_blocks=(int, "blocks of each encoder alone; 1 if not given"),
    )
    splits = load_splits(options.data)
    last = get_last_checkpoint(options.work) if Path(options.work).is_dir() else None
    blocks = {name: getattr(options, name) for name in ("num_multimodal_blocks", "num_unimodal_blocks")}
    args = arguments(options.work, max_steps=options.steps, **blocks)
    gene: Any = extract_learngene(options.ancestor, splits["train"], args, resume_from_checkpoint=last)
    gene.config.ancestor = {**gene.config.ancestor, "id": "mmlg-hf/mmlg-fashion-48-ancestor", "data": HUB_ID}
    gene.config.recipe = {**gene.config.recipe, "dataset": HUB_ID, "split": "train of benchmarks.common.fashion"}
    if Path(options.output).exists():
        shutil.rmtree(options.output)
    gene.to(torch.float16).save_pretrained(options.output)
    test = known_types(splits, "test")
    models = evaluate(options.ancestor, options.output, test)
    write_card_results(Path(options.results or Path(options.output, "results.json")), test, models)


def evaluate(ancestor_folder: str, gene_folder: str, test: Any) -> list[dict[str, Any]]:
    """Measure ancestor, gene and descendants on the test split; the descendants come from the stored float16 gene."""
    gene = LearngeneModel.from_pretrained(gene_folder, dtype=torch.float32)
    processor = CLIPProcessor.from_pretrained(gene_folder)

    def row(name: str, role: str, model: Any, config: Any, own: CLIPProcessor, **about: Any) -> dict[str, Any]:
        size = measure_size(config)
        about |= {"gflops_image": round(size.gflops_image or 0, 4), "gflops_text": round(size.gflops_text or 0, 4)}
        return card_row(name, role, model, test, own, **about)

    ancestor, own = CLIPModel.from_pretrained(ancestor_folder), CLIPProcessor.from_pretrained(ancestor_folder)
    stored = {"megabytes": round(gene.num_parameters() * 2e-6, 2)}  # the gene is stored in float16, models in float32
    models = [
        row("ancestor", "ancestor", ancestor, ancestor.config, own),
        row("gene", "gene", gene, gene.config.descendant_config(), processor, **stored),
    ]
    for depth, width in SIZES:
        model = from_learngene(gene_folder, depth, width)
        about = {"depth": depth, "width": width, "steps": 0}
        models.append(row(f"depth {depth}, width {width}", "descendant", model, model.config, processor, **about))
    return models


if __name__ == "__main__":
    main()
