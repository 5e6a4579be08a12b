"""From an encoder's outputs to one state for each image or text."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_MASKED_LM_MAPPING_NAMES

from ..errors import LearngeneError

POOLINGS = {
    "class": "the first token's state",
    "mean": "the mean over patches, or over the tokens that are not padding",
    "end": "the last token's state that is not padding (text only)",
    "pooler": "the encoder's own pooler_output",
}
_POOLINGS_OF = {"vision": ("class", "mean", "pooler"), "text": ("class", "mean", "end", "pooler")}

# Encoders whose own pooling is neither the class token nor the end token. CLIP's text encoder ends at its first
# end-of-text token, whatever the padding is: its own pooler_output is that.
_OWN_POOLING = ("siglip_vision_model", "siglip_text_model", "siglip2_vision_model", "siglip2_text_model")


def check_pooling(modality: str, pooling: str) -> str:
    """Return `pooling`, or raise a LearngeneError that lists what there is for "vision" or "text"."""
    if pooling not in _POOLINGS_OF[modality]:
        raise LearngeneError(
            f"{modality}_pooling is {pooling!r}: it takes {', '.join(map(repr, _POOLINGS_OF[modality]))}, or None to "
            "choose by the encoder"
        )
    return pooling


def default_pooling(modality: str, config: Any) -> str:
    """Choose the pooling that an encoder was trained for: class token, end token for causal text encoders."""
    if config.model_type in _OWN_POOLING or hasattr(config, "depths"):  # depths: Swin and convolutional encoders
        return "pooler"
    reads_leftwards = (
        config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
        and config.model_type not in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    )
    return "end" if modality == "text" and (reads_leftwards or config.model_type == "clip_text_model") else "class"


def pool_image(encoder: Any, outputs: Any, pooling: str, pixel_values: Tensor) -> Tensor:
    """Pool an image encoder's outputs to [B, D].

    Args:
        encoder: the encoder that gave the outputs.
        pooling: "class", "mean" (class and register tokens left out) or "pooler".
        pixel_values: what the encoder was given, [B, C, H, W]; says how many patches there are.

    Raises:
        LearngeneError: if the outputs hold no such state.
    """
    if pooling == "pooler":
        return _own_pooled(encoder, outputs)
    states = _last_hidden_state(encoder, outputs)
    if states.dim() == 4:  # a convolutional encoder's map [B, D, H, W]
        states = states.flatten(2).transpose(1, 2)
        num_special = 0
    else:
        num_special = max(states.shape[1] - _num_patches(encoder.config, pixel_values, states.shape[1]), 0)
    if encoder.config.model_type == "clip_vision_model":  # the one that leaves its last norm to the pooled token
        states = encoder.post_layernorm(states)
    if pooling == "mean":
        return states[:, num_special:].mean(dim=1)
    if num_special == 0:
        raise LearngeneError(
            f"{type(encoder).__name__} has no class token ({states.shape[1]} states for as many patches): pool it "
            'with vision_pooling="mean" or "pooler"'
        )
    return states[:, 0]


def pool_text(encoder: Any, outputs: Any, pooling: str, attention_mask: Tensor | None) -> Tensor:
    """Pool a text encoder's outputs to [B, D].

    Args:
        encoder: the encoder that gave the outputs.
        pooling: "class", "mean", "end" or "pooler".
        attention_mask: [B, T], 1 at tokens and 0 at padding; None means no padding.

    Raises:
        LearngeneError: if the outputs hold no such state.
    """
    if pooling == "pooler" or (pooling == "end" and encoder.config.model_type == "clip_text_model"):
        return _own_pooled(encoder, outputs)
    states = _last_hidden_state(encoder, outputs)
    if attention_mask is None:
        attention_mask = states.new_ones(states.shape[:2])
    if pooling == "mean":
        weights = attention_mask.to(states.dtype).unsqueeze(-1)
        return (states * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)
    positions = torch.arange(states.shape[1], device=states.device)
    # Padding may stand on either side.
    present = attention_mask.bool()
    chosen = present.int().argmax(dim=1) if pooling == "class" else (positions * present).argmax(dim=1)
    return states[torch.arange(len(states), device=states.device), chosen]


def pad_to_one_length(config: Any, input_ids: Tensor, attention_mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Pad texts to all the positions of an encoder that reads its last one, as it was trained.

    Args:
        config: the text encoder's, with its `max_position_embeddings` and `pad_token_id`.
        input_ids: [B, T], padded on the right.
        attention_mask: [B, T]; None tells padding by its token.

    Returns:
        the ids, and the mask of what is no padding, both [B, max_position_embeddings].

    Raises:
        LearngeneError: if texts are to be padded and the encoder has no padding token.
    """
    missing = config.max_position_embeddings - input_ids.shape[1]
    padding = config.pad_token_id
    if missing > 0 and padding is None:
        raise LearngeneError(
            f"the text encoder reads the state of its last position and has no pad_token_id: pad texts to "
            f"{config.max_position_embeddings} tokens, or set config.text_config.pad_token_id"
        )
    if attention_mask is None:
        attention_mask = (input_ids != padding).long() if padding is not None else torch.ones_like(input_ids)
    if missing > 0:
        input_ids = functional.pad(input_ids, (0, missing), value=padding)
        attention_mask = functional.pad(attention_mask, (0, missing), value=0)
    return input_ids, attention_mask


def _last_hidden_state(encoder: Any, outputs: Any) -> Tensor:
    states = getattr(outputs, "last_hidden_state", None)
    if states is None:
        raise LearngeneError(
            f"{type(encoder).__name__} gives no last_hidden_state to pool (it gives {', '.join(outputs)}): use the "
            "bare encoder, as AutoModel loads it, without a head"
        )
    return states


def _own_pooled(encoder: Any, outputs: Any) -> Tensor:
    pooled = getattr(outputs, "pooler_output", None)
    if pooled is None:
        raise LearngeneError(
            f'{type(encoder).__name__} gives no pooler_output: choose another pooling, such as "mean" or "class"'
        )
    return pooled.flatten(1)  # convolutional encoders pool to [B, D, 1, 1]


def _num_patches(config: Any, pixel_values: Tensor, num_states: int) -> int:
    """How many states are patches; all of them where the encoder has no fixed patch size or merges patches."""
    patch = getattr(config, "patch_size", None)
    if patch is None or hasattr(config, "depths"):
        return num_states
    height, width = patch if isinstance(patch, (list, tuple)) else (patch, patch)
    return (pixel_values.shape[-2] // height) * (pixel_values.shape[-1] // width)
