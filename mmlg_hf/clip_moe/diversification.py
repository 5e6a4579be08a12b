"""Multistage contrastive learning: from one CLIP, fine-tunes of its MLPs that each attend to other features.

Stage s embeds the training set with the previous stage's model, splits every earlier cluster by clusters of those
embeddings, and fine-tunes the base on batches that each come from one cluster: all negatives share every feature found
so far, so what tells them apart must be something else (CLIP-MoE, arXiv 2409.19291, section 3).
"""

import copy
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from transformers import CLIPModel, TrainingArguments
from transformers.trainer_utils import has_length
from transformers.utils import logging

from ..data.identity import begin_run, fingerprint_model
from ..errors import LearngeneError, first_line
from ..saving import check_writable, save_processor, whole_file, whole_folder, write_json
from ..training.resuming import last_checkpoint, output_of
from ..training.trainer import ContrastiveTrainer, ImageTextCollator
from .clusters import ClusterReport, ClusterSampler, accumulate, cluster_pairs, embed_pairs, report_clusters
from .plots import plot_clusters
from .rows import check_rows, describe_rows
from .upcycling import load_dense_clip

logger = logging.get_logger(__name__)


@dataclass
class DiversifyArguments(TrainingArguments):
    """`TrainingArguments` of every stage, with CLIP-MoE's published values as defaults (but batch size and warm-up).

    Published: batch 800, learning rate 1e-5, weight decay 0.2, 200 warm-up steps, cosine, 1 epoch, label smoothing
    0.1, 4 experts, 3 clusters for images and 3 for texts.
    """

    num_experts: int = field(default=4, metadata={"help": "Experts of the mixture, the base included."})
    num_clusters: int = field(
        default=3, metadata={"help": "Clusters of the images and of the texts in each stage, K."}
    )
    max_dropped: float = field(
        default=0.5, metadata={"help": "Largest share of pairs that may be left out of an epoch, in [0, 1]."}
    )
    learning_rate: float = 1e-5
    weight_decay: float = 0.2
    warmup_steps: float = 0.1
    lr_scheduler_type: str = "cosine"
    num_train_epochs: float = 1.0
    label_smoothing_factor: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_experts < 2:
            raise LearngeneError(f"num_experts is {self.num_experts}: the base and at least one fine-tune make 2")
        if self.num_clusters < 1:
            raise LearngeneError(f"num_clusters is {self.num_clusters}: give 1 or more")
        if not 0 <= self.max_dropped <= 1:
            raise LearngeneError(f"max_dropped is {self.max_dropped}: it is a share between 0 and 1")


class DiversifyTrainer(ContrastiveTrainer):
    """Trains the MLPs alone, on batches that each come from one cluster.

    Args:
        cluster_labels: the cluster of each row of `train_dataset` [N].
    """

    def __init__(self, model: CLIPModel, *args: Any, cluster_labels: np.ndarray, **kwargs: Any) -> None:
        self.cluster_labels = cluster_labels
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(".mlp." in name)
        super().__init__(model, *args, **kwargs)

    def _get_train_sampler(self, train_dataset: Any = None) -> ClusterSampler:
        return ClusterSampler(self.cluster_labels, _global_batch(self.args), self.args.data_seed or self.args.seed)


def diversify(
    base: str | os.PathLike | CLIPModel,
    dataset: Any,
    args: DiversifyArguments,
    *,
    processor: Any = None,
    data_collator: Any = None,
) -> list[Path]:
    """Fine-tune E - 1 experts of a base CLIP, one stage after another, for `upcycle` to assemble.

    Each stage leaves `stage-N/expert`, a stock CLIP checkpoint that differs from the base in its MLPs alone, with its
    clusters, and `clusters.png` shows them. Run again with the same arguments it takes up where it was interrupted,
    inside a stage too (if `args` saves checkpoints); with a larger `num_experts` it adds stages.

    Args:
        base: a Hub id, a folder or a `CLIPModel`; a model that is given is left as it was. It is trained in float32,
            in which alone steps as small as these count.
        dataset: rows for the collator, with a length: a `datasets.Dataset`, raw or processed.
        args: hyperparameters, and the folder that all goes to.
        processor: a `CLIPProcessor`; saved beside each expert. None if there is a `data_collator`.
        data_collator: None makes an `ImageTextCollator` around the processor.

    Returns:
        The folders of the experts.

    Raises:
        LearngeneError: a base that is a mixture or damaged, fewer pairs than clusters, clusters too small for a batch,
            a stream, or a folder that holds a run with other settings (naming the first).
    """
    output = output_of(args)
    check_writable(output)
    dense = load_dense_clip(base, dtype=torch.float32)
    if dense.dtype != torch.float32:
        dense = copy.deepcopy(dense).float()
    check_rows(dataset)
    if not has_length(dataset):
        raise LearngeneError(
            "the dataset is a stream: clustering needs all rows, so load it whole or take a part of it"
        )
    if data_collator is None:
        if processor is None:
            raise LearngeneError("diversify needs a processor (a CLIPProcessor) or a data_collator")
        data_collator = ImageTextCollator(processor)
    if len(dataset) < args.num_clusters:
        raise LearngeneError(
            f"there are {len(dataset)} pairs for {args.num_clusters} clusters: give more data or fewer clusters"
        )
    goes_on = (output / "diversify.json").exists() or any(output.glob("stage-*"))
    begin_run(output / "diversify.json", _settings(dense, dataset, args, data_collator), goes_on=goes_on)
    experts: list[Path] = []
    labels: np.ndarray | None = None
    reports: list[ClusterReport] = []
    for stage in range(1, args.num_experts):
        folder = output / f"stage-{stage}"
        if (folder / "stage.json").exists():
            labels = _read_labels(folder / "clusters.npy", len(dataset))
            reports.append(report_clusters(labels, _global_batch(args), stage, args.max_dropped))
        else:
            previous = load_dense_clip(experts[-1] if experts else copy.deepcopy(dense))
            labels, report = _find_clusters(previous, dataset, data_collator, args, labels, folder, stage)
            reports.append(report)
            _train_stage(copy.deepcopy(dense), dataset, data_collator, args, labels, report, folder, processor)
        experts.append(folder / "expert")
    if PartialState().is_main_process:
        plot_clusters(reports, output / "clusters.png")
    PartialState().wait_for_everyone()
    return experts


def _global_batch(args: TrainingArguments) -> int:
    """Pairs that are contrasted with each other in one step, over all processes."""
    return args.train_batch_size * args.world_size


def _settings(base: CLIPModel, dataset: Any, args: DiversifyArguments, data_collator: Any) -> dict[str, Any]:
    """Everything that must not change between the stages of one run."""
    names = ("num_clusters", "learning_rate", "weight_decay", "num_train_epochs", "max_steps", "seed")
    return {
        "pairs": len(dataset),
        "batch_size": _global_batch(args),
        "label_smoothing_factor": args.label_smoothing_factor,
        **{name: getattr(args, name) for name in names},
        "lr_scheduler_type": str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)),
        "warmup_steps": args.warmup_steps,
        "base": fingerprint_model(base),
        **describe_rows(dataset, data_collator),
    }


def _find_clusters(
    model: Any,
    dataset: Any,
    data_collator: Any,
    args: DiversifyArguments,
    earlier: np.ndarray | None,
    folder: Path,
    stage: int,
) -> tuple[np.ndarray, ClusterReport]:
    """Cluster all pairs by one model's embeddings within the earlier clusters, or read what was found before."""
    path = folder / "clusters.npy"
    if not path.exists():
        how = {"batch_size": args.per_device_eval_batch_size, "num_workers": args.dataloader_num_workers}
        embeds = embed_pairs(model.to(args.device), dataset, data_collator, **how)
        # One process clusters for all: floating-point differences between machines must not part them.
        found: list[Any] = [None]
        if PartialState().is_main_process:
            found = [accumulate(earlier, cluster_pairs(*embeds, args.num_clusters, args.seed))]
            folder.mkdir(parents=True, exist_ok=True)
            with whole_file(path) as partial:
                np.save(partial, found[0])
        labels = broadcast_object_list(found)[0]
    else:
        labels = _read_labels(path, len(dataset))
    report = report_clusters(labels, _global_batch(args), stage, args.max_dropped)
    logger.info(
        f"stage {stage}: {len(report.sizes)} clusters of {report.sizes[-1]} to {report.sizes[0]} pairs, "
        f"{report.dropped_share:.1%} of the pairs dropped"
    )
    return labels, report


def _read_labels(path: Path, rows: int) -> np.ndarray:
    """Read the cluster of each row that an earlier run found."""
    try:
        labels = np.load(path)
        if labels.shape != (rows,):
            raise ValueError(f"it has the shape {list(labels.shape)} for {rows} pairs")
    except (OSError, ValueError, EOFError) as error:
        raise LearngeneError(f"{str(path)!r} is damaged ({first_line(error)}): remove its stage's folder") from error
    return labels


def _train_stage(
    model: CLIPModel,
    dataset: Any,
    data_collator: Any,
    args: DiversifyArguments,
    labels: np.ndarray,
    report: ClusterReport,
    folder: Path,
    processor: Any,
) -> None:
    """Fine-tune a copy of the base on one stage's clusters and leave the expert and the stage's report."""
    stage_args = copy.copy(args)
    stage_args.output_dir = str(folder / "trainer")
    trainer = DiversifyTrainer(model, stage_args, data_collator, dataset, cluster_labels=labels)
    checkpoint = last_checkpoint(output_of(stage_args))
    result = trainer.train(resume_from_checkpoint=checkpoint)
    if trainer.is_world_process_zero():
        with whole_folder(folder / "expert") as ready:
            trainer.accelerator.unwrap_model(model).save_pretrained(ready)
            if processor is not None:
                save_processor(processor, ready)
        record = report.as_dict() | {"steps": result.global_step, "loss": result.training_loss}
        write_json(folder / "stage.json", record | {"seconds": result.metrics["train_runtime"]}, indent=1)
        shutil.rmtree(stage_args.output_dir, ignore_errors=True)
    trainer.accelerator.wait_for_everyone()
