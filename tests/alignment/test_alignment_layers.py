"""Encoders that are aligned at an earlier layer, and which layers see the same neighbourhoods."""

import pytest
import torch
from pico import IMAGE_SIZE, pico_pairs, pico_processor
from pico_encoders import batch, make_encoder, perturb
from torch.nn import functional as F
from transformers import AutoModel, SwinConfig, SwinModel

from mmlg_hf.alignment import align, choose_layers, layer_similarities
from mmlg_hf.errors import LearngeneError

POOLED = {"vision_pooling": "mean", "text_pooling": "mean"}


@pytest.mark.parametrize("kind", ["vit", "deit", "dinov2", "siglip-vision", "clip-vision"])
def test_an_image_encoder_cut_at_a_layer_gives_what_follows_the_last_one_on_that_layers_state(kind):
    encoder = make_encoder(kind)
    inputs = batch()
    cut = align(encoder, make_encoder("bert"), "projections", vision_layers=1, **POOLED).eval()
    body = getattr(encoder, "vision_model", encoder)
    state = body(inputs["pixel_values"], output_hidden_states=True).hidden_states[1]
    norm = {"clip-vision": "post_layernorm", "siglip-vision": "post_layernorm"}.get(kind, "layernorm")
    patches = (IMAGE_SIZE // 8) ** 2
    expected = getattr(body, norm)(state)[:, -patches:].mean(dim=1)
    torch.testing.assert_close(cut.encode_images(inputs["pixel_values"])[0], expected)
    assert cut.config.vision_config.num_hidden_layers == 1
    assert body.config.num_hidden_layers == 2  # the one that was given is as it was
    assert len(body(inputs["pixel_values"], output_hidden_states=True).hidden_states) == 3


@pytest.mark.parametrize("kind", ["bert", "distilbert", "xlm-r", "gpt2", "clip-text"])
def test_a_text_encoder_is_cut_and_leaves_the_one_that_was_given_alone(kind):
    encoder = make_encoder(kind)
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    cut = align(make_encoder("vit"), encoder, "projections", text_layers=1, text_pooling="mean").eval()
    whole = align(make_encoder("vit"), encoder, "projections", text_pooling="mean").eval()
    assert cut.num_parameters() < whole.num_parameters()
    inputs = batch()
    state = cut.encode_texts(inputs["input_ids"], inputs["attention_mask"])[0]
    assert (state - whole.encode_texts(inputs["input_ids"], inputs["attention_mask"])[0]).abs().max() > 1e-3
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())


def test_a_cut_pair_is_saved_without_its_encoders_and_loaded_from_the_whole_ones(saved, tmp_path):
    model = align(saved("dinov2"), saved("bert"), "lilt", vision_layers=1, text_layers=1, **POOLED).eval()
    perturb(model)
    model.save_pretrained(tmp_path / "pair")
    again = AutoModel.from_pretrained(tmp_path / "pair").eval()
    inputs = batch()
    torch.testing.assert_close(again(**inputs).logits_per_image, model(**inputs).logits_per_image, rtol=0, atol=0)
    assert (tmp_path / "pair" / "model.safetensors").stat().st_size < 4 * model.num_parameters() / 2


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"vision_layers": 3}, "vision_layers is 3: the vision encoder ViTModel has 2 layers, so it takes 1 to 2"),
        ({"text_layers": 0}, "text_layers is 0: the text encoder BertModel has 2 layers"),
    ],
)
def test_layers_that_an_encoder_does_not_have_are_refused(settings, told):
    with pytest.raises(LearngeneError, match=told):
        align(make_encoder("vit"), make_encoder("bert"), **settings)


def test_an_encoder_of_stages_is_not_cut():
    swin = SwinModel(
        SwinConfig(image_size=32, patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[1, 1], window_size=4)
    )
    with pytest.raises(LearngeneError, match="leave vision_layers out"):
        align(swin, make_encoder("bert"), "projections", vision_layers=1)


def similarity(images, texts, k):
    """Mutual k-nearest neighbours, row by row."""

    def nearest(rows, row):
        cosines = F.cosine_similarity(rows[row][None], rows, dim=-1)
        cosines[row] = -2
        return set(cosines.topk(k).indices.tolist())

    return sum(len(nearest(images, row) & nearest(texts, row)) / k for row in range(len(images))) / len(images)


@pytest.mark.parametrize(
    ("images_by", "texts_by"),
    [("vit", "bert"), ("dinov2", "gpt2"), ("clip-vision", "distilbert"), ("siglip-vision", "clip-text")],
)
def test_similarities_are_those_of_the_encoders_cut_at_each_pair_of_layers(images_by, texts_by):
    vision, text, processor, rows = make_encoder(images_by), make_encoder(texts_by), pico_processor(), pico_pairs(20)
    for encoder in (vision, text):
        perturb(encoder)  # as they are made, both layers say much the same
    model = align(vision, text, "projections", **POOLED)
    found = layer_similarities(model, rows, processor, neighbours=3, batch_size=5)
    assert found.shape == (2, 2)
    assert len(found.unique()) > 1
    for images in (1, 2):
        for texts in (1, 2):
            cut = align(vision, text, "projections", vision_layers=images, text_layers=texts, **POOLED).eval()
            inputs = processor(
                text=list(rows["caption"]), images=list(rows["image"]), padding=True, return_tensors="pt"
            )
            states = (
                cut.encode_images(inputs["pixel_values"])[0],
                cut.encode_texts(inputs["input_ids"], inputs["attention_mask"])[0],
            )
            assert float(found[images - 1, texts - 1]) == pytest.approx(similarity(*states, 3))
    assert model.training  # as it was
    assert model.config.vision_config.num_hidden_layers == 2
    best = divmod(int(found.argmax()), 2)
    assert choose_layers(model, rows, processor, neighbours=3) == (best[0] + 1, best[1] + 1)


def test_fewer_pairs_than_neighbours_are_refused():
    model = align(make_encoder("vit"), make_encoder("bert"), "projections")
    with pytest.raises(LearngeneError, match="4 pairs for 10 neighbours"):
        choose_layers(model, pico_pairs(4), pico_processor())
