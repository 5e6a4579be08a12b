"""Align an image encoder and a text encoder that were trained apart, saving a few megabytes beside them.

    python examples/alignment.py --vision ENCODER --text ENCODER --data DATASET

Any encoders that transformers knows will do, by Hub id or folder: descendants of a gene (`mmlg descend GENE --modality
image` and `--modality text`), or google/vit-base-patch16-224 and sentence-transformers/all-MiniLM-L6-v2.
"""

import argparse

from datasets import load_dataset
from transformers import AutoModel, TrainingArguments

from mmlg_hf import ContrastiveTrainer, evaluate_retrieval
from mmlg_hf.alignment import RECIPES, align, processor_of_pair


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vision", required=True, help="image encoder: Hub id or folder")
    parser.add_argument("--text", required=True, help="text encoder: Hub id or folder")
    parser.add_argument("--data", default="ashraq/fashion-product-images-small", help="image-text dataset")
    parser.add_argument("--recipe", default="lilt", help=", ".join(RECIPES))
    parser.add_argument("--text-pooling", help="class, mean, end or pooler; sentence encoders want mean")
    parser.add_argument("--output", default="pair")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=64)
    options = parser.parse_args()

    # 1. Join the encoders. Only what the recipe names will train.
    model = align(options.vision, options.text, options.recipe, text_pooling=options.text_pooling)
    processor = processor_of_pair(model)
    model.print_trainable_parameters()

    # 2. Train on pairs, with the negatives of all processes, as with any Trainer.
    held_out_rows = 500
    splits = load_dataset(options.data, split="train").train_test_split(test_size=held_out_rows, seed=0)
    trainer = ContrastiveTrainer(
        model,
        TrainingArguments(
            output_dir=options.output,
            max_steps=options.steps,
            per_device_train_batch_size=options.batch_size,
            learning_rate=1e-3,
            warmup_steps=options.steps // 10,
            save_strategy="no",
            report_to="none",
        ),
        train_dataset=splits["train"],
        processing_class=processor,
    )
    before = evaluate_retrieval(model, splits["test"], processor)
    trainer.train()
    after = evaluate_retrieval(model, splits["test"], processor)
    print(f"R@1 among {held_out_rows}: {before['mean_R@1']:.3f} before, {after['mean_R@1']:.3f} after")

    # 3. Save the trained part; loading fetches the encoders it belongs to.
    model.save_pretrained(options.output)
    processor.save_pretrained(options.output)
    print(type(AutoModel.from_pretrained(options.output)).__name__, "loaded again from", options.output)


if __name__ == "__main__":
    main()
