"""The command `mmlg`: extract a gene, inspect it, grow descendants, evaluate models, run the demo.

torch and transformers are imported when a command runs, so that `--help` answers at once.
"""

import json
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text
from typer.core import TyperGroup

from .alignment.cli import EPILOG as ALIGN_EPILOG
from .alignment.cli import align
from .clip_moe.cli import app as clip_moe_app
from .errors import LearngeneError
from .export.cli import COMPARE_EPILOG, EXPORT_EPILOG, compare, export
from .saving import whole_folder, write_json

console = Console()


class ErrorsInOneSentence(TyperGroup):
    """Commands whose `LearngeneError` becomes one sentence on stderr and exit code 2."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except LearngeneError as error:
            # Text and not markup: the sentence may hold square brackets.
            Console(stderr=True).print(Text(f"Error: {error}", style="red"), soft_wrap=True)
            raise typer.Exit(2) from error


app = typer.Typer(
    cls=ErrorsInOneSentence,
    help="Extract a learngene from a CLIP once, grow CLIP models of any depth, width and modality from it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)


class Modality(str, Enum):
    """What a descendant takes in."""

    multimodal = "multimodal"
    image = "image"
    text = "text"


class Task(str, Enum):
    """What a model is measured at."""

    retrieval = "retrieval"
    zero_shot = "zero-shot"
    classification = "classification"


def parse_size(value: str) -> int | tuple[int, int]:
    """Read a depth or width: one number, or VISION,TEXT."""
    try:
        numbers = tuple(int(part) for part in value.split(","))
    except ValueError:
        raise typer.BadParameter(f"{value!r} is neither a number nor a pair VISION,TEXT") from None
    if len(numbers) > 2:
        raise typer.BadParameter(f"{value!r} has {len(numbers)} numbers: give one, or a pair VISION,TEXT")
    return numbers[0] if len(numbers) == 1 else (numbers[0], numbers[1])


Gene = Annotated[str, typer.Argument(help="The gene: a Hub id, a folder, or the name of a bundled one.")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit on the Hub.", show_default="main")]
Output = Annotated[Path, typer.Option(help="Folder to write; it must not exist, or be empty.")]
Data = Annotated[str, typer.Option(help="Dataset: a Hub id, or a folder in datasets format.")]
ImageColumn = Annotated[str | None, typer.Option(help="Image column; found by itself where one stands out.")]
TextColumn = Annotated[str | None, typer.Option(help="Text column; found by itself where one stands out.")]


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    epilog="Example: mmlg extract openai/clip-vit-base-patch16 --data DATASET --output gene --max-steps 8000 "
    "--batch-size 64 --warmup_steps 100",
)
def extract(
    ctx: typer.Context,
    ancestor: Annotated[
        str, typer.Argument(help="The CLIP or image classifier to extract from: a Hub id or a folder.")
    ],
    data: Data,
    output: Output,
    split: Annotated[str | None, typer.Option(help="Split of the dataset.", show_default="train")] = None,
    image_column: ImageColumn = None,
    text_column: TextColumn = None,
    depth: Annotated[int | None, typer.Option(help="Layers of the gene.", show_default="the ancestor's")] = None,
    width: Annotated[
        int | None, typer.Option(help="hidden_size of its wider encoder.", show_default="the ancestor's")
    ] = None,
    epochs: Annotated[float | None, typer.Option(help="Passes over the data.", show_default="3")] = None,
    max_steps: Annotated[int | None, typer.Option(help="Steps, in place of epochs.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Pairs in a step of each process.", show_default="32")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak rate of AdamW.", show_default="1e-3")] = None,
    trim_vocabulary: Annotated[
        bool, typer.Option("--trim-vocabulary", help="Keep only the tokens that the data uses.")
    ] = False,
    skip_bad_images: Annotated[
        bool, typer.Option("--skip-bad-images", help="Leave unreadable images out instead of stopping.")
    ] = False,
    seed: Annotated[int | None, typer.Option(help="Seeds everything that is drawn.", show_default="42")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in the output.")] = False,
    revision: Revision = None,
) -> None:
    """Extract a gene from a CLIP with image-text data.

    Every other field of ExtractionArguments and TrainingArguments is an option under its own name, after ANCESTOR:
    --num_unimodal_blocks 2 --mixing chebyshev --muon_learning_rate 2e-3 --bf16 --save_steps 200 ...
    """
    if not resume:
        _check_empty(output)
    from .extraction.extracting import extract_learngene

    chosen = {
        "output_dir": str(output),
        "split": split,
        "image_column": image_column,
        "text_column": text_column,
        "gene_depth": depth,
        "gene_width": width,
        "num_train_epochs": epochs,
        "max_steps": max_steps,
        "per_device_train_batch_size": batch_size,
        "learning_rate": learning_rate,
        "trim_vocabulary": trim_vocabulary or None,
        "on_bad_image": "skip" if skip_bad_images else None,
        "seed": seed,
    }
    args = _extraction_arguments(_given(**chosen), ctx.args)
    gene: Any = extract_learngene(ancestor, data, args, revision=revision, resume_from_checkpoint=resume or None)
    _say(f"A gene of {gene.num_parameters():,} parameters is in {output}. Next: mmlg inspect {output}")


def _extraction_arguments(chosen: dict[str, Any], others: list[str]) -> Any:
    """Build `ExtractionArguments` from this command's options and from the fields that were named besides."""
    from transformers import HfArgumentParser

    from .extraction.extracting import ExtractionArguments

    class Parser(HfArgumentParser):
        def error(self, message: str) -> Any:
            raise LearngeneError(f"{message}: see mmlg extract --help, and the fields of TrainingArguments")

    words = [word for name, value in chosen.items() for word in (f"--{name}", str(value))]
    parser = Parser(ExtractionArguments, allow_abbrev=False)
    args, unknown = parser.parse_args_into_dataclasses([*words, *others], return_remaining_strings=True)
    if unknown:
        parser.error(f"unknown {' '.join(unknown)}")
    return args


@app.command(epilog="Example: mmlg inspect mmlg-fashion-48 --modality image --depth 2 --depth 4")
def inspect(
    gene: Gene,
    depth: Annotated[
        list[Any] | None,
        typer.Option(parser=parse_size, metavar="LAYERS", help="Depth to show, N or VISION,TEXT; can be repeated."),
    ] = None,
    width: Annotated[
        list[Any] | None,
        typer.Option(parser=parse_size, metavar="SIZE", help="Width to show, N or VISION,TEXT; can be repeated."),
    ] = None,
    modality: Annotated[list[Modality] | None, typer.Option(help="Modality to show; can be repeated.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON in place of the table.")] = False,
    revision: Revision = None,
) -> None:
    """Show what a gene can grow: parameters, megabytes and GFLOPs by depth, width and modality."""
    from dataclasses import asdict

    from .descendants import load_learngene
    from .inspection import descendant_sizes

    loaded = load_learngene(gene, dtype="auto", **_given(revision=revision))
    modalities = [chosen.value for chosen in modality] if modality else None
    sizes = descendant_sizes(loaded.config, depth or None, width or None, modalities)
    if as_json:
        typer.echo(json.dumps([asdict(size) for size in sizes], indent=2))
        return
    _show_gene(gene, loaded)
    _show_sizes(sizes)


def _show_gene(name: str, gene: Any) -> None:
    config = gene.config
    tensors = list(gene.parameters())
    parameters, stored = sum(t.numel() for t in tensors), sum(t.numel() * t.element_size() for t in tensors)
    blocks = f"blocks: {config.num_multimodal_blocks} multimodal, {config.num_unimodal_blocks} of each encoder alone"
    encoders = " and ".join(
        f"{encoder.num_hidden_layers} layers x {encoder.hidden_size} for {modality}s"
        for modality, encoder in config.encoder_configs.items()
    )
    lines = [
        f"{name}: {parameters:,} parameters, {stored / 1e6:.1f} MB in {str(gene.dtype).removeprefix('torch.')}",
        f"{blocks}; {config.mixing} mixing; full size {encoders}; head size {config.head_size}",
    ]
    if config.ancestor:
        whole = config.ancestor.get("parameters")
        share = f", {parameters / whole:.1%} of its {whole:,} parameters" if whole else ""
        lines.append(f"ancestor {config.ancestor.get('id')}{share}")
    _say("\n".join(lines))


def _show_sizes(sizes: list[Any]) -> None:
    from .inspection import format_size

    table = Table(
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        caption="Any depth and any multiple of the head size up to the gene's width can be grown, pairs VISION,TEXT "
        "too. MB in float32; GFLOPs of one image and of one text of the greatest length, a multiply-add as two.",
    )
    table.add_column("modality", no_wrap=True)
    for title in ("depth", "width", "parameters", "MB", "GFLOPs\n/ image", "GFLOPs\n/ text", "of the\nancestor"):
        table.add_column(title, justify="right", no_wrap=True)
    for before, size in zip([None, *sizes], sizes, strict=False):
        if before is not None and before.modality != size.modality:
            table.add_section()
        table.add_row(
            size.modality,
            format_size(size.depth),
            format_size(size.width),
            f"{size.parameters:,}",
            f"{size.megabytes:.1f}",
            "" if size.gflops_image is None else f"{size.gflops_image:.3f}",
            "" if size.gflops_text is None else f"{size.gflops_text:.3f}",
            "" if size.share is None else f"{size.share:.1%}",
        )
    console.print(table)


@app.command(epilog="Example: mmlg descend mmlg-fashion-48 --depth 3 --width 96 --modality image --output small")
def descend(
    gene: Gene,
    output: Output,
    depth: Annotated[
        Any,
        typer.Option(
            parser=parse_size, metavar="LAYERS", help="Layers, N or VISION,TEXT.", show_default="the gene's own"
        ),
    ] = None,
    width: Annotated[
        Any,
        typer.Option(
            parser=parse_size, metavar="SIZE", help="hidden_size, N or VISION,TEXT.", show_default="the gene's own"
        ),
    ] = None,
    modality: Annotated[
        Modality | None, typer.Option(help="What the model takes in.", show_default="all that the gene can")
    ] = None,
    num_labels: Annotated[
        int | None, typer.Option(help="Classes of a new head on an image or text model.", show_default="no head")
    ] = None,
    revision: Revision = None,
) -> None:
    """Grow a stock transformers CLIP model from a gene and save it."""
    _check_empty(output)
    from .descendants import from_learngene

    kind = modality.value if modality else None
    model = from_learngene(gene, depth, width, kind, num_labels=num_labels, revision=revision)
    with whole_folder(output) as folder:
        model.save_pretrained(folder)
    _say(
        f"{type(model).__name__} with {model.num_parameters():,} parameters in {output}. "
        f'Load it with {type(model).__name__}.from_pretrained("{output}")'
    )


@app.command(epilog="Example: mmlg evaluate mmlg-fashion-48 --data photos --split test --task retrieval")
def evaluate(
    model: Annotated[str, typer.Argument(help="A model or gene: a Hub id, a folder, or a bundled gene's name.")],
    data: Data,
    task: Annotated[Task, typer.Option(help="What to measure.")],
    split: Annotated[str, typer.Option(help="Split of the dataset.")] = "test",
    image_column: ImageColumn = None,
    text_column: TextColumn = None,
    label_column: Annotated[
        str | None, typer.Option(help="Label column; found by itself where one stands out.")
    ] = None,
    template: Annotated[
        list[str] | None,
        typer.Option(help='Prompt with "{}" for the class, zero-shot only; can be repeated, then averaged.'),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Measure only this many rows, from the first.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images or texts in one forward pass.")] = 64,
    output: Annotated[Path | None, typer.Option(help="JSON file to write the figures to as well.")] = None,
    revision: Revision = None,
) -> None:
    """Measure a model: image-text retrieval, zero-shot classification, or a classifier's accuracy."""
    from .data import load_image_text
    from .evaluation.loading import load_classifier, load_dual_encoder

    rows: Any = load_image_text(data, split)
    if limit is not None:
        rows = rows.select(range(min(limit, len(rows))))
    columns: dict[str, Any] = {"image_column": image_column, "batch_size": batch_size, "progress": True}
    if task is Task.classification:
        from .evaluation.classification import evaluate_classification

        loaded, processor = load_classifier(model, **_given(revision=revision))
        figures = evaluate_classification(
            loaded, rows, processor, label_column=label_column, text_column=text_column, **columns
        )
    else:
        from .evaluation.dual_encoders import DEFAULT_TEMPLATES, evaluate_retrieval, evaluate_zero_shot

        loaded, processor = load_dual_encoder(model, **_given(revision=revision))
        if task is Task.zero_shot:
            templates = tuple(template or DEFAULT_TEMPLATES)
            figures = evaluate_zero_shot(
                loaded, rows, processor, label_column=label_column, templates=templates, **columns
            )
        else:
            figures = evaluate_retrieval(loaded, rows, processor, text_column=text_column, **columns)
    _say(f"{model}, {task.value} on {len(rows):,} rows of {data} ({split})")
    table = Table("figure")
    table.add_column("value", justify="right")
    for name, value in figures.items():
        table.add_row(name, f"{value:.1f}" if "rank" in name else f"{value:.2%}")
    console.print(table)
    if output is not None:
        record = {"model": model, "data": data, "split": split, "rows": len(rows), "task": task.value}
        write_json(output, record | {"figures": figures})


@app.command(epilog="Example: mmlg demo --output-dir out")
def demo(
    output_dir: Annotated[Path, typer.Option(help="Folder for results.json, the plot and the models.")],
    gene: Annotated[str | None, typer.Option(help="Gene to grow from.", show_default="the bundled one")] = None,
    seed: Annotated[int, typer.Option(help="Seeds the new heads, the models from scratch, and the batches.")] = 0,
) -> None:
    """Grow models from the bundled gene and fine-tune them beside models from scratch, offline, in under 3 minutes."""
    from .demo.demo import run_demo

    run_demo(output_dir, gene, seed=seed, console=console)


app.command(epilog=ALIGN_EPILOG)(align)
app.command(epilog=EXPORT_EPILOG)(export)
app.command(epilog=COMPARE_EPILOG)(compare)
app.add_typer(clip_moe_app, name="moe")


def _say(text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _given(**kwargs: Any) -> dict[str, Any]:
    return {name: value for name, value in kwargs.items() if value is not None}


def _check_empty(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise LearngeneError(f"{str(folder)!r} exists and is no empty folder: choose another, or remove it first")


def main() -> None:
    """Run the command `mmlg`."""
    app(prog_name="mmlg")


if __name__ == "__main__":
    main()
