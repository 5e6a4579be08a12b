"""Train the ancestor CLIP that the bundled gene is extracted from, on product photos, and keep it for the zoo.

    python -m benchmarks.make.ancestor [--data FOLDER] [--tokenizer FOLDER]

By Muon (2,400 steps of 128 pairs), as genes are extracted. Resumes from the last checkpoint in the output folder.
About 40 minutes on two cores. What is kept is cut to the vocabulary of the training titles, in float16, with what it
reaches on the test split.
"""

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import CLIPConfig, CLIPModel, CLIPProcessor, TrainingArguments, set_seed
from transformers.trainer_utils import get_last_checkpoint

from benchmarks.common.fashion import (
    ANCESTOR,
    HUB_ID,
    IMAGE_SIZE,
    MAX_TOKENS,
    TITLE,
    card_row,
    known_types,
    load_splits,
    make_processor,
    processed,
    write_card_results,
)
from benchmarks.common.options import parse
from benchmarks.common.training import training
from mmlg_hf.extraction.vocabulary import trim_embedding, trim_tokenizer
from mmlg_hf.saving import save_processor, whole_folder
from mmlg_hf.training import ContrastiveTrainer, ImageTextCollator, with_muon

HOW = ("learning_rate", "muon_learning_rate", "seed", "torch_compile")  # options that training takes as they are


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
    muon_learning_rate: float | None = None,
    **changes: Any,
) -> None:
    """Train a CLIP from scratch, from the last checkpoint in the folder if there is one; save both."""
    settings = training(output, steps, batch_size, 1e-3, weight_decay=0.1, adam_beta2=0.98, disable_tqdm=False)
    settings |= {"warmup_steps": steps // 20, "logging_strategy": "steps", "logging_steps": 25}
    settings |= {"save_strategy": "steps", "save_steps": 100, "save_total_limit": 1}
    args = TrainingArguments(**(settings | changes))
    set_seed(args.seed)
    model = CLIPModel(config)
    collator = ImageTextCollator(processor, pad_to_multiple_of=processor.tokenizer.model_max_length)
    train = processed(rows, processor, text_column)
    by_muon = with_muon(args, muon_learning_rate) if muon_learning_rate else None
    trainer = ContrastiveTrainer(model, args, collator, train, optimizer_cls_and_kwargs=by_muon)
    trainer.train(resume_from_checkpoint=get_last_checkpoint(output) if Path(output).exists() else None)
    save_processor(processor, output)
    model.save_pretrained(output)  # last: what is there then is whole


def keep(trained: str, rows: Any, folder: str, recipe: dict[str, Any]) -> CLIPModel:
    """Store a trained ancestor in float16 with the vocabulary of its training titles; return it as stored."""
    model, processor = CLIPModel.from_pretrained(trained), CLIPProcessor.from_pretrained(trained)
    parameters = model.num_parameters()
    tokenizer, old_ids = trim_tokenizer(processor.tokenizer, rows[TITLE])
    trim_embedding(model, tokenizer, old_ids)
    model.config.recipe = recipe | {"parameters_before_trimming": parameters}
    with whole_folder(folder) as whole:
        model.half().save_pretrained(whole)
        CLIPProcessor(processor.image_processor, tokenizer).save_pretrained(whole)
    return CLIPModel.from_pretrained(folder, dtype=torch.float32)


def main() -> None:
    options = parse(
        __doc__,
        *("data", "tokenizer"),
        work=("runs/ancestor", "folder of the checkpoints and of the model as trained"),
        output=(ANCESTOR, "folder of what is kept"),
        steps=(2400, "of training"),
        batch_size=(128, "pairs a step"),
        learning_rate=(2e-3, "peak learning rate, of AdamW"),
        muon_learning_rate=(3e-3, "of Muon, for the layers' matrices; 0 leaves them to AdamW, then best at 1e-3"),
        seed=(0, "of weights and order"),
        torch_compile=(False, "needs a C++ compiler; a fifth faster on a CPU"),
    )
    processor, splits = make_processor(options.tokenizer), load_splits(options.data)
    rows, changes = splits["train"], {name: getattr(options, name) for name in HOW}
    length = (options.steps, options.batch_size)
    config = ancestor_config(processor.tokenizer)
    if not Path(options.work, "model.safetensors").exists():
        train_ancestor(config, rows, processor, options.work, *length, TITLE, **changes)
    recipe = {"dataset": HUB_ID, "split": "train of benchmarks.common.fashion", "pairs": len(rows)}
    recipe |= {name: getattr(options, name) for name in ("steps", "batch_size", *HOW[:3])}
    kept, test = keep(options.work, rows, options.output, recipe), known_types(splits, "test")
    stored = {"megabytes": round(kept.num_parameters() * 2e-6, 2)}
    row = card_row("ancestor", "ancestor", kept, test, CLIPProcessor.from_pretrained(options.output), **stored)
    write_card_results(Path(options.output, "results.json"), test, [row])


if __name__ == "__main__":
    main()
