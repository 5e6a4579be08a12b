"""Trimming Unigram and SentencePiece-BPE vocabularies, and the models that read them."""

import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pico_tokenizers import BYTES, TOKENIZERS, TRAINED_ON, gemma_tokenizer, t5_tokenizer, unigram_tokenizer
from tokenizers import AddedToken, Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from mmlg_hf.errors import LearngeneError
from mmlg_hf.extraction.vocabulary import trim_tokenizer

CORPUS = ["a red square on blue", "photo of a pink square", "two  circles: \u2603 and \u00fc!"]
KINDS = pytest.mark.parametrize("kind", TOKENIZERS)


def assert_same_cuts(tokenizer, old_ids, original, texts):
    for text in texts:
        assert [old_ids[new] for new in tokenizer(text)["input_ids"]] == original(text)["input_ids"], text
        assert tokenizer.tokenize(text) == original.tokenize(text)


def model_of(tokenizer):
    return json.loads(tokenizer.backend_tokenizer.to_str())["model"]


@KINDS
def test_the_corpus_is_cut_as_before_and_unused_tokens_go(kind):
    original = TOKENIZERS[kind]()
    tokenizer, old_ids = trim_tokenizer(original, CORPUS)
    assert_same_cuts(tokenizer, old_ids, original, CORPUS)
    assert len(tokenizer) == len(old_ids) < len(original)
    for name in ("eos_token", "pad_token", "unk_token"):
        assert getattr(tokenizer, name) == getattr(original, name)
        assert old_ids[getattr(tokenizer, f"{name}_id")] == getattr(original, f"{name}_id")


@KINDS
def test_a_trimmed_tokenizer_survives_saving_and_trimming_again(kind, tmp_path):
    original = TOKENIZERS[kind]()
    original.add_tokens([AddedToken("zebra", single_word=True)])
    texts = [*CORPUS, "a zebra"]
    tokenizer, old_ids = trim_tokenizer(original, texts)
    tokenizer.save_pretrained(tmp_path)
    for loaded in (type(original).from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)):
        assert loaded.get_vocab() == tokenizer.get_vocab()
        assert_same_cuts(loaded, old_ids, original, texts)
        assert loaded.model_max_length == 16
    again, older_ids = trim_tokenizer(loaded, texts[:1])
    assert_same_cuts(again, [old_ids[old] for old in older_ids], original, texts[:1])


@KINDS
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_corpus_is_cut_into_the_same_tokens(kind, data):
    words = st.one_of(st.sampled_from(" ".join(TRAINED_ON).split()), st.text(max_size=6))
    lines = st.builds(str.join, st.sampled_from(["", " ", "  ", "\n"]), st.lists(words, max_size=6))
    texts = data.draw(st.lists(lines, max_size=5))
    original = TOKENIZERS[kind]()
    tokenizer, old_ids = trim_tokenizer(original, texts)
    assert_same_cuts(tokenizer, old_ids, original, texts)
    assert old_ids == sorted(set(old_ids))
    assert {name: old_ids[new] for name, new in tokenizer.get_vocab().items()}.items() <= original.get_vocab().items()


LETTERS = ["a", "b", "c"]


@settings(max_examples=200, deadline=None)
@given(
    # Whole numbers as scores, so that cuts of equal worth abound; "d" is a character that no piece has.
    scores=st.dictionaries(st.text(LETTERS, min_size=1, max_size=4), st.integers(-4, 1), min_size=1, max_size=14),
    texts=st.lists(st.text([*LETTERS, "d"], max_size=9), max_size=4),
    by_bytes=st.booleans(),
)
@example(scores={"a": -1, "b": -1, "c": -1, "ab": -2, "bc": -2, "abc": -3}, texts=["abc", "ab"], by_bytes=True)
def test_cuts_of_equal_worth_are_chosen_as_before(scores, texts, by_bytes):
    pieces = [("<unk>", 0.0), *((byte, -9.0) for byte in BYTES if by_bytes), *scores.items()]
    original = unigram_tokenizer([(piece, float(score)) for piece, score in pieces], byte_fallback=by_bytes)
    tokenizer, old_ids = trim_tokenizer(original, texts)
    assert_same_cuts(tokenizer, old_ids, original, texts)


def test_the_price_of_an_unknown_character_stays():
    # "wxayz" is w xa yz at -24.1, or wx ? yz at -0.2 and 10 below the lowest score: -50.2, but -22.2 without "rare".
    pieces = [("<unk>", 0.0), ("1", -9.0), ("2", -9.0), ("3", -9.0), ("wx", -0.1), ("yz", -0.1)]
    pieces += [(piece, -12.0) for piece in ("w", "xa")]
    original = unigram_tokenizer([*pieces, ("rare", -40.0)])
    assert original.tokenize("wxayz") == ["w", "xa", "yz"]
    assert unigram_tokenizer(pieces).tokenize("wxayz") == ["wx", "a", "yz"]
    tokenizer, old_ids = trim_tokenizer(original, ["wxayz"])
    assert_same_cuts(tokenizer, old_ids, original, ["wxayz"])


def test_the_unknown_token_is_renumbered_in_the_model():
    pieces = [(f"unused{number}", -3.0) for number in range(6)]
    original = unigram_tokenizer([*pieces, ("<unk>", 0.0), ("a", -1.0), ("ab", -1.5), ("b", -1.0)], unk_id=6)
    tokenizer, old_ids = trim_tokenizer(original, ["ab"])
    assert old_ids == [0, 1, 2, 3, 6, 7, 8, 9]
    assert model_of(tokenizer)["unk_id"] == 4
    assert_same_cuts(tokenizer, old_ids, original, ["ab", "aZb"])


def test_other_texts_are_spelled_in_single_characters_where_there_are_no_bytes():
    tokenizer, _ = trim_tokenizer(t5_tokenizer(), ["a red square"])
    characters = {piece for piece, _ in model_of(t5_tokenizer())["vocab"] if len(piece) == 1}
    assert characters <= tokenizer.get_vocab().keys()
    assert tokenizer.unk_token_id not in tokenizer("the quick brown fox")["input_ids"]


def test_other_texts_are_spelled_in_bytes_where_the_tokenizer_falls_back_to_them():
    original = gemma_tokenizer()
    tokenizer, _ = trim_tokenizer(original, ["a red square"])
    assert "\u00c4" in original.get_vocab()
    assert "\u00c4" not in tokenizer.get_vocab()
    assert tokenizer.tokenize("\u00c4") == ["<0xC3>", "<0x84>"]
    assert set(BYTES) <= tokenizer.get_vocab().keys()
    for text in ("the quick brown fox", "\u00c4pfel \u2603"):
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert tokenizer.tokenize("fix") == ["f", "i", "x"]  # not in bytes: ASCII stays


def test_a_tokenizer_that_cuts_at_random_or_not_at_all_is_refused():
    state = json.loads(gemma_tokenizer().backend_tokenizer.to_str())
    state["model"]["dropout"] = 0.1
    random = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(state)))
    with pytest.raises(LearngeneError, match="at random .dropout 0.1."):
        trim_tokenizer(random, CORPUS)
    with pytest.raises(LearngeneError, match="cannot cut a text of the corpus"):
        trim_tokenizer(unigram_tokenizer([("a", -1.0)], unk_id=None), ["ab"])
