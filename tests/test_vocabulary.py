"""Trimming a vocabulary must not change how the corpus is read, nor what the ancestor says of it."""

import json
from types import SimpleNamespace

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pico import WORDS, pico_clip, pico_tokenizer
from tokenizers import AddedToken, Tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import BertTokenizer, CLIPTokenizer, PreTrainedTokenizerFast

from mmlg_hf.errors import LearngeneError
from mmlg_hf.extraction.vocabulary import trim_embedding, trim_tokenizer

CORPUS = ["a red square on blue", "photo of a pink square"]


@pytest.fixture(scope="module")
def trimmed():
    return trim_tokenizer(pico_tokenizer(), CORPUS)


def test_corpus_is_cut_into_the_same_tokens(trimmed):
    tokenizer, old_ids = trimmed
    for text in CORPUS:
        assert [old_ids[new] for new in tokenizer(text)["input_ids"]] == pico_tokenizer()(text)["input_ids"]


def test_unused_words_go_and_bytes_stay(trimmed):
    tokenizer, _ = trimmed
    vocabulary = tokenizer.get_vocab()
    assert "red</w>" in vocabulary
    assert "yellow</w>" not in vocabulary
    assert len(vocabulary) < len(pico_tokenizer())
    assert (
        tokenizer.decode(tokenizer("yellow Ünder 9")["input_ids"], skip_special_tokens=True).strip()
        == "yellow ünder 9"
    )


def test_ids_keep_their_order_and_the_end_token_stays_last(trimmed):
    tokenizer, old_ids = trimmed
    assert old_ids == sorted(old_ids)
    assert tokenizer.eos_token_id == len(tokenizer) - 1
    assert tokenizer.model_max_length == pico_tokenizer().model_max_length


def test_trimmed_tokenizer_survives_saving(trimmed, tmp_path):
    tokenizer, _ = trimmed
    tokenizer.save_pretrained(tmp_path)
    loaded = type(tokenizer).from_pretrained(tmp_path)
    assert [loaded(text)["input_ids"] for text in CORPUS] == [tokenizer(text)["input_ids"] for text in CORPUS]


@pytest.mark.parametrize("legacy_pooling", [False, True])
def test_ancestor_embeds_the_corpus_as_before(trimmed, legacy_pooling):
    tokenizer, old_ids = trimmed
    model = pico_clip().eval()
    if legacy_pooling:  # OpenAI's configs: pool at the highest id
        model.config.text_config.eos_token_id = model.text_model.eos_token_id = 2
    before = pico_tokenizer()(CORPUS, padding=True, return_tensors="pt")
    expected = model.get_text_features(**before).pooler_output
    trim_embedding(model, tokenizer, old_ids)
    after = tokenizer(CORPUS, padding=True, return_tensors="pt")
    torch.testing.assert_close(model.get_text_features(**after).pooler_output, expected, rtol=0, atol=0)
    assert model.config.text_config.vocab_size == len(tokenizer)
    assert model.config.text_config.eos_token_id == (2 if legacy_pooling else tokenizer.eos_token_id)


def test_other_kinds_of_tokenizer_are_refused():
    words = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4, "red": 5}
    with pytest.raises(LearngeneError, match="WordPiece.*trim_vocabulary=False"):
        trim_tokenizer(BertTokenizer(vocab=words), CORPUS)


# ---------------------------------------------------------------------------------------- all kept but the unused


def with_added_tokens():
    """The pico tokenizer with added tokens of every kind."""
    tokenizer = pico_tokenizer()
    tokenizer.add_tokens(
        [AddedToken("Fancy Dress", lstrip=True, normalized=False), AddedToken("zebra", single_word=True), "red square"]
    )
    tokenizer.add_tokens([AddedToken("<obj>", special=True, rstrip=True)], special_tokens=True)
    return tokenizer


def assert_same_cuts(tokenizer, old_ids, original, texts):
    for text in texts:
        assert [old_ids[new] for new in tokenizer(text)["input_ids"]] == original(text)["input_ids"], text
        assert tokenizer.tokenize(text) == original.tokenize(text)


def test_added_tokens_keep_one_id_each_and_their_rows_and_flags(tmp_path):
    original, texts = with_added_tokens(), ["a  Fancy Dress on <obj>  blue", "zebra zebras", "a red square"]
    tokenizer, old_ids = trim_tokenizer(original, texts)
    assert tokenizer.tokenize("a Fancy Dress") == original.tokenize("a Fancy Dress") == ["a</w>", " Fancy Dress"]
    assert_same_cuts(tokenizer, old_ids, original, texts)
    model = pico_clip().eval()
    model.text_model.resize_token_embeddings(len(original))
    rows = model.text_model.embeddings.token_embedding.weight.detach().clone()
    trim_embedding(model, tokenizer, old_ids)
    for name in ("Fancy Dress", "zebra", "<obj>", "a</w>", "<|endoftext|>"):
        row = model.text_model.embeddings.token_embedding.weight[tokenizer.convert_tokens_to_ids(name)]
        assert torch.equal(row, rows[original.convert_tokens_to_ids(name)]), name
    tokenizer.save_pretrained(tmp_path)
    for kept in (tokenizer, CLIPTokenizer.from_pretrained(tmp_path)):
        flags = {token.content: repr(token) for token in kept.added_tokens_decoder.values()}
        assert flags == {token.content: repr(token) for token in original.added_tokens_decoder.values()}
        assert_same_cuts(kept, old_ids, original, texts)


def test_a_tokenizer_that_was_loaded_keeps_its_added_tokens_through_trimming_and_saving_again(tmp_path):
    original, texts = with_added_tokens(), ["a zebra on <obj> red"]
    original.save_pretrained(tmp_path / "whole")
    tokenizer, old_ids = trim_tokenizer(CLIPTokenizer.from_pretrained(tmp_path / "whole"), texts)
    tokenizer.save_pretrained(tmp_path / "trimmed")
    loaded = CLIPTokenizer.from_pretrained(tmp_path / "trimmed")
    assert loaded.get_vocab() == tokenizer.get_vocab()
    assert_same_cuts(loaded, old_ids, original, texts)


def test_a_token_with_two_merges_keeps_the_one_that_the_texts_use():
    letters = [*"apqcx", *(letter + "</w>" for letter in "apqcx")]
    # "apqc" is cut q+c, p+qc, a+pqc, while its first merge in the list is apq+c, which is never reached: a+p is.
    merges = [
        ("q", "c</w>"), ("p", "qc</w>"), ("a", "p"), ("apq", "c</w>"), ("a", "pqc</w>"), ("p", "q"), ("a", "pq"),
    ]  # fmt: skip
    tokens = [*letters, *dict.fromkeys("".join(pair) for pair in merges), "<|startoftext|>", "<|endoftext|>"]
    vocab = {token: index for index, token in enumerate(dict.fromkeys(["apq", *tokens]))}
    original, texts = CLIPTokenizer(vocab=vocab, merges=merges), ["apqc", "apx"]
    assert [original.tokenize(text) for text in texts] == [["apqc</w>"], ["ap", "x</w>"]]
    tokenizer, old_ids = trim_tokenizer(original, texts)
    assert_same_cuts(tokenizer, old_ids, original, texts)


def test_all_else_about_the_tokenizer_is_kept_and_survives_saving(tmp_path):
    original = pico_tokenizer()
    original.padding_side, original.truncation_side = "left", "left"
    original.pad_token = "!"
    original.model_max_length = 7
    original.clean_up_tokenization_spaces = True
    original.chat_template = "{{ messages }}"
    texts = ["a red square on blue photo of pink", "a red square"]
    tokenizer, old_ids = trim_tokenizer(original, texts)
    tokenizer.save_pretrained(tmp_path)
    cut = {"padding": True, "truncation": True}
    for kept in (tokenizer, CLIPTokenizer.from_pretrained(tmp_path)):
        for name in (
            "padding_side", "truncation_side", "pad_token", "model_max_length", "clean_up_tokenization_spaces",
            "chat_template", "special_tokens_map", "model_input_names",
        ):  # fmt: skip
            assert getattr(kept, name) == getattr(original, name), name
        expected, found = original(texts, **cut), kept(texts, **cut)
        assert [[old_ids[new] for new in ids] for ids in found["input_ids"]] == expected["input_ids"]
        assert found["attention_mask"] == expected["attention_mask"]
        assert kept.decode(kept("pink square")["input_ids"]) == original.decode(original("pink square")["input_ids"])
    assert original("a red square")["input_ids"] == pico_tokenizer()("a red square")["input_ids"]


def test_the_ids_of_every_kind_of_post_processor_and_of_padding_are_renumbered():
    state = json.loads(pico_tokenizer().backend_tokenizer.to_str())
    backend = Tokenizer.from_str(json.dumps(state))
    ends = {name: backend.token_to_id(name) for name in ("<|startoftext|>", "<|endoftext|>")}
    backend.post_processor = TemplateProcessing(
        single="<|startoftext|> $A <|endoftext|>",
        pair="<|startoftext|> $A <|endoftext|> $B <|endoftext|>",
        special_tokens=list(ends.items()),
    )
    backend.enable_padding(length=8, pad_id=ends["<|endoftext|>"], pad_token="<|endoftext|>")
    original = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<|endoftext|>")
    tokenizer, old_ids = trim_tokenizer(original, ["a red square"])
    assert [old_ids[new] for new in tokenizer.backend_tokenizer.encode("a red square").ids] == (
        backend.encode("a red square").ids
    )


PIECES = st.one_of(
    st.sampled_from(
        [*WORDS, "Fancy Dress", "zebra", "zebras", "<obj>", "RED", "Ünder", "\u3000", "don't", "<|endoftext|>"]
    ),
    st.text(max_size=8),
)
TEXTS = st.lists(st.builds(str.join, st.sampled_from(["", " ", "  ", "\n"]), st.lists(PIECES, max_size=6)), max_size=5)


@settings(max_examples=40, deadline=None)
@given(texts=TEXTS, padding_side=st.sampled_from(["left", "right"]))
@example(texts=[], padding_side="right")
def test_any_corpus_is_cut_into_the_same_tokens(texts, padding_side):
    original = with_added_tokens()
    original.padding_side = padding_side
    tokenizer, old_ids = trim_tokenizer(original, texts)
    assert_same_cuts(tokenizer, old_ids, original, texts)
    assert old_ids == sorted(set(old_ids))
    names = original.get_vocab()
    assert {name: old_ids[new] for name, new in tokenizer.get_vocab().items()}.items() <= names.items()
    if texts:
        found = tokenizer(texts, padding=True)["input_ids"]
        assert [[old_ids[new] for new in ids] for ids in found] == original(texts, padding=True)["input_ids"]


def test_what_cannot_be_trimmed_is_said_in_one_sentence():
    with pytest.raises(LearngeneError, match="text 1 of the corpus is 7: give strings"):
        trim_tokenizer(pico_tokenizer(), ["a", 7])
    with pytest.raises(LearngeneError, match="the corpus is a str: give an iterable of strings"):
        trim_tokenizer(pico_tokenizer(), "a red square")
    with pytest.raises(LearngeneError, match="cannot cut a text of the corpus"):
        trim_tokenizer(pico_tokenizer(), ["half of a pair \ud83d"])
    with pytest.raises(LearngeneError, match="that of a SimpleNamespace: only BPE and Unigram vocabularies"):
        trim_tokenizer(SimpleNamespace(), ["a"])
    tokenizer, old_ids = trim_tokenizer(with_added_tokens(), ["a"])
    model = pico_clip()
    with pytest.raises(LearngeneError, match="a token 556 and the text encoder embeddings for 553: add rows"):
        trim_embedding(model, tokenizer, old_ids)
    assert model.config.text_config.vocab_size == 553


def test_a_frozen_token_embedding_stays_frozen(trimmed):
    model = pico_clip()
    model.text_model.embeddings.token_embedding.weight.requires_grad_(False)
    trim_embedding(model, *trimmed)
    assert not model.text_model.embeddings.token_embedding.weight.requires_grad
