"""The least-squares fit against layers whose blocks are known, and permutations that must change nothing."""

import pytest
import torch
from pico import pico_clip
from pico_genes import gene_config

from mmlg_hf.expansion import LAYER_AXES, expand_layers
from mmlg_hf.extraction import fitting
from mmlg_hf.extraction.fitting import (
    _assign,
    fit_blocks,
    fit_gene,
    match_units,
    order_units,
    permute_units,
    stack_layers,
    unit_features,
)
from mmlg_hf.modeling_encoders import encoder_sizes
from mmlg_hf.modeling_learngene import LearngeneModel

HEAD = 8


@pytest.fixture
def clip():
    model = pico_clip(vision_depth=3, text_depth=2, text_width=16).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def write_layers(encoder, layers):
    with torch.no_grad():
        for index, layer in enumerate(encoder.layers):
            for name, parameter in layer.named_parameters():
                parameter.copy_(layers[name][index])


def test_ordering_heads_and_neurons_leaves_the_encoder_unchanged(clip):
    pixels = torch.randn(2, 3, 16, 16)
    before = clip.get_image_features(pixels).pooler_output
    encoder = clip.vision_model.encoder
    ordered = order_units(stack_layers(encoder), HEAD)
    write_layers(encoder, ordered)
    torch.testing.assert_close(clip.get_image_features(pixels).pooler_output, before, rtol=0, atol=1e-5)
    for features in unit_features(ordered, HEAD):
        norms = features.norm(dim=2)
        assert (norms[:, 1:] <= norms[:, :-1] + 1e-6).all()


def test_matching_undoes_a_permutation(clip):
    layers = stack_layers(clip.vision_model.encoder)
    heads = torch.stack([torch.randperm(4) for _ in range(3)])
    neurons = torch.stack([torch.randperm(128) for _ in range(3)])
    shuffled = permute_units(layers, heads, neurons, HEAD)
    assert not torch.equal(shuffled["mlp.fc1.weight"], layers["mlp.fc1.weight"])
    for name, weight in match_units(shuffled, layers, HEAD).items():
        torch.testing.assert_close(weight, layers[name], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("multimodal", "unimodal", "mixing"), [(1, 1, "linear"), (0, 2, "linear"), (2, 1, "chebyshev")]
)
def test_fit_finds_blocks_that_explain_the_layers_entirely(multimodal, unimodal, mixing):
    config = gene_config(
        vision_depth=5, text_depth=4, num_multimodal_blocks=multimodal, num_unimodal_blocks=unimodal, mixing=mixing
    )
    gene = LearngeneModel(config)
    with torch.no_grad():
        for parameter in gene.parameters():
            parameter.copy_(torch.randn_like(parameter))
        layers = {modality: gene.layer_weights(modality) for modality in ("image", "text")}
    sizes = {modality: encoder_sizes(encoder) for modality, encoder in config.encoder_configs.items()}
    coefficients = {
        modality: gene.fixed_coefficients(len(stack["mlp.fc1.bias"])) for modality, stack in layers.items()
    }
    fitted = fit_blocks(layers, coefficients, multimodal, sizes)
    for modality, stack in layers.items():
        rebuilt = expand_layers(fitted["multimodal"], fitted[modality], coefficients[modality], sizes[modality])
        for name in LAYER_AXES:
            torch.testing.assert_close(rebuilt[name], stack[name], rtol=0, atol=1e-4)


def test_matching_units_explains_more_than_the_raw_layers(clip):
    config = gene_config(vision_depth=3, text_depth=2, text_width=16, projection_dim=16)
    gene = LearngeneModel(config)
    raw = fit_gene(gene, clip, iterations=0)
    matched = fit_gene(gene, clip, iterations=3)
    assert matched["image"] <= raw["image"]
    assert 0 < matched["image"] < 1


def test_the_fit_is_that_of_least_squares_in_double_precision(clip):
    gene = LearngeneModel(gene_config(mixing="linear", num_multimodal_blocks=1, num_unimodal_blocks=1))
    encoders = {"image": clip.vision_model.encoder, "text": clip.text_model.encoder}
    layers = {side: stack_layers(encoder) for side, encoder in encoders.items()}
    coefficients = {side: gene.fixed_coefficients(len(encoder.layers)) for side, encoder in encoders.items()}
    sizes = {side: encoder_sizes(config) for side, config in gene.config.encoder_configs.items()}
    fitted = fit_blocks(layers, coefficients, 0, sizes)  # each encoder alone
    for side, stacks in layers.items():
        for name, stack in stacks.items():
            design = coefficients[side].double()
            solution = torch.linalg.lstsq(design, stack.flatten(1).double(), driver="gelsd").solution
            expected = solution.unflatten(1, stack.shape[1:]).float()
            torch.testing.assert_close(fitted[side][name], expected, rtol=1e-5, atol=1e-6)


def test_units_are_assigned_so_that_the_sum_is_largest_also_where_two_want_the_same():
    assert _assign(torch.tensor([[0.0, 5.0, 1.0], [4.0, 3.0, 0.0], [0.0, 1.0, 2.0]])).tolist() == [1, 0, 2]
    assert _assign(torch.tensor([[3.0, 2.0], [2.9, 0.0]])).tolist() == [1, 0]  # 2 + 2.9 is more than 3 + 0


def test_fitting_ends_with_the_round_that_moves_nothing_and_gives_what_more_rounds_do(clip, monkeypatch):
    def fit(iterations):
        gene, rounds = LearngeneModel(gene_config(vision_depth=3, text_depth=2, text_width=16)), []
        monkeypatch.setattr(fitting, "match_units", lambda *given: rounds.append(1) or match_units(*given))
        left = fit_gene(gene, clip, iterations=iterations)
        return left, gene.state_dict(), len(rounds)

    most, state, rounds = fit(50)
    assert rounds < 2 * 50
    for enough in (rounds // 2 - 1, rounds // 2):  # the last round moved nothing
        left, same, _ = fit(enough)
        assert left == most
        blocks = [name for name in state if "_blocks." in name]
        assert blocks
        assert all(torch.equal(state[name], same[name]) for name in blocks)
