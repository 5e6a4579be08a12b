"""Trimming a vocabulary must not change how the corpus is read, nor what the ancestor says of it."""

import pytest
import torch
from pico import pico_clip, pico_tokenizer
from transformers import BertTokenizer

from mmlg_hf.errors import LearngeneError
from mmlg_hf.vocabulary import trim_embedding, trim_tokenizer

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
