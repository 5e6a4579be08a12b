"""DINOv2 as a stock ViT: the same features, with layer scale folded, from memory and from a file, turned or not."""

import pytest
import torch
from transformers import (
    BertConfig,
    BertModel,
    Dinov2Config,
    Dinov2ForImageClassification,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    ViTModel,
)

from mmlg_hf.errors import LearngeneError
from mmlg_hf.extraction.ancestors import load_ancestor
from mmlg_hf.extraction.rotation import rotate_channels
from mmlg_hf.extraction.vit import vit_of_dinov2

SIZES = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 3, "image_size": 28, "patch_size": 7}


def dinov2(**changes):
    """A DINOv2 with no parameter at its starting value: layer scales vary and change their signs."""
    torch.manual_seed(0)
    model = Dinov2Model(Dinov2Config(**(SIZES | {"mlp_ratio": 3} | changes))).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.randn(parameter.shape) * (1.0 if "norm" in name or "lambda" in name else 0.2))
    return model


def features(model, pixels):
    with torch.no_grad():
        return model(pixels).last_hidden_state


@pytest.mark.parametrize("changes", [{}, {"qkv_bias": False}, {"use_mask_token": False, "hidden_act": "gelu_new"}])
def test_a_vit_has_the_features_of_the_dinov2_it_is_made_of(changes):
    model, pixels = dinov2(**changes), torch.randn(3, 3, 28, 28)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    vit = vit_of_dinov2(model)
    assert type(vit) is ViTModel
    assert not vit.training
    assert vit.pooler is None
    torch.testing.assert_close(features(vit, pixels), features(model, pixels), atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        for parameter in vit.parameters():
            parameter.zero_()
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


def test_a_vit_is_saved_and_loaded_as_a_stock_one(tmp_path):
    model, pixels = dinov2(), torch.randn(2, 3, 28, 28)
    vit_of_dinov2(model).save_pretrained(tmp_path)
    loaded = load_ancestor(tmp_path)
    assert type(loaded) is ViTModel
    torch.testing.assert_close(features(loaded, pixels), features(model, pixels), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size", [14, 21, 42])
def test_positions_for_another_size_are_those_that_dinov2_interpolates(size):
    model, pixels = dinov2(), torch.randn(2, 3, size, size)
    vit = vit_of_dinov2(model, image_size=size)
    assert vit.config.image_size == size
    torch.testing.assert_close(features(vit, pixels), features(model, pixels), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size", [0, 6, 20, -7])
def test_sizes_that_are_no_multiple_of_the_patches_are_refused(size):
    with pytest.raises(LearngeneError, match=f"image_size is {size}: give a multiple of the patch size, 7"):
        vit_of_dinov2(dinov2(), image_size=size)


def test_a_converted_dinov2_is_turned_like_any_vit():
    model, pixels = dinov2(), torch.randn(20, 3, 28, 28)
    vit = vit_of_dinov2(model)
    turned, kept = rotate_channels(vit, [{"pixel_values": pixels}])
    assert kept == {"image": pytest.approx(1, abs=1e-4)}
    plain = (features(vit, pixels) - vit.layernorm.bias) / vit.layernorm.weight
    own = features(turned, pixels)
    torch.testing.assert_close(own @ own.mT, plain @ plain.mT, atol=5e-3, rtol=1e-3)


def test_what_no_vit_can_be_is_refused_by_name():
    small = SIZES | {"mlp_ratio": 2}
    for model, match in (
        (Dinov2Model(Dinov2Config(**small, use_swiglu_ffn=True)), "gated MLP .SwiGLU., as DINOv2 giant has"),
        (
            Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**small)),
            "Dinov2WithRegistersModel .*registers are tokens",
        ),
        (
            Dinov2ForImageClassification(Dinov2Config(**small)),
            "mean of the patches beside the class token.*model.dinov2",
        ),
        (
            BertModel(BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1)),
            "BertModel is no Dinov2Model",
        ),
    ):
        with pytest.raises(LearngeneError, match=match):
            vit_of_dinov2(model)
