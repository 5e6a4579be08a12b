"""Trimming a text vocabulary to what a corpus uses: the token embedding is the largest part of a small gene."""

import copy
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from datasets import Dataset, IterableDataset
from tokenizers import Tokenizer
from torch import nn

from ..data.captions import captions_of
from ..data.loading import is_transformed, rows_of
from ..data.pictures import undecoded
from ..data.texts import reads_largest_token, text_config_of
from ..errors import LearngeneError, first_line

Pair = tuple[str, str]

# Settings that a tokenizer saves only where they were given when it was made.
_KEPT_SETTINGS = ("padding_side", "truncation_side", "clean_up_tokenization_spaces", "split_special_tokens")
# Ids that stay what they are, since code holds them: T5's class takes 2 for the unknown token and XLM-R's takes 3,
# and a CLIP whose end token became 2 would read the largest token.
_FIXED_IDS = range(4)
_BYTES = frozenset(f"<0x{byte:02X}>" for byte in range(256))
# What most texts are spelled with, kept beside bytes: U+2581 is SentencePiece's space.
_COMMON_CHARACTERS = frozenset(map(chr, range(128))) | {"\u2581"}


def trim_tokenizer(tokenizer: Any, texts: Iterable[str], batch_size: int = 1000) -> tuple[Any, list[int]]:
    """Reduce a BPE or Unigram tokenizer to the tokens that the texts use.

    The texts are cut exactly as before, and any other text still can be. Kept are

    - the tokens of the texts and, of a BPE, every token on any way of merging them;
    - all added tokens, special or not, the unknown token, and ids 0 to 3, which some classes know by number;
    - what other texts are spelled with: where the tokenizer falls back to bytes (Gemma), the 256 bytes and the
      characters of ASCII; else all single characters or bytes that it has (CLIP, T5, XLM-R).

    Ids keep their order (CLIP's end token stays the highest, on which its legacy pooling relies). All else about the
    tokenizer, such as its normalizer, its added tokens' flags, its limit and its padding side, is as it was.

    Args:
        tokenizer: of the tokenizers library, such as `CLIPTokenizer`, `GemmaTokenizer`, `T5Tokenizer`,
            `XLMRobertaTokenizer`; it is left as it is.
        texts: the corpus.
        batch_size: texts tokenized at a time.

    Returns:
        the trimmed tokenizer, and the old id of each new id.

    Raises:
        LearngeneError: if the tokenizer is of another kind or cuts texts at random, or a text is no string that it
            can cut.
    """
    state = _trimmable_state(tokenizer)
    model = state["model"]
    used = {index for batch in _batches(texts, batch_size) for ids in _cut(tokenizer, batch) for index in ids}
    held = set(_named_ids(state))
    old_ids = (_trim_pieces if model["type"] == "Unigram" else _trim_merges)(model, used | held)
    _named_ids(state, {old: new for new, old in enumerate(old_ids)})
    return _with_backend(tokenizer, state), old_ids


def _trimmable_state(tokenizer: Any) -> dict[str, Any]:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    state = {} if backend is None else json.loads(backend.to_str())
    kind = state["model"]["type"] if state else f"that of a {type(tokenizer).__name__}"
    if kind not in ("BPE", "Unigram"):
        raise LearngeneError(
            f"the tokenizer's model is {kind}: only BPE and Unigram vocabularies of the tokenizers library can be "
            "trimmed, so pass trim_vocabulary=False"
        )
    if state["model"].get("dropout"):
        raise LearngeneError(
            f"the tokenizer cuts texts at random (dropout {state['model']['dropout']}), so that nobody knows which "
            "tokens a corpus uses: set its dropout to None"
        )
    return state


def _cut(tokenizer: Any, batch: list[str]) -> list[list[int]]:
    try:
        return tokenizer(batch)["input_ids"]
    except Exception as error:  # the tokenizers library raises Exception itself
        raise LearngeneError(f"the tokenizer cannot cut a text of the corpus ({first_line(error)})") from error


def _trim_pieces(model: dict[str, Any], ids: set[int]) -> list[int]:
    """Trim a Unigram model in place to these ids and what else must stay; return all that stay, by their old ids.

    A text's best cut stays the best among fewer cuts, and of equals the first, since whatever else leads to a place
    only gets worse. For that an unknown character must cost as much as before, which is 10 below the lowest score: its
    piece stays.
    """
    pieces = model["vocab"]
    spelling = _spelling({piece for piece, _ in pieces if len(piece) == 1 or piece in _BYTES}, model)
    kept = {index for index, (piece, _) in enumerate(pieces) if index in _FIXED_IDS or piece in spelling}
    kept.add(min(range(len(pieces)), key=lambda index: pieces[index][1]))
    old_ids = sorted(kept | ids)
    model["vocab"] = [pieces[old] for old in old_ids if old < len(pieces)]  # added tokens may stand behind
    return old_ids


def _trim_merges(model: dict[str, Any], ids: set[int]) -> list[int]:
    """Trim a BPE model in place to these ids and what else must stay; return all that stay, by their old ids."""
    vocabulary: dict[str, int] = model["vocab"]
    prefix = len(model["continuing_subword_prefix"] or "")
    # A merged token drops its second part's mark of a continued word.
    merges = {pair: pair[0] + pair[1][prefix:] for pair in map(_pair, model["merges"])}
    keep = _spelling(vocabulary.keys() - merges.values(), model) | ({model["unk_token"]} & vocabulary.keys())
    keep |= _closure({token for token, old in vocabulary.items() if old in ids or old in _FIXED_IDS}, merges)
    old_ids = sorted({vocabulary[token] for token in keep} | ids)
    new_ids = {old: new for new, old in enumerate(old_ids)}
    model["vocab"] = {token: new_ids[old] for token, old in vocabulary.items() if token in keep}
    model["merges"] = [list(pair) for pair, merged in merges.items() if {*pair, merged} <= keep]
    return old_ids


def _spelling(single: set[str], model: Mapping[str, Any]) -> set[str]:
    """Pick those of the characters and bytes of a model that any text can be spelled with."""
    by_bytes = model.get("byte_fallback") and single >= _BYTES
    return single & (_BYTES | _COMMON_CHARACTERS) if by_bytes else single


def _pair(merge: list[str] | str) -> Pair:
    first, second = merge.split(" ") if isinstance(merge, str) else merge
    return first, second


def _closure(used: set[str], merges: dict[Pair, str]) -> set[str]:
    """Return the used tokens and all that they can be merged of.

    A rule that a text's merging never applies can go without changing it, and every rule that it applies joins two of
    these tokens.
    """
    pairs_of = defaultdict(list)
    for pair, merged in merges.items():
        pairs_of[merged].append(pair)
    keep: set[str] = set()
    waiting = list(used)
    while waiting:
        token = waiting.pop()
        if token not in keep:
            keep.add(token)
            waiting.extend(part for pair in pairs_of[token] for part in pair)
    return keep


def _named_ids(state: dict[str, Any], new_ids: Mapping[int, int] | None = None) -> list[int]:
    """List the ids that a tokenizer names outside its vocabulary, and give them new ones in place where told to.

    These are those of added tokens, of padding, of what the post-processor puts around a text, and of a Unigram
    model's unknown token.
    """
    places: list[tuple[Any, Any]] = [(token, "id") for token in state["added_tokens"]]
    if state["model"].get("unk_id") is not None:
        places.append((state["model"], "unk_id"))
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
    model = state["model"]
    # Some classes hold a copy of what they were made of.
    vocabulary = [tuple(piece) for piece in model["vocab"]] if model["type"] == "Unigram" else model["vocab"]
    copies = {"_vocab": vocabulary, "_vocab_scores": vocabulary, "_merges": list(map(_pair, model.get("merges", ())))}
    for name in copies.keys() & vars(trimmed).keys():
        setattr(trimmed, name, copies[name])
    if hasattr(trimmed, "_wrap_decode_method_backend_tokenizer"):
        trimmed._wrap_decode_method_backend_tokenizer()  # CLIP's decoding of ends of words
    trimmed.init_kwargs.pop("added_tokens_decoder", None)  # by old ids
    trimmed.init_kwargs |= {name: getattr(tokenizer, name) for name in _KEPT_SETTINGS if hasattr(tokenizer, name)}
    return trimmed


def read_corpus(data: Dataset | IterableDataset, text_column: str) -> Iterator[str]:
    """Give every caption of a data set, without its pictures, which are not decoded.

    A row without a caption is passed over: it is refused, or left out, where the rows are processed.

    Args:
        data: rows; of a stream all are read, so it must end, and can be read again.
        text_column: the column of strings, or of lists of strings.

    Raises:
        LearngeneError: at the end of a stream that gives nothing when it is read again.
    """
    texts = undecoded(data)
    if texts.features is not None and not is_transformed(texts):  # else a row may lack the column
        texts = texts.select_columns([text_column])
    for index, row in enumerate(rows_of(texts)):
        try:
            yield from captions_of(row.get(text_column), f"row {index}")
        except LearngeneError:
            continue
    if isinstance(data, IterableDataset) and next(iter(texts), None) is None:
        raise LearngeneError(
            "the data is a stream that can be read only once, and trim_vocabulary reads its texts first: use a "
            "Dataset, or make the stream of a function that begins anew"
        )


def _batches(texts: Iterable[str], size: int) -> Iterable[list[str]]:
    if isinstance(texts, (str, bytes)):
        raise LearngeneError(f"the corpus is a {type(texts).__name__}: give an iterable of strings, one a text")
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
    """Give a model the trimmed tokenizer's ids: rows of its token embedding, and the ids in its text config.

    Args:
        model: CLIP, MetaCLIP 2 or SigLIP, or a text encoder of theirs: whatever keeps its token embedding at
            `text_model.embeddings.token_embedding` or `embeddings.token_embedding`. It is changed in place.
        tokenizer: the trimmed one.
        old_ids: the old id of each new id.

    Raises:
        LearngeneError: if the model has no such embedding, or none for some of the tokens; nothing is changed then.
    """
    text_model, config = getattr(model, "text_model", model), text_config_of(model)
    embeddings: Any = getattr(text_model, "embeddings", None)
    if config is None or not hasattr(embeddings, "token_embedding"):
        raise LearngeneError(
            f"a {type(model).__name__} has no token embedding at text_model.embeddings: its vocabulary cannot be "
            "trimmed, so give a CLIP, MetaCLIP 2 or SigLIP"
        )
    old = embeddings.token_embedding.weight
    if old_ids and old_ids[-1] >= len(old):
        raise LearngeneError(
            f"the tokenizer has a token {old_ids[-1]} and the text encoder embeddings for {len(old)}: add rows with "
            "text_model.resize_token_embeddings, or take the model's own tokenizer"
        )
    rows = old.detach()[torch.tensor(old_ids, device=old.device)]
    embeddings.token_embedding = nn.Embedding.from_pretrained(rows, freeze=not old.requires_grad)
    ends = config.eos_token_id if reads_largest_token(config) else tokenizer.eos_token_id
    for held in (config, text_model.config):  # mostly one object
        held.vocab_size, held.eos_token_id = len(old_ids), ends
        held.bos_token_id, held.pad_token_id = tokenizer.bos_token_id, tokenizer.pad_token_id
    if hasattr(text_model, "eos_token_id"):
        text_model.eos_token_id = ends  # the copy that CLIP and MetaCLIP 2 pool by
