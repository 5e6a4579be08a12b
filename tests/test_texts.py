"""Texts into tokens: by the model's own tokenizer, cut to what the encoder takes, padded as in its training."""

import pytest
import torch
from pico import MAX_LENGTH, pico_clip, pico_pairs, pico_processor, pico_tokenizer
from pico_genes import multimodal_gene, perturb
from tokenizers.processors import TemplateProcessing
from torch.nn import functional as F
from transformers import (
    BertConfig,
    BertTokenizer,
    CLIPProcessor,
    CLIPTextConfig,
    CLIPVisionConfig,
    RobertaConfig,
    SiglipConfig,
    SiglipModel,
)

from mmlg_hf import LearngeneError
from mmlg_hf.data.texts import check_tokenizer, encode_texts, longest_text, text_config_of
from mmlg_hf.evaluation import class_embeddings, embed_texts, evaluate_retrieval, evaluate_zero_shot
from mmlg_hf.evaluation.classification import evaluate_classification
from mmlg_hf.extraction.vocabulary import trim_embedding, trim_tokenizer

SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


def bert_tokenizer():
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "blue", "photo", "of", "square", "on"]
    return BertTokenizer(vocab={word: index for index, word in enumerate(words)})


def siglip():
    """A SigLIP for the pico tokenizer."""
    text = {"vocab_size": len(pico_tokenizer()), "max_position_embeddings": MAX_LENGTH, "projection_size": 32}
    vision = {"image_size": 16, "patch_size": 8}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return perturb(SiglipModel(SiglipConfig(text_config=SIZES | text, vision_config=SIZES | vision))).eval()


def unlimited():
    tokenizer = pico_tokenizer()
    tokenizer.model_max_length = int(1e30)
    return tokenizer


def with_tokenizer(tokenizer):
    return CLIPProcessor(image_processor=pico_processor().image_processor, tokenizer=tokenizer)


# --- whose tokenizer it is -------------------------------------------------------------------------------------------


def test_a_models_own_tokenizer_passes():
    tokenizer = pico_tokenizer()
    for model in (pico_clip(), multimodal_gene(), siglip(), multimodal_gene().descendant(1, 8, "text", num_labels=3)):
        check_tokenizer(tokenizer, text_config_of(model))
    check_tokenizer(bert_tokenizer(), None)
    check_tokenizer(bert_tokenizer(), BertConfig(vocab_size=12))


def test_another_models_tokenizer_is_refused_by_all_that_embeds_texts():
    pairs, other = pico_pairs(8, labels=True), with_tokenizer(pico_tokenizer())
    other.tokenizer = bert_tokenizer()  # smaller than the model's, so that its ids have embeddings
    sentence = "ends texts with token None and the text encoder reads the state at token 552"
    for model in (pico_clip(), multimodal_gene()):
        with pytest.raises(LearngeneError, match=sentence):
            evaluate_retrieval(model, pairs, other)
        with pytest.raises(LearngeneError, match=sentence):
            evaluate_zero_shot(model, pairs, other)
        with pytest.raises(LearngeneError, match=sentence):
            embed_texts(model, ["a"], other)
        with pytest.raises(LearngeneError, match=sentence):
            class_embeddings(model, ["a", "b"], other)
    classifier = multimodal_gene().descendant(1, 8, "text", num_labels=8)
    with pytest.raises(LearngeneError, match=sentence):
        evaluate_classification(classifier, pairs, other.tokenizer)


def test_a_tokenizer_with_more_tokens_than_embeddings_is_refused():
    tokenizer = pico_tokenizer()
    tokenizer.add_tokens(["<new>"])
    with pytest.raises(LearngeneError, match="has 554 tokens and the text encoder embeddings for 553"):
        check_tokenizer(tokenizer, text_config_of(pico_clip()))


def test_a_tokenizer_that_no_longer_ends_texts_is_refused():
    tokenizer = pico_tokenizer()
    tokenizer.backend_tokenizer.post_processor = None
    with pytest.raises(LearngeneError, match=r"which must be the last"):
        check_tokenizer(tokenizer, text_config_of(pico_clip()))


def test_a_tokenizer_that_begins_texts_with_the_end_token_is_refused():
    tokenizer = pico_tokenizer()
    tokenizer.bos_token = tokenizer.eos_token
    end = (tokenizer.eos_token, tokenizer.eos_token_id)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{end[0]} $A {end[0]}", special_tokens=[end]
    )
    with pytest.raises(LearngeneError, match="reads the state at the first token 552, which must be the last"):
        check_tokenizer(tokenizer, text_config_of(pico_clip()))


@pytest.mark.parametrize("legacy", [True, False])
def test_a_trimmed_tokenizer_passes_on_the_trimmed_model_and_is_refused_on_the_whole_one(legacy):
    model = pico_clip()
    if legacy:
        model.config.text_config.eos_token_id = model.text_model.eos_token_id = 2
        check_tokenizer(pico_tokenizer(), model.config.text_config)
    trimmed, _ = trim_tokenizer(pico_tokenizer(), ["a red square"])
    config = CLIPTextConfig(vocab_size=2000, eos_token_id=2 if legacy else 1999)
    with pytest.raises(LearngeneError, match="another model's tokenizer"):
        check_tokenizer(trimmed, config)
    trim_embedding(model, *trim_tokenizer(pico_tokenizer(), ["a red square"]))
    check_tokenizer(trimmed, model.config.text_config)


def test_the_legacy_end_token_means_the_largest_token():
    tokenizer, legacy = pico_tokenizer(), CLIPTextConfig(vocab_size=560, eos_token_id=2)
    check_tokenizer(tokenizer, legacy)  # a table padded by a few rows
    tokenizer.add_tokens(["<new>"])
    with pytest.raises(LearngeneError, match="the state at the largest token, which is 553"):
        check_tokenizer(tokenizer, legacy)


def test_a_tokenizer_much_smaller_than_siglips_vocabulary_is_refused():
    with pytest.raises(LearngeneError, match="has 12 tokens and the text encoder embeddings for 553"):
        check_tokenizer(bert_tokenizer(), text_config_of(siglip()))


# --- length and padding ----------------------------------------------------------------------------------------------


def test_the_longest_text_is_the_least_of_the_limits():
    tokenizer = pico_tokenizer()
    assert longest_text(tokenizer) == 16
    assert longest_text(tokenizer, max_length=5) == 5
    assert longest_text(unlimited()) is None
    assert longest_text(unlimited(), text_config_of(pico_clip())) == 16
    assert longest_text(unlimited(), CLIPTextConfig(max_position_embeddings=7)) == 7
    # RoBERTa's positions begin after the padding token's id.
    assert longest_text(unlimited(), RobertaConfig(max_position_embeddings=514, pad_token_id=1)) == 512


def test_texts_beyond_the_positions_are_cut_where_the_tokenizer_has_no_limit():
    model, texts = pico_clip(), [" ".join(["a red square on blue"] * 9), "a photo"]
    expected = embed_texts(model, texts, pico_processor())
    assert torch.equal(embed_texts(model, texts, with_tokenizer(unlimited())), expected)


def test_a_siglip_text_is_embedded_alike_in_any_batch_and_as_stock_transformers_does():
    model, processor = siglip(), pico_processor()
    texts = ["a red square", "a photo of a brown square on green", "pink"]
    together = embed_texts(model, texts, processor)
    alone = torch.cat([embed_texts(model, [text], processor) for text in texts])
    torch.testing.assert_close((together * alone).sum(dim=1), torch.ones(3))
    ids = processor.tokenizer(texts, padding="max_length", max_length=MAX_LENGTH, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        stock = F.normalize(model.get_text_features(ids).pooler_output, dim=-1)
    torch.testing.assert_close(together, stock)


def test_siglips_texts_are_cut_to_the_length_asked_for_and_padded_to_the_longest():
    tokenizer, config = pico_tokenizer(), text_config_of(siglip())
    encoded = encode_texts(tokenizer, ["a red square on blue"], config, max_length=4, padding=False)
    assert set(encoded) == {"input_ids"}
    expected = tokenizer(["a red square on blue"], truncation=True, max_length=4)["input_ids"][0]
    assert encoded["input_ids"].tolist() == [expected + [tokenizer.pad_token_id] * 12]


def test_a_clip_text_is_embedded_alike_whichever_side_the_tokenizer_pads():
    texts, model, left = ["a red", "a photo of a red square on blue"], pico_clip(), pico_tokenizer()
    left.padding_side = "left"  # its padding is the end token, whose first state is read
    expected = embed_texts(model, texts, pico_processor())
    assert torch.equal(embed_texts(model, texts, with_tokenizer(left)), expected)
    torch.testing.assert_close(embed_texts(model, texts[:1], pico_processor()), expected[:1])


def test_the_config_of_the_text_encoder_is_found_in_models_and_configs():
    clip = pico_clip()
    assert text_config_of(clip) is clip.config.text_config
    assert text_config_of(clip.config.text_config) is clip.config.text_config
    assert text_config_of(clip.text_model) is clip.text_model.config
    assert text_config_of(CLIPVisionConfig()) is None
    assert text_config_of(torch.nn.Linear(1, 1)) is None
