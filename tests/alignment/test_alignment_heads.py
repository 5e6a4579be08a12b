"""Heads with an inner layer, and the regulariser that keeps neighbourhoods: their formulas, training and saving."""

from math import log

import pytest
import torch
from pico_encoders import batch, make_encoder, perturb
from torch.nn import functional as F
from transformers import AutoModel

from mmlg_hf.alignment import HEADS, DualEncoderConfig, align, structure_loss
from mmlg_hf.errors import LearngeneError


def pair(**settings):
    return align(make_encoder("vit"), make_encoder("bert"), "projections", projection_dim=8, **settings)


@pytest.mark.parametrize(("head", "times"), [("mlp", 4), ("glu", 8)])
def test_a_head_is_its_formula_of_the_normalised_state(head, times):
    model = pair(projection_head=head).eval()
    perturb(model)
    pixels = batch()["pixel_values"]
    own, states = model.visual_projection, model.encode_images(pixels)[0]
    assert own.up.out_features == times * 32
    normed = F.layer_norm(states, (32,), own.norm.weight, own.norm.bias)
    gated = {"mlp": lambda x: F.gelu(own.up(x)), "glu": lambda x: F.silu(own.gate(x)) * own.up(x)}[head](normed)
    torch.testing.assert_close(model.get_image_features(pixels).pooler_output, own.down(gated))


@pytest.mark.parametrize("head", HEADS)
def test_a_pair_is_saved_with_its_head_and_loaded_again(head, saved, tmp_path):
    expansion = None if head == "linear" else 2
    model = align(saved("vit"), saved("bert"), "projections", projection_head=head, head_expansion=expansion).eval()
    perturb(model)
    model.save_pretrained(tmp_path / "pair")
    again = AutoModel.from_pretrained(tmp_path / "pair").eval()
    inputs = batch()
    torch.testing.assert_close(again(**inputs).logits_per_image, model(**inputs).logits_per_image, rtol=0, atol=0)
    assert {name.split(".")[0] for name, value in again.named_parameters() if value.requires_grad} == {
        "visual_projection",
        "text_projection",
        "logit_scale",
    }


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"projection_head": "conv"}, "projection_head is 'conv': it takes 'linear', 'mlp', 'glu'"),
        ({"projection_head": "glu", "head_expansion": 0}, "head_expansion is 0: it takes 1 or more"),
        ({"head_expansion": 4}, "a linear head has no inner layer"),
        ({"structure_weight": -1.0}, r"structure_weight is -1.0: it takes 0 \(off\) or more"),
        ({"structure_weight": float("nan")}, "structure_weight is nan"),
    ],
)
def test_a_head_or_a_weight_that_is_none_is_refused(settings, told):
    with pytest.raises(LearngeneError, match=told):
        pair(**settings)


@pytest.mark.parametrize(
    ("settings", "told"), [({"structure_temperature": 0.0}, "above 0"), ({"structure_levels": 0}, "1 or more")]
)
def test_a_regulariser_that_cannot_be_computed_is_refused_in_the_config(settings, told):
    with pytest.raises(LearngeneError, match=told):
        DualEncoderConfig.from_vision_text_configs(make_encoder("vit").config, make_encoder("bert").config, **settings)


def test_the_regulariser_is_0_for_what_keeps_all_cosines_and_grows_as_neighbours_part():
    states = torch.randn(12, 5, generator=torch.Generator().manual_seed(0))
    turned = torch.linalg.qr(
        torch.randn(7, 5, generator=torch.Generator().manual_seed(1))
    ).Q.T  # [5, 7], rows orthonormal
    assert structure_loss(states, 3 * states @ turned + 1) < 1e-6
    little, much = (structure_loss(states, states + spread * torch.randn(12, 5)) for spread in (0.1, 10.0))
    assert 0 < little < much < log(2)


def test_the_regulariser_is_the_divergence_of_both_softmaxes_of_centred_cosines():
    torch.manual_seed(0)
    states, embeds, temperature = torch.randn(6, 4), torch.randn(6, 3), 0.3

    def neighbours(rows):
        rows = F.normalize(rows - rows.mean(0), dim=-1)
        return torch.softmax(rows @ rows.T / temperature, dim=-1)

    def divergence(p, q):
        m = (p + q) / 2
        return ((p * (p / m).log()).sum(-1) + (q * (q / m).log()).sum(-1)).mean() / 2

    p, q = neighbours(states), neighbours(embeds)
    torch.testing.assert_close(structure_loss(states, embeds, temperature=temperature), divergence(p, q))
    both = (divergence(p, q) + divergence(p @ p, q @ q) / 2) / 2
    torch.testing.assert_close(structure_loss(states, embeds, temperature=temperature, levels=2), both)


def test_the_regulariser_moves_embeddings_and_not_states_and_is_0_for_two_rows():
    states, embeds = torch.randn(5, 4, requires_grad=True), torch.randn(5, 3, requires_grad=True)
    structure_loss(states, embeds).backward()
    assert states.grad is None
    assert embeds.grad.abs().sum() > 0
    assert structure_loss(states[:2], embeds[:2]) == 0


def test_a_pair_adds_the_regulariser_of_both_sides_in_training_alone():
    inputs = batch(6)
    plain, held = pair(), pair(structure_weight=4.0)
    held.load_state_dict(plain.state_dict())
    plain.eval(), held.eval()
    assert held(**inputs, return_loss=True).aux_loss is None
    torch.testing.assert_close(held(**inputs, return_loss=True).loss, plain(**inputs, return_loss=True).loss)
    held.train()
    for encoder in (held.vision_model, held.text_model):
        encoder.eval()  # without dropout
    found = held(**inputs, return_loss=True)
    sides = (
        (held.encode_images(inputs["pixel_values"])[0], found.image_embeds),
        (held.encode_texts(inputs["input_ids"], inputs["attention_mask"])[0], found.text_embeds),
    )
    torch.testing.assert_close(found.aux_loss, 4.0 * sum(structure_loss(*side) for side in sides))
    torch.testing.assert_close(found.loss, plain(**inputs, return_loss=True).loss + found.aux_loss)
