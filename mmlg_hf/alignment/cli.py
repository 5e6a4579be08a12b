"""`mmlg align`: align an image encoder and a text encoder by training a few per cent of their weights."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from ..errors import LearngeneError
from ..saving import check_writable, save_processor
from ..shell.devices import Device, train_on
from ..shell.options import (
    BatchSize,
    Data,
    Epochs,
    ImageColumn,
    LearningRate,
    Limit,
    MaxSteps,
    NumWorkers,
    Revision,
    Seed,
    TextColumn,
)
from ..shell.printing import AsJson, console, print_json, stdout_for_json

EPILOG = (
    "Example: mmlg align google/vit-base-patch16-224 sentence-transformers/all-MiniLM-L6-v2 --text-pooling mean "
    "--data DATASET --output pair"
)

_CHOOSING_PAIRS = 1000  # that layers are compared on
# What the config says of a run, beside its encoders.
_DESCRIBED = (
    *("recipe", "vision_pooling", "text_pooling", "projection_dim"),
    *("projection_head", "head_expansion", "structure_weight"),
)

# Of the training, beside what options set; warm-up is a share of all steps.
_SETTINGS: dict[str, Any] = {
    "warmup_steps": 0.1,
    "lr_scheduler_type": "cosine",
    "weight_decay": 0.02,
    "logging_steps": 10,
    "save_total_limit": 1,
    "report_to": "none",
}


def align(
    vision: Annotated[str, typer.Argument(help="The image encoder: a Hub id or a folder, with its image processor.")],
    text: Annotated[str, typer.Argument(help="The text encoder: a Hub id or a folder, with its tokenizer.")],
    data: Data,
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
    head: Annotated[str, typer.Option(help="linear, mlp or glu: what leads into the shared space.")] = "linear",
    structure_weight: Annotated[
        float, typer.Option(min=0, help="Of STRUCTURE's regulariser, which helps with few pairs; the paper has 10.")
    ] = 0.0,
    vision_layers: Annotated[
        int | None, typer.Option(help="Keep so many of the image encoder's first layers; all if left out.")
    ] = None,
    text_layers: Annotated[
        int | None, typer.Option(help="Keep so many of the text encoder's first layers; all if left out.")
    ] = None,
    best_layers: Annotated[
        bool, typer.Option("--best-layers", help="Keep the layers that are most alike, told on up to 1,000 pairs.")
    ] = False,
    split: Annotated[str, typer.Option(help="Split to train on.")] = "train",
    eval_split: Annotated[str | None, typer.Option(help="Split to measure retrieval on, before and after.")] = None,
    image_column: ImageColumn = None,
    text_column: TextColumn = None,
    limit: Limit = None,
    batch_size: BatchSize = 128,
    learning_rate: LearningRate = 1e-3,
    epochs: Epochs = 1.0,
    max_steps: MaxSteps = -1,
    num_workers: NumWorkers = 0,
    whole: Annotated[bool, typer.Option("--whole", help="Save the frozen weights too.")] = False,
    vision_revision: Revision = None,
    text_revision: Revision = None,
    seed: Seed = 42,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Align an image encoder and a text encoder with LilT, or another recipe, and save what was trained."""
    check_writable(output)
    if best_layers and (vision_layers or text_layers):
        raise LearngeneError("--best-layers chooses both: leave --vision-layers and --text-layers out")
    trained_on = train_on(device)
    from transformers import TrainingArguments, set_seed

    from ..data import find_columns, load_image_text
    from ..data.identity import begin_run
    from ..data.texts import longest_text
    from ..training.resuming import last_checkpoint
    from ..training.trainer import ContrastiveTrainer, ImageTextCollator
    from .joining import align as join
    from .joining import processor_of_pair
    from .saving import write_card

    rows: Any = load_image_text(data, split)
    if limit is not None:
        rows = rows.take(limit)
    found = find_columns(rows, image_column, text_column)
    columns: dict[str, Any] = dict(zip(("image_column", "text_column"), found, strict=True))
    held_out: Any = load_image_text(data, eval_split) if eval_split else None
    settings: dict[str, Any] = {
        "vision_pooling": vision_pooling,
        "text_pooling": text_pooling,
        "projection_dim": projection_dim,
        "projection_head": head,
        "structure_weight": structure_weight,
        "vision_revision": vision_revision,
        "text_revision": text_revision,
    }
    layers: dict[str, Any] = {"vision_layers": vision_layers, "text_layers": text_layers}
    with stdout_for_json(as_json):
        if best_layers:
            layers = _best_layers(join(vision, text, recipe, **settings), rows, columns)
        set_seed(seed)
        model = join(vision, text, recipe, **settings, **layers)
        processor = processor_of_pair(model)
    args = TrainingArguments(
        output_dir=str(output),
        per_device_train_batch_size=batch_size,
        learning_rate=learning_rate,
        num_train_epochs=epochs,
        max_steps=max_steps,
        dataloader_num_workers=num_workers,
        seed=seed,
        **_SETTINGS,
        **trained_on,
    )
    checkpoint = last_checkpoint(output)
    run = _describe_run(model, processor, rows, columns, args)
    begin_run(output / "align.json", run, goes_on=checkpoint is not None)
    collated = {**columns, "max_length": longest_text(processor.tokenizer, model.config.text_config)}
    with stdout_for_json(as_json):
        model.print_trainable_parameters()
        before = _retrieval(model, held_out, processor, columns, args.device)
        rows = _kept(model, rows, processor, collated, args)
        collator = ImageTextCollator(processor, **collated)
        trainer = ContrastiveTrainer(model, args, train_dataset=rows, data_collator=collator)
        trainer.train(resume_from_checkpoint=checkpoint)
        model.save_pretrained(output, trained_only=False if whole else None)
        save_processor(processor, output)
        write_card(output, model.config, repo_id=str(output))
        after = _retrieval(model, held_out, processor, columns, args.device)
    size = (output / "model.safetensors").stat().st_size
    if as_json:
        print_json({"output": str(output), "bytes": size, "retrieval": {"before": before, "after": after}})
        return
    _show(before, after)
    console.print(f"{output} holds the aligned pair: {size / 1e6:.1f} MB of weights. Load it with AutoModel.")


def _best_layers(model: Any, rows: Any, columns: dict[str, Any]) -> dict[str, int]:
    from .joining import processor_of_pair
    from .layers import choose_layers

    few = rows.select(range(min(_CHOOSING_PAIRS, len(rows))))
    vision, text = choose_layers(model, few, processor_of_pair(model), **columns)
    console.print(f"the layers that are most alike: {vision} of the image encoder and {text} of the text encoder")
    return {"vision_layers": vision, "text_layers": text}


def _kept(model: Any, rows: Any, processor: Any, collated: dict[str, Any], args: Any) -> Any:
    """The states of pairs that frozen encoders see more than once; else the pairs.

    Not of pairs with several captions, of which each epoch draws one.
    """
    from .states import keep_states, trains_heads_alone

    seen = args.max_steps * args.train_batch_size if args.max_steps > 0 else args.num_train_epochs * len(rows)
    if not trains_heads_alone(model) or seen <= len(rows) or not isinstance(rows[0][collated["text_column"]], str):
        return rows
    return keep_states(model.to(args.device), rows, processor, batch_size=args.train_batch_size, **collated)


def _describe_run(model: Any, processor: Any, rows: Any, columns: dict[str, Any], args: Any) -> dict[str, Any]:
    """Everything that must not change where a run is gone on with."""
    from ..data import fingerprint_processor
    from ..data.identity import PROCESSING_VERSION, fingerprint_data, fingerprint_model

    config = model.config
    return {
        "processing_version": PROCESSING_VERSION,
        "seed": args.seed,
        **{name: getattr(config, name) for name in _DESCRIBED},
        "vision_encoder": fingerprint_model(model.vision_model),
        "text_encoder": fingerprint_model(model.text_model),
        "processor": fingerprint_processor(processor),
        **columns,
        "pairs": len(rows),
        "data": fingerprint_data(rows, columns.values()),
        "batch_size": args.per_device_train_batch_size,
        "learning_rate": args.learning_rate,
        "epochs": args.num_train_epochs,
        "max_steps": args.max_steps,
    }


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
