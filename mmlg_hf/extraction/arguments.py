"""The arguments of an extraction: what the gene is, how it starts, and what it learns from its ancestor."""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import TrainingArguments

from ..errors import LearngeneError, first_line
from ..gene_files import read_dtype

# Optimizers that choose their parameters or take steps in ways that none can stand beside.
_ALONE = ("galore", "apollo", "lomo", "adalomo", "schedule_free")
_NOT_NEGATIVE = (
    "learning_rate", "weight_decay", "adam_epsilon", "max_grad_norm", "warmup_steps", "muon_learning_rate",
    "scale_learning_rate", "affinity_weight", "feature_weight", "contrastive_weight",
)  # fmt: skip
_ABOVE_ZERO = ("affinity_scale", "distillation_temperature")
_AT_LEAST_ONE = (
    "per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps", "rotation_rows",
    "elastic_samples", "token_embedding_rank", "max_length", "max_text_length", "gene_depth", "gene_width",
)  # fmt: skip


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
        default=0.3,
        metadata={
            "help": "weight decay of matrices; biases, norms, other vectors, learned coefficients and scales have none"
        },
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
    weight_scales: bool | None = field(
        default=None,
        metadata={
            "help": "train factors of each layer on the rows and columns of its matrices; None does so for one "
            "multimodal and one unimodal block"
        },
    )
    scale_learning_rate: float = field(default=1e-2, metadata={"help": "peak learning rate of weight_scales"})
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
    center_features: bool | None = field(
        default=None,
        metadata={
            "help": "take the ancestor's mean output out before features are compared; None does so for a ViT, whose "
            "features share much, and not for embeddings"
        },
    )
    contrastive_weight: float = field(default=0.0, metadata={"help": "weight of the hard contrastive loss (CLIP)"})
    distillation_temperature: float = field(default=1.0, metadata={"help": "T of an image gene's soft distillation"})
    cache_ancestor: bool = field(
        default=True,
        metadata={"help": "compute the ancestor's outputs once and keep them on disk; a stream's by cache_stream"},
    )
    cache_stream: bool = field(
        default=False,
        metadata={
            "help": "keep a stream's outputs of the ancestor, too, by what each row holds: for a stream that is read "
            "more than once, by this run or by others"
        },
    )
    ancestor_cache_dir: str | None = field(
        default=None, metadata={"help": "folder of the kept outputs; None takes output_dir/ancestor_outputs"}
    )
    ancestor_dtype: str | None = field(
        default=None,
        metadata={
            "help": 'type that the ancestor computes its outputs in, such as "bfloat16" on a GPU; its weights are '
            "read into the gene as they are. None takes that of its weights"
        },
    )
    trim_vocabulary: bool = field(
        default=False,
        metadata={"help": "keep only the tokens that the data uses; a stream is read once for them first"},
    )
    max_text_length: int | None = field(
        default=None,
        metadata={
            "help": "positions of the gene's text encoder, in tokens: a shorter context than the ancestor's, which is "
            "cut likewise; None keeps them all"
        },
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
        self._check_numbers()
        try:
            super().__post_init__()
        except ValueError as error:
            raise LearngeneError(self._name_value(first_line(error))) from error
        if self.initialisation not in ("random", "fitted"):
            raise LearngeneError(f'initialisation is {self.initialisation!r}: it takes "random" or "fitted"')
        if read_dtype(self.ancestor_dtype) == "auto":
            raise LearngeneError("ancestor_dtype is 'auto': name a type, such as \"bfloat16\", or leave it out")
        if self.affinity_weight + self.feature_weight + self.contrastive_weight == 0:
            raise LearngeneError("all loss weights are 0: give affinity_weight, feature_weight or contrastive_weight")
        if self.muon_learning_rate:
            self._check_muon(self.muon_learning_rate)
        elif not self.learning_rate:
            raise LearngeneError("learning_rate and muon_learning_rate are both 0: nothing would be trained")

    def _name_value(self, told: str) -> str:
        """Say whose value it is that transformers' enumerations refuse: "x is not a valid SchedulerType, ..."."""
        value = told.partition(" is not a valid ")[0]
        named = [name for name in self.__dataclass_fields__ if value != told and getattr(self, name, None) == value]
        return f"{named[0]} is {value!r}: {told}" if named else told

    def _check_numbers(self):
        for name in (*_NOT_NEGATIVE, *_ABOVE_ZERO, *_AT_LEAST_ONE, "max_steps", "num_train_epochs"):
            value = getattr(self, name)
            if value is None:
                continue
            if not isinstance(value, (int, float)) or not math.isfinite(value):
                raise LearngeneError(f"{name} is {value!r}: it must be a number, and a finite one")
            if name in _NOT_NEGATIVE and value < 0:
                raise LearngeneError(f"{name} is {value}: it cannot be negative")
            if name in _ABOVE_ZERO and value <= 0:
                raise LearngeneError(f"{name} is {value}: it must be above 0")
            if name in _AT_LEAST_ONE and value < 1 and (name != "elastic_samples" or self.elastic):
                raise LearngeneError(f"{name} is {value}: it takes 1 or more")
        if self.max_steps != -1 and self.max_steps < 1:
            raise LearngeneError(f"max_steps is {self.max_steps}: it takes 1 or more, or -1 for num_train_epochs")
        if self.max_steps == -1 and self.num_train_epochs <= 0:
            raise LearngeneError(f"num_train_epochs is {self.num_train_epochs}: it must be above 0")
        for name in ("adam_beta1", "adam_beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise LearngeneError(f"{name} is {getattr(self, name)}: it takes 0 up to, but not, 1")

    def _check_muon(self, rate: float):
        unfit = [name for name in ("fp16", "fsdp", "deepspeed") if getattr(self, name)]
        if unfit:
            raise LearngeneError(
                f"muon_learning_rate is {rate} with {unfit[0]}, which scales or moves what Muon works on: set it "
                "to 0, or use bf16 and plain data parallelism"
            )
        optim: Any = getattr(self.optim, "value", self.optim)
        if optim.startswith(_ALONE):
            raise LearngeneError(
                f"muon_learning_rate is {rate} with optim={optim!r}, which cannot stand beside another optimizer: set "
                "muon_learning_rate to 0, or take adamw_torch, sgd or another plain one"
            )
