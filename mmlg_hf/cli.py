"""The command `mmlg`: extract a gene, inspect it, grow descendants, evaluate models, run the demo.

torch and transformers are imported when a command runs, so that `--help` answers at once.
"""

import os
import platform
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.table import Table

from . import __version__
from .alignment.cli import EPILOG as ALIGN_EPILOG
from .alignment.cli import align
from .clip_moe.cli import app as clip_moe_app
from .errors import LearngeneError
from .export.cli import COMPARE_EPILOG, EXPORT_EPILOG, compare, export
from .saving import check_writable, whole_folder, write_json
from .shell.devices import Device, find_device
from .shell.failing import FIELDS, ErrorsInOneSentence
from .shell.printing import AsJson, console, print_json, say, stdout_for_json

app = typer.Typer(
    cls=ErrorsInOneSentence,
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        others = ", ".join(f"{name} {version(name)}" for name in ("transformers", "torch"))
        typer.echo(f"mmlg_hf {__version__} (Python {platform.python_version()}, {others})")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the versions and exit.")
    ] = False,
) -> None:
    """Extract a learngene from a CLIP once, grow CLIP models of any depth, width and modality from it."""


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
    if not resume and os.environ.get("RANK", "0") == "0":  # others may come when the first has begun to write
        _check_empty(output, but="ancestor_outputs")  # kept by their content: a run that was killed early leaves them
    check_writable(output)
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
    args = _extraction_arguments(_given(**chosen), ctx)
    gene: Any = extract_learngene(ancestor, data, args, revision=revision, resume_from_checkpoint=resume or None)
    say(f"A gene of {gene.num_parameters():,} parameters is in {output}. Next: mmlg inspect {output}")


# Fields that have options of other names.
_OTHER_NAMES = {
    "--output": "output_dir",
    "--depth": "gene_depth",
    "--width": "gene_width",
    "--epochs": "num_train_epochs",
    "--batch-size": "per_device_train_batch_size",
}


def _extraction_arguments(chosen: dict[str, Any], ctx: typer.Context) -> Any:
    """Build `ExtractionArguments` from this command's options and from the fields that were named besides."""
    from transformers import HfArgumentParser

    from .extraction.extracting import ExtractionArguments

    fields = {name: f"--{name}" for name in ExtractionArguments.__dataclass_fields__}
    ctx.meta[FIELDS] = fields | {name: option for option, name in _OTHER_NAMES.items()}

    class Parser(HfArgumentParser):
        def error(self, message: str) -> Any:
            raise LearngeneError(f"{message}: see mmlg extract --help, and the fields of TrainingArguments")

    words = [word for name, value in chosen.items() for word in (f"--{name}", str(value))]
    parser = Parser(ExtractionArguments, allow_abbrev=False)
    args, unknown = parser.parse_args_into_dataclasses([*words, *ctx.args], return_remaining_strings=True)
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
    as_json: AsJson = False,
    revision: Revision = None,
) -> None:
    """Show what a gene is and can grow: parameters, megabytes, the vocabulary's part, GFLOPs, by depth and width."""
    from dataclasses import asdict

    from .descendants import load_learngene
    from .inspection import descendant_sizes

    loaded = load_learngene(gene, dtype="auto", **_given(revision=revision))
    modalities = [chosen.value for chosen in modality] if modality else None
    sizes = descendant_sizes(loaded.config, depth or None, width or None, modalities)
    if as_json:
        print_json({"gene": _size_of_gene(loaded), "descendants": [asdict(size) for size in sizes]})
        return
    _show_gene(gene, loaded)
    _show_sizes(sizes)


def _size_of_gene(gene: Any) -> dict[str, Any]:
    from .inspection import vocabulary_parameters

    tensors, text = list(gene.parameters()), gene.config.text_config
    return {
        "parameters": sum(tensor.numel() for tensor in tensors),
        "megabytes": sum(tensor.numel() * tensor.element_size() for tensor in tensors) / 1e6,
        "vocabulary": vocabulary_parameters(gene),
        "tokens": None if text is None else text.vocab_size,
        "token_embedding_rank": None if text is None else gene.config.token_embedding_rank,
    }


def _show_gene(name: str, gene: Any) -> None:
    config, size = gene.config, _size_of_gene(gene)
    parameters = size["parameters"]
    blocks = f"blocks: {config.num_multimodal_blocks} multimodal, {config.num_unimodal_blocks} of each encoder alone"
    encoders = " and ".join(
        f"{encoder.num_hidden_layers} layers x {encoder.hidden_size} for {modality}s"
        for modality, encoder in config.encoder_configs.items()
    )
    heads = dict.fromkeys(str(e.hidden_size // e.num_attention_heads) for e in config.encoder_configs.values())
    lines = [
        f"{name}: {parameters:,} parameters, {size['megabytes']:.1f} MB in {str(gene.dtype).removeprefix('torch.')}",
        f"{blocks}; {config.mixing} mixing; full size {encoders}; head size {' and '.join(heads)}",
    ]
    if config.text_config is not None:
        stored = f"at rank {size['token_embedding_rank']}" if size["token_embedding_rank"] else "whole"
        lines.append(
            f"vocabulary: {size['tokens']:,} tokens x {config.text_config.hidden_size}, stored {stored}: "
            f"{size['vocabulary']:,} parameters, {size['vocabulary'] / parameters:.1%} of the gene"
        )
    if config.ancestor:
        whole = config.ancestor.get("parameters")
        share = f", {parameters / whole:.1%} of its {whole:,} parameters" if whole else ""
        lines.append(f"ancestor {config.ancestor.get('id')}{share}")
    say("\n".join(lines))


def _show_sizes(sizes: list[Any]) -> None:
    from .inspection import format_size

    table = Table(
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        show_edge=False,
        caption="Any depth and any multiple of the head size up to the gene's width can be grown, pairs VISION,TEXT "
        "too. Token table: its part of the parameters. MB in float32; GFLOPs of one image and of one text of the "
        "greatest length, a multiply-add as two.",
    )
    table.add_column("modality", no_wrap=True)
    titles = ("depth", "width", "parameters", "token\ntable", "MB", "GFLOPs\n/ image", "GFLOPs\n/ text")
    for title in (*titles, "of the\nancestor"):
        table.add_column(title, justify="right", no_wrap=True)
    for before, size in zip([None, *sizes], sizes, strict=False):
        if before is not None and before.modality != size.modality:
            table.add_section()
        table.add_row(
            size.modality,
            format_size(size.depth),
            format_size(size.width),
            f"{size.parameters:,}",
            f"{size.vocabulary / size.parameters:.0%}" if size.vocabulary else "",
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
    check_writable(output)
    from .descendants import from_learngene

    kind = modality.value if modality else None
    model = from_learngene(gene, depth, width, kind, num_labels=num_labels, revision=revision)
    with whole_folder(output) as folder:
        model.save_pretrained(folder)
    say(
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
    device: Device = None,
    output: Annotated[Path | None, typer.Option(help="JSON file to write the figures to as well.")] = None,
    as_json: AsJson = False,
    revision: Revision = None,
) -> None:
    """Measure a model: image-text retrieval, zero-shot classification, or a classifier's accuracy."""
    if output is not None:
        check_writable(output)
    from .data import load_image_text
    from .evaluation.loading import load_classifier, load_dual_encoder

    place = find_device(device)
    rows: Any = load_image_text(data, split)
    if limit is not None:
        rows = rows.select(range(min(limit, len(rows))))
    columns: dict[str, Any] = {"image_column": image_column, "batch_size": batch_size}
    columns |= {"device": place, "progress": True}
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
    record = {"model": model, "data": data, "split": split, "rows": len(rows), "task": task.value, "figures": figures}
    if output is not None:
        write_json(output, record)
    if as_json:
        print_json(record)
        return
    say(f"{model}, {task.value} on {len(rows):,} rows of {data} ({split})")
    table = Table("figure")
    table.add_column("value", justify="right")
    for name, value in figures.items():
        table.add_row(name, f"{value:.1f}" if "rank" in name else f"{value:.2%}")
    console.print(table)


@app.command(epilog="Example: mmlg demo --output-dir out")
def demo(
    output_dir: Annotated[Path, typer.Option(help="Folder for results.json, the plot and the models.")],
    gene: Annotated[str | None, typer.Option(help="Gene to grow from.", show_default="the bundled one")] = None,
    seed: Annotated[int, typer.Option(help="Seeds the new heads, the models from scratch, and the batches.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Grow models from the bundled gene and fine-tune them beside models from scratch, offline, in under 3 minutes."""
    check_writable(output_dir)
    from .demo.demo import run_demo

    with stdout_for_json(as_json):
        results = run_demo(output_dir, gene, seed=seed, console=console)
    if as_json:
        print_json(results)


app.command(epilog=ALIGN_EPILOG)(align)
app.command(epilog=EXPORT_EPILOG)(export)
app.command(epilog=COMPARE_EPILOG)(compare)
app.add_typer(clip_moe_app, name="moe")


def _given(**kwargs: Any) -> dict[str, Any]:
    return {name: value for name, value in kwargs.items() if value is not None}


def _check_empty(folder: Path, but: str | None = None) -> None:
    """Refuse a folder that holds anything, `but` for what is named."""
    if folder.exists() and (not folder.is_dir() or any(path.name != but for path in folder.iterdir())):
        raise LearngeneError(f"{str(folder)!r} exists and is no empty folder: choose another, or remove it first")


def main() -> None:
    """Run the command `mmlg`."""
    app(prog_name="mmlg")


if __name__ == "__main__":
    main()
