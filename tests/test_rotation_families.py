"""Turning MetaCLIP 2, SigLIP and ViT: outputs stay, with hostile statistics too, and embeddings come in order."""

import pytest
import torch
from pico import pico_clip
from pico_families import decaying_map
from test_rotation import batch, centred_cosine
from torch.nn import functional as F
from transformers import (
    BertConfig,
    BertModel,
    MetaClip2Config,
    MetaClip2Model,
    SiglipConfig,
    SiglipModel,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
)

from mmlg_hf.errors import LearngeneError
from mmlg_hf.extraction.rotation import rotate_channels

WIDTH = 32
ENCODER = {"hidden_size": WIDTH, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
PICTURES = {"image_size": 16, "patch_size": 8}


def hostile(model):
    """Weights far from where training starts: outlier channels, large biases, norms whose weights vary."""
    generator = torch.Generator().manual_seed(3)

    def noise(like):
        return torch.randn(like.shape, generator=generator)

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name and name.endswith("weight"):
                parameter.copy_(torch.exp(0.6 * noise(parameter)))
            elif name.endswith("bias"):
                parameter.copy_(noise(parameter))
            elif parameter.dim() > 1:
                parameter.add_(0.2 * noise(parameter))
            if ("fc2" in name or "position" in name) and name.endswith("weight") and parameter.dim() == 2:
                (parameter[3] if "fc2" in name else parameter[:, 3]).mul_(20)  # a channel that drowns the others
    return model.eval()


def siglip(**vision):
    text = ENCODER | {"hidden_size": 24, "projection_size": WIDTH, "vocab_size": 300, "max_position_embeddings": 7}
    torch.manual_seed(0)
    return hostile(SiglipModel(SiglipConfig(vision_config=ENCODER | PICTURES | vision, text_config=text)))


def inputs_of(rows=24):
    made = batch(rows)
    return {name: made[name] for name in ("pixel_values", "input_ids")}  # SigLIP reads padding too: no mask


def forward(model, inputs):
    with torch.no_grad():
        return model(**inputs)


def test_a_turned_siglip_computes_what_the_siglip_does_in_turned_embeddings():
    model, inputs = siglip(), inputs_of()
    turned, kept = rotate_channels(model, [inputs])
    before, after = forward(model, inputs), forward(turned, inputs)
    torch.testing.assert_close(after.logits_per_image, before.logits_per_image, atol=1e-4, rtol=0)
    outs = [torch.cat([out.image_embeds, out.text_embeds]) for out in (before, after)]
    # One rotation for both sides, all-ones kept: products within and between the sides stay, and so do sums.
    torch.testing.assert_close(outs[1] @ outs[1].T, outs[0] @ outs[0].T, atol=1e-4, rtol=0)
    torch.testing.assert_close(outs[1].sum(1), outs[0].sum(1), atol=1e-4, rtol=0)
    assert not torch.allclose(outs[0], outs[1], atol=1e-2)
    assert kept == {"image": pytest.approx(1, abs=1e-4), "text": pytest.approx(1, abs=1e-4)}
    # On pictures and texts that the rotation was not found on, too.
    others = {"pixel_values": torch.randn(5, 3, 16, 16), "input_ids": torch.randint(0, 300, (5, 7))}
    expected = forward(model, others).logits_per_image
    torch.testing.assert_close(forward(turned, others).logits_per_image, expected, atol=1e-4, rtol=0)


def decaying():
    """A SigLIP whose embeddings lie in directions of falling strength, none of them a channel."""
    model = siglip()
    shrink = decaying_map(WIDTH, 0.8, torch.Generator().manual_seed(4))
    head = model.vision_model.head
    with torch.no_grad():
        for linear in (head.attention.out_proj, head.mlp.fc2, model.text_model.head):
            linear.weight.copy_(shrink @ linear.weight)
            linear.bias.copy_(shrink @ linear.bias)
    return model


@pytest.mark.parametrize("side", ["image_embeds", "text_embeds"])
def test_the_leading_half_of_a_turned_embedding_carries_nearly_all_of_it(side):
    model, inputs = decaying(), inputs_of(40)
    turned, _ = rotate_channels(model, [inputs])

    def kept_by_half(which):
        embeds = getattr(forward(which, inputs), side)
        similarities = [rows @ rows.T for rows in (embeds, F.normalize(embeds[:, : WIDTH // 2], dim=-1))]
        error = (similarities[0] - similarities[1]).square().mean()
        return (embeds[:, : WIDTH // 2].square().sum() / embeds.square().sum()).item(), error.item()

    (share_before, error_before), (share_after, error_after) = kept_by_half(model), kept_by_half(turned)
    assert share_after > max(share_before, 0.8)
    assert error_after < error_before / 2


def test_turning_siglip_leaves_heads_neurons_and_the_probe_as_they_are():
    model, inputs = siglip(), inputs_of()
    turned, _ = rotate_channels(model, [inputs])
    head, own = model.vision_model.head, turned.vision_model.head
    assert torch.equal(own.probe, head.probe)
    assert torch.equal(own.attention.in_proj_weight[:WIDTH], head.attention.in_proj_weight[:WIDTH])
    seen = {}
    for which, module in (("before", model), ("after", turned)):
        part = module.vision_model.head
        hooks = [
            part.mlp.fc1.register_forward_hook(lambda m, i, o, which=which: seen.update({(which, "fc1"): o})),
            part.attention.register_forward_hook(lambda m, i, o, which=which: seen.update({(which, "weights"): o[1]})),
        ]
        forward(module, inputs)
        for hook in hooks:
            hook.remove()
    for name in ("fc1", "weights"):
        torch.testing.assert_close(seen["after", name], seen["before", name], atol=1e-3, rtol=1e-4)


def test_a_siglip_is_left_as_it_is_by_being_turned():
    model = siglip()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    rotate_channels(model, [inputs_of()])
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, before[name]), name
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_siglip_encoders_that_may_not_be_turned_keep_their_channels_but_have_their_embeddings_turned():
    model, inputs = siglip(), inputs_of()
    turned, kept = rotate_channels(model, [inputs], least_cosine=1.1)
    assert kept == {}
    name = "layers.1.mlp.fc1.weight"
    for encoder in ("vision_model.encoder.", "text_model.encoder."):
        assert torch.equal(turned.get_parameter(encoder + name), model.get_parameter(encoder + name))
    before, after = forward(model, inputs), forward(turned, inputs)
    torch.testing.assert_close(after.logits_per_image, before.logits_per_image, atol=1e-4, rtol=0)


def test_metaclip_2_is_turned_as_clip_is():
    text = ENCODER | {"hidden_size": 24, "vocab_size": 300, "max_position_embeddings": 7, "eos_token_id": 2}
    torch.manual_seed(0)
    config = MetaClip2Config(vision_config=ENCODER | PICTURES, text_config=text, projection_dim=12)
    model, inputs = MetaClip2Model(config).eval(), batch()
    inputs["input_ids"][:, 3] = 2
    norm = model.vision_model.pre_layrnorm
    with torch.no_grad():
        norm.weight.copy_(torch.exp(0.3 * torch.randn(norm.weight.shape)))
    turned, kept = rotate_channels(model, [inputs], least_cosine=0.9)
    before, after = forward(model, inputs), forward(turned, inputs)
    torch.testing.assert_close(after.text_embeds, before.text_embeds, atol=1e-4, rtol=0)
    assert centred_cosine(after.image_embeds, before.image_embeds) > 0.998
    assert kept["image"] == pytest.approx(centred_cosine(after.image_embeds, before.image_embeds), abs=1e-4)


@pytest.mark.parametrize("qkv_bias", [True, False])
def test_a_turned_vit_classifies_as_the_vit_does(qkv_bias):
    model = hostile(ViTForImageClassification(ViTConfig(**ENCODER, **PICTURES, qkv_bias=qkv_bias, num_labels=5)))
    inputs = {"pixel_values": batch()["pixel_values"]}
    turned, kept = rotate_channels(model, [batch()])
    torch.testing.assert_close(forward(turned, inputs).logits, forward(model, inputs).logits, atol=1e-4, rtol=1e-4)
    assert kept == {"image": pytest.approx(1, abs=1e-4)}
    assert not torch.allclose(turned.vit.embeddings.cls_token, model.vit.embeddings.cls_token)


@pytest.mark.parametrize("pooler", [True, False])
def test_the_features_of_a_turned_vit_are_its_own_turned_before_the_last_norms_weight(pooler):
    model = hostile(ViTModel(ViTConfig(**ENCODER, **PICTURES), add_pooling_layer=pooler))
    inputs = {"pixel_values": batch()["pixel_values"]}
    turned, kept = rotate_channels(model, [inputs])
    before, after = forward(model, inputs), forward(turned, inputs)
    plain = (before.last_hidden_state - model.layernorm.bias) / model.layernorm.weight
    rows, own = plain.flatten(0, 1), after.last_hidden_state.flatten(0, 1)
    torch.testing.assert_close(own @ own.T, rows @ rows.T, atol=2e-3, rtol=1e-4)
    if pooler:
        torch.testing.assert_close(after.pooler_output, before.pooler_output, atol=1e-4, rtol=0)
    assert kept == {"image": pytest.approx(1, abs=1e-4)}
    assert own[:, : WIDTH // 2].square().sum() / own.square().sum() > 0.8


def test_a_final_norm_that_shuts_channels_off_is_turned_within_rounding():
    model, inputs = pico_clip(), batch()
    with torch.no_grad():
        for norm in (model.vision_model.post_layernorm, model.text_model.final_layer_norm):
            norm.weight.copy_(torch.randn(norm.weight.shape))
            norm.bias.copy_(torch.randn(norm.bias.shape))
            norm.weight[:4] = 0
            norm.bias[2:6] = 0
    turned, _ = rotate_channels(model.eval(), [inputs])
    before, after = forward(model, inputs), forward(turned, inputs)
    torch.testing.assert_close(after.image_embeds, before.image_embeds, atol=2e-3, rtol=0)
    torch.testing.assert_close(after.text_embeds, before.text_embeds, atol=2e-3, rtol=0)


def test_what_cannot_be_turned_is_named():
    bert = BertModel(BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, vocab_size=9))
    with pytest.raises(LearngeneError, match="BertModel cannot be turned: give one of CLIPModel, .*SiglipModel"):
        rotate_channels(bert, [])
