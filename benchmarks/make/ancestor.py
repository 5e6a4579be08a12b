"""Train the ancestor CLIP that the bundled gene is extracted from, on product photos.

    python -m benchmarks.ancestor --output runs/ancestor [--data FOLDER] [--tokenizer FOLDER]

Resumes from the last checkpoint in the output folder. About 40 minutes on two cores.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import CLIPConfig, CLIPModel, TrainingArguments, set_seed
from transformers.trainer_utils import get_last_checkpoint

from benchmarks.fashion import HUB_ID, IMAGE, IMAGE_SIZE, MAX_TOKENS, TITLE, TOKENIZER_ID, load_splits, make_processor
from mmlg_hf.data import process_pairs
from mmlg_hf.training import ContrastiveTrainer, ImageTextCollator


def ancestor_config(tokenizer) -> CLIPConfig:
    """Unequal encoders in the proportion of CLIP B (768 / 512): 6 layers x 192 for images, 6 x 128 for text."""
    common = {"hidden_act": "gelu", "num_hidden_layers": 6, "projection_dim": 128}
    vision = {"image_size": IMAGE_SIZE, "patch_size": 8, "hidden_size": 192, "num_attention_heads": 6}
    text = {"vocab_size": len(tokenizer), "hidden_size": 128, "num_attention_heads": 4}
    special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    return CLIPConfig(
        vision_config=common | vision | {"intermediate_size": 768},
        text_config=common | text | special | {"intermediate_size": 512, "max_position_embeddings": MAX_TOKENS},
        projection_dim=128,
    )


def train_ancestor(
    config: CLIPConfig,
    rows: Dataset,
    processor: Any,
    output: str,
    steps: int,
    batch_size: int,
    text_column: str = "text",
    **changes: Any,
) -> tuple[CLIPModel, ContrastiveTrainer, float]:
    """Train a CLIP from scratch, from the last checkpoint in the folder if there is one; save it with its processor.

    Returns the model, its trainer and the seconds it took.
    """
    settings: dict[str, Any] = {
        "max_steps": steps,
        "per_device_train_batch_size": batch_size,
        "learning_rate": 1e-3,
        "weight_decay": 0.1,
        "adam_beta2": 0.98,
        "warmup_steps": steps // 20,
        "lr_scheduler_type": "cosine",
        "logging_steps": 25,
        "save_steps": 100,
        "save_total_limit": 1,
        "report_to": "none",
    }
    args = TrainingArguments(output, **(settings | changes))
    set_seed(args.seed)
    model = CLIPModel(config)
    collator = ImageTextCollator(processor, pad_to_multiple_of=processor.tokenizer.model_max_length)
    train = process_pairs(rows, processor, image_column=IMAGE, text_column=text_column)
    trainer = ContrastiveTrainer(model, args, train_dataset=train, data_collator=collator)
    started = time.time()
    trainer.train(resume_from_checkpoint=get_last_checkpoint(output) if Path(output).exists() else None)
    model.save_pretrained(output)
    processor.save_pretrained(output)
    return model, trainer, time.time() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=HUB_ID, help="Hub id or folder of the product photos")
    parser.add_argument("--tokenizer", default=TOKENIZER_ID, help="Hub id or folder with CLIP's BPE vocabulary")
    parser.add_argument("--output", default="runs/ancestor")
    parser.add_argument("--steps", type=int, default=2400)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--torch-compile", action="store_true", help="needs a C++ compiler; a fifth faster on a CPU")
    options = parser.parse_args()

    processor = make_processor(options.tokenizer)
    model, trainer, seconds = train_ancestor(
        ancestor_config(processor.tokenizer),
        load_splits(options.data)["train"],
        processor,
        options.output,
        options.steps,
        options.batch_size,
        text_column=TITLE,
        learning_rate=options.learning_rate,
        seed=options.seed,
        torch_compile=options.torch_compile,
    )
    record = {
        **vars(options),
        "train_pairs": len(trainer.train_dataset),
        "seconds": round(seconds),
        "parameters": model.num_parameters(),
        "torch": torch.__version__,
        "log": trainer.state.log_history,
    }
    Path(options.output, "training.json").write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
