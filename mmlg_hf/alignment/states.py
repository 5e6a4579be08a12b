"""States of frozen encoders, computed once: what alignment by heads alone trains on."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers.utils import logging

from ..data import ImageTextCollator
from ..errors import LearngeneError
from ..training.modes import evaluating
from .recipes import trained_names

if TYPE_CHECKING:
    from .dual_encoder import DualEncoderModel

STATES = {"vision": "image_states", "text": "text_states"}


@torch.no_grad()
def keep_states(
    model: "DualEncoderModel", rows: Any, processor: Any, *, batch_size: int = 64, **columns: Any
) -> Dataset:
    """Embed pairs by two frozen encoders once, so that epochs of training their heads cost next to nothing.

    `ContrastiveTrainer` takes the result as it takes pairs, and gives the same updates: nothing else of a pair reaches
    the heads. A row with several captions keeps one, drawn now.

    Args:
        model: from `align`, of the recipe "projections".
        rows: image-text pairs, raw or processed, such as a `datasets.Dataset`.
        processor: of the pair.
        batch_size: pairs at once.
        columns: `image_column`, `text_column`, `max_length`, ... as for `ImageTextCollator`.

    Returns:
        a data set of `image_states` [D] and `text_states` [E], float32, row for row.

    Raises:
        LearngeneError: if the recipe trains an encoder, or there are no rows.
    """
    if not trains_heads_alone(model):
        raise LearngeneError(
            f"the recipe {model.config.recipe!r} trains encoders, whose states change with every step: keep them for "
            '"projections" only'
        )
    if not len(rows):
        raise LearngeneError("there are no pairs to keep the states of")
    found: dict[str, list[Tensor]] = {name: [] for name in STATES.values()}
    with logging.tqdm(total=len(rows), desc="states", unit="pairs") as progress:
        for batch in batches_of(model, rows, processor, batch_size, columns):
            for modality, name in STATES.items():
                found[name].append(pooled_states(model, batch, modality).float().cpu())
            progress.update(len(batch["pixel_values"]))
    kept = {name: torch.cat(parts).numpy() for name, parts in found.items()}
    return Dataset.from_dict(kept).with_format("torch")


def trains_heads_alone(model: "DualEncoderModel") -> bool:
    """Whether no weight of an encoder is trained, by the recipe or since the user unfroze it."""
    trained = trained_names(model) | {name for name, value in model.named_parameters() if value.requires_grad}
    return not any(name.startswith(("vision_model.", "text_model.")) for name in trained)


def batches_of(
    model: "DualEncoderModel", rows: Any, processor: Any, batch_size: int, columns: dict[str, Any]
) -> Iterator[dict[str, Tensor]]:
    """The pairs in batches, on the model's device, the model being in evaluation mode meanwhile."""
    collator = ImageTextCollator(processor, text_config=model.config.text_config, **columns)
    with evaluating(model):
        for start in range(0, len(rows), batch_size):
            batch = collator([rows[row] for row in range(start, min(start + batch_size, len(rows)))])
            yield {name: value.to(model.device) for name, value in batch.items() if isinstance(value, Tensor)}


def pooled_states(model: "DualEncoderModel", batch: dict[str, Tensor], modality: str) -> Tensor:
    """What the head of a modality is given for a batch: [B, D]."""
    if modality == "vision":
        return model.encode_images(batch["pixel_values"].to(model.dtype))[0]
    others = {name: batch[name] for name in ("attention_mask", "token_type_ids") if name in batch}
    return model.encode_texts(batch["input_ids"], **others)[0]
