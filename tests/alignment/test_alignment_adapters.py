"""LilT's adapter is where the paper puts it, and is a peft method like any other."""

import pytest
import torch
from peft import PeftModel, get_peft_model
from pico_encoders import make_encoder, perturb
from torch import nn
from torch.nn import functional as F
from transformers import BertConfig, BertModel, ConvNextConfig, ConvNextModel

from mmlg_hf.alignment import LayerwiseAdapterConfig
from mmlg_hf.errors import LearngeneError

IDS = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])
PIXELS = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def adapter_of(layer):
    return layer.layerwise_adapter_layers["default"]


def residual_adapter(layer, x):
    """x + up(GELU(down(x))), from the adapter's own tensors."""
    adapter = adapter_of(layer)
    hidden = F.gelu(x @ adapter.down.weight.T + adapter.down.bias)
    return x + hidden @ adapter.up.weight.T + adapter.up.bias


def with_adapters(kind):
    model = get_peft_model(make_encoder(kind), LayerwiseAdapterConfig())
    perturb(model)
    return model.eval()


def test_pre_norm_layers_compute_x_plus_sublayer_of_the_norm_of_the_adapted_x():
    layer = with_adapters("vit").base_model.model.layers[0]
    x = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(1))
    expected = x + layer.attention(layer.layernorm_before.base_layer(residual_adapter(layer.layernorm_before, x)))[0]
    expected = expected + layer.mlp(
        layer.layernorm_after.base_layer(residual_adapter(layer.layernorm_after, expected))
    )
    torch.testing.assert_close(layer(x), expected)


def test_post_norm_layers_compute_the_norm_of_x_plus_the_adapted_output_of_the_sublayer():
    layer = with_adapters("bert").base_model.model.encoder.layer[0]
    x = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(1))
    attention, output = layer.attention.output, layer.output
    attended = attention.dense.base_layer(layer.attention.self(x)[0])
    middle = attention.LayerNorm(residual_adapter(attention.dense, attended) + x)
    mapped = output.dense.base_layer(layer.intermediate(middle))
    expected = output.LayerNorm(residual_adapter(output.dense, mapped) + middle)
    found = layer(x)
    torch.testing.assert_close(found[0] if isinstance(found, tuple) else found, expected)


@pytest.mark.parametrize("kind", ["clip-vision", "vit", "deit", "dinov2", "siglip-vision", "clip-text", "gpt2"])
def test_each_layer_of_every_pre_norm_encoder_gets_two_adapters_at_its_norms(kind):
    model = with_adapters(kind)
    wrapped = [module for module in model.modules() if hasattr(module, "layerwise_adapter_layers")]
    assert len(wrapped) == 2 * 2
    assert all(isinstance(module.base_layer, nn.LayerNorm) for module in wrapped)


@pytest.mark.parametrize("kind", ["bert", "xlm-r", "distilbert"])
def test_each_layer_of_every_post_norm_encoder_gets_two_adapters_at_its_linear_maps(kind):
    model = with_adapters(kind)
    wrapped = [module for module in model.modules() if hasattr(module, "layerwise_adapter_layers")]
    assert len(wrapped) == 2 * 2
    assert all(isinstance(module.base_layer, nn.Linear) for module in wrapped)
    assert all(module.base_layer.out_features == 32 for module in wrapped)


def test_an_adapter_at_base_width_has_the_papers_size_and_initial_weights():
    config = BertConfig(num_hidden_layers=1, vocab_size=10)
    model = get_peft_model(BertModel(config, add_pooling_layer=False), LayerwiseAdapterConfig())
    trainable, _ = model.get_nb_trainable_parameters()
    assert trainable == 2 * 295_872
    weights = adapter_of(model.base_model.model.encoder.layer[0].output.dense)
    assert abs(float(weights.down.weight.detach().std()) - 0.02) < 5e-4
    assert not weights.up.bias.any()


def test_adapters_save_and_load_as_any_peft_method_does(tmp_path):
    model = with_adapters("bert")
    expected = model(IDS).last_hidden_state
    model.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} >= {"adapter_config.json", "adapter_model.safetensors"}
    loaded = PeftModel.from_pretrained(make_encoder("bert"), tmp_path).eval()
    torch.testing.assert_close(loaded(IDS).last_hidden_state, expected, rtol=0, atol=0)
    assert loaded.peft_config["default"].reduction == 4


def test_adapters_can_be_switched_off_and_taken_out_again():
    plain = make_encoder("vit")
    expected = plain(PIXELS).last_hidden_state
    model = with_adapters("vit")
    assert not torch.allclose(model(PIXELS).last_hidden_state, expected)
    with model.disable_adapter():
        torch.testing.assert_close(model(PIXELS).last_hidden_state, expected, rtol=0, atol=0)
    taken_out = model.unload()
    torch.testing.assert_close(taken_out(PIXELS).last_hidden_state, expected, rtol=0, atol=0)
    assert taken_out.state_dict().keys() == plain.state_dict().keys()


def test_a_second_adapter_lives_beside_the_first_and_the_active_one_computes():
    model = with_adapters("bert")
    first = model(IDS).last_hidden_state
    model.add_adapter("other", LayerwiseAdapterConfig(reduction=8))
    torch.testing.assert_close(model(IDS).last_hidden_state, first)
    model.set_adapter("other")
    assert not torch.allclose(model(IDS).last_hidden_state, first)
    model.delete_adapter("other")
    model.set_adapter("default")
    torch.testing.assert_close(model(IDS).last_hidden_state, first)


def test_merging_is_refused_because_a_gelu_cannot_be_folded_and_changes_nothing():
    model = with_adapters("bert")
    expected = model(IDS).last_hidden_state
    with pytest.raises(LearngeneError, match="cannot be merged: a GELU stands between"):
        model.merge_and_unload()
    with pytest.raises(LearngeneError, match="cannot be merged"):
        model.merge_adapter()
    torch.testing.assert_close(model(IDS).last_hidden_state, expected, rtol=0, atol=0)


def test_adapters_take_the_dtype_of_what_they_wrap():
    model = get_peft_model(
        make_encoder("bert").to(torch.bfloat16), LayerwiseAdapterConfig(), autocast_adapter_dtype=False
    )
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model(IDS).last_hidden_state.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"reduction": 0}, "reduction is 0"),
        ({"reduction": 64}, "leaves no bottleneck in width 32"),
        ({"target_modules": ["attention.self"]}, "cannot wrap"),
    ],
)
def test_impossible_adapters_are_refused_in_one_sentence(settings, told):
    with pytest.raises(LearngeneError, match=told):
        get_peft_model(make_encoder("bert"), LayerwiseAdapterConfig(**settings))


def test_an_encoder_of_unknown_layers_is_refused_with_the_known_ones_listed():
    model = ConvNextModel(ConvNextConfig(hidden_sizes=[4, 4, 8, 8], depths=[1, 1, 1, 1], image_size=32))
    with pytest.raises(LearngeneError, match="cannot tell where the adapters of ConvNextModel belong"):
        get_peft_model(model, LayerwiseAdapterConfig())
