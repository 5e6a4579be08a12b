"""`mmlg align`: align an image encoder and a text encoder by training a few per cent of their weights."""

from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from ..saving import check_writable
from ..shell.devices import Device, train_on
from ..shell.printing import AsJson, console, print_json, stdout_for_json

EPILOG = (
    "Example: mmlg align google/vit-base-patch16-224 sentence-transformers/all-MiniLM-L6-v2 --text-pooling mean "
    "--data DATASET --output pair"
)
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit on the Hub.", show_default="main")]


def align(
    vision: Annotated[str, typer.Argument(help="The image encoder: a Hub id or a folder, with its image processor.")],
    text: Annotated[str, typer.Argument(help="The text encoder: a Hub id or a folder, with its tokenizer.")],
    data: Annotated[str, typer.Option(help="Image-text dataset: a Hub id, or a folder in datasets format.")],
    output: Annotated[
        Path, typer.Option(help="Folder of the aligned pair; run again to go on after an interruption.")
    ],
    recipe: Annotated[
        str, typer.Option(help="full, lit, projections, layernorm, bitfit, adapters, lilt or lora.")
    ] = "lilt",
    vision_pooling: Annotated[
        str | None, typer.Option(help="class, mean or pooler; by the encoder if left out.")
    ] = None,
    text_pooling: Annotated[
        str | None, typer.Option(help="class, mean, end or pooler; by the encoder if left out.")
    ] = None,
    projection_dim: Annotated[int, typer.Option(min=1, help="Size of the shared space.")] = 256,
    split: Annotated[str, typer.Option(help="Split to train on.")] = "train",
    eval_split: Annotated[str | None, typer.Option(help="Split to measure retrieval on, before and after.")] = None,
    image_column: Annotated[str | None, typer.Option(help="Image column; found by itself if left out.")] = None,
    text_column: Annotated[str | None, typer.Option(help="Text column; found by itself if left out.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Use only this many rows, from the first.")] = None,
    batch_size: Annotated[int, typer.Option(min=2, help="Pairs in one batch on each process.")] = 128,
    learning_rate: Annotated[float, typer.Option(help="Peak learning rate.")] = 1e-3,
    epochs: Annotated[float, typer.Option(min=0.0, help="Passes over the data.")] = 1.0,
    max_steps: Annotated[int, typer.Option(help="Stop after this many steps; -1 goes by epochs.")] = -1,
    whole: Annotated[bool, typer.Option("--whole", help="Save the frozen weights too.")] = False,
    vision_revision: Revision = None,
    text_revision: Revision = None,
    seed: Annotated[int, typer.Option(help="Seeds everything that is drawn.")] = 42,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Align an image encoder and a text encoder with LilT, or another recipe, and save what was trained."""
    check_writable(output)
    trained_on = train_on(device)
    from transformers import TrainingArguments, set_seed

    from ..data import find_columns, load_image_text, processor_key
    from ..data.identity import PROCESSING_VERSION, begin_run, fingerprint_data, fingerprint_model
    from ..data.texts import longest_text
    from ..training.resuming import last_checkpoint
    from ..training.trainer import ContrastiveTrainer, ImageTextCollator
    from .joining import align as join
    from .joining import load_processor
    from .saving import write_card

    set_seed(seed)
    rows: Any = load_image_text(data, split)
    if limit is not None:
        rows = rows.take(limit)
    columns: dict[str, Any] = dict(
        zip(("image_column", "text_column"), find_columns(rows, image_column, text_column), strict=True)
    )
    held_out: Any = load_image_text(data, eval_split) if eval_split else None
    model = join(
        vision,
        text,
        recipe,
        vision_pooling=vision_pooling,
        text_pooling=text_pooling,
        projection_dim=projection_dim,
        vision_revision=vision_revision,
        text_revision=text_revision,
    )
    processor = load_processor(model)
    args = TrainingArguments(
        output_dir=str(output),
        per_device_train_batch_size=batch_size,
        learning_rate=learning_rate,
        num_train_epochs=epochs,
        max_steps=max_steps,
        warmup_steps=0.1,  # a share of all steps
        lr_scheduler_type="cosine",
        weight_decay=0.02,
        logging_steps=10,
        save_total_limit=1,
        report_to="none",
        seed=seed,
        **trained_on,
    )
    checkpoint = last_checkpoint(output)
    settings = {
        "processing_version": PROCESSING_VERSION,
        "seed": seed,
        "recipe": recipe,
        "vision_pooling": model.config.vision_pooling,
        "text_pooling": model.config.text_pooling,
        "projection_dim": projection_dim,
        "vision_encoder": fingerprint_model(model.vision_model),
        "text_encoder": fingerprint_model(model.text_model),
        "processor": sha256(processor_key(processor).encode()).hexdigest()[:32],
        **columns,
        "pairs": len(rows),
        "data": fingerprint_data(rows, columns.values()),
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "epochs": epochs,
        "max_steps": max_steps,
    }
    begin_run(output / "align.json", settings, goes_on=checkpoint is not None)
    max_length = longest_text(processor.tokenizer, model.config.text_config)
    collator = ImageTextCollator(processor, max_length=max_length, **columns)
    with stdout_for_json(as_json):
        model.print_trainable_parameters()
        before = _retrieval(model, held_out, processor, columns, args.device)
        trainer = ContrastiveTrainer(model, args, train_dataset=rows, data_collator=collator)
        trainer.train(resume_from_checkpoint=checkpoint)
        model.save_pretrained(output, trained_only=False if whole else None)
        processor.save_pretrained(output)
        write_card(output, model.config, repo_id=str(output))
        after = _retrieval(model, held_out, processor, columns, args.device)
    size = (output / "model.safetensors").stat().st_size
    if as_json:
        print_json({"output": str(output), "bytes": size, "retrieval": {"before": before, "after": after}})
        return
    _show(before, after)
    console.print(f"{output} holds the aligned pair: {size / 1e6:.1f} MB of weights. Load it with AutoModel.")


def _retrieval(model: Any, rows: Any, processor: Any, columns: dict[str, Any], device: Any) -> dict[str, float]:
    from ..evaluation.dual_encoders import evaluate_retrieval

    return {} if rows is None else evaluate_retrieval(model, rows, processor, device=device, **columns)


def _show(before: dict[str, float], after: dict[str, float]) -> None:
    if not after:
        return
    table = Table(title="retrieval")
    table.add_column("figure")
    for title in ("before", "after"):
        table.add_column(title, justify="right")
    for name, value in after.items():
        table.add_row(name, f"{before[name]:.4g}", f"{value:.4g}")
    console.print(table)
