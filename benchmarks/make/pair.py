"""Make the zoo's aligned pair: an image-only and a text-only descendant of the bundled gene, aligned with LilT.

    python -m benchmarks.make.pair [--data FOLDER] [--steps 150]

The two are grown apart and joined without the gene's projections: new ones, adapters and LayerNorms are trained. They
come from one gene, so this shows what the format takes and keeps, not encoders that never met; `benchmarks.alignment`
has those. Stored is the trained part alone, which belongs to the bundled gene as it is: make it anew with the gene.
Measured on the test split before and after, beside the descendant of the same size that was never taken apart.
"""

import shutil
from pathlib import Path
from typing import Any

from transformers import TrainingArguments, set_seed

from benchmarks.common.fashion import IMAGE, TITLE, card_row, load_splits, write_card_results
from benchmarks.common.options import parse
from benchmarks.common.results import read
from benchmarks.common.training import training
from mmlg_hf import from_learngene
from mmlg_hf.alignment import DualEncoderModel, align, processor_of_pair
from mmlg_hf.saving import save_processor
from mmlg_hf.training import ContrastiveTrainer, ImageTextCollator

GENE = "mmlg-fashion-48"
GENE_RESULTS = Path(__file__).parent.parent.parent / "mmlg_hf" / "zoo" / GENE / "results.json"
DEPTH, IMAGE_WIDTH, TEXT_WIDTH, PROJECTION_DIM = 3, 96, 64, 64


def main() -> None:
    options = parse(
        __doc__,
        "data",
        output=("upload/artifacts/mmlg-fashion-48-pair-3x96", "folder of the pair"),
        steps=(150, "of alignment"),
        batch_size=(64, "pairs a step"),
        learning_rate=(3e-3, "peak learning rate"),
    )
    set_seed(0)
    splits, folder = load_splits(options.data), Path(options.output)
    image = from_learngene(GENE, DEPTH, IMAGE_WIDTH, "image")
    text = from_learngene(GENE, DEPTH, TEXT_WIDTH, "text")
    model = align(image, text, "lilt", projection_dim=PROJECTION_DIM)
    processor = processor_of_pair(model)
    trained, total = model.get_nb_trainable_parameters()
    row = {"role": "aligned-pair", "test": splits["test"], "processor": processor}
    row |= {"parameters": total, "depth": DEPTH, "width": IMAGE_WIDTH}
    before = card_row("joined, not aligned yet", model=model, steps=0, **row)
    before.pop("megabytes")  # it is not stored
    length = (options.steps, options.batch_size, options.learning_rate)
    logged = {"logging_strategy": "steps", "logging_steps": max(1, options.steps // 5)}
    args = TrainingArguments(**training("runs/pair", *length, weight_decay=0.02, seed=0, **logged))
    collator = ImageTextCollator(processor, image_column=IMAGE, text_column=TITLE)
    ContrastiveTrainer(model, args, train_dataset=splits["train"], data_collator=collator).train()
    if folder.exists():
        shutil.rmtree(folder)
    model.save_pretrained(folder)
    save_processor(processor, folder)
    loaded: Any = DualEncoderModel.from_pretrained(folder)  # what is measured is what is stored
    megabytes = round((folder / "model.safetensors").stat().st_size / 1e6, 2)
    after = card_row("aligned pair", model=loaded, steps=options.steps, **row, megabytes=megabytes)

    name = f"depth {DEPTH}, width {IMAGE_WIDTH}"
    whole = next(row for row in read(GENE_RESULTS)["models"] if row["name"] == name)
    models = [{**whole, "name": f"{name}, never taken apart"}, before, after]
    write_card_results(folder / "results.json", splits["test"], models, trained_share=trained / total)


if __name__ == "__main__":
    main()
