"""Make the gene that comes with the package, from the ancestor that `benchmarks.ancestor` trained.

    python -m benchmarks.gene --ancestor runs/ancestor --output mmlg_hf/zoo/mmlg-fashion-48 [--data FOLDER]

Extracts (resuming from the last checkpoint in --work), stores the gene in float16, and measures on the test split: the
ancestor, the gene at full size, and descendants before any fine-tuning, into `results.json` beside the gene. A gene of
other blocks for comparison:

    python -m benchmarks.gene --num-multimodal-blocks 0 --num-unimodal-blocks 2 --work runs/two \\
        --output runs/gene-two --results benchmarks/results/gene-no-shared-block.json
"""

import argparse
import json
import shutil
from datetime import date
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPModel, CLIPProcessor
from transformers.trainer_utils import get_last_checkpoint

from benchmarks.fashion import HUB_ID, IMAGE, TITLE, TYPE, environment, load_splits, measure
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ancestor", default="runs/ancestor")
    parser.add_argument("--data", default=HUB_ID, help="Hub id or folder of the product photos")
    parser.add_argument("--work", default="runs/gene", help="folder of checkpoints")
    parser.add_argument("--output", default="mmlg_hf/zoo/mmlg-fashion-48")
    parser.add_argument("--results", help="JSON of the figures; by default results.json beside the gene")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--num-multimodal-blocks", type=int, help="blocks that both encoders share; 1 if not given")
    parser.add_argument("--num-unimodal-blocks", type=int, help="blocks of each encoder alone; 1 if not given")
    options = parser.parse_args()

    splits = load_splits(options.data)
    last = get_last_checkpoint(options.work) if Path(options.work).is_dir() else None
    blocks = {name: getattr(options, name) for name in ("num_multimodal_blocks", "num_unimodal_blocks")}
    args = arguments(options.work, max_steps=options.steps, **blocks)
    gene: Any = extract_learngene(options.ancestor, splits["train"], args, resume_from_checkpoint=last)
    gene.config.ancestor = {**gene.config.ancestor, "id": "CLIP of benchmarks.ancestor", "data": HUB_ID}
    gene.config.recipe = {**gene.config.recipe, "dataset": HUB_ID, "split": "train of benchmarks.fashion"}
    if Path(options.output).exists():
        shutil.rmtree(options.output)
    gene.to(torch.float16).save_pretrained(options.output)
    results = evaluate(options.ancestor, options.output, splits["test"], sorted(set(splits["train"][TYPE])))
    Path(options.results or Path(options.output, "results.json")).write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps(results, indent=1))


def evaluate(ancestor_folder: str, gene_folder: str, test: Any, class_names: list[str]) -> dict[str, Any]:
    """Measure ancestor, gene and descendants on the test split; the descendants come from the stored float16 gene.

    Returns the results as `mmlg_hf.results.read_results` takes them.
    """
    present = sorted({name for name in test[TYPE] if name in class_names})
    test = test.filter(lambda row: row[TYPE] in present)
    gene = LearngeneModel.from_pretrained(gene_folder, dtype=torch.float32)
    processor = CLIPProcessor.from_pretrained(gene_folder)

    def row(name: str, role: str, model: Any, config: Any, own: CLIPProcessor, **about: Any) -> dict[str, Any]:
        size, parameters = measure_size(config), model.num_parameters()
        stored_bytes = 2 if role == "gene" else 4  # the gene is stored in float16, models in float32
        about |= {"parameters": parameters, "megabytes": round(parameters * stored_bytes / 1e6, 2)}
        about |= {"gflops_image": round(size.gflops_image or 0, 4), "gflops_text": round(size.gflops_text or 0, 4)}
        return {"name": name, "role": role, **about, "figures": measure(model, test, own, present)}

    ancestor = CLIPModel.from_pretrained(ancestor_folder)
    models = [
        row("ancestor", "ancestor", ancestor, ancestor.config, CLIPProcessor.from_pretrained(ancestor_folder)),
        row("gene", "gene", gene, gene.config.descendant_config(), processor),
    ]
    for depth, width in SIZES:
        model = from_learngene(gene_folder, depth, width)
        about = {"depth": depth, "width": width, "steps": 0}
        models.append(row(f"depth {depth}, width {width}", "descendant", model, model.config, processor, **about))
    split = f"test (one in ten by hash of the id: {len(test)} pairs, {len(present)} classes)"
    return {
        "dataset": {"id": HUB_ID, "split": split},
        "shown": ["top1", "mean_per_class", "image_to_text_R@1", "text_to_image_R@1"],
        **environment(),
        "date": date.today().isoformat(),
        "models": models,
    }


if __name__ == "__main__":
    main()
