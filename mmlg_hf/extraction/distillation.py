"""Fine-tuning by contrast and by imitation of a frozen CLIP at once."""

import math
import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..errors import LearngeneError
from ..training.losses import feature_distillation_loss
from ..training.trainer import ContrastiveTrainer, base_model_of
from .ancestors import EMBEDDING_COLUMNS, ancestor_outputs, load_ancestor, load_ancestor_processor, reads_texts

_NORMALISED_BY = ("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std")


class DistillationTrainer(ContrastiveTrainer):
    """A `ContrastiveTrainer` whose model imitates a frozen CLIP beside learning from the pairs themselves.

    The loss is `contrastive_weight` times the contrastive (or sigmoid) loss plus `feature_weight` times the mean over
    both sides of `feature_distillation_loss`, as in CLIP-KD (Yang et al., CVPR 2024); both parts are logged. For
    descendants, which start near their ancestor: contrast alone leads them away from it before it leads them on. All
    else is as `ContrastiveTrainer` has it; `eval_loss` is of the same sum.

    The ancestor is given the pictures and texts of each batch, without gradients. A descendant of a trimmed
    vocabulary may have its whole ancestor: token ids are translated by what the tokens are called. It is not asked
    about rows that carry what it said of them, as `extraction.outputs.cache_ancestor_outputs` and
    `extraction.trainer.AncestorCollator` make them: `ancestor_image_embeds` and `ancestor_text_embeds`, unit [B, D].

    Args:
        ancestor: a Hub id, a folder or a model, as `extract_learngene` takes it, with embeddings as large as the
            model's.
        ancestor_processor: None takes the one stored with the ancestor. One in memory that was loaded from nowhere
            needs none where its vocabulary is as large as the model's, and is then taken for the same.
        contrastive_weight: 0 learns by imitation alone, which one pair in a batch is enough for.
        feature_weight: with 0 the ancestor is not asked.
        args, kwargs: as of `ContrastiveTrainer`.

    Raises:
        LearngeneError: for an ancestor without a text side, with other embedding sizes, or whose pictures or tokens
            are not the model's, and for weights that are negative or both 0.
    """

    def __init__(
        self,
        *args: Any,
        ancestor: str | os.PathLike | PreTrainedModel,
        ancestor_processor: Any = None,
        contrastive_weight: float = 1.0,
        feature_weight: float = 10.0,
        **kwargs: Any,
    ) -> None:
        weights = {"contrastive_weight": contrastive_weight, "feature_weight": feature_weight}
        for name, weight in weights.items():
            if not (math.isfinite(weight) and weight >= 0):
                raise LearngeneError(f"{name} is {weight}: it takes a number of at least 0")
        if not any(weights.values()):
            raise LearngeneError("contrastive_weight and feature_weight are both 0: nothing would be learned")
        self.contrastive_weight, self.feature_weight = contrastive_weight, feature_weight
        super().__init__(*args, **kwargs)
        own = getattr(self.data_collator, "processor", None) or self.processing_class
        frozen: Any = load_ancestor(ancestor)
        if not reads_texts(frozen):
            raise LearngeneError(f"the ancestor is a {type(frozen).__name__}, which embeds no texts to imitate")
        self._ids = _translation(own, base_model_of(self.model).config, frozen, ancestor_processor)
        self.ancestor = frozen.to(self.args.device)

    def contrasts_rows(self) -> bool:
        """Whether there is a contrastive part."""
        return bool(self.contrastive_weight)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Add the distance to the ancestor's embeddings to the contrastive loss."""
        kept = {name: inputs[name] for name in EMBEDDING_COLUMNS if name in inputs}
        inputs = {name: value for name, value in inputs.items() if name not in kept}
        contrast, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        parts = {"contrastive": (self.contrastive_weight, contrast)}
        if self.feature_weight:
            whole = len(kept) == len(EMBEDDING_COLUMNS)
            targets = kept if whole else ancestor_outputs(self.ancestor, self._translated(inputs))
            own = (outputs.image_embeds, outputs.text_embeds)
            distances = [
                feature_distillation_loss(rows, targets[name])
                for rows, name in zip(own, EMBEDDING_COLUMNS, strict=True)
            ]
            parts["feature"] = (self.feature_weight, torch.stack(distances).mean())
        if model.training:
            for name, (weight, loss) in parts.items():
                self.note_part(name, weight * loss)
        # Also where a weight is 0: distributed training asks every parameter for a gradient.
        total = torch.stack([weight * loss for weight, loss in parts.values()]).sum()
        return (total, outputs) if return_outputs else total

    def _translated(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """The batch as the ancestor reads it."""
        text, vision = self.ancestor.config.text_config, self.ancestor.config.vision_config
        ids, size = inputs["input_ids"], inputs["pixel_values"].shape[-1]
        if size != vision.image_size:
            raise LearngeneError(
                f"pictures of {size} px come in, but the ancestor takes {vision.image_size} px: distil from one "
                "of the model's own image size"
            )
        if ids.shape[1] > text.max_position_embeddings:
            raise LearngeneError(
                f"texts of {ids.shape[1]} tokens come in, but the ancestor takes {text.max_position_embeddings}: cut "
                "them to that"
            )
        return {**inputs, "input_ids": ids if self._ids is None else self._ids.to(ids.device)[ids]}


def _translation(own: Any, config: Any, ancestor: Any, processor: Any) -> Tensor | None:
    """The ancestor's id of each token of ours [vocabulary]; None where they are the same."""
    sizes = getattr(config, "text_config", config).vocab_size, ancestor.config.text_config.vocab_size
    try:
        processor = processor if processor is not None else load_ancestor_processor(ancestor)
    except LearngeneError:
        if sizes[0] != sizes[1]:
            raise
        return None
    ours, theirs = (getattr(one, "tokenizer", one) for one in (own, processor))
    _check_pictures(getattr(own, "image_processor", None), getattr(processor, "image_processor", None))
    if not isinstance(ours, PreTrainedTokenizerBase):
        if sizes[0] != sizes[1]:
            raise LearngeneError(
                f"the model has {sizes[0]} tokens, the ancestor {sizes[1]}, and there is no tokenizer of the model to "
                "translate by: pass processing_class"
            )
        return None
    vocabulary = theirs.get_vocab()
    names = ours.convert_ids_to_tokens(list(range(len(ours))))
    missing = [name for name in names if name not in vocabulary]
    if missing:
        raise LearngeneError(
            f"the ancestor's vocabulary lacks {len(missing)} of the model's {len(names)} tokens, such as "
            f"{missing[0]!r}: distil from an ancestor that shares its tokenizer"
        )
    ids = torch.tensor([vocabulary[name] for name in names])
    return None if torch.equal(ids, torch.arange(len(ids))) else ids


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _check_pictures(ours: Any, theirs: Any) -> None:
    """Refuse pictures that are normalised otherwise than the ancestor takes them."""
    if ours is None or theirs is None:
        return
    for name in _NORMALISED_BY:
        own, other = (_plain(getattr(one, name, None)) for one in (ours, theirs))
        if own != other:
            raise LearngeneError(
                f"{name} of the model's processor is {own}, of the ancestor's {other}: distil from an ancestor that "
                "shares the model's processor"
            )
