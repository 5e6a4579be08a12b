"""Make the zoo's aligned pair: an image-only and a text-only descendant of the bundled gene, aligned with LilT.

    python -m benchmarks.aligned_pair [--data FOLDER] [--steps 150]

The two are grown apart and joined without the gene's projections: new ones, adapters and LayerNorms are trained. They
come from one gene, so this shows what the format takes and keeps, not encoders that never met; `benchmarks.alignment`
has those. Stored is the trained part alone, which belongs to the bundled gene as it is: make it anew with the gene.
Measured on the test split before and after, beside the descendant of the same size that was never taken apart.
"""

import argparse
import json
import shutil
from datetime import date
from pathlib import Path
from typing import Any

from transformers import TrainingArguments, set_seed

from benchmarks.fashion import HUB_ID, IMAGE, TITLE, TYPE, environment, load_splits, measure
from mmlg_hf import from_learngene
from mmlg_hf.alignment import DualEncoderModel, align, load_processor
from mmlg_hf.training import ContrastiveTrainer, ImageTextCollator

GENE = "mmlg-fashion-48"
GENE_RESULTS = Path(__file__).parent.parent / "mmlg_hf" / "zoo" / GENE / "results.json"
DEPTH, IMAGE_WIDTH, TEXT_WIDTH, PROJECTION_DIM = 3, 96, 64, 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=HUB_ID, help="Hub id or folder of the product photos")
    parser.add_argument("--output", default="upload/artifacts/mmlg-fashion-48-pair-3x96")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    options = parser.parse_args()

    set_seed(0)
    splits = load_splits(options.data)
    model = align(
        from_learngene(GENE, DEPTH, IMAGE_WIDTH, "image"),
        from_learngene(GENE, DEPTH, TEXT_WIDTH, "text"),
        "lilt",
        projection_dim=PROJECTION_DIM,
    )
    processor = load_processor(model)
    names = sorted(set(splits["test"][TYPE]))
    before = measure(model, splits["test"], processor, names)
    args = TrainingArguments(
        output_dir="runs/aligned_pair",
        max_steps=options.steps,
        per_device_train_batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        weight_decay=0.02,
        warmup_steps=options.steps // 10,
        lr_scheduler_type="cosine",
        logging_steps=max(1, options.steps // 5),
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=0,
    )
    collator = ImageTextCollator(processor, image_column=IMAGE, text_column=TITLE)
    ContrastiveTrainer(model, args, train_dataset=splits["train"], data_collator=collator).train()
    folder = Path(options.output)
    if folder.exists():
        shutil.rmtree(folder)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    loaded: Any = DualEncoderModel.from_pretrained(folder)  # what is measured is what is stored
    after = measure(loaded, splits["test"], processor, names)
    results = report(model, folder, before, after, options.steps, len(splits["test"]), len(names))
    (folder / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps(results, indent=1))


def report(
    model: DualEncoderModel, folder: Path, before: dict, after: dict, steps: int, pairs: int, classes: int
) -> dict[str, Any]:
    """The results as `mmlg_hf.results.read_results` takes them."""
    trained, total = model.get_nb_trainable_parameters()
    of_gene = json.loads(GENE_RESULTS.read_text())
    whole = next(row for row in of_gene["models"] if row["name"] == f"depth {DEPTH}, width {IMAGE_WIDTH}")
    stored = round((folder / "model.safetensors").stat().st_size / 1e6, 2)
    size = {"parameters": total, "depth": DEPTH, "width": IMAGE_WIDTH}
    return {
        "dataset": {"id": HUB_ID, "split": f"test (one in ten by hash of the id: {pairs} pairs, {classes} classes)"},
        "shown": of_gene["shown"],
        **environment(),
        "date": date.today().isoformat(),
        "trained_share": trained / total,
        "models": [
            {**whole, "name": f"{whole['name']}, never taken apart"},
            {"name": "joined, not aligned yet", "role": "aligned-pair", **size, "steps": 0, "figures": before},
            {
                "name": "aligned pair",
                "role": "aligned-pair",
                **size,
                "megabytes": stored,
                "steps": steps,
                "figures": after,
            },
        ],
    }


if __name__ == "__main__":
    main()
