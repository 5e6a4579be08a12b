"""`mmlg inspect` and `mmlg descend`: what a gene is and can grow, and growing it."""

from enum import Enum
from typing import Annotated, Any

import typer
from rich import box
from rich.table import Table

from ..saving import check_writable, whole_folder
from ..shell.options import Gene, Output, Revision, check_empty, given, parse_size
from ..shell.printing import AsJson, console, print_json, say

INSPECT_EPILOG = "Example: mmlg inspect mmlg-fashion-48 --modality image --depth 2 --depth 4"
DESCEND_EPILOG = "Example: mmlg descend mmlg-fashion-48 --depth 3 --width 96 --modality image --output small"


class Modality(str, Enum):
    """What a descendant takes in."""

    multimodal = "multimodal"
    image = "image"
    text = "text"


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

    from ..descendants import load_learngene
    from ..inspection import descendant_sizes

    loaded = load_learngene(gene, dtype="auto", **given(revision=revision))
    modalities = [chosen.value for chosen in modality] if modality else None
    sizes = descendant_sizes(loaded.config, depth or None, width or None, modalities)
    if as_json:
        print_json({"gene": _size_of_gene(loaded), "descendants": [asdict(size) for size in sizes]})
        return
    _show_gene(gene, loaded)
    _show_sizes(sizes)


def _size_of_gene(gene: Any) -> dict[str, Any]:
    from ..inspection import vocabulary_parameters

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
    scaled = " with scales of each layer" if config.weight_scales else ""
    lines = [
        f"{name}: {parameters:,} parameters, {size['megabytes']:.1f} MB in {str(gene.dtype).removeprefix('torch.')}",
        f"{blocks}; {config.mixing} mixing{scaled}; full size {encoders}; head size {' and '.join(heads)}",
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
    from ..inspection import format_size

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
    check_empty(output)
    check_writable(output)
    from ..descendants import from_learngene

    kind = modality.value if modality else None
    model = from_learngene(gene, depth, width, kind, num_labels=num_labels, revision=revision)
    with whole_folder(output) as folder:
        model.save_pretrained(folder)
    say(
        f"{type(model).__name__} with {model.num_parameters():,} parameters in {output}. "
        f'Load it with {type(model).__name__}.from_pretrained("{output}")'
    )
