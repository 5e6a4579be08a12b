"""`mmlg extract`: a gene from an ancestor and data."""

import os
from typing import Annotated, Any

import typer

from ..errors import LearngeneError
from ..saving import check_writable
from ..shell.failing import FIELDS
from ..shell.options import Data, ImageColumn, Output, Revision, TextColumn, check_empty, given
from ..shell.printing import say

EPILOG = (
    "Example: mmlg extract openai/clip-vit-base-patch16 --data DATASET --output gene --max-steps 8000 "
    "--batch-size 64 --warmup_steps 100"
)
# Fields that have options of other names.
_OTHER_NAMES = {
    "--output": "output_dir",
    "--depth": "gene_depth",
    "--width": "gene_width",
    "--epochs": "num_train_epochs",
    "--batch-size": "per_device_train_batch_size",
}


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
        check_empty(output, but="ancestor_outputs")  # kept by their content: a run that was killed early leaves them
    check_writable(output)
    from ..extraction.extracting import extract_learngene

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
    args = _extraction_arguments(given(**chosen), ctx)
    gene: Any = extract_learngene(ancestor, data, args, revision=revision, resume_from_checkpoint=resume or None)
    say(f"A gene of {gene.num_parameters():,} parameters is in {output}. Next: mmlg inspect {output}")


def _extraction_arguments(chosen: dict[str, Any], ctx: typer.Context) -> Any:
    """Build `ExtractionArguments` from this command's options and from the fields that were named besides."""
    from transformers import HfArgumentParser

    from ..extraction.extracting import ExtractionArguments

    fields = {name: f"--{name}" for name in ExtractionArguments.__dataclass_fields__}
    ctx.meta[FIELDS] = fields | {name: option for option, name in _OTHER_NAMES.items()}

    class Parser(HfArgumentParser):
        def error(self, message: str) -> Any:
            raise LearngeneError(f"{message}: see mmlg extract --help, and the fields of TrainingArguments")

    words = [word for name, value in chosen.items() for word in (f"--{name}", str(value))]
    kind: Any = ExtractionArguments
    parser = Parser(kind, allow_abbrev=False)
    args, unknown = parser.parse_args_into_dataclasses([*words, *ctx.args], return_remaining_strings=True)
    if unknown:
        parser.error(f"unknown {' '.join(unknown)}")
    return args
