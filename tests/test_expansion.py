"""Blocks to layers: the papers' formulas, coefficients at any depth, and slices that keep whole heads."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import CLIPVisionConfig
from transformers.models.clip.modeling_clip import CLIPEncoderLayer

from mmlg_hf.expansion import (
    LAYER_AXES,
    basis_functions,
    expand_layers,
    interpolate_coefficients,
    layer_positions,
    mixing_coefficients,
    take_slice,
)
from mmlg_hf.families import FAMILIES

HYPOTHESIS = settings(max_examples=30, deadline=None)


def random_blocks(num_blocks, hidden, mlp, seed=0):
    generator = torch.Generator().manual_seed(seed)
    sizes = {"hidden": hidden, "mlp": mlp}
    return {
        name: torch.randn(num_blocks, *(sizes[axis] for axis in axes), generator=generator)
        for name, axes in LAYER_AXES.items()
    }


def clip_layer(hidden, heads, mlp):
    config = CLIPVisionConfig(hidden_size=hidden, num_attention_heads=heads, intermediate_size=mlp)
    return CLIPEncoderLayer(config).eval()


def test_the_named_layer_parameters_are_exactly_those_of_clips_encoder_layer():
    layer = clip_layer(hidden=8, heads=2, mlp=24)
    sizes = {"hidden": 8, "mlp": 24}
    expected = {name: tuple(sizes[axis] for axis in axes) for name, axes in LAYER_AXES.items()}
    assert {name: tuple(parameter.shape) for name, parameter in layer.named_parameters()} == expected


# --- mixing coefficients -------------------------------------------------------------------------------------------


def test_positions_are_layer_over_depth_from_zero():
    assert layer_positions(4).tolist() == [0.0, 0.25, 0.5, 0.75]


def test_tleg_layers_are_base_plus_position_times_slope():
    # Small whole numbers and a depth of 4, so that every product and sum is exact in float32.
    depth = 4
    blocks = {name: (10 * tensor).round() for name, tensor in random_blocks(2, 8, 16).items()}
    layers = expand_layers({}, blocks, mixing_coefficients("linear", 0, 2, depth), {"hidden": 8, "mlp": 16})
    for name, (base, slope) in blocks.items():
        for layer in range(depth):
            assert torch.equal(layers[name][layer], base + (layer / depth) * slope), (name, layer)


def test_scales_multiply_the_rows_and_columns_of_each_layers_matrices_alone():
    depth, sizes, generator = 3, {"hidden": 8, "mlp": 16}, torch.Generator().manual_seed(2)
    blocks, mixing = random_blocks(2, 8, 16), mixing_coefficients("linear", 0, 2, depth)
    scales = {
        "mlp.fc1.rows": torch.randn(depth, 16, generator=generator),
        "mlp.fc1.columns": torch.randn(depth, 8, generator=generator),
        "self_attn.out_proj.columns": torch.randn(depth, 8, generator=generator),
    }
    plain, scaled = expand_layers({}, blocks, mixing, sizes), expand_layers({}, blocks, mixing, sizes, 1.0, scales)
    for layer in range(depth):
        left, right = torch.diag(scales["mlp.fc1.rows"][layer]), torch.diag(scales["mlp.fc1.columns"][layer])
        wanted = left @ plain["mlp.fc1.weight"][layer] @ right
        torch.testing.assert_close(scaled["mlp.fc1.weight"][layer], wanted)
        wanted = plain["self_attn.out_proj.weight"][layer] @ torch.diag(scales["self_attn.out_proj.columns"][layer])
        torch.testing.assert_close(scaled["self_attn.out_proj.weight"][layer], wanted)
    changed = {"mlp.fc1.weight", "self_attn.out_proj.weight"}
    assert all(torch.equal(scaled[name], weight) for name, weight in plain.items() if name not in changed)


def test_a_lone_unimodal_block_is_the_growing_difference_to_the_multimodal_one():
    expected = [[1.0, 0.0], [1.0, 0.25], [1.0, 0.5], [1.0, 0.75]]
    for mixing in ("linear", "chebyshev"):
        assert mixing_coefficients(mixing, 1, 1, depth=4).tolist() == expected


def test_with_a_shared_slope_each_encoder_starts_from_its_own_block():
    expected = [[0.0, 1.0], [0.25, 1.0], [0.5, 1.0], [0.75, 1.0]]
    for mixing in ("shared-slope", "learned"):
        assert mixing_coefficients(mixing, 1, 1, depth=4).tolist() == expected
    with pytest.raises(ValueError, match="for one multimodal and one unimodal block, not 2 and 1"):
        mixing_coefficients("shared-slope", 2, 1, depth=4)


def test_without_multimodal_blocks_a_lone_unimodal_block_is_every_layer():
    assert mixing_coefficients("linear", 0, 1, depth=3).tolist() == [[1.0]] * 3


def test_each_group_counts_its_basis_functions_from_the_constant_one():
    half = mixing_coefficients("chebyshev", 3, 2, depth=2)[1]  # at l/L = 1/2
    assert half.tolist() == [1.0, 0.5, -0.5, 1.0, 0.5]


@HYPOTHESIS
@given(count=st.integers(1, 8), depth=st.integers(1, 24))
def test_chebyshev_functions_are_cosines_of_multiple_angles(count, depth):
    positions = layer_positions(depth, dtype=torch.float64)
    orders = torch.arange(count, dtype=torch.float64)
    expected = torch.cos(orders * torch.acos(positions)[:, None])  # T_n(cos a) = cos(n a)
    torch.testing.assert_close(basis_functions("chebyshev", count, positions), expected, atol=1e-10, rtol=0)


def test_linear_mixing_has_two_functions_and_says_so():
    with pytest.raises(ValueError, match="two basis functions, 1 and l/L; 3 were asked for"):
        basis_functions("linear", 3, layer_positions(4))


# --- learned coefficients at another depth ---------------------------------------------------------------------------


def test_learned_coefficients_at_their_own_depth_are_themselves():
    learned = torch.randn(5, 16, 3)
    assert torch.equal(interpolate_coefficients(learned, 5), learned)


def test_half_the_depth_takes_every_second_learned_layer():
    learned = torch.randn(6, 16, 3)
    assert torch.equal(interpolate_coefficients(learned, 3), learned[::2])


def test_double_the_depth_puts_means_between_and_holds_the_last():
    learned = torch.tensor([[0.0], [4.0], [6.0]])
    assert interpolate_coefficients(learned, 6).flatten().tolist() == [0.0, 2.0, 4.0, 5.0, 6.0, 6.0]


@HYPOTHESIS
@given(known=st.integers(1, 12), depth=st.integers(1, 30))
def test_coefficients_that_are_linear_in_the_position_stay_so_at_every_depth(known, depth):
    learned = (3 - 2 * layer_positions(known, dtype=torch.float64))[:, None]
    position = layer_positions(depth, dtype=torch.float64).clamp(max=(known - 1) / known)
    expected = (3 - 2 * position)[:, None]
    torch.testing.assert_close(interpolate_coefficients(learned, depth), expected, atol=1e-6, rtol=0)


# --- expansion -------------------------------------------------------------------------------------------------------


@HYPOTHESIS
@given(
    multimodal=st.integers(0, 3),
    unimodal=st.integers(0, 3),
    depth=st.integers(1, 6),
    narrower=st.integers(0, 2),
    seed=st.integers(0, 100),
)
def test_expansion_equals_a_loop_over_layers_and_blocks(multimodal, unimodal, depth, narrower, seed):
    if multimodal + unimodal == 0:
        unimodal = 1
    hidden, mlp = 12 - 4 * narrower, 2 * (12 - 4 * narrower)
    shared = random_blocks(multimodal, 12, 24, seed) if multimodal else {}
    own = random_blocks(unimodal, hidden, mlp, seed + 1) if unimodal else {}
    coefficients = {name: torch.randn(depth, multimodal + unimodal) for name in LAYER_AXES}
    layers = expand_layers(shared, own, coefficients, {"hidden": hidden, "mlp": mlp})
    sizes = {"hidden": hidden, "mlp": mlp}
    for name, axes in LAYER_AXES.items():
        leading = tuple(slice(sizes[axis]) for axis in axes)
        blocks = [*shared.get(name, ()), *own.get(name, ())]
        for layer in range(depth):
            expected = sum(
                weight * block[leading] for weight, block in zip(coefficients[name][layer], blocks, strict=True)
            )
            torch.testing.assert_close(layers[name][layer], expected, atol=1e-5, rtol=1e-5)


def test_expansion_is_one_matrix_product_for_each_parameter(monkeypatch):
    calls = []
    product = torch.Tensor.__matmul__
    monkeypatch.setattr(torch.Tensor, "__matmul__", lambda a, b: calls.append(a.shape) or product(a, b))
    coefficients = mixing_coefficients("chebyshev", 2, 3, depth=7)
    expand_layers(random_blocks(2, 8, 16), random_blocks(3, 8, 16), coefficients, {"hidden": 8, "mlp": 16})
    assert calls == [(7, 5)] * len(LAYER_AXES)


def test_expansion_keeps_the_blocks_precision():
    blocks = {name: tensor.bfloat16() for name, tensor in random_blocks(2, 8, 16).items()}
    layers = expand_layers({}, blocks, mixing_coefficients("linear", 0, 2, 3), {"hidden": 8, "mlp": 16})
    assert {tensor.dtype for tensor in layers.values()} == {torch.bfloat16}


# --- slices ----------------------------------------------------------------------------------------------------------


@HYPOTHESIS
@given(heads=st.integers(1, 6), kept=st.integers(1, 6), head_size=st.sampled_from([2, 4, 8]), ratio=st.integers(1, 4))
def test_slices_are_the_leading_ones_along_every_named_axis(heads, kept, head_size, ratio):
    kept = min(kept, heads)
    wide, narrow = heads * head_size, kept * head_size
    sizes = {"hidden": narrow, "mlp": ratio * narrow}
    for axes in {*LAYER_AXES.values(), *(axes for side in FAMILIES["clip"].outer.values() for axes in side.values())}:
        full = [{"hidden": wide, "mlp": ratio * wide, None: 3}[axis] for axis in axes]
        tensor = torch.arange(torch.Size([2, *full]).numel()).reshape(2, *full)
        leading = tuple(slice({**sizes, None: 3}[axis]) for axis in axes)
        assert torch.equal(take_slice(tensor, axes, sizes), tensor[(slice(None), *leading)])


@settings(max_examples=10, deadline=None)
@given(heads=st.integers(2, 5), kept=st.integers(1, 4), head_size=st.sampled_from([2, 4]))
def test_a_slice_computes_what_the_leading_heads_and_neurons_of_the_whole_layer_compute(heads, kept, head_size):
    kept = min(kept, heads - 1)
    wide, narrow = heads * head_size, kept * head_size
    sizes = {"hidden": narrow, "mlp": 3 * narrow}
    torch.manual_seed(0)
    whole, small = clip_layer(wide, heads, 3 * wide), clip_layer(narrow, kept, 3 * narrow)
    weights = {name: torch.randn_like(parameter) for name, parameter in whole.named_parameters()}
    small.load_state_dict({name: take_slice(weights[name], axes, sizes) for name, axes in LAYER_AXES.items()})
    # Silence the other heads and neurons of the whole layer, and give it nothing on the other channels.
    weights["self_attn.out_proj.weight"][:, narrow:] = 0
    weights["mlp.fc2.weight"][:, 3 * narrow :] = 0
    whole.load_state_dict(weights)
    hidden = torch.randn(2, 5, narrow)
    padded = torch.nn.functional.pad(hidden, (0, wide - narrow))
    with torch.no_grad():
        attended = small.self_attn(hidden)[0], whole.self_attn(padded)[0][..., :narrow]
        transformed = small.mlp(hidden), whole.mlp(padded)[..., :narrow]
    torch.testing.assert_close(*attended)
    torch.testing.assert_close(*transformed)
