"""upcycle_by_clusters(): what routers and experts start from, and what it refuses."""

import math

import pytest
import torch
from pico import pico_pairs, pico_processor
from torch.nn import functional as F

from mmlg_hf.clip_moe import upcycle_by_clusters
from mmlg_hf.clip_moe.cluster_upcycling import spherical_kmeans, truncate
from mmlg_hf.errors import LearngeneError
from mmlg_hf.training import ImageTextCollator

PAIRS = pico_pairs(12)


def upcycled(base, **changes):
    values = {"processor": pico_processor(), "num_experts": 3, "num_pairs": 12, "batch_size": 12}
    return upcycle_by_clusters(base, PAIRS, **(values | changes))


def tokens_of(model, name, mask=None):
    """All that an MLP reads of the pairs [N, H], without texts' padding."""
    found = []
    hook = model.get_submodule(name).register_forward_pre_hook(lambda module, args: found.append(args[0]))
    batch = ImageTextCollator(pico_processor())(list(PAIRS))
    with torch.no_grad():
        model(**batch)
    hook.remove()
    return found[0][batch["attention_mask"].bool()] if name.startswith("text") else found[0].flatten(0, 1)


@pytest.mark.parametrize("expert_rank", [None, 32])  # 32 is full for the images, and above the width of the texts
@torch.no_grad()
def test_copies_and_experts_of_full_rank_compute_what_the_base_computes(base, inputs, expert_rank):
    mixture = upcycled(base, expert_rank=expert_rank)
    ours, stock = mixture(**inputs), base(**inputs)
    for name in ("image_embeds", "text_embeds"):
        torch.testing.assert_close(ours[name], stock[name], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["vision_model.encoder.layers.1.mlp", "text_model.encoder.layers.0.mlp"])
@torch.no_grad()
def test_routers_start_as_the_unit_centroids_of_the_tokens_that_their_experts_get(base, name):
    """Each row, scaled back, is the direction of the sum of the unit tokens whose top expert it is."""
    mixture = upcycled(base, router_scale=7.0, num_tokens=10**6)
    rows = mixture.get_submodule(name).router.weight
    tokens = tokens_of(base, name)
    centroids = rows / 7.0 * tokens.square().sum(-1).mean().sqrt()
    torch.testing.assert_close(centroids.norm(dim=-1), torch.ones(3), atol=1e-4, rtol=0)
    unit = F.normalize(tokens, dim=-1)
    top = (tokens @ rows.T).argmax(dim=-1)
    assert len(top.unique()) == 3
    for expert in range(3):
        expected = F.normalize(unit[top == expert].sum(dim=0), dim=0)
        torch.testing.assert_close(centroids[expert], expected, atol=1e-4, rtol=0)


def test_clusters_of_directions_are_found_whatever_the_lengths():
    axes = torch.eye(3).repeat_interleave(20, dim=0)
    rows = axes + 0.05 * torch.randn(60, 3, generator=torch.Generator().manual_seed(1))
    lengths = torch.logspace(-2, 2, 60)[torch.randperm(60, generator=torch.Generator().manual_seed(2))]
    centroids, labels = spherical_kmeans(rows * lengths[:, None], 3)
    assert [len(part.unique()) for part in labels.view(3, 20)] == [1, 1, 1]
    assert len(labels.unique()) == 3
    torch.testing.assert_close(centroids[labels], axes, atol=0.05, rtol=0)
    torch.testing.assert_close(centroids.norm(dim=-1), torch.ones(3))


def affine(rows, layer):
    return F.linear(rows, *layer)


def test_a_layer_of_full_rank_is_the_layer_and_one_of_low_rank_fits_its_inputs_exactly():
    """Inputs about a mean, in a plane, need no more than rank 2, whatever the weight is elsewhere."""
    generator = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(12, 8, generator=generator), torch.randn(12, generator=generator)
    plane = torch.randn(2, 8, generator=generator)
    rows = 3.0 + torch.randn(40, 2, generator=generator) @ plane
    for inputs, rank in ((torch.randn(40, 8, generator=generator), 8), (rows, 2)):
        cut = truncate(weight, bias, inputs, rank)
        assert torch.linalg.matrix_rank(cut[0]) == rank
        torch.testing.assert_close(affine(inputs, cut), affine(inputs, (weight, bias)), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(truncate(weight, bias, rows, 8)[0], weight, atol=1e-5, rtol=1e-4)


def test_what_a_truncated_layer_loses_is_the_rest_of_its_outputs_spectrum():
    generator = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(6, 9, generator=generator), torch.randn(6, generator=generator)
    rows = 1.0 + torch.randn(50, 9, generator=generator) * torch.logspace(0, -2, 9)
    outputs = affine(rows, (weight, bias))
    lost = (affine(rows, truncate(weight, bias, rows, 2)) - outputs).square().sum()
    spectrum = torch.linalg.svdvals(outputs - outputs.mean(dim=0))
    torch.testing.assert_close(lost, spectrum[2:].square().sum(), rtol=1e-3, atol=1e-5)


@torch.no_grad()
def test_a_cut_expert_serves_its_own_cluster_better_than_the_others_do(base):
    mixture = upcycled(base, expert_rank=4, num_tokens=10**6, text_layers=())
    name = "vision_model.encoder.layers.1.mlp"
    mixed, dense, tokens = mixture.get_submodule(name), base.get_submodule(name), tokens_of(base, name)
    own = (tokens @ mixed.router.weight.T).argmax(dim=-1)
    losses = torch.zeros(3, 3)
    for cluster in range(3):
        rows = tokens[own == cluster]
        for expert in range(3):
            given = torch.full((len(rows), 1), expert), torch.ones(len(rows), 1)
            losses[cluster, expert] = (mixed.experts(rows, *given) - dense(rows)).square().mean()
    assert losses.argmin(dim=1).tolist() == [0, 1, 2]


def test_the_base_the_random_state_and_layers_left_out_stay_and_a_seed_fixes_all(base):
    before, state = {name: tensor.clone() for name, tensor in base.state_dict().items()}, torch.get_rng_state()
    base.train()
    given = {"vision_layers": [1], "num_tokens": 20, "expert_rank": 3, "router_z_loss_coef": 0.001}
    one, other = (upcycled(base, **given) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert base.training
    assert not any(module._forward_pre_hooks for module in base.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in base.state_dict().items())
    assert all(map(torch.equal, one.state_dict().values(), other.state_dict().values()))
    assert [hasattr(layer.mlp, "experts") for layer in one.vision_model.encoder.layers] == [False, True, False]
    assert one.config.router_z_loss_coef == 0.001
    assert not one.training


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_experts": 1}, "num_experts is 1"),
        ({"num_experts_per_tok": 4}, "num_experts_per_tok is 4, but there are 3 experts"),
        ({"expert_rank": 33}, "expert_rank is 33: it lies between 1 and 32"),
        ({"router_scale": math.nan}, "router_scale is nan"),
        ({"processor": None}, "needs a processor"),
        ({"num_experts": 3, "num_tokens": 2}, "2 inputs of an MLP have 2 directions for 3 experts"),
    ],
)
def test_what_cannot_be_clustered_is_refused_in_a_sentence(base, changes, said):
    with pytest.raises(LearngeneError, match=said):
        upcycled(base, **changes)


def test_no_rows_and_streams_are_refused(base):
    for rows, said in ((PAIRS.select([]), "is empty"), (PAIRS.to_iterable_dataset(), "is a stream")):
        with pytest.raises(LearngeneError, match=said):
            upcycle_by_clusters(base, rows, processor=pico_processor())
