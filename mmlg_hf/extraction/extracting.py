"""`extract_learngene`: from a CLIP and image-text data to a gene, by a subclass of the transformers Trainer."""

import os
import time
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from datasets import IterableDataset
from PIL import Image
from transformers import PreTrainedModel, set_seed

from ..configuration_learngene import LearngeneConfig
from ..data import PictureRows, Pixels, find_columns, load_image_text, read_rows
from ..data.identity import fingerprint_model
from ..data.texts import check_tokenizer, longest_text
from ..errors import LearngeneError, first_line
from ..families import family_of
from ..modeling_learngene import LearngeneForImageClassification, LearngeneMixin, LearngeneModel
from ..saving import check_writable
from ..training.batches import check_rows
from ..training.trainer import ImageTextCollator
from .ancestors import (
    check_extracted,
    copy_outer_weights,
    describe_ancestor,
    gene_config,
    is_classifier,
    load_ancestor,
    load_ancestor_processor,
)
from .arguments import ExtractionArguments
from .context import shorten_context
from .fitting import fit_gene
from .outputs import cache_ancestor_outputs
from .rotation import TURNED, rotate_channels
from .runs import WriteRun, describe_run, find_checkpoint, recipe
from .trainer import AncestorCollator, ExtractionTrainer
from .vocabulary import read_corpus, trim_embedding, trim_tokenizer

__all__ = ["ExtractionArguments", "extract_learngene"]


def extract_learngene(
    ancestor: str | os.PathLike | PreTrainedModel,
    dataset: Any,
    args: ExtractionArguments | None = None,
    *,
    processor: Any = None,
    eval_dataset: Any = None,
    revision: str | None = None,
    resume_from_checkpoint: str | bool | None = None,
) -> LearngeneMixin:
    """Extract a learngene from a CLIP (MM-LG, arXiv 2506.16673), or from an image classifier (TLEG, arXiv 2312.05614).

    The gene is trained as an auxiliary model that imitates its frozen ancestor, at its own size and, with
    `args.elastic`, at smaller depths and widths in the same step.

    Args:
        ancestor: a Hub id, a folder or a stock model: `CLIPModel` (or an open_clip model's id or
            folder) and `MetaClip2Model` give a `LearngeneModel`,
            `SiglipModel` (SigLIP, and SigLIP 2 of a fixed resolution) a `LearngeneSiglipModel`;
            `CLIPForImageClassification`, `MetaClip2ForImageClassification` and `ViTForImageClassification` give a
            `LearngeneForImageClassification`.
        dataset: a Hub id, a folder, a `Dataset` or an `IterableDataset` with an image column and, for a CLIP, a text
            column. Images are used as they are, without augmentation.
        args: None takes `ExtractionArguments("learngene")`.
        processor: None takes the one stored with the ancestor.
        eval_dataset: like `dataset`, of one split, for the Trainer's evaluation; None evaluates nothing.
        revision: branch, tag or commit of the ancestor on the Hub; None takes main.
        resume_from_checkpoint: a checkpoint folder, or True for the last one in `args.output_dir`; None starts afresh.
            Ancestor, data and settings must be those that the run was begun with (`extraction.json` beside the
            checkpoints tells), but for `max_steps` and `num_train_epochs`, which may be raised to go on for longer:
            the learning rate then follows the schedule of the new length from where it stands.

    Returns:
        the gene, also saved to `args.output_dir` with its processor; `config.ancestor` and `config.recipe` tell how it
        was made.

    Raises:
        LearngeneError: for an ancestor that is no CLIP or lacks weights, a processor that is not its own, data without
            the columns, with fewer rows than a batch or with an unreadable image, or another run to go on with.
    """
    args = args if args is not None else ExtractionArguments("learngene")
    if not isinstance(args, ExtractionArguments):
        raise LearngeneError(f"args is a {type(args).__name__}: give ExtractionArguments")
    check_writable(args.output_dir)
    model = load_ancestor(ancestor, revision)
    check_extracted(model)
    described = describe_ancestor(model, model.num_parameters())
    processor = processor if processor is not None else load_ancestor_processor(model)
    _check_processor(processor, model, args)
    if args.max_text_length is not None:
        processor = _shorten(model, processor, args.max_text_length)
    _gene_config(model, args)  # refuses what no gene can be, before the data are read
    data, evaluation = _load(dataset, eval_dataset, args)
    columns = None if is_classifier(model) else find_columns(data, args.image_column, args.text_column)
    run = describe_run(args, fingerprint_model(model), data, columns, processor)
    checkpoint = find_checkpoint(args, run, resume_from_checkpoint)
    if args.trim_vocabulary and not is_classifier(model):
        processor = _trim(model, processor, data, args)

    collator = _collator(processor, model)
    train = _process(data, model, processor, args)
    check_rows(train, args.train_batch_size, args.world_size, "training")
    if evaluation is not None:
        evaluation = _process(evaluation, model, processor, args)
        check_rows(evaluation, args.eval_batch_size, args.world_size, "evaluation")
    set_seed(args.seed)
    started = time.monotonic()  # the rotation, the fit and the ancestor's outputs are part of the price
    gene, model, turned = _make_gene(model, args, train, collator)
    gene.config.ancestor, gene.processor = described, processor
    if args.cache_ancestor and isinstance(train, PictureRows):
        folder = args.ancestor_cache_dir or Path(args.output_dir, "ancestor_outputs")
        workers = args.dataloader_num_workers
        train = cache_ancestor_outputs(model.to(args.device), train, collator, processor, folder, num_workers=workers)

    trainer = ExtractionTrainer(
        gene,
        args,
        ancestor=model.to(args.device),
        data_collator=collator,
        train_dataset=train,
        eval_dataset=evaluation,
        callbacks=[WriteRun(run)],
    )
    result = trainer.train(resume_from_checkpoint=checkpoint)
    if not trainer.state.global_step:
        raise LearngeneError("the data gave no complete batch: nothing was trained, so lower the batch size")
    gene.config.recipe = recipe(args, dataset, train, result, trainer.state, time.monotonic() - started)
    gene.config.recipe["turned"] = {modality: round(cosine, 4) for modality, cosine in turned.items()}
    trainer.save_model(args.output_dir)
    return gene.eval()


def _load(dataset: Any, eval_dataset: Any, args: ExtractionArguments) -> tuple[Any, Any]:
    """Load the rows to learn from and those to evaluate on, None without."""
    data = load_image_text(dataset, args.split)
    if isinstance(data, IterableDataset):
        if args.max_steps < 1:
            raise LearngeneError("the data is a stream, whose length nobody knows: set max_steps")
        if next(iter(data), None) is None:
            raise LearngeneError("the dataset is empty (a stream without rows): there is nothing to train on")
    evaluates = getattr(args.eval_strategy, "value", args.eval_strategy) != "no"
    if eval_dataset is None or not evaluates:
        if evaluates:
            raise LearngeneError(f"eval_strategy is {args.eval_strategy.value!r}, but there is no eval_dataset")
        return data, None
    if isinstance(eval_dataset, Mapping) and len(eval_dataset) != 1:
        raise LearngeneError(f"eval_dataset has the splits {', '.join(map(str, eval_dataset))}: give one of them")
    return data, load_image_text(eval_dataset, None)


def _check_processor(processor: Any, ancestor: Any, args: ExtractionArguments) -> None:
    """Refuse a processor whose images or texts are not what the ancestor takes."""
    if not is_classifier(ancestor):
        ImageTextCollator(processor)  # says which part is missing
        tokenizer, text_config = processor.tokenizer, ancestor.config.text_config
        check_tokenizer(tokenizer, text_config)
        longest, marks = longest_text(tokenizer, text_config, args.max_length), tokenizer.num_special_tokens_to_add()
        if longest is not None and longest <= marks:
            raise LearngeneError(f"max_length is {longest}, but {marks} tokens of each text are marks: raise it")
    config = getattr(ancestor.config, "vision_config", ancestor.config)
    size = config.image_size
    height, width = (size, size) if isinstance(size, int) else tuple(size)
    image_processor = getattr(processor, "image_processor", processor)
    try:
        # A picture of the right size: a processor that does not resize takes pictures that were made so.
        pixels = image_processor(images=[Image.new("RGB", (width, height))], return_tensors="np")["pixel_values"]
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise LearngeneError(
            f"the processor, a {type(processor).__name__}, cannot process a picture ({first_line(error)})"
        ) from error
    if pixels.shape[1:] != (config.num_channels, height, width):
        raise LearngeneError(
            f"the processor makes pictures {list(pixels.shape[1:])}, the ancestor takes "
            f"{[config.num_channels, height, width]}: it is another model's processor"
        )


def _shorten(ancestor: Any, processor: Any, length: int) -> Any:
    """Cut the ancestor's context in memory and return a processor to match."""
    if is_classifier(ancestor):
        raise LearngeneError(
            f"max_text_length is {length}, but a {type(ancestor).__name__} reads no texts: leave it out"
        )
    return _with_tokenizer(processor, shorten_context(ancestor, processor.tokenizer, length))


def _trim(ancestor: Any, processor: Any, data: Any, args: ExtractionArguments) -> Any:
    """Trim the ancestor's vocabulary in memory and return a processor to match."""
    _, column = find_columns(data, args.image_column, args.text_column)
    tokenizer, old_ids = trim_tokenizer(processor.tokenizer, read_corpus(data, column))
    trim_embedding(ancestor, tokenizer, old_ids)
    return _with_tokenizer(processor, tokenizer)


def _with_tokenizer(processor: Any, tokenizer: Any) -> Any:
    return type(processor)(image_processor=processor.image_processor, tokenizer=tokenizer)


def _gene_config(ancestor: Any, args: ExtractionArguments) -> LearngeneConfig:
    unimodal, multimodal = (2, 0) if is_classifier(ancestor) else (1, 1)
    multimodal = multimodal if args.num_multimodal_blocks is None else args.num_multimodal_blocks
    unimodal = unimodal if args.num_unimodal_blocks is None else args.num_unimodal_blocks
    rank = args.token_embedding_rank
    if rank is None and not is_classifier(ancestor):
        rank = max(ancestor.config.text_config.hidden_size // 4, 1)
    return gene_config(
        ancestor,
        token_embedding_rank=rank,
        num_multimodal_blocks=multimodal,
        num_unimodal_blocks=unimodal,
        mixing=args.mixing or ("shared-slope" if multimodal == unimodal == 1 else "linear"),
        depth=args.gene_depth,
        width=args.gene_width,
    )


class _Batches(Sequence):
    """Rows in batches that are made when they are read: 8-bit pixels stay in memory, and one batch of floats."""

    def __init__(self, rows: list[Any], collator: AncestorCollator, size: int = 128) -> None:
        self.rows, self.collator, self.size = rows, collator, size

    def __len__(self) -> int:
        return -(-len(self.rows) // self.size)

    def __getitem__(self, index: Any) -> Any:
        if index >= len(self):
            raise IndexError(index)
        rows = self.rows[index * self.size : (index + 1) * self.size]
        return self.collator.finish(self.collator(rows))


def _make_gene(
    ancestor: Any, args: ExtractionArguments, data: Any, collator: AncestorCollator
) -> tuple[Any, PreTrainedModel, dict[str, float]]:
    """Build the gene and start it from its ancestor, turned first where that is asked for.

    Returns:
        the gene; the model that it is to imitate: of a SigLIP the turned one, whose embeddings are turned too; and
        what turning kept, see `rotate_channels`.
    """
    turned: dict[str, float] = {}
    imitated = ancestor
    family = family_of(ancestor.config)
    if args.rotate and not is_classifier(ancestor) and family is not None and family.name in TURNED:
        rows = list(islice(data, args.rotation_rows))
        if not rows:
            raise LearngeneError("the dataset gives no rows: there is nothing to train on")
        ancestor, turned = rotate_channels(ancestor, _Batches(rows, collator))
        imitated = ancestor if family.embeds_at_width else imitated
    config = _gene_config(ancestor, args)
    # True says what older genes say: both are turned.
    config.scale_norms = len(turned) == 2 or sorted(turned) or False
    gene: Any = (LearngeneForImageClassification if is_classifier(ancestor) else LearngeneModel)(config)
    copy_outer_weights(gene, ancestor)
    if args.initialisation == "fitted" and args.gene_width is None and hasattr(ancestor, "vision_model"):
        fit_gene(gene, ancestor)
    if not is_classifier(ancestor) and not args.contrastive_weight:
        for name in config.kin.whole:  # no loss reaches the scale of the logits: it stays the ancestor's
            getattr(gene, name).requires_grad_(False)
    return gene, imitated, turned


def _collator(processor: Any, ancestor: Any) -> AncestorCollator:
    if is_classifier(ancestor):
        return AncestorCollator(None, Pixels(getattr(processor, "image_processor", processor)))
    return AncestorCollator(ImageTextCollator(processor, text_config=ancestor.config.text_config).deferred())


def _process(data: Any, ancestor: Any, processor: Any, args: ExtractionArguments) -> PictureRows | IterableDataset:
    common: dict[str, Any] = {"image_column": args.image_column, "on_bad_image": args.on_bad_image}
    with args.main_process_first(desc="processing"):
        if is_classifier(ancestor):
            return read_rows(data, processor, of_pairs=False, **common)
        texts: dict[str, Any] = {"text_column": args.text_column, "max_length": args.max_length}
        return read_rows(data, processor, text_config=ancestor.config.text_config, **texts, **common)
