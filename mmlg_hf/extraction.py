"""`extract_learngene`: from a CLIP and image-text data to a gene, by a subclass of the transformers Trainer."""

import os
import platform
import time
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import transformers
from datasets import Dataset, IterableDataset
from transformers import AutoImageProcessor, AutoProcessor, PreTrainedModel, TrainingArguments, set_seed
from transformers.trainer_utils import get_last_checkpoint

from .ancestors import (
    cache_ancestor_outputs,
    copy_outer_weights,
    describe_ancestor,
    gene_config,
    is_classifier,
    load_ancestor,
)
from .data import find_columns, load_image_text, process_images, process_pairs
from .errors import LearngeneError
from .extraction_trainers import AncestorCollator, ImageExtractionTrainer, MultimodalExtractionTrainer
from .fitting import fit_gene
from .modeling_learngene import LearngeneForImageClassification, LearngeneMixin, LearngeneModel
from .rotation import rotate_channels
from .training import ImageTextCollator
from .vocabulary import trim_embedding, trim_tokenizer


@dataclass
class ExtractionArguments(TrainingArguments):
    """`TrainingArguments` of an extraction: what the gene is, how it starts, and what it learns from its ancestor.

    Everything else (steps, bf16, logging, saving, resuming) is the Trainer's own. Batch, learning rate and schedule
    have other defaults than the Trainer's, those of the bundled gene; the batch is small because feature distillation
    needs no negatives, so that more steps on as many pairs learn more.
    """

    per_device_train_batch_size: int = field(default=32, metadata={"help": "pairs in a step of each process"})
    learning_rate: float = field(default=1e-3, metadata={"help": "peak learning rate"})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "schedule of the learning rate"})
    warmup_steps: float = field(default=0.05, metadata={"help": "steps of warming up; below 1 a share of all steps"})
    weight_decay: float = field(
        default=0.3, metadata={"help": "weight decay, not of biases and of LayerNorms outside the blocks"}
    )
    adam_beta2: float = field(default=0.98, metadata={"help": "decay of AdamW's second moment"})
    muon_learning_rate: float | None = field(
        default=4e-3,
        metadata={"help": "peak learning rate of Muon, for the blocks' matrices; 0 or None takes AdamW for them, too"},
    )

    num_multimodal_blocks: int | None = field(
        default=None, metadata={"help": "blocks shared by both encoders; None takes 1, and 0 for an image gene"}
    )
    num_unimodal_blocks: int | None = field(
        default=None, metadata={"help": "blocks of each encoder alone; None takes 1, and 2 for an image gene (TLEG)"}
    )
    mixing: str | None = field(
        default=None,
        metadata={
            "help": 'coefficients: "shared-slope", "linear", "chebyshev" or "learned"; None takes "shared-slope" for '
            'one multimodal and one unimodal block, and "linear" for others'
        },
    )
    gene_depth: int | None = field(default=None, metadata={"help": "layers of the gene; None takes the ancestor's"})
    gene_width: int | None = field(
        default=None, metadata={"help": "hidden_size of the gene's wider encoder; None takes the ancestor's"}
    )
    token_embedding_rank: int | None = field(
        default=None,
        metadata={
            "help": "rank at which the gene stores its token embedding; None takes a quarter of the text encoder's "
            "width, that width or more stores it whole"
        },
    )
    initialisation: str = field(
        default="fitted",
        metadata={"help": 'blocks start "random" (TLEG) or "fitted" to the ancestor\'s layers by least squares'},
    )
    rotate: bool = field(
        default=True,
        metadata={"help": "turn a CLIP ancestor's channels first, so that leading slices keep most of it"},
    )
    rotation_rows: int = field(default=512, metadata={"help": "rows of data that the rotation is found on"})
    elastic: bool = field(default=True, metadata={"help": "train smaller slices along, so that descendants work"})
    elastic_samples: int = field(default=2, metadata={"help": "smaller networks drawn for each step"})
    affinity_weight: float = field(default=0.0, metadata={"help": "weight of affinity distillation (TinyCLIP)"})
    affinity_scale: float = field(default=50.0, metadata={"help": "inverse temperature of the affinities"})
    feature_weight: float = field(default=1.0, metadata={"help": "weight of feature distillation (CLIP-KD)"})
    contrastive_weight: float = field(default=0.0, metadata={"help": "weight of the hard contrastive loss (CLIP)"})
    distillation_temperature: float = field(default=1.0, metadata={"help": "T of an image gene's soft distillation"})
    cache_ancestor: bool = field(
        default=True, metadata={"help": "compute the ancestor's outputs once and keep them on disk (not for streams)"}
    )
    ancestor_cache_dir: str | None = field(
        default=None, metadata={"help": "folder of the kept outputs; None takes output_dir/ancestor_outputs"}
    )
    trim_vocabulary: bool = field(
        default=False, metadata={"help": "keep only the tokens that the data uses (not for streams)"}
    )
    image_column: str | None = field(default=None, metadata={"help": "image column; None finds it"})
    text_column: str | None = field(default=None, metadata={"help": "text column; None finds it"})
    split: str = field(default="train", metadata={"help": "split of the data set to learn from"})
    max_length: int | None = field(default=None, metadata={"help": "longest text in tokens; None: the tokenizer's"})
    on_bad_image: str = field(default="raise", metadata={"help": 'unreadable images: "raise" or "skip" with a count'})
    remove_unused_columns: bool = field(default=False, metadata={"help": "always off: the data are tensors already"})
    dataloader_pin_memory: bool = field(
        default_factory=torch.cuda.is_available, metadata={"help": "pin batches; None of use without a GPU"}
    )
    dataloader_drop_last: bool = field(default=True, metadata={"help": "always on: batches must be of one size"})

    def __post_init__(self):
        super().__post_init__()
        if self.initialisation not in ("random", "fitted"):
            raise LearngeneError(f'initialisation is {self.initialisation!r}: it takes "random" or "fitted"')
        for name in ("affinity_weight", "feature_weight", "contrastive_weight"):
            if getattr(self, name) < 0:
                raise LearngeneError(f"{name} is {getattr(self, name)}: a loss weight cannot be negative")
        if self.affinity_weight + self.feature_weight + self.contrastive_weight == 0:
            raise LearngeneError("all loss weights are 0: give affinity_weight, feature_weight or contrastive_weight")
        if self.elastic and self.elastic_samples < 1:
            raise LearngeneError(f"elastic_samples is {self.elastic_samples}: take at least 1, or elastic=False")
        if self.token_embedding_rank is not None and self.token_embedding_rank < 1:
            raise LearngeneError(f"token_embedding_rank is {self.token_embedding_rank}: it takes 1 or more, or None")
        if self.muon_learning_rate:
            self._check_muon(self.muon_learning_rate)
        if self.distillation_temperature <= 0:
            raise LearngeneError(f"distillation_temperature is {self.distillation_temperature}: it must be above 0")

    def _check_muon(self, rate: float):
        if rate < 0:
            raise LearngeneError(f"muon_learning_rate is {rate}: it cannot be negative; 0 or None takes AdamW alone")
        unfit = [name for name in ("fp16", "fsdp", "deepspeed") if getattr(self, name)]
        if unfit:
            raise LearngeneError(
                f"muon_learning_rate is {rate} with {unfit[0]}, which scales or moves what Muon works on: set it "
                "to 0, or use bf16 and plain data parallelism"
            )


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
        ancestor: a Hub id, a folder or a stock model: `CLIPModel` gives a `LearngeneModel`;
            `CLIPForImageClassification` and `ViTForImageClassification` give a `LearngeneForImageClassification`.
        dataset: a Hub id, a folder, a `Dataset` or an `IterableDataset` with an image column and, for a CLIP, a text
            column. Images are used as they are, without augmentation.
        args: None takes `ExtractionArguments("learngene")`.
        processor: None takes the one stored with the ancestor.
        eval_dataset: like `dataset`, for the Trainer's evaluation; None evaluates nothing.
        revision: branch, tag or commit of the ancestor on the Hub; None takes main.
        resume_from_checkpoint: a checkpoint folder, or True for the last one in `args.output_dir`; None starts afresh.

    Returns:
        the gene, also saved to `args.output_dir` with its processor; `config.ancestor` and `config.recipe` tell how it
        was made.

    Raises:
        LearngeneError: for an ancestor that is no CLIP, data without the columns, empty data, or an unreadable image.
    """
    args = args if args is not None else ExtractionArguments("learngene")
    if not isinstance(args, ExtractionArguments):
        raise LearngeneError(f"args is a {type(args).__name__}: give ExtractionArguments")
    model = load_ancestor(ancestor, revision)
    described = describe_ancestor(model, model.num_parameters())
    if processor is None:
        processor = _stored_processor(model)
    data = load_image_text(dataset, args.split)
    if args.trim_vocabulary and not is_classifier(model):
        processor = _trim(model, processor, data, args)

    collator = AncestorCollator(None if is_classifier(model) else ImageTextCollator(processor))
    train = _process(data, model, processor, args)
    evaluation = (
        None if eval_dataset is None else _process(load_image_text(eval_dataset, None), model, processor, args)
    )
    set_seed(args.seed)
    started = time.monotonic()  # the rotation, the fit and the ancestor's outputs are part of the price
    gene = _make_gene(model, args, train, collator)
    gene.config.ancestor, gene.processor = described, processor
    if args.cache_ancestor and isinstance(train, Dataset):
        folder = args.ancestor_cache_dir or Path(args.output_dir, "ancestor_outputs")
        with args.main_process_first(desc="ancestor outputs"):
            train = cache_ancestor_outputs(model.to(args.device), train, collator, processor, folder)

    trainer_class: Any = ImageExtractionTrainer if is_classifier(model) else MultimodalExtractionTrainer
    trainer = trainer_class(
        gene,
        args,
        ancestor=model.to(args.device),
        data_collator=collator,
        train_dataset=train,
        eval_dataset=evaluation,
    )
    if resume_from_checkpoint is True:
        resume_from_checkpoint = get_last_checkpoint(args.output_dir)
    result = trainer.train(resume_from_checkpoint=resume_from_checkpoint)
    gene.config.recipe = _recipe(args, dataset, train, result, trainer.state, time.monotonic() - started)
    trainer.save_model(args.output_dir)
    return gene.eval()


def _stored_processor(ancestor: PreTrainedModel) -> Any:
    auto: Any = AutoImageProcessor if is_classifier(ancestor) else AutoProcessor
    name = ancestor.name_or_path
    try:
        return auto.from_pretrained(name, revision=getattr(ancestor.config, "_commit_hash", None))
    except (OSError, ValueError) as error:
        raise LearngeneError(
            f"the ancestor {name!r} has no processor stored with it ({str(error).splitlines()[0]}): pass processor="
        ) from error


def _trim(ancestor: Any, processor: Any, data: Any, args: ExtractionArguments) -> Any:
    """Trim the ancestor's vocabulary in memory and return a processor to match."""
    if not isinstance(data, Dataset):
        raise LearngeneError("trim_vocabulary needs to see all texts first: use a Dataset, not a stream")
    _, column = find_columns(data, args.image_column, args.text_column)
    texts = (text if isinstance(text, str) else " ".join(text or []) for text in data[column])
    tokenizer, old_ids = trim_tokenizer(processor.tokenizer, texts)
    trim_embedding(ancestor, tokenizer, old_ids)
    return type(processor)(processor.image_processor, tokenizer)


def _make_gene(ancestor: Any, args: ExtractionArguments, data: Any, collator: AncestorCollator) -> Any:
    """Build the gene and start it from its ancestor, turned first where that is asked for."""
    turned: dict[str, float] = {}
    if args.rotate and not is_classifier(ancestor):
        rows = list(islice(data, args.rotation_rows))
        batches = [collator(rows[start : start + 128]) for start in range(0, len(rows), 128)]
        ancestor, turned = rotate_channels(ancestor, batches)
    unimodal, multimodal = (2, 0) if is_classifier(ancestor) else (1, 1)
    multimodal = multimodal if args.num_multimodal_blocks is None else args.num_multimodal_blocks
    unimodal = unimodal if args.num_unimodal_blocks is None else args.num_unimodal_blocks
    rank = args.token_embedding_rank
    if rank is None and not is_classifier(ancestor):
        rank = max(ancestor.config.text_config.hidden_size // 4, 1)
    config = gene_config(
        ancestor,
        token_embedding_rank=rank,
        num_multimodal_blocks=multimodal,
        num_unimodal_blocks=unimodal,
        mixing=args.mixing or ("shared-slope" if multimodal == unimodal == 1 else "linear"),
        depth=args.gene_depth,
        width=args.gene_width,
    )
    # True says what older genes say: both are turned.
    config.scale_norms = len(turned) == 2 or sorted(turned) or False
    gene: Any = (LearngeneForImageClassification if is_classifier(ancestor) else LearngeneModel)(config)
    copy_outer_weights(gene, ancestor)
    if args.initialisation == "fitted" and args.gene_width is None and hasattr(ancestor, "vision_model"):
        fit_gene(gene, ancestor)
    if not is_classifier(ancestor) and not args.contrastive_weight:
        gene.logit_scale.requires_grad_(False)  # no loss reaches it: it stays the ancestor's
    return gene


def _process(data: Any, ancestor: Any, processor: Any, args: ExtractionArguments) -> Dataset | IterableDataset:
    common: dict[str, Any] = {"image_column": args.image_column, "on_bad_image": args.on_bad_image}
    with args.main_process_first(desc="processing"):
        if is_classifier(ancestor):
            return process_images(data, getattr(processor, "image_processor", processor), **common)
        return process_pairs(data, processor, text_column=args.text_column, max_length=args.max_length, **common)


def _recipe(args: ExtractionArguments, dataset: Any, train: Any, result: Any, state: Any, seconds: float) -> dict:
    """Collect what the artifact says about how it was made."""
    own = [
        name for name in ExtractionArguments.__dataclass_fields__ if name not in TrainingArguments.__dataclass_fields__
    ]
    settings = {name: getattr(args, name) for name in own if name not in ("ancestor_cache_dir",)}
    last: dict[str, Any] = next((entry for entry in reversed(state.log_history) if "loss" in entry), {})
    return {
        "dataset": os.path.basename(os.fspath(dataset))
        if isinstance(dataset, (str, os.PathLike))
        else type(dataset).__name__,
        "rows": len(train) if isinstance(train, Dataset) else None,
        "steps": state.global_step,
        "batch_size": args.train_batch_size * args.gradient_accumulation_steps * args.world_size,
        "learning_rate": args.learning_rate,
        "weight_decay": args.weight_decay,
        "seed": args.seed,
        **settings,
        "train_loss": round(result.training_loss, 5),
        "final_losses": {name: value for name, value in last.items() if name.startswith("loss")},
        "seconds": round(seconds),
        "hardware": torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
