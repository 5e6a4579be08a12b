"""The text side of each family made smaller: trimmed embeddings and fewer positions, against the stock classes."""

import pytest
import torch
from datasets import Dataset, Image, IterableDataset
from pico import pico_clip, pico_pairs, pico_processor, pico_tokenizer
from pico_tokenizers import gemma_tokenizer, pico_family, t5_tokenizer, unigram_tokenizer, xlm_roberta_tokenizer
from torch import nn
from transformers import AutoTokenizer, ViTConfig, ViTForImageClassification

from mmlg_hf import ExtractionArguments, LearngeneModel, extract_learngene, from_learngene, load_processor
from mmlg_hf.data.texts import check_tokenizer, encode_texts
from mmlg_hf.errors import LearngeneError
from mmlg_hf.extraction.context import shorten_context
from mmlg_hf.extraction.vocabulary import read_corpus, trim_embedding, trim_tokenizer

CORPUS = ["a red square on blue", "photo of a pink square", "red"]
LONG = ["a red square on blue, two red, three blue: five! over the lazy dog", "a red"]
# Model, tokenizer, and whether the config holds CLIP's legacy end token.
FAMILIES = {
    "CLIP": ("clip", pico_tokenizer, False),
    "CLIP, legacy": ("clip", pico_tokenizer, True),
    "MetaCLIP 2 with XLM-R's": ("metaclip2", xlm_roberta_tokenizer, False),
    "MetaCLIP 2 with T5's": ("metaclip2", t5_tokenizer, False),
    "SigLIP": ("siglip", t5_tokenizer, False),
    "SigLIP 2": ("siglip", gemma_tokenizer, False),
}
ALL = pytest.mark.parametrize("family", FAMILIES)


def made(family):
    kind, tokenizer, legacy = FAMILIES[family]
    model = pico_family(kind, tokenizer())
    if legacy:
        model.config.text_config.eos_token_id = model.text_model.eos_token_id = 2
    return model, tokenizer()


def embed(model, tokenizer, texts, **kwargs):
    inputs = encode_texts(tokenizer, texts, model.config.text_config, **kwargs)
    with torch.no_grad():
        return model.get_text_features(**inputs).pooler_output


@ALL
def test_a_trimmed_model_embeds_the_corpus_as_before(family, tmp_path):
    model, original = made(family)
    expected = embed(model, original, CORPUS)
    tokenizer, old_ids = trim_tokenizer(original, CORPUS)
    trim_embedding(model, tokenizer, old_ids)
    check_tokenizer(tokenizer, model.config.text_config)
    torch.testing.assert_close(embed(model, tokenizer, CORPUS), expected, rtol=0, atol=0)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    saved_tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    torch.testing.assert_close(embed(loaded, saved_tokenizer, CORPUS), expected, rtol=0, atol=0)


@ALL
def test_a_text_encoder_alone_is_trimmed_like_the_whole_model(family):
    model, original = made(family)
    tokenizer, old_ids = trim_tokenizer(original, CORPUS)
    trim_embedding(model.text_model, tokenizer, old_ids)
    assert model.text_model.embeddings.token_embedding.weight.shape[0] == len(tokenizer)
    assert model.text_model.config.vocab_size == len(tokenizer)


def test_an_end_token_never_becomes_clips_legacy_2():
    # Its own end token is 3, and ids 1 and 2 are used by nobody.
    pieces = [("<unk>", 0.0), ("zz", -1.0), ("yy", -1.0), ("</s>", 0.0), ("a", -1.0), ("ab", -1.0), ("abb", -9.0)]
    original = unigram_tokenizer(pieces)
    original.eos_token = original.pad_token = "</s>"
    tokenizer, old_ids = trim_tokenizer(original, ["ab"])
    model = pico_family("clip", original)
    trim_embedding(model, tokenizer, old_ids)
    assert model.config.text_config.eos_token_id == model.text_model.eos_token_id == tokenizer.eos_token_id == 3


def test_a_model_without_a_token_embedding_is_refused():
    tokenizer, old_ids = trim_tokenizer(pico_tokenizer(), CORPUS)
    with pytest.raises(LearngeneError, match="a Linear has no token embedding"):
        trim_embedding(nn.Linear(2, 2), tokenizer, old_ids)


# ------------------------------------------------------------------------------------------------ a shorter context


@ALL
@pytest.mark.parametrize("length", [4, 7, 15])
def test_a_shorter_model_embeds_texts_as_the_stock_class_at_those_positions(family, length, tmp_path):
    model, original = made(family)
    stock, _ = made(family)
    tokenizer = shorten_context(model, original, length)
    assert model.config.text_config.max_position_embeddings == tokenizer.model_max_length == length
    assert original.model_max_length == 16
    ids = [original(text, truncation=True, max_length=length)["input_ids"] for text in LONG]
    padded = torch.tensor([row + [original.pad_token_id] * (length - len(row)) for row in ids])
    rows = torch.arange(length)
    if "SigLIP" in family:
        rows[-1] = 15  # what is read stays at the row that was trained to be read
    with torch.no_grad():
        expected = stock.get_text_features(padded, position_ids=rows[None]).pooler_output
    torch.testing.assert_close(embed(model, tokenizer, LONG), expected, rtol=0, atol=1e-5)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded, saved = type(model).from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert saved.model_max_length == length
    torch.testing.assert_close(embed(loaded, saved, LONG), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", ["CLIP", "CLIP, legacy", "MetaCLIP 2 with T5's"])
def test_texts_that_fit_are_embedded_as_before_where_the_end_token_is_read(family):
    model, original = made(family)
    expected = embed(model, original, CORPUS)
    tokenizer = shorten_context(model, original, max(map(len, original(CORPUS)["input_ids"])))
    torch.testing.assert_close(embed(model, tokenizer, CORPUS), expected, rtol=0, atol=1e-6)


@ALL
def test_the_models_own_length_changes_nothing(family):
    model, original = made(family)
    expected = embed(model, original, LONG)
    torch.testing.assert_close(embed(model, shorten_context(model, original, 16), LONG), expected, rtol=0, atol=0)


@pytest.mark.parametrize("length", [0, 1, 2, 17, True, 8.0, "8"])
def test_lengths_that_no_text_fits_in_are_refused(length):
    model, tokenizer = made("CLIP")
    with pytest.raises(LearngeneError, match="it takes 3 .2 tokens of each text are marks. up to 16"):
        shorten_context(model, tokenizer, length)
    assert model.config.text_config.max_position_embeddings == 16


def test_one_mark_leaves_room_for_a_text_of_two_tokens():
    model, tokenizer = made("SigLIP 2")
    assert shorten_context(model, tokenizer, 2)("a red square", truncation=True)["input_ids"][-1] == 1
    with pytest.raises(LearngeneError, match="it takes 2 .1 tokens"):
        shorten_context(model, tokenizer, 1)


def test_a_tokenizer_that_was_saved_with_a_limit_of_its_own_gets_the_new_one(tmp_path):
    original = gemma_tokenizer()
    original.backend_tokenizer.enable_padding(length=16, pad_id=0, pad_token="<pad>")
    original.backend_tokenizer.enable_truncation(16)
    original.save_pretrained(tmp_path / "a")
    loaded = AutoTokenizer.from_pretrained(tmp_path / "a")
    tokenizer = shorten_context(pico_family("siglip", original), loaded, 8)
    tokenizer.save_pretrained(tmp_path / "b")
    for kept in (tokenizer, AutoTokenizer.from_pretrained(tmp_path / "b")):
        ids = kept(LONG, padding="max_length", truncation=True)["input_ids"]
        assert [len(row) for row in ids] == [8, 8]


# ---------------------------------------------------------------------------------------------- what a corpus says


def captions(*rows):
    return Dataset.from_list([{"caption": caption, "image": {"bytes": b"no image", "path": None}} for caption in rows])


def with_images(rows):
    return rows.cast_column("image", Image())


@pytest.mark.parametrize("as_stream", [False, True])
def test_texts_are_read_without_decoding_a_picture(as_stream):
    data = with_images(captions("a red square", "blue", " ", None))
    data = data.to_iterable_dataset() if as_stream else data
    assert list(read_corpus(data, "caption")) == ["a red square", "blue"]


def test_each_of_many_captions_is_cut_by_itself():
    data = captions(["a red", "square on"], ["blue"])
    assert list(read_corpus(data, "caption")) == ["a red", "square on", "blue"]
    original = gemma_tokenizer()
    tokenizer, old_ids = trim_tokenizer(original, read_corpus(data, "caption"))
    for text in ("a red", "square on", "blue"):  # joined by a space, other tokens would be used
        assert [old_ids[new] for new in tokenizer(text)["input_ids"]] == original(text)["input_ids"]


def test_rows_that_a_function_makes_are_read_as_it_makes_them():
    data = captions("a red square", "blue")

    def make(batch):
        return {
            "caption": [f"{len(image)} {text}" for image, text in zip(batch["image"], batch["caption"], strict=True)]
        }

    data.set_transform(make)
    assert list(read_corpus(data, "caption")) == ["2 a red square", "2 blue"]


def test_a_stream_whose_rows_lack_the_column_here_and_there_is_read():
    rows = [{"caption": "a red square"}, {"other": 1}, {"caption": "blue"}]
    stream = IterableDataset.from_generator(lambda: iter(rows))
    assert list(read_corpus(stream, "caption")) == ["a red square", "blue"]


def test_a_stream_that_can_be_read_only_once_is_refused():
    once = iter([{"caption": "a red square"}, {"caption": "blue"}])
    stream = IterableDataset.from_generator(lambda: once)
    with pytest.raises(LearngeneError, match="a stream that can be read only once, and trim_vocabulary reads"):
        list(read_corpus(stream, "caption"))


# ------------------------------------------------------------------------------------------------------ extraction


def extracted(folder, data, **settings):
    args = ExtractionArguments(
        str(folder), max_steps=1, per_device_train_batch_size=8, report_to="none", disable_tqdm=True, use_cpu=True,
        rotate=False, **settings,
    )  # fmt: skip
    return extract_learngene(pico_clip(), data, args, processor=pico_processor())


def test_a_stream_is_trimmed_to_the_tokens_of_all_its_texts(tmp_path):
    pairs = pico_pairs(16)
    gene = extracted(tmp_path / "a", pairs.to_iterable_dataset(), trim_vocabulary=True)
    whole = extracted(tmp_path / "b", pairs, trim_vocabulary=True)
    assert gene.config.text_config.vocab_size == len(gene.processor.tokenizer) < len(pico_processor().tokenizer)
    assert gene.processor.tokenizer.get_vocab() == whole.processor.tokenizer.get_vocab()


def test_a_gene_and_its_descendants_have_the_context_that_was_asked_for(tmp_path):
    gene = extracted(tmp_path, pico_pairs(16), max_text_length=8, trim_vocabulary=True)
    loaded = LearngeneModel.from_pretrained(tmp_path)
    saved = load_processor(tmp_path).tokenizer
    for model in (gene, loaded, from_learngene(tmp_path, 1, 16), from_learngene(tmp_path, modality="text")):
        config = getattr(model.config, "text_config", model.config)
        assert config.max_position_embeddings == 8
        assert model.text_model.embeddings.position_embedding.weight.shape[0] == 8
        assert config.vocab_size == len(saved)
    assert saved.model_max_length == gene.processor.tokenizer.model_max_length == 8
    assert gene.config.recipe["max_text_length"] == 8
    ids = saved("a red square on blue " * 4, truncation=True)["input_ids"]
    assert len(ids) == 8
    assert ids[-1] == saved.eos_token_id


def test_a_context_that_cannot_be_is_refused_before_the_data_are_read(tmp_path):
    with pytest.raises(LearngeneError, match="max_text_length is 17: it takes 3 .* up to 16"):
        extracted(tmp_path, "no-such-data", max_text_length=17)
    with pytest.raises(LearngeneError, match="max_text_length is 0: it takes 1 or more"):
        ExtractionArguments(str(tmp_path), max_text_length=0)
    vit = ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=16)
    ancestor, args = ViTForImageClassification(vit), ExtractionArguments(str(tmp_path), max_text_length=8)
    with pytest.raises(LearngeneError, match="a ViTForImageClassification reads no texts"):
        extract_learngene(ancestor, "no-such-data", args, processor=pico_processor().image_processor)
