"""Trimming a text vocabulary to what a corpus uses: the token embedding is the largest part of a small gene."""

import json
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from .errors import LearngeneError


def trim_tokenizer(tokenizer: Any, texts: Iterable[str], batch_size: int = 1000) -> tuple[Any, list[int]]:
    """Reduce a byte-pair tokenizer to the tokens that the texts use.

    Kept are the tokens of the texts, every token on the way of merging them, the special tokens and all single bytes,
    so that the texts are cut exactly as before and any other text still can be. Ids keep their order (CLIP's end token
    stays the highest, on which its legacy pooling relies).

    Args:
        tokenizer: a byte-pair tokenizer such as `CLIPTokenizer`.
        texts: the corpus.
        batch_size: texts tokenized at a time.

    Returns:
        the trimmed tokenizer, and the old id of each new id.

    Raises:
        LearngeneError: if the tokenizer is no byte-pair tokenizer.
    """
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    if state["model"]["type"] != "BPE":
        raise LearngeneError(
            f"the tokenizer's model is {state['model']['type']}: only byte-pair vocabularies can be trimmed, so pass "
            "trim_vocabulary=False"
        )
    vocabulary: dict[str, int] = state["model"]["vocab"]
    token_of = {index: token for token, index in vocabulary.items()}
    merges = [
        tuple(merge) if isinstance(merge, list) else tuple(merge.split(" ")) for merge in state["model"]["merges"]
    ]
    parts_of = {first + second: (first, second) for first, second in reversed(merges)}

    used: set[int] = set(tokenizer.all_special_ids)
    for batch in _batches(texts, batch_size):
        used.update(index for ids in tokenizer(batch)["input_ids"] for index in ids)
    keep = {token for token in vocabulary if token not in parts_of}  # single bytes and special tokens
    waiting = [token_of[index] for index in used if index in token_of]
    while waiting:
        token = waiting.pop()
        keep.add(token)
        waiting.extend(part for part in parts_of.get(token, ()) if part not in keep)

    old_ids = sorted(vocabulary[token] for token in keep)
    trimmed = type(tokenizer)(
        vocab={token_of[old]: new for new, old in enumerate(old_ids)},
        merges=[pair for pair in merges if {pair[0], pair[1], pair[0] + pair[1]} <= keep],
        model_max_length=tokenizer.model_max_length,
        **tokenizer.special_tokens_map,
    )
    return trimmed, old_ids


def _batches(texts: Iterable[str], size: int) -> Iterable[list[str]]:
    batch: list[str] = []
    for text in texts:
        batch.append(text or "")
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def trim_embedding(model: Any, tokenizer: Any, old_ids: list[int]) -> None:
    """Give a CLIP model the trimmed tokenizer's ids: rows of the token embedding, and ids in the text config."""
    text_model, config = model.text_model, model.config.text_config
    weight = text_model.embeddings.token_embedding.weight.data
    rows = torch.tensor(old_ids, device=weight.device)
    embedding = nn.Embedding(len(old_ids), weight.shape[1], dtype=weight.dtype, device=weight.device)
    embedding.weight.data.copy_(weight[rows])
    text_model.embeddings.token_embedding = embedding
    config.vocab_size = len(old_ids)
    if (
        config.eos_token_id != 2
    ):  # 2 is the legacy mark of OpenAI's configs: pool at the highest id, which stays highest
        config.eos_token_id = text_model.eos_token_id = tokenizer.eos_token_id
    config.bos_token_id, config.pad_token_id = tokenizer.bos_token_id, tokenizer.pad_token_id
