"""Train a CLIP mixture of experts, its routers alone or more of it, and record how the experts are used."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, TrainingArguments
from transformers.trainer_utils import has_length

from ..checkpoints import check_finite, load_model
from ..data.identity import begin_run, check_same_run, fingerprint_model, read_run
from ..errors import LearngeneError
from ..extraction.distillation import DistillationTrainer
from ..saving import check_writable, write_json
from ..training.resuming import last_checkpoint, output_of
from ..training.trainer import ContrastiveTrainer
from .modeling_clip_moe import CLIPMoEModel
from .plots import plot_expert_usage
from .rows import check_rows, describe_rows
from .upcycling import SIDES, model_type_of

RECORD = "router.json"


@dataclass
class RouterArguments(TrainingArguments):
    """`TrainingArguments` with CLIP-MoE's published values for the router stage (but batch size and warm-up).

    Published: batch 800, learning rate 1e-6, weight decay 0.01, 200 warm-up steps, cosine, 1 epoch.
    """

    train_experts: bool = field(
        default=False,
        metadata={"help": "Also train the experts. Copies of one MLP need it: their gates have no gradient."},
    )
    train_all: bool = field(
        default=False,
        metadata={"help": "Train the whole mixture, as upcycling from copies does: attention and projections too."},
    )
    feature_weight: float = field(
        default=10.0, metadata={"help": "Weight of the imitation of an ancestor, where one is given."}
    )
    learning_rate: float = 1e-6
    weight_decay: float = 0.01
    warmup_steps: float = 0.1
    lr_scheduler_type: str = "cosine"
    num_train_epochs: float = 1.0


class RouterTrainer(ContrastiveTrainer):
    """Trains gates by the contrastive loss and the balance loss, and records expert usage with every log.

    Each log gets `vision_busiest_expert` and `text_busiest_expert`, the largest share of routed tokens that one expert
    got in any layer since the last log; `state.log_history` also gets a record with all shares (see `usage_history`),
    so that a checkpoint carries them.

    Args:
        train_experts: also train the experts.
        train_all: train everything.
    """

    def __init__(
        self, model: CLIPMoEModel, *args: Any, train_experts: bool = False, train_all: bool = False, **kwargs: Any
    ) -> None:
        trained = (".mlp.router.", ".mlp.experts.") if train_experts else (".mlp.router.",)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(train_all or any(part in name for part in trained))
        super().__init__(model, *args, **kwargs)
        self._tokens: dict[str, torch.Tensor] = {}

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Contrastive loss over all processes plus, in training, the loss of this process's routers."""
        inputs = {**inputs, "output_router_logits": model.training}
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True)
        if model.training:
            own: Any = self.model  # which `model` may wrap
            masks = {"vision": None, "text": inputs.get("attention_mask")}
            for encoder in SIDES:
                logits = getattr(outputs, f"{encoder}_model_output").router_logits
                if logits:
                    tokens = count_routed_tokens(logits, own.config.num_experts_per_tok, masks[encoder])
                    self._tokens[encoder] = self._tokens.get(encoder, 0) + tokens
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the usage of the experts since the last log."""
        if self._tokens and ("loss" in logs or "train_loss" in logs):  # the latter at the end, for what is left
            record: dict[str, Any] = {"step": self.state.global_step}
            for encoder, tokens in self._tokens.items():
                tokens = self.accelerator.reduce(tokens, "sum")
                shares = tokens / tokens.sum(dim=-1, keepdim=True)  # [layers, E]
                record[f"{encoder}_expert_usage"] = [[round(share, 4) for share in row] for row in shares.tolist()]
                logs[f"{encoder}_busiest_expert"] = round(shares.max().item(), 4)
            self._tokens = {}
            self.state.log_history.append(record)
        super().log(logs, start_time)


class ImitatingRouterTrainer(RouterTrainer, DistillationTrainer):
    """A `RouterTrainer` whose mixture also imitates a frozen CLIP, with the arguments of a `DistillationTrainer`."""


def count_routed_tokens(
    router_logits: tuple[torch.Tensor, ...], top_k: int, attention_mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Count the tokens that each expert of each layer gets, over the k slots: [layers, E].

    Args:
        router_logits: one [B * T, E] for each layer.
        attention_mask: tokens [B, T] that are 0 here are not counted; None counts all.
    """
    logits = torch.stack([layer.detach() for layer in router_logits])  # [layers, B * T, E]
    chosen = torch.zeros_like(logits).scatter_(-1, logits.topk(top_k, dim=-1).indices, 1.0)
    if attention_mask is not None:
        chosen = chosen * attention_mask.reshape(1, -1, 1).to(chosen)
    return chosen.sum(dim=1)


def usage_history(log_history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Take the usage records out of a Trainer's log: `step` and, by encoder, shares [layers][experts]."""
    names = {f"{encoder}_expert_usage": encoder for encoder in SIDES}
    return [
        {"step": record["step"], **{short: record[name] for name, short in names.items() if name in record}}
        for record in log_history
        if any(name in record for name in names)
    ]


def train_router(
    model: str | os.PathLike | CLIPMoEModel,
    dataset: Any,
    args: RouterArguments,
    *,
    processor: Any = None,
    data_collator: Any = None,
    ancestor: str | os.PathLike | PreTrainedModel | None = None,
    ancestor_processor: Any = None,
    resume_from_checkpoint: str | bool | None = None,
) -> CLIPMoEModel:
    """Train the gates of a mixture, or what `args` says; save the model and the usage of its experts.

    The loss is the contrastive one over all processes plus `router_aux_loss_coef` times
    (image balance + text balance / 2) plus `router_z_loss_coef` times the same of the z-losses, those of each process
    by itself. With an ancestor, `feature_weight` times the distance to its embeddings is added: contrast alone leads
    experts that are trained away from what their base had of it.
    The folder of `args` gets the model, the processor, `expert_usage.json` and `expert_usage.png`.

    Args:
        model: a mixture, as `upcycle` makes it, or the folder or Hub id of one. A given model is itself trained.
        dataset: rows for the collator.
        args: hyperparameters, and the folder that all goes to.
        processor: a `CLIPProcessor`, saved beside the model; None if there is a `data_collator`.
        data_collator: None makes an `ImageTextCollator` around the processor.
        ancestor: a frozen CLIP to imitate, a Hub id, a folder or a model: a larger one whose embeddings are as large,
            or the dense base itself. See `mmlg_hf.DistillationTrainer`.
        ancestor_processor: None takes the one stored with the ancestor.
        resume_from_checkpoint: as in `Trainer.train`; the checkpoint's run must have been begun with the same model,
            data and hyperparameters.

    Returns:
        The trained mixture, in evaluation mode, all of it trainable again.

    Raises:
        LearngeneError: if the model is no CLIP mixture of experts or is damaged, neither a processor nor a collator is
            given, the ancestor is none that can be imitated, or the checkpoint is of another run (naming the first
            setting that differs).
    """
    output = output_of(args)
    check_writable(output)
    model = _load_mixture(model)
    check_rows(dataset)
    if not has_length(dataset) and args.max_steps < 1:
        raise LearngeneError("the dataset is a stream, whose end is not known: give max_steps")
    given: dict[str, Any] = {"train_experts": args.train_experts, "train_all": args.train_all}
    trainer_class: type[RouterTrainer] = RouterTrainer
    if ancestor is not None:
        trainer_class = ImitatingRouterTrainer
        given |= {
            "ancestor": ancestor,
            "ancestor_processor": ancestor_processor,
            "feature_weight": args.feature_weight,
        }
    trainer = trainer_class(model, args, data_collator, dataset, processing_class=processor, **given)
    checkpoint = _checkpoint(args, resume_from_checkpoint)
    settings = _settings(model, dataset, args, trainer)
    if checkpoint is not None:
        check_same_run(read_run(checkpoint.parent / RECORD), settings, checkpoint.parent)
    begin_run(output / RECORD, settings, goes_on=last_checkpoint(output) is not None)
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    trainer.save_model()
    history = usage_history(trainer.state.log_history)
    if trainer.is_world_process_zero() and history:
        write_json(output / "expert_usage.json", history, indent=None)
        plot_expert_usage(history, output / "expert_usage.png")
    return model.requires_grad_(True).eval()


def _load_mixture(model: str | os.PathLike | CLIPMoEModel) -> CLIPMoEModel:
    if isinstance(model, (str, os.PathLike)):
        found = model_type_of(model)
        if found != "clip_moe":
            raise LearngeneError(f"{os.fspath(model)!r} is of type {found!r}, not a mixture: make one with `upcycle`")
        model = load_model(CLIPMoEModel, model, "the mixture", dtype=torch.float32)
    if not isinstance(model, CLIPMoEModel):
        raise LearngeneError(f"a {type(model).__name__} has no routers to train: make a mixture with `upcycle`")
    check_finite(model, "the mixture")
    return model


def _checkpoint(args: RouterArguments, wanted: str | bool | None) -> Path | None:
    """The checkpoint to go on from, None to start."""
    if not wanted:
        return None
    found = last_checkpoint(output_of(args)) if wanted is True else wanted
    if found is None or not Path(found).is_dir():
        where = f"in {args.output_dir!r}" if wanted is True else f"{os.fspath(wanted)!r}"
        raise LearngeneError(
            f"there is no checkpoint {where} to go on from: leave resume_from_checkpoint out to start"
        )
    return Path(found)


def _settings(model: CLIPMoEModel, dataset: Any, args: RouterArguments, trainer: RouterTrainer) -> dict[str, Any]:
    """Everything that makes a run what it is."""
    names = ("train_experts", "train_all", "learning_rate", "weight_decay", "warmup_steps", "num_train_epochs")
    ancestor = getattr(trainer, "ancestor", None)
    return {
        **{name: getattr(args, name) for name in (*names, "max_steps", "seed")},
        "lr_scheduler_type": str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)),
        "batch_size": args.train_batch_size * args.world_size * args.gradient_accumulation_steps,
        "model": fingerprint_model(model),
        "ancestor": None if ancestor is None else fingerprint_model(ancestor),
        "feature_weight": None if ancestor is None else args.feature_weight,
        **describe_rows(dataset, trainer.data_collator),
    }
