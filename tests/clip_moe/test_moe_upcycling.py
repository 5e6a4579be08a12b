"""upcycle(): exactness, assembly, and what it refuses."""

import pytest
import torch
from moe_parts import perturbed_mlps

from mmlg_hf.clip_moe import CLIPMoEVisionModel, count_parameters, upcycle
from mmlg_hf.errors import LearngeneError


@pytest.mark.parametrize("implementation", ["eager", "grouped_mm", "batched_mm"])
@pytest.mark.parametrize("num_experts_per_tok", [1, 2, 3])
@torch.no_grad()
def test_copies_of_one_base_compute_what_the_base_computes(base, inputs, implementation, num_experts_per_tok):
    mixture = upcycle(base, [base, base], num_experts_per_tok=num_experts_per_tok)
    mixture.set_experts_implementation(implementation)
    ours, stock = mixture(**inputs, return_loss=True), base(**inputs, return_loss=True)
    for name in ("image_embeds", "text_embeds", "logits_per_image", "loss"):
        torch.testing.assert_close(ours[name], stock[name], atol=3e-6, rtol=1e-5)


@torch.no_grad()
def test_each_expert_is_found_in_its_place(base, experts):
    mixture = upcycle(base, experts)
    for layer in range(3):
        stack = mixture.vision_model.encoder.layers[layer].mlp.experts
        for index, dense in enumerate([base, *experts]):
            mlp = dense.vision_model.encoder.layers[layer].mlp
            assert torch.equal(stack.up_proj[index], mlp.fc1.weight)
            assert torch.equal(stack.up_proj_bias[index], mlp.fc1.bias)
            assert torch.equal(stack.down_proj[index], mlp.fc2.weight)
            assert torch.equal(stack.down_proj_bias[index], mlp.fc2.bias)


@torch.no_grad()
def test_a_mixture_whose_gate_always_picks_one_expert_is_that_expert(base, experts, inputs):
    mixture = upcycle(base, experts, num_experts_per_tok=1)
    for module in mixture.modules():
        if hasattr(module, "router"):
            module.router.weight.zero_()  # a tie: top-k takes the same expert for every token
    picked = mixture.vision_model.encoder.layers[0].mlp.router(torch.ones(1, 32))[2].item()
    expected = [base, *experts][picked](**inputs).logits_per_image
    torch.testing.assert_close(mixture(**inputs).logits_per_image, expected, atol=3e-6, rtol=1e-5)


@torch.no_grad()
def test_layers_that_are_not_chosen_stay_dense(base, inputs):
    expert = perturbed_mlps(base, 0)
    for name, parameter in expert.named_parameters():
        if "vision_model.encoder.layers.2.mlp" not in name:
            parameter.copy_(dict(base.named_parameters())[name])
    mixture = upcycle(base, [expert], vision_layers=[2], text_layers=())
    mlps = [layer.mlp for layer in (*mixture.vision_model.encoder.layers, *mixture.text_model.encoder.layers)]
    assert [hasattr(mlp, "experts") for mlp in mlps] == [False, False, True, False, False]
    copies = upcycle(base, [base], vision_layers=[2], text_layers=())
    torch.testing.assert_close(copies(**inputs).image_embeds, base(**inputs).image_embeds, atol=3e-6, rtol=1e-5)


def test_folders_and_models_give_the_same_mixture_in_the_dtype_of_the_base(tmp_path, base, experts):
    base, experts = base.bfloat16(), [expert.bfloat16() for expert in experts]
    for index, model in enumerate([base, *experts]):
        model.save_pretrained(tmp_path / str(index))
    folders = [tmp_path / str(index) for index in range(4)]
    from_folders, from_models = upcycle(folders[0], folders[1:]), upcycle(base, experts)
    assert from_folders.dtype == torch.bfloat16
    assert all(map(torch.equal, from_folders.state_dict().values(), from_models.state_dict().values()))


def test_the_mixture_shares_no_tensor_and_the_random_state_stays(base, experts):
    state = torch.get_rng_state()
    mixture = upcycle(base, experts)
    assert torch.equal(torch.get_rng_state(), state)
    before = {name: tensor.clone() for name, tensor in mixture.state_dict().items()}
    with torch.no_grad():
        for model in (base, *experts):
            for parameter in model.parameters():
                parameter += 1
    assert all(torch.equal(tensor, before[name]) for name, tensor in mixture.state_dict().items())


def test_a_config_keeps_what_the_base_had_beside_its_shape(base):
    base.config.learngene = {"source": "a gene"}
    base.config.vision_config.attention_dropout = 0.25
    mixture = upcycle(base, [base])
    assert mixture.config.learngene == {"source": "a gene"}
    assert mixture.config.vision_config.attention_dropout == 0.25
    assert mixture.config.text_config.eos_token_id == base.config.text_config.eos_token_id


def test_parameters_are_counted_by_hand(base, experts):
    mixture = upcycle(base, experts)
    mlps = 3 * (2 * 32 * 128 + 128 + 32) + 2 * (2 * 16 * 64 + 64 + 16)
    routers = 3 * 4 * 32 + 2 * 4 * 16
    dense = sum(parameter.numel() for parameter in base.parameters())
    assert count_parameters(mixture) == {"total": dense + 3 * mlps + routers, "active": dense + mlps + routers}
    assert count_parameters(base) == {"total": dense, "active": dense}


def test_k_above_the_experts_is_refused(base):
    with pytest.raises(LearngeneError, match="num_experts_per_tok is 4, but there are 3 experts"):
        upcycle(base, [base, base], num_experts_per_tok=4)


def test_no_expert_is_refused(base):
    with pytest.raises(LearngeneError, match="no expert"):
        upcycle(base, [])


def test_an_expert_that_differs_elsewhere_is_refused_by_its_first_such_tensor(base, experts):
    with torch.no_grad():
        experts[1].vision_model.encoder.layers[1].layer_norm2.weight += 1e-3
        experts[1].text_projection.weight += 1
    with pytest.raises(LearngeneError, match=r"number 2 .*'vision_model\.encoder\.layers\.1\.layer_norm2\.weight'"):
        upcycle(base, experts)


def test_an_expert_that_differs_in_a_layer_left_dense_is_refused(base, experts):
    with pytest.raises(LearngeneError, match=r"text_model\.encoder\.layers\.0\.mlp\.fc1\.weight"):
        upcycle(base, experts, text_layers=[1])


def test_experts_of_another_shape_are_refused(base):
    from pico import pico_clip

    with pytest.raises(LearngeneError, match=r"token_embedding.weight. of shape \[553, 32\], the base \[553, 16\]"):
        upcycle(base, [pico_clip(vision_depth=3)])
    with pytest.raises(LearngeneError, match=r"only the base has 'vision_model\.encoder\.layers\.2"):
        upcycle(base, [pico_clip(text_width=16)])


def test_layers_that_are_not_there_are_refused(base):
    with pytest.raises(LearngeneError, match=r"vision_layers is \[3\]: the base has layers 0 to 2"):
        upcycle(base, [base], vision_layers=[3])


def test_a_base_that_is_a_mixture_or_no_clip_is_refused(tmp_path, base, mixture):
    mixture.save_pretrained(tmp_path / "mixture")
    (tmp_path / "empty").mkdir()
    with pytest.raises(LearngeneError, match="mixture of experts already"):
        upcycle(mixture, [base])
    with pytest.raises(LearngeneError, match="mixture of experts already"):
        upcycle(tmp_path / "mixture", [base])
    with pytest.raises(LearngeneError, match="clip_moe_vision_model"):
        upcycle(CLIPMoEVisionModel(mixture.config.vision_config), [base])
    with pytest.raises(LearngeneError, match="has no config.json"):
        upcycle(tmp_path / "empty", [base])
