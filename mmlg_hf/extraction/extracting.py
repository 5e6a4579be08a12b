"""`extract_learngene`: from a CLIP and image-text data to a gene, by a subclass of the transformers Trainer."""

import copy
import os
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

import torch
from datasets import IterableDataset
from PIL import Image
from torch import Tensor
from transformers import Dinov2ForImageClassification, Dinov2Model, PreTrainedModel, set_seed

from ..configuration_learngene import LearngeneConfig
from ..data import PictureRows, Pixels, find_columns, load_image_text, read_rows
from ..data.identity import fingerprint_model
from ..data.texts import check_tokenizer, longest_text
from ..errors import LearngeneError, first_line
from ..families import encoders_of
from ..gene_files import read_dtype
from ..modeling_learngene import LearngeneMixin, class_of_gene
from ..saving import check_writable
from ..training.batches import check_rows
from ..training.resuming import output_of
from ..training.trainer import ImageTextCollator
from .ancestors import (
    copy_outer_weights,
    describe_ancestor,
    gene_config,
    is_classifier,
    load_ancestor,
    load_ancestor_processor,
    reads_texts,
)
from .arguments import ExtractionArguments
from .context import shorten_context
from .fitting import fit_gene
from .outputs import cache_ancestor_outputs, outputs_of_batch
from .rotation import TURNED, rotate_channels
from .runs import Stopwatch, WriteRun, describe_run, find_checkpoint, recipe
from .streamed_outputs import StreamedOutputs
from .trainer import AncestorCollator, ExtractionTrainer
from .vit import stock_vit
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
    """Extract a learngene from a CLIP (MM-LG, arXiv 2506.16673), or from a ViT or image classifier (TLEG, 2312.05614).

    The gene is trained as an auxiliary model that imitates its frozen ancestor, at its own size and, with
    `args.elastic`, at smaller depths and widths in the same step.

    Args:
        ancestor: a Hub id, a folder or a stock model: `CLIPModel` (or an open_clip model's id or
            folder) and `MetaClip2Model` give a `LearngeneModel`,
            `SiglipModel` (SigLIP, and SigLIP 2 of a fixed resolution) a `LearngeneSiglipModel`;
            `ViTModel` and `Dinov2Model` give an image gene, a `LearngeneViTModel`, and the classifiers
            `ViTForImageClassification` and `Dinov2ForImageClassification` a `LearngeneViTForImageClassification`,
            `CLIPForImageClassification` and `MetaClip2ForImageClassification` a `LearngeneForImageClassification`. A
            DINOv2 is taken for pictures of the size that the processor makes.
        dataset: a Hub id, a folder, a `Dataset` or an `IterableDataset` with an image column and, unless it is for an
            image gene, a text column. Images are used as they are, without augmentation.
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
        LearngeneError: for an ancestor of no such class or that lacks weights, a processor that is not its own, data
            without the columns, with fewer rows than a batch or with an unreadable image, or another run to go on
            with.
    """
    args = args if args is not None else ExtractionArguments("learngene")
    if not isinstance(args, ExtractionArguments):
        raise LearngeneError(f"args is a {type(args).__name__}: give ExtractionArguments")
    output = output_of(args)
    check_writable(output)
    imitated: Any = load_ancestor(ancestor, revision)
    _check_losses(imitated, args)
    described, fingerprint = describe_ancestor(imitated, imitated.num_parameters()), fingerprint_model(imitated)
    processor = processor if processor is not None else load_ancestor_processor(imitated)
    model = stock_vit(imitated, _dinov2_size(processor, imitated))
    imitated = imitated if is_classifier(imitated) else model
    _check_processor(processor, model, args)
    if args.max_text_length is not None:
        processor = _shorten(model, processor, args.max_text_length)
    config_of_gene(model, args)  # refuses what no gene can be, before the data are read
    data, evaluation = _load(dataset, eval_dataset, args)
    columns = None if not reads_texts(model) else find_columns(data, args.image_column, args.text_column)
    run = describe_run(args, fingerprint, data, columns, processor)
    checkpoint = find_checkpoint(args, run, resume_from_checkpoint)
    if args.trim_vocabulary and reads_texts(model):
        processor = _trim(model, processor, data, args)

    collator = _collator(processor, model)
    train = _process(data, model, processor, args)
    check_rows(train, args.train_batch_size, args.world_size, "training")
    if evaluation is not None:
        evaluation = _process(evaluation, model, processor, args)
        check_rows(evaluation, args.eval_batch_size, args.world_size, "evaluation")
    set_seed(args.seed)
    # From here: the rotation, the fit and the ancestor's outputs are part of the price.
    stopwatch = Stopwatch.gone_on_with(checkpoint)
    gene, turned_model, turned = _make_gene(model, args, train, collator)
    # Embeddings as large as the encoder is wide are turned, too.
    imitated = turned_model if gene.config.kin.embeds_at_width else imitated
    if args.ancestor_dtype is not None:  # a copy: the caller's model stays as it is
        imitated = copy.deepcopy(imitated).to(read_dtype(args.ancestor_dtype))
    imitated = imitated.to(args.device)
    centers = (
        _mean_outputs(imitated, train, collator, args.rotation_rows) if _centers_features(imitated, args) else None
    )
    gene.config.ancestor, gene.processor = described, processor
    folder, kept = args.ancestor_cache_dir or output / "ancestor_outputs", None
    if args.cache_ancestor and isinstance(train, PictureRows):
        workers = args.dataloader_num_workers
        train = cache_ancestor_outputs(imitated, train, collator, processor, folder, num_workers=workers)
    elif args.cache_stream:
        kept = StreamedOutputs(imitated, processor, folder)
        collator.adds_keys = True

    trainer = ExtractionTrainer(
        gene,
        args,
        ancestor=imitated,
        centers=centers,
        kept=kept,
        data_collator=collator,
        train_dataset=train,
        eval_dataset=evaluation,
        callbacks=[WriteRun(run), stopwatch],
    )
    result = trainer.train(resume_from_checkpoint=checkpoint)
    if not trainer.state.global_step:
        raise LearngeneError("the data gave no complete batch: nothing was trained, so lower the batch size")
    gene.config.recipe = recipe(args, dataset, train, result, trainer.state, stopwatch)
    gene.config.recipe["turned"] = {modality: round(cosine, 4) for modality, cosine in turned.items()}
    trainer.save_model(str(output))
    return gene.eval()


def _load(dataset: Any, eval_dataset: Any, args: ExtractionArguments) -> tuple[Any, Any]:
    """Load the rows to learn from and those to evaluate on, None without."""
    data = load_image_text(dataset, args.split)
    if isinstance(data, IterableDataset):
        if args.max_steps < 1:
            raise LearngeneError("the data is a stream, whose length nobody knows: set max_steps")
        if next(iter(data), None) is None:
            raise LearngeneError("the dataset is empty (a stream without rows): there is nothing to train on")
    elif args.cache_stream:
        raise LearngeneError("cache_stream is True, but the data is no stream: cache_ancestor keeps its outputs")
    strategy = getattr(args.eval_strategy, "value", args.eval_strategy)
    evaluates = strategy != "no"
    if eval_dataset is None or not evaluates:
        if evaluates:
            raise LearngeneError(f"eval_strategy is {strategy!r}, but there is no eval_dataset")
        return data, None
    if isinstance(eval_dataset, Mapping) and len(eval_dataset) != 1:
        raise LearngeneError(f"eval_dataset has the splits {', '.join(map(str, eval_dataset))}: give one of them")
    return data, load_image_text(eval_dataset, None)


def _check_losses(ancestor: Any, args: ExtractionArguments) -> None:
    """Refuse a classifier without labels, and losses between pictures and texts where there are no texts."""
    if is_classifier(ancestor) and not ancestor.config.num_labels:
        raise LearngeneError(f"the {type(ancestor).__name__} has no labels (its id2label is empty): give its encoder")
    given = [name for name in ("affinity_weight", "contrastive_weight") if getattr(args, name)]
    if not reads_texts(ancestor) and not is_classifier(ancestor) and (given or not args.feature_weight):
        told = f"{given[0]} is {getattr(args, given[0])}" if given else "feature_weight is 0"
        raise LearngeneError(
            f"{told}, but a {type(ancestor).__name__} reads no texts: its gene learns its features alone, by a "
            "feature_weight above 0"
        )


def _made_picture(processor: Any, width: int, height: int) -> Any:
    """The pixels [1, C, H, W] that a processor makes of a picture of a size."""
    image_processor = getattr(processor, "image_processor", processor)
    try:
        return image_processor(images=[Image.new("RGB", (width, height))], return_tensors="np")["pixel_values"]
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise LearngeneError(
            f"the processor, a {type(processor).__name__}, cannot process a picture ({first_line(error)})"
        ) from error


def _dinov2_size(processor: Any, ancestor: Any) -> int | None:
    """The side of the pictures that a processor makes for a DINOv2, which takes any; None for other ancestors."""
    if not isinstance(ancestor, (Dinov2Model, Dinov2ForImageClassification)):
        return None
    config: Any = ancestor.config
    size, patch = config.image_size, config.patch_size
    height, width = _made_picture(processor, size, size).shape[2:]
    if height != width or height % patch:
        raise LearngeneError(
            f"the processor makes pictures of {height} x {width} pixels: a gene of a {type(ancestor).__name__} takes "
            f"square ones, their side a multiple of its patches' {patch}"
        )
    return height


def _check_processor(processor: Any, ancestor: Any, args: ExtractionArguments) -> None:
    """Refuse a processor whose images or texts are not what the ancestor takes."""
    if reads_texts(ancestor):
        ImageTextCollator(processor)  # says which part is missing
        tokenizer, text_config = processor.tokenizer, ancestor.config.text_config
        check_tokenizer(tokenizer, text_config)
        longest, marks = longest_text(tokenizer, text_config, args.max_length), tokenizer.num_special_tokens_to_add()
        if longest is not None and longest <= marks:
            raise LearngeneError(f"max_length is {longest}, but {marks} tokens of each text are marks: raise it")
    config = encoders_of(ancestor.config)["image"]
    size = config.image_size
    height, width = (size, size) if isinstance(size, int) else tuple(size)
    # A picture of the right size: a processor that does not resize takes pictures that were made so.
    pixels = _made_picture(processor, width, height)
    if pixels.shape[1:] != (config.num_channels, height, width):
        raise LearngeneError(
            f"the processor makes pictures {list(pixels.shape[1:])}, the ancestor takes "
            f"{[config.num_channels, height, width]}: it is another model's processor"
        )


def _shorten(ancestor: Any, processor: Any, length: int) -> Any:
    """Cut the ancestor's context in memory and return a processor to match."""
    if not reads_texts(ancestor):
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


def config_of_gene(ancestor: Any, args: ExtractionArguments) -> LearngeneConfig:
    """The config of the gene that these arguments extract: `gene_config` with what None means filled in.

    Raises:
        LearngeneError: for blocks, a mixing or a size that no gene of this ancestor can have.
    """
    unimodal, multimodal = (1, 1) if reads_texts(ancestor) else (2, 0)
    multimodal = multimodal if args.num_multimodal_blocks is None else args.num_multimodal_blocks
    unimodal = unimodal if args.num_unimodal_blocks is None else args.num_unimodal_blocks
    paired = multimodal == unimodal == 1
    rank = args.token_embedding_rank
    if rank is None and reads_texts(ancestor):
        rank = max(ancestor.config.text_config.hidden_size // 4, 1)
    return gene_config(
        ancestor,
        token_embedding_rank=rank,
        num_multimodal_blocks=multimodal,
        num_unimodal_blocks=unimodal,
        mixing=args.mixing or ("shared-slope" if paired else "linear"),
        # Measured to be worth 2 points of zero-shot there, and nothing where each encoder has two blocks of its own.
        weight_scales=paired if args.weight_scales is None else args.weight_scales,
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
) -> tuple[Any, Any, dict[str, float]]:
    """Build the gene and start it from its ancestor, turned first where that is asked for.

    Returns:
        the gene; the ancestor that it was made from, turned where that was asked for; and what turning kept, see
        `rotate_channels`.
    """
    turned: dict[str, float] = {}
    if args.rotate and type(ancestor).__name__ in TURNED:
        rows = list(islice(data, args.rotation_rows))
        if not rows:
            raise LearngeneError("the dataset gives no rows: there is nothing to train on")
        rotated, turned = rotate_channels(ancestor.to(args.device), _Batches(rows, collator))
        ancestor.cpu()
        ancestor = rotated.cpu()
    config = config_of_gene(ancestor, args)
    # True says what older genes say: both are turned.
    config.scale_norms = len(turned) == 2 or sorted(turned) or False
    gene: Any = class_of_gene(config)(config)
    copy_outer_weights(gene, ancestor)
    if args.initialisation == "fitted" and args.gene_width is None:
        fit_gene(gene, ancestor)
    if reads_texts(ancestor) and not args.contrastive_weight:
        for name in config.kin.whole:  # no loss reaches the scale of the logits: it stays the ancestor's
            getattr(gene, name).requires_grad_(False)
    return gene, ancestor, turned


def _centers_features(ancestor: Any, args: ExtractionArguments) -> bool:
    if args.center_features is None:
        return not is_classifier(ancestor) and not reads_texts(ancestor)
    return args.center_features and not is_classifier(ancestor)


def _mean_outputs(ancestor: Any, data: Any, collator: AncestorCollator, count: int) -> dict[str, Tensor]:
    """The mean of each of the ancestor's outputs over the first `count` rows, [D] by `output_columns`."""
    batches = _Batches(list(islice(data, count)), collator)
    outputs = [outputs_of_batch(ancestor, collator, batch) for batch in batches]
    return {name: torch.cat([batch[name] for batch in outputs]).mean(0) for name in outputs[0]}


def _collator(processor: Any, ancestor: Any) -> AncestorCollator:
    if not reads_texts(ancestor):
        return AncestorCollator(None, Pixels(getattr(processor, "image_processor", processor)))
    return AncestorCollator(ImageTextCollator(processor, text_config=ancestor.config.text_config).deferred())


def _process(data: Any, ancestor: Any, processor: Any, args: ExtractionArguments) -> PictureRows | IterableDataset:
    common: dict[str, Any] = {"image_column": args.image_column, "on_bad_image": args.on_bad_image}
    with args.main_process_first(desc="processing"):
        if not reads_texts(ancestor):
            return read_rows(data, processor, of_pairs=False, **common)
        texts: dict[str, Any] = {"text_column": args.text_column, "max_length": args.max_length}
        return read_rows(data, processor, text_config=ancestor.config.text_config, **texts, **common)
