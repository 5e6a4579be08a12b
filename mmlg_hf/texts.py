"""Texts into tokens as the text encoder wants them: the right tokenizer, its padding, its greatest length."""

from collections.abc import Sequence
from typing import Any

from transformers.tokenization_utils_base import LARGE_INTEGER

from .errors import LearngeneError

# Text encoders that read the state of the last position, padding or not: their texts are padded to one length, as in
# their training, and padding is not masked.
_READ_THE_LAST_POSITION = ("siglip", "siglip_text_model", "siglip2", "siglip2_text_model")
# CLIP's text encoders read the state of the end token.
_READ_THE_END_TOKEN = ("clip", "clip_text_model", "clip_moe_text_model", "learngene")
_LEGACY_END_TOKEN = 2  # what OpenAI's CLIP configs hold: it means the largest token


def text_config_of(model: Any) -> Any:
    """Return the config of a model's text encoder, the model's own where it is one; None where it has none."""
    config = getattr(model, "config", model)
    nested = getattr(config, "text_config", None)
    return nested if nested is not None else (config if getattr(config, "vocab_size", None) else None)


def check_tokenizer(tokenizer: Any, text_config: Any) -> None:
    """Raise a `LearngeneError` unless a tokenizer can be that of a text encoder with this config (None passes)."""
    if text_config is None:
        return
    size = getattr(text_config, "vocab_size", None)
    if size is not None and len(tokenizer) > size:
        raise LearngeneError(
            f"the tokenizer has {len(tokenizer)} tokens and the text encoder embeddings for {size}: it is another "
            "model's tokenizer"
        )
    end = getattr(text_config, "eos_token_id", None)
    if text_config.model_type not in _READ_THE_END_TOKEN or end is None:
        return
    own_end = tokenizer.eos_token_id
    if end == _LEGACY_END_TOKEN:
        # The state at the largest token is read: the end token must be that, and end every text.
        if own_end is None or own_end < max(tokenizer.get_vocab().values()):
            raise LearngeneError(
                f"the tokenizer ends texts with token {own_end} and the text encoder reads the state at the largest "
                "token: it is another model's tokenizer"
            )
    elif own_end != end:
        raise LearngeneError(
            f"the tokenizer ends texts with token {own_end} and the text encoder reads the state at token {end}: it "
            "is another model's tokenizer"
        )


def longest_text(tokenizer: Any, text_config: Any = None, max_length: int | None = None) -> int | None:
    """Return the most tokens a text may have: the least of what is asked, the tokenizer's limit and the positions.

    None where nothing sets a limit. A tokenizer without one says 1e30.
    """
    positions = getattr(text_config, "max_position_embeddings", None)
    limits = [limit for limit in (max_length, tokenizer.model_max_length, positions) if limit is not None]
    least = min(limits, default=LARGE_INTEGER)
    return int(least) if least < LARGE_INTEGER else None


def encode_texts(
    tokenizer: Any,
    texts: Sequence[str],
    text_config: Any = None,
    *,
    max_length: int | None = None,
    pad_to_multiple_of: int | None = None,
    padding: bool = True,
    return_tensors: str | None = "pt",
) -> Any:
    """Tokenize texts for a text encoder: cut to the longest it takes, padded as it was trained.

    Args:
        texts: strings, one a row.
        text_config: the encoder's config; None takes the tokenizer at its word.
        max_length: longest text in tokens; None takes the tokenizer's limit or the encoder's positions.
        padding: False leaves texts at their own lengths, unless the encoder needs one length (SigLIP).

    Returns:
        the tokenizer's output: `input_ids` and, unless the encoder reads padding too, `attention_mask`.
    """
    limit = longest_text(tokenizer, text_config, max_length)
    settings: dict[str, Any] = {"truncation": limit is not None, "max_length": limit}
    if pads_to_one_length(text_config):
        # The state of the last position is read, whatever stands there.
        settings |= {"max_length": longest_text(tokenizer, text_config), "padding": "max_length"}
        settings["return_attention_mask"] = False
    elif padding:
        settings |= {"padding": True, "pad_to_multiple_of": pad_to_multiple_of}
    return tokenizer(list(texts), return_tensors=return_tensors, **settings)


def pads_to_one_length(text_config: Any) -> bool:
    """Whether a text encoder needs every text padded to its longest, as SigLIP's does."""
    return getattr(text_config, "model_type", None) in _READ_THE_LAST_POSITION
