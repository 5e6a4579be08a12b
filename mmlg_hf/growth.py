"""Growing a descendant from a gene that is in memory: the weights, the stock class, the provenance."""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor
from transformers import (
    CLIPForImageClassification,
    CLIPModel,
    CLIPTextModelWithProjection,
    CLIPVisionModelWithProjection,
)
from transformers.utils import logging

from .configuration_learngene import Size
from .errors import LearngeneError
from .loading import save_along
from .modeling_text_classification import CLIPTextForSequenceClassification

# What a descendant config may be given by the caller: anything that does not change a shape the gene decides.
_DECIDED_BY_THE_GENE = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "projection_dim", "vocab_size",
    "max_position_embeddings", "patch_size", "image_size", "num_channels", "vision_config", "text_config",
    "logit_scale_init_value",
)  # fmt: skip


class DescendantMixin:
    """The method `descendant` of a gene."""

    config: Any
    processor: Any

    def descendant(
        self,
        depth: Size = None,
        width: Size = None,
        modality: str | None = None,
        *,
        num_labels: int | None = None,
        id2label: dict[int, str] | None = None,
        label2id: dict[str, int] | None = None,
        dtype: torch.dtype | None = None,
        **config_overrides: Any,
    ):
        """Grow a stock transformers model of the given size from this gene.

        Args:
            depth: layers, one number or a (vision, text) pair; None keeps the gene's own. May exceed the gene's.
            width: `hidden_size`, one number or a (vision, text) pair: multiples of the head size up to the gene's
                width; None keeps the gene's own. One number sets the wider encoder, the other keeps the ratio.
            modality: "multimodal" (`CLIPModel`), "image" (`CLIPVisionModelWithProjection`) or "text"
                (`CLIPTextModelWithProjection`); None takes "multimodal", and "image" for an image gene.
            num_labels: with "image" gives `CLIPForImageClassification`, with "text"
                `CLIPTextForSequenceClassification`, each with a newly initialised head; None gives no head, except
                that an image gene brings its own.
            id2label, label2id: names of the labels; they imply `num_labels`.
            dtype: of the weights; None gives float32, since a descendant is there to be fine-tuned.
            config_overrides: other fields of the stock config, e.g. `attention_dropout=0.1`.

        Returns:
            the model in evaluation mode; no tensor is shared with the gene.

        Raises:
            LearngeneError: for a size, modality or label count that the gene cannot grow.
        """
        if modality is None:
            modality = "image" if self.config.text_config is None else "multimodal"
        num_labels = _count_labels(num_labels, id2label, label2id)
        if num_labels is not None and modality == "multimodal":
            raise LearngeneError(
                f'num_labels is {num_labels} with modality "multimodal", which has no head: use "image" or "text"'
            )
        own_head = self.config.text_config is None and num_labels is None
        config = self.config.descendant_config(depth, width, modality)
        if num_labels is not None or own_head:
            labels = _labels(num_labels, id2label, label2id) if num_labels is not None else self.config.id2label
            config.text_config.id2label = config.id2label = labels
            config.text_config.label2id = config.label2id = {name: index for index, name in labels.items()}
        _override(config, modality, config_overrides)
        _record_provenance(config, self.config, modality)
        model = self._build(config, modality, num_labels, own_head, dtype or torch.float32)
        # The stock Trainer names this as `base_model` on the card of what it fine-tunes, unless it is a folder.
        model.config._name_or_path = model.name_or_path = self.config._name_or_path
        if self.processor is not None:
            part = {"image": "image_processor", "text": "tokenizer"}.get(modality)
            save_along(model, getattr(self.processor, part, self.processor) if part else self.processor)
        return model

    @torch.no_grad()
    def _build(self, config: Any, modality: str, num_labels: int | None, own_head: bool, dtype: torch.dtype):
        """Compute the weights and load them into the stock class, which initialises nothing but a new head."""
        encoders = {"image": config.vision_config, "text": config.text_config}
        wanted = encoders if modality == "multimodal" else {modality: encoders[modality]}
        # The sums are formed in float32 even where the gene was loaded in half precision.
        gene: Any = self if self.dtype.itemsize >= 4 else deepcopy(self).float()  # type: ignore[attr-defined]
        state: dict[str, Tensor] = gene.descendant_state_dict(wanted)
        if any(weight.is_meta for weight in state.values()):
            raise LearngeneError(
                f'modality is "{modality}", but this gene was loaded without the weights for it: load it whole, or '
                f'with modality="{modality}"'
            )
        with_head = num_labels is not None or own_head
        cls: Any = {
            ("multimodal", False): CLIPModel,
            ("image", False): CLIPVisionModelWithProjection,
            ("image", True): CLIPForImageClassification,
            ("text", False): CLIPTextModelWithProjection,
            ("text", True): CLIPTextForSequenceClassification,
        }[modality, with_head]
        if cls in (CLIPVisionModelWithProjection, CLIPTextModelWithProjection, CLIPTextForSequenceClassification):
            config = wanted[modality]
        if with_head:
            state = {name: weight for name, weight in state.items() if "projection" not in name}
            if not own_head:
                state = {name: weight for name, weight in state.items() if not name.startswith("classifier.")}
        # A copy of every tensor: what grew from the gene must not change with it.
        state = {name: weight.detach().to(device="cpu", dtype=dtype, copy=True) for name, weight in state.items()}
        with _no_load_report():  # which would call the new head a weight missing from a checkpoint
            model, found = cls.from_pretrained(
                None, config=config, state_dict=state, dtype=dtype, output_loading_info=True
            )
        missing = {name for name in found["missing_keys"] if not (with_head and name.startswith("classifier."))}
        if missing or found["unexpected_keys"]:
            raise LearngeneError(
                f"the gene does not fit {cls.__name__}: missing {sorted(missing)}, "
                f"unexpected {sorted(found['unexpected_keys'])}"
            )
        if with_head:
            # transformers #47688: the stock CLIP classifier ignores num_items_in_batch but is taken to accept it,
            # which scales its update by the number of accumulation steps.
            model.accepts_loss_kwargs = False
        return model


@contextmanager
def _no_load_report() -> Iterator[None]:
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _count_labels(num_labels: int | None, id2label: dict | None, label2id: dict | None) -> int | None:
    named = {len(names) for names in (id2label, label2id) if names is not None}
    if num_labels is not None:
        if isinstance(num_labels, bool) or not isinstance(num_labels, int) or num_labels < 1:
            raise LearngeneError(f"num_labels is {num_labels!r}: it takes a whole number of at least 1")
        named.add(num_labels)
    if len(named) > 1:
        raise LearngeneError(
            f"num_labels, id2label and label2id disagree on the number of labels: {', '.join(map(str, sorted(named)))}"
        )
    return named.pop() if named else None


def _labels(num_labels: int, id2label: dict | None, label2id: dict | None) -> dict[int, str]:
    if id2label is not None:
        return {int(index): name for index, name in id2label.items()}
    if label2id is not None:
        return {int(index): name for name, index in label2id.items()}
    return {index: f"LABEL_{index}" for index in range(num_labels)}


def _override(config: Any, modality: str, overrides: dict[str, Any]) -> None:
    """Set config fields on the parts of the config that have them."""
    parts = {
        "multimodal": (config, config.vision_config, config.text_config),
        "image": (config, config.vision_config),
        "text": (config.text_config,),
    }[modality]
    for name, value in overrides.items():
        if name in _DECIDED_BY_THE_GENE:
            raise LearngeneError(f"{name} cannot be overridden ({value!r}): the gene, depth and width decide it")
        holders = [part for part in parts if hasattr(part, name)]
        if not holders:
            raise LearngeneError(f"the descendant's config has no field {name!r} (given {value!r})")
        for part in holders:
            setattr(part, name, value)


def _record_provenance(config: Any, gene: Any, modality: str) -> None:
    """Record the source on the config, and on the sub-configs: one encoder's class reads only its own."""
    name = gene._name_or_path or None
    source = {"learngene": name, "revision": getattr(gene, "_commit_hash", None), "ancestor": gene.ancestor}
    for part in (config, config.vision_config, config.text_config):
        part.learngene = {**source, "modality": modality}
