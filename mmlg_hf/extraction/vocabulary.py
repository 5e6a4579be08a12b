"""Trimming a text vocabulary to what a corpus uses: the token embedding is the largest part of a small gene."""

import copy
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import nn

from ..errors import LearngeneError

Pair = tuple[str, str]

# Settings that a tokenizer saves only where they were given when it was made.
_KEPT_SETTINGS = ("padding_side", "truncation_side", "clean_up_tokenization_spaces", "split_special_tokens")


def trim_tokenizer(tokenizer: Any, texts: Iterable[str], batch_size: int = 1000) -> tuple[Any, list[int]]:
    """Reduce a byte-pair tokenizer to the tokens that the texts use.

    Kept are the tokens of the texts, every token on any way of merging them, all added tokens, special or not, and all
    single bytes, so that the texts are cut exactly as before and any other text still can be. Ids keep their order
    (CLIP's end token stays the highest, on which its legacy pooling relies). All else about the tokenizer, such as its
    normalizer, its added tokens' flags, its limit and its padding side, is as it was.

    Args:
        tokenizer: a byte-pair tokenizer such as `CLIPTokenizer`; it is left as it is.
        texts: the corpus.
        batch_size: texts tokenized at a time.

    Returns:
        the trimmed tokenizer, and the old id of each new id.

    Raises:
        LearngeneError: if the tokenizer is no byte-pair tokenizer, or a text is no string.
    """
    state = _byte_pair_state(tokenizer)
    model = state["model"]
    vocabulary: dict[str, int] = model["vocab"]
    prefix = len(model["continuing_subword_prefix"] or "")
    # A merged token drops its second part's mark of a continued word.
    merges = {pair: pair[0] + pair[1][prefix:] for pair in map(_pair, model["merges"])}
    used = {index for batch in _batches(texts, batch_size) for ids in tokenizer(batch)["input_ids"] for index in ids}
    held = set(_named_ids(state))
    keep = _closure(used | held, vocabulary, merges) | ({model["unk_token"]} & vocabulary.keys())
    old_ids = sorted({vocabulary[token] for token in keep} | held)
    new_ids = {old: new for new, old in enumerate(old_ids)}

    model["vocab"] = {token: new_ids[old] for token, old in vocabulary.items() if token in keep}
    model["merges"] = [list(pair) for pair, merged in merges.items() if {*pair, merged} <= keep]
    _named_ids(state, new_ids)
    return _with_backend(tokenizer, state), old_ids


def _byte_pair_state(tokenizer: Any) -> dict[str, Any]:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    state = {} if backend is None else json.loads(backend.to_str())
    kind = state["model"]["type"] if state else f"that of a {type(tokenizer).__name__}"
    if kind != "BPE":
        raise LearngeneError(
            f"the tokenizer's model is {kind}: only byte-pair vocabularies can be trimmed, so pass "
            "trim_vocabulary=False"
        )
    return state


def _pair(merge: list[str] | str) -> Pair:
    first, second = merge.split(" ") if isinstance(merge, str) else merge
    return first, second


def _closure(used: set[int], vocabulary: dict[str, int], merges: dict[Pair, str]) -> set[str]:
    """Return the used tokens, all that they can be merged of, and the tokens that are merged of nothing.

    A rule that a text's merging never applies can go without changing it, and every rule that it applies joins two of
    these tokens.
    """
    pairs_of = defaultdict(list)
    for pair, merged in merges.items():
        pairs_of[merged].append(pair)
    keep = {token for token in vocabulary if token not in pairs_of}
    waiting = [token for token, index in vocabulary.items() if index in used]
    while waiting:
        token = waiting.pop()
        keep.add(token)
        waiting.extend(part for pair in pairs_of[token] for part in pair if part not in keep)
    return keep


def _named_ids(state: dict[str, Any], new_ids: Mapping[int, int] | None = None) -> list[int]:
    """List the ids that a tokenizer names outside its vocabulary, and give them new ones in place where told to.

    These are those of added tokens, of padding, and of what the post-processor puts around a text.
    """
    places: list[tuple[Any, Any]] = [(token, "id") for token in state["added_tokens"]]
    if state["padding"] is not None:
        places.append((state["padding"], "pad_id"))
    processors = [] if state["post_processor"] is None else [state["post_processor"]]
    while processors:
        processor = processors.pop()
        processors += processor.get("processors", ())
        places += [(processor[name], 1) for name in ("cls", "sep") if name in processor]
        for special in processor.get("special_tokens", {}).values():
            places += [(special["ids"], position) for position in range(len(special["ids"]))]
    ids = [holder[key] for holder, key in places]
    for (holder, key), old in zip(places, ids, strict=True):
        holder[key] = old if new_ids is None else new_ids[old]
    return ids


def _with_backend(tokenizer: Any, state: dict[str, Any]) -> Any:
    """Return a copy of a tokenizer with another backend."""
    trimmed = copy.deepcopy(tokenizer)
    trimmed._tokenizer = Tokenizer.from_str(json.dumps(state))
    trimmed._tokenizer.encode_special_tokens = tokenizer.backend_tokenizer.encode_special_tokens
    if hasattr(trimmed, "_merges"):
        trimmed._merges = [_pair(merge) for merge in state["model"]["merges"]]
    if hasattr(trimmed, "_wrap_decode_method_backend_tokenizer"):
        trimmed._wrap_decode_method_backend_tokenizer()  # CLIP's decoding of ends of words
    trimmed.init_kwargs.pop("added_tokens_decoder", None)  # by old ids
    trimmed.init_kwargs |= {name: getattr(tokenizer, name) for name in _KEPT_SETTINGS if hasattr(tokenizer, name)}
    return trimmed


def _batches(texts: Iterable[str], size: int) -> Iterable[list[str]]:
    batch: list[str] = []
    for position, text in enumerate(texts):
        if text is not None and not isinstance(text, str):
            raise LearngeneError(f"text {position} of the corpus is {text!r}: give strings")
        batch.append(text or "")
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def trim_embedding(model: Any, tokenizer: Any, old_ids: list[int]) -> None:
    """Give a CLIP model the trimmed tokenizer's ids: rows of the token embedding, and ids in the text config.

    Raises:
        LearngeneError: if the model has no embeddings for some of the tokens; nothing is changed then.
    """
    text_model, config = model.text_model, model.config.text_config
    old = text_model.embeddings.token_embedding.weight
    if old_ids and old_ids[-1] >= len(old):
        raise LearngeneError(
            f"the tokenizer has a token {old_ids[-1]} and the text encoder embeddings for {len(old)}: add rows with "
            "text_model.resize_token_embeddings, or take the model's own tokenizer"
        )
    embedding = nn.Embedding(len(old_ids), old.shape[1], dtype=old.dtype, device=old.device)
    with torch.no_grad():
        embedding.weight.copy_(old[torch.tensor(old_ids, device=old.device)])
    embedding.weight.requires_grad_(old.requires_grad)
    text_model.embeddings.token_embedding = embedding
    config.vocab_size = len(old_ids)
    if (
        config.eos_token_id != 2
    ):  # 2 is the legacy mark of OpenAI's configs: pool at the highest id, which stays highest
        config.eos_token_id = text_model.eos_token_id = tokenizer.eos_token_id
    config.bos_token_id, config.pad_token_id = tokenizer.bos_token_id, tokenizer.pad_token_id
