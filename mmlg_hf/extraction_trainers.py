"""The Trainers that extract a gene: distillation from the frozen ancestor, into the gene and its slices together."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer

from .ancestors import EMBEDDING_COLUMNS, LOGITS_COLUMN, ancestor_outputs
from .losses import (
    affinity_distillation_loss,
    contrastive_loss,
    feature_distillation_loss,
    soft_distillation_loss,
)
from .optimizers import muon_adamw
from .training import ContrastiveTrainer, ImageTextCollator

Sizes = list[tuple[int, int] | None]


class AncestorCollator:
    """Batch rows with another collator, and stack the ancestor's outputs where the rows carry them.

    Rows of an image gene have no text: their images alone are stacked.
    """

    def __init__(self, collator: ImageTextCollator | None):
        self.collator = collator

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        if self.collator is not None:
            batch = self.collator(rows)
        else:
            batch = {"pixel_values": torch.stack([torch.as_tensor(row["pixel_values"]) for row in rows])}
        for name in (*EMBEDDING_COLUMNS, LOGITS_COLUMN):
            if name in rows[0]:
                batch[name] = torch.stack([torch.as_tensor(row[name]) for row in rows])
        return batch


def size_grid(config: Any) -> list[tuple[int, int]]:
    """List the (depth, width) of the smaller networks trained along: down to a quarter of the gene's own, each way."""
    deepest = max(c.num_hidden_layers for c in config.encoder_configs.values())
    heads, head = config.widest.num_attention_heads, config.head_size
    depths = range(max(1, -(-deepest // 4)), deepest + 1)
    widths = range(max(1, -(-heads // 4)), heads + 1)
    return [(depth, width * head) for depth in depths for width in widths if (depth, width) != (deepest, heads)]


class _ElasticMixin:
    """Draw the sizes of a step, run the gene at each, average the losses, log their parts."""

    ancestor: Any
    args: Any
    optimizer: Any

    def _sizes(self) -> Sizes:
        """Return the gene's own size and the smaller ones of this step, alike on every process and after a resume."""
        grid = size_grid(self.model.config) if self.args.elastic else []  # type: ignore[attr-defined]
        generator = torch.Generator().manual_seed(self.args.seed * 1_000_003 + self.state.global_step)  # type: ignore[attr-defined]
        chosen = torch.randperm(len(grid), generator=generator)[: self.args.elastic_samples].tolist()
        return [None, *(grid[index] for index in chosen)]

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Return Muon for the matrices of the blocks and AdamW for all else, or the Trainer's own choice."""
        args, trained = self.args, model if model is not None else self.model  # type: ignore[attr-defined]
        if not args.muon_learning_rate or self.optimizer is not None:
            return super().create_optimizer(model)  # type: ignore[misc]
        stacks = [p for blocks in trained.block_groups().values() for p in blocks.parameters() if p.dim() == 3]
        decayed = self.get_decay_parameter_names(trained)  # type: ignore[attr-defined]
        self.optimizer = muon_adamw(trained, stacks, args.muon_learning_rate, args, decayed)
        return self.optimizer

    def _targets(self, inputs: dict[str, Any]) -> dict[str, Tensor]:
        """Take the ancestor's outputs from the batch, or compute them."""
        cached = {name: inputs.pop(name) for name in (*EMBEDDING_COLUMNS, LOGITS_COLUMN) if name in inputs}
        return cached or ancestor_outputs(self.ancestor, inputs)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Average the distillation losses of the gene and of the step's smaller networks."""
        inputs = dict(inputs)
        targets = self._targets(inputs)
        inputs.pop("return_loss", None)
        sizes = self._sizes() if model.training else [None]
        total: Any = 0.0
        first = None
        for size in sizes:
            outputs = model(**inputs) if size is None else model(**inputs, depth=size[0], width=size[1])
            first = outputs if first is None else first
            for name, loss in self._losses(model, outputs, targets).items():  # type: ignore[attr-defined]
                total = total + loss / len(sizes)
                key = f"loss_{name}" if size is None else f"loss_{name}_smaller"
                self._parts.setdefault(key, []).append(loss.detach())  # type: ignore[attr-defined]
        return (total, first) if return_outputs else total

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add the mean of each part of the loss since the last log."""
        if "loss" in logs:
            logs |= {name: round(torch.stack(values).mean().item(), 4) for name, values in self._parts.items()}  # type: ignore[attr-defined]
        self._parts: dict[str, list[Tensor]] = {}
        super().log(logs, *args, **kwargs)  # type: ignore[misc]


class MultimodalExtractionTrainer(_ElasticMixin, ContrastiveTrainer):
    """Extract a multimodal gene by affinity, feature and contrastive losses, each times its weight."""

    def __init__(self, *args: Any, ancestor: Any, **kwargs: Any):
        self.ancestor, self._parts = ancestor, {}
        super().__init__(*args, **kwargs)

    def _losses(self, model: Any, outputs: Any, targets: dict[str, Tensor]) -> dict[str, Tensor]:
        args: Any = self.args
        own = (outputs.image_embeds, outputs.text_embeds)
        theirs = tuple(targets[name] for name in EMBEDDING_COLUMNS)
        losses = {}
        if args.affinity_weight:
            affinity = affinity_distillation_loss(*own, *theirs, scale=args.affinity_scale)
            losses["affinity"] = args.affinity_weight * affinity
        if args.feature_weight:
            distances = [feature_distillation_loss(o, t) for o, t in zip(own, theirs, strict=True)]
            losses["feature"] = args.feature_weight * torch.stack(distances).mean()
        if args.contrastive_weight:
            logit_scale = self.accelerator.unwrap_model(model).logit_scale.exp()
            losses["contrastive"] = args.contrastive_weight * contrastive_loss(*own, logit_scale)
        return losses


class ImageExtractionTrainer(_ElasticMixin, Trainer):
    """Extract an image gene by soft distillation from a classifier (TLEG, arXiv 2312.05614: alpha 1)."""

    loss_is_scaled_for_ga = False

    def __init__(self, *args: Any, ancestor: Any, **kwargs: Any):
        self.ancestor, self._parts = ancestor, {}
        super().__init__(*args, **kwargs)

    def _losses(self, model: Any, outputs: Any, targets: dict[str, Tensor]) -> dict[str, Tensor]:
        temperature = self.args.distillation_temperature  # type: ignore[attr-defined]
        return {"soft": soft_distillation_loss(outputs.logits, targets[LOGITS_COLUMN], temperature)}
