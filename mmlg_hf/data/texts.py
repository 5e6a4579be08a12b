"""Texts into tokens as the text encoder wants them: the right tokenizer, its padding, its greatest length."""

from collections.abc import Sequence
from typing import Any

from transformers.tokenization_utils_base import LARGE_INTEGER, BatchEncoding

from ..errors import LearngeneError
from .captions import check_length

# By `model_type`, also of the model around the text encoder. What transformers' classes do with each text's states:
# the state of the last position is read, padding or not, so that all texts are padded to one length, without a mask.
_READ_THE_LAST_POSITION = ("siglip", "siglip_text_model", "siglip2", "siglip2_text_model")
# The state at the first end token is read; where the config has the legacy end token 2, that at the largest token.
_READ_THE_END_TOKEN = (
    *("clip", "clip_text_model", "clip_moe", "clip_moe_text_model", "learngene"),
    *("clipseg", "clipseg_text_model", "groupvit", "groupvit_text_model", "metaclip_2", "metaclip_2_text_model"),
)
_LEGACY_END_TOKEN = 2  # what OpenAI's CLIP configs hold: it means the largest token
_WITHOUT_A_LEGACY = ("metaclip_2", "metaclip_2_text_model")  # here 2 is the end token
_READ_THE_LARGEST_TOKEN = ("xclip", "xclip_text_model", "owlvit", "owlvit_text_model", "owlv2", "owlv2_text_model")
# Position 0 of these follows the id of the padding token.
_POSITIONS_FOLLOW_PADDING = (
    *("roberta", "xlm-roberta", "xlm-roberta-xl", "roberta-prelayernorm", "camembert", "mpnet", "longformer", "luke"),
    *("data2vec-text", "xmod", "ibert", "esm", "markuplm", "altclip_text_model", "clap_text_model"),
)
# Embedding tables are padded to multiples of up to 128 rows; one with more rows to spare is another tokenizer's.
_PADDING_OF_TABLES = 128


def text_config_of(model: Any) -> Any:
    """Return the config of a model's text encoder, the model's own where it is one; None where it has none."""
    config = getattr(model, "config", model)
    nested = getattr(config, "text_config", None)
    return nested if nested is not None else (config if getattr(config, "vocab_size", None) else None)


def check_tokenizer(tokenizer: Any, text_config: Any) -> None:
    """Raise a `LearngeneError` unless a tokenizer can be that of a text encoder with this config (None passes).

    Its ids must have embeddings, and the token whose state is read must be the last of a text: otherwise all texts
    are embedded alike.
    """
    if text_config is None:
        return
    count, size = 1 + max(tokenizer.get_vocab().values()), getattr(text_config, "vocab_size", None)
    if size is not None and count > size:
        raise LearngeneError(
            f"the tokenizer has {count} tokens and the text encoder embeddings for {size}: it is another model's "
            "tokenizer, or tokens were added to it"
        )
    kind, end = text_config.model_type, getattr(text_config, "eos_token_id", None)
    reads_largest = reads_largest_token(text_config)
    # Nothing but the tokens' number tells whether an encoder without an end token of its own knows them.
    if size is not None and count <= size - _PADDING_OF_TABLES and (reads_largest or kind in _READ_THE_LAST_POSITION):
        raise LearngeneError(
            f"the tokenizer has {count} tokens and the text encoder embeddings for {size}: it is another model's "
            "tokenizer, or one that was trimmed"
        )
    own_end = tokenizer.eos_token_id
    if reads_largest:
        if own_end != count - 1:
            raise LearngeneError(
                f"the tokenizer ends texts with token {own_end} and the text encoder reads the state at the largest "
                f"token, which is {count - 1}: it is another model's tokenizer, or tokens were added to it"
            )
    elif kind not in _READ_THE_END_TOKEN or end is None:
        return
    elif own_end != end:
        raise LearngeneError(
            f"the tokenizer ends texts with token {own_end} and the text encoder reads the state at token {end}: it "
            "is another model's tokenizer"
        )
    _check_ends(tokenizer, own_end)


def reads_largest_token(text_config: Any) -> bool:
    """Whether a text encoder reads the state at the largest token: the meaning of CLIP's legacy end token 2."""
    kind, end = text_config.model_type, getattr(text_config, "eos_token_id", None)
    has_legacy = kind in _READ_THE_END_TOKEN and kind not in _WITHOUT_A_LEGACY
    return kind in _READ_THE_LARGEST_TOKEN or (has_legacy and end == _LEGACY_END_TOKEN)


def _check_ends(tokenizer: Any, end: int) -> None:
    ids = list(tokenizer("a photo")["input_ids"])
    if end not in ids or ids.index(end) < len(ids) - 1:
        raise LearngeneError(
            f"the tokenizer makes {ids} of 'a photo', and the text encoder reads the state at the first token {end}, "
            "which must be the last: it is another model's tokenizer, or has lost the rule that adds this token"
        )


def longest_text(tokenizer: Any, text_config: Any = None, max_length: int | None = None) -> int | None:
    """Return the most tokens a text may have: the least of what is asked, the tokenizer's limit and the positions.

    None where nothing sets a limit. A tokenizer without one says 1e30.
    """
    positions = getattr(text_config, "max_position_embeddings", None) or 0
    if getattr(text_config, "model_type", None) in _POSITIONS_FOLLOW_PADDING:
        positions -= (text_config.pad_token_id or 0) + 1
    limits = [max_length, tokenizer.model_max_length, positions if positions > 0 else None]
    least = min((limit for limit in limits if limit is not None), default=LARGE_INTEGER)
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
        pad_to_multiple_of: pad to a multiple of this number of tokens; None pads to the longest of the batch.
        padding: False leaves texts at their own lengths, unless the encoder needs one length (SigLIP).

    Returns:
        the tokenizer's output: `input_ids` and, unless the encoder reads padding too, `attention_mask`.

    Raises:
        LearngeneError: a text has more than a million characters.
    """
    for index, text in enumerate(texts):
        check_length(text, f"row {index} of the texts")
    limit = longest_text(tokenizer, text_config, max_length)
    if pads_to_one_length(text_config):
        # The state of the last position is read, whatever stands there; asking for shorter texts leaves it there.
        length = longest_text(tokenizer, text_config) or 0
        rows = tokenizer(list(texts), truncation=limit is not None, max_length=limit)["input_ids"]
        padded = [[*row, *[tokenizer.pad_token_id] * (length - len(row))] for row in rows]
        return BatchEncoding({"input_ids": padded}, tensor_type=return_tensors)
    reads_first_end = getattr(text_config, "model_type", None) in _READ_THE_END_TOKEN
    return tokenizer(
        list(texts),
        truncation=limit is not None,
        max_length=limit,
        padding=padding,
        # CLIP's padding often is the end token: on the left, its state would be read.
        padding_side="right" if reads_first_end else None,
        pad_to_multiple_of=pad_to_multiple_of if padding else None,
        return_tensors=return_tensors,
    )


def pads_to_one_length(text_config: Any) -> bool:
    """Whether a text encoder needs every text padded to its longest, as SigLIP's does."""
    return getattr(text_config, "model_type", None) in _READ_THE_LAST_POSITION
