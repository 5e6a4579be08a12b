"""The Trainer that extracts a gene: distillation from the frozen ancestor, into the gene and its slices together."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..data import Pixels
from ..data.collation import finish
from ..errors import LearngeneError, first_line
from ..training.batches import WholeBatchTrainer
from ..training.losses import (
    affinity_distillation_loss,
    contrastive_loss,
    feature_distillation_loss,
    soft_distillation_loss,
)
from ..training.optimizers import at_own_rate, is_decayed, with_muon
from ..training.trainer import ImageTextCollator, _ClampLogitScale
from .ancestors import (
    EMBEDDING_COLUMNS,
    FEATURE_COLUMNS,
    LOGITS_COLUMN,
    ancestor_outputs,
    is_classifier,
    output_columns,
    reads_texts,
)
from .streamed_outputs import ROW_KEY, StreamedOutputs, keys_of

OUTPUT_COLUMNS = (*EMBEDDING_COLUMNS, *FEATURE_COLUMNS, LOGITS_COLUMN)


class AncestorCollator:
    """Batch rows with another collator, and stack the ancestor's outputs where the rows carry them.

    Rows of an image gene have no text: their images alone are stacked, and `pixels` makes floats of them later. With
    `adds_keys` a batch carries `streamed_outputs.keys_of` its rows.
    """

    def __init__(self, collator: ImageTextCollator | None, pixels: Pixels | None = None, adds_keys: bool = False):
        self.collator, self.adds_keys = collator, adds_keys
        self.pixels = pixels if collator is None else collator.pixels

    def finish(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Make the floats that the model takes of a batch's 8-bit pixels, on their device."""
        return {**batch} if self.pixels is None else finish(self.pixels, batch)

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        if self.collator is not None:
            batch = self.collator(rows)
        else:
            batch = {"pixel_values": torch.stack([torch.as_tensor(row["pixel_values"]) for row in rows])}
        for name in OUTPUT_COLUMNS:
            if name in rows[0]:
                batch[name] = torch.stack([torch.as_tensor(row[name]) for row in rows])
        return {**batch, ROW_KEY: keys_of(rows)} if self.adds_keys else batch


def size_grid(config: Any) -> list[tuple[Any, int]]:
    """List the (depth, width) of the smaller networks trained along: down to a quarter of the gene's own, each way.

    Depths are pairs (vision, text) where the encoders' own depths differ, both the same share of their own. A width is
    that of the wider encoder, as `LearngeneConfig.descendant_config` takes it.
    """
    own = [c.num_hidden_layers for c in config.encoder_configs.values()]
    deepest, heads = max(own), config.widest.num_attention_heads
    head = config.widest.hidden_size // heads
    sizes = []
    for depth in range(_quarter(deepest), deepest + 1):
        # Half a layer counts as one.
        depths = [max(_quarter(layers), (2 * depth * layers + deepest) // (2 * deepest)) for layers in own]
        chosen = depths[0] if len(set(own)) == 1 else tuple(depths)
        sizes += [
            (chosen, width * head) for width in range(_quarter(heads), heads + 1) if (depth, width) != (deepest, heads)
        ]
    return sizes


def _quarter(number: int) -> int:
    return -(-number // 4)


class ExtractionTrainer(WholeBatchTrainer):
    """Extract a gene, at its own size and at smaller ones in the same step, from the outputs of its ancestor.

    A multimodal gene learns by affinity, feature and contrastive losses, each times its weight; an image gene by soft
    distillation from a classifier (TLEG, arXiv 2312.05614: alpha 1), or from a ViT by the feature loss of its class
    token and of the mean of its patches. The losses' parts are logged beside `loss`, over
    the same steps: `loss_feature` of the gene itself, `loss_feature_smaller` of the smaller networks, and so on.

    Args:
        model: the gene.
        args: `ExtractionArguments`. With a `muon_learning_rate` Muon trains the blocks' matrices and the optimizer
            that `args` (or `optimizer_cls_and_kwargs`) names everything else, weight scales at their own rate;
            `optimizers` replaces both.
        ancestor: the frozen model; its outputs are computed where the rows do not carry them.
        centers: means of its outputs [D] by `output_columns`, which the feature loss takes out of both sides; None
            takes nothing out.
        kept: where outputs of a stream's rows are read and kept; the collator `adds_keys`. None keeps nothing.
        kwargs: as of `Trainer`. `compute_metrics` is given the gene's outputs as predictions and the ancestor's as
            labels: (image_embeds, text_embeds) each, (class token, mean of patches) each, or logits.
    """

    args: Any

    def __init__(
        self,
        model: Any,
        args: Any,
        *,
        ancestor: Any,
        centers: Mapping[str, Tensor] | None = None,
        kept: StreamedOutputs | None = None,
        **kwargs: Any,
    ) -> None:
        self.ancestor, self.centers, self.kept = ancestor, centers or {}, kept
        scales = [parameter for name, parameter in model.named_parameters() if "_scales." in name]
        if (args.muon_learning_rate or scales) and kwargs.get("optimizers", (None, None))[0] is None:
            rest = kwargs.get("optimizer_cls_and_kwargs") or _optimizer_of(args, model)
            if scales:
                rest = at_own_rate(rest, scales, args.scale_learning_rate)
            kwargs["optimizer_cls_and_kwargs"] = with_muon(args, args.muon_learning_rate, rest)
        super().__init__(model, args, **kwargs)
        if kept is not None:
            self.add_callback(kept)
        if args.contrastive_weight and hasattr(model, "logit_scale"):
            self.add_callback(_ClampLogitScale())

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Name the parameters with weight decay, see `is_decayed`."""
        return [name for name, parameter in model.named_parameters() if is_decayed(name, parameter)]

    def contrasts_rows(self) -> bool:
        """Whether affinities or contrasts, which one pair alone has none of, are learned."""
        return contrasts_rows(self.args, self.ancestor)

    def _sizes(self) -> list[tuple[Any, int] | None]:
        """Return the gene's own size and the smaller ones of this step, alike on every process and after a resume."""
        model: Any = self.model
        grid = size_grid(model.config) if self.args.elastic else []
        generator = torch.Generator().manual_seed(self.args.seed * 1_000_003 + self.state.global_step)
        chosen = torch.randperm(len(grid), generator=generator)[: self.args.elastic_samples].tolist()
        return [None, *(grid[index] for index in chosen)]

    def _targets(self, inputs: dict[str, Any]) -> dict[str, Tensor]:
        """Take the ancestor's outputs from the batch or from what is kept of its rows, or compute them."""
        cached = {name: inputs.pop(name) for name in OUTPUT_COLUMNS if name in inputs}
        if cached or self.kept is None:
            return cached or ancestor_outputs(self.ancestor, inputs)

        def compute(rows: Tensor) -> dict[str, Tensor]:
            batch = {name: values[rows] for name, values in inputs.items() if isinstance(values, Tensor)}
            return ancestor_outputs(self.ancestor, batch)

        return self.kept.of_batch(inputs.pop(ROW_KEY), compute)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Average the distillation losses of the gene and, in training, of the step's smaller networks."""
        inputs = dict(inputs)
        targets = self._targets(inputs)
        loss, outputs = self._distil(model, inputs, targets)
        return (loss, outputs) if return_outputs else loss

    def _distil(self, model: Any, inputs: dict[str, Any], targets: dict[str, Tensor]) -> tuple[Tensor, Any]:
        inputs.pop("return_loss", None)
        sizes = self._sizes() if model.training else [None]
        total: Any = 0.0
        first = None
        for size in sizes:
            outputs = model(**inputs) if size is None else model(**inputs, depth=size[0], width=size[1])
            first = outputs if first is None else first
            for name, loss in self._losses(model, outputs, targets).items():
                total = total + loss / len(sizes)
                if model.training:
                    self.note_part(name if size is None else f"{name}_smaller", loss)
        return total, first

    def _losses(self, model: Any, outputs: Any, targets: dict[str, Tensor]) -> dict[str, Tensor]:
        args = self.args
        if is_classifier(self.ancestor):
            return {
                "soft": soft_distillation_loss(outputs.logits, targets[LOGITS_COLUMN], args.distillation_temperature)
            }
        own, theirs = self._outputs(model, outputs), tuple(targets[name] for name in output_columns(self.ancestor))
        losses = {}
        if args.affinity_weight:
            affinity = affinity_distillation_loss(*own, *theirs, scale=args.affinity_scale)
            losses["affinity"] = args.affinity_weight * affinity
        if args.feature_weight:
            # The embedding of a narrower SigLIP is the leading part of its ancestor's.
            distances = []
            for name, ours, targeted in zip(output_columns(self.ancestor), own, theirs, strict=True):
                size, center = ours.shape[1], self.centers.get(name)
                center = None if center is None else center[:size]
                distances.append(feature_distillation_loss(ours, targeted[:, :size], center))
            losses["feature"] = args.feature_weight * torch.stack(distances).mean()
        if args.contrastive_weight:
            logit_scale = self.accelerator.unwrap_model(model).logit_scale.exp()
            losses["contrastive"] = args.contrastive_weight * contrastive_loss(*own, logit_scale)
        return losses

    def _outputs(self, model: Any, outputs: Any) -> tuple[Tensor, Tensor]:
        """What of the gene's outputs is compared with the ancestor's `output_columns`."""
        if reads_texts(self.ancestor):
            return outputs.image_embeds, outputs.text_embeds
        return self.accelerator.unwrap_model(model).read_features(outputs)

    def prediction_step(
        self, model: Any, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[Tensor, Any, Any]:
        """Return the loss, the gene's outputs, and the ancestor's as labels."""
        inputs = dict(self._prepare_inputs(inputs))
        with torch.no_grad(), self.compute_loss_context_manager():
            targets = self._targets(inputs)
            loss, outputs = self._distil(model, inputs, targets)
        if prediction_loss_only:
            return loss, None, None
        if is_classifier(self.ancestor):
            return loss, outputs.logits.float(), targets[LOGITS_COLUMN]
        own = tuple(rows.float() for rows in self._outputs(model, outputs))
        return loss, own, tuple(targets[name] for name in output_columns(self.ancestor))


def contrasts_rows(args: Any, ancestor: Any) -> bool:
    """Whether an extraction's loss contrasts the rows of a batch with each other."""
    return reads_texts(ancestor) and bool(args.affinity_weight or args.contrastive_weight)


def _optimizer_of(args: Any, model: Any) -> tuple[Any, dict[str, Any]]:
    """The class and keywords of the optimizer that `args` name."""
    try:
        return WholeBatchTrainer.get_optimizer_cls_and_kwargs(args, model)
    except (ValueError, TypeError, ImportError) as error:
        name = getattr(args.optim, "value", args.optim)
        raise LearngeneError(f"optim is {name!r} with optim_args {args.optim_args!r}: {first_line(error)}") from error
