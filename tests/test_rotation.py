"""Turning the residual stream: what must stay the same, what must come first, and what slices gain by it."""

import pytest
import torch
from pico import pico_clip
from pico_genes import gene_config

from mmlg_hf import LearngeneModel
from mmlg_hf.expansion import slice_norm_scale
from mmlg_hf.extraction import rotation
from mmlg_hf.extraction.pre_norm import fold_pre_norm
from mmlg_hf.extraction.rotation import principal_rotation, rotate_channels


@pytest.fixture
def clip():
    """A CLIP with no parameter at its starting value, but a constant weight before the image encoder's layers."""
    model = pico_clip(vision_depth=3, text_depth=2, vision_width=32, text_width=16).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
        model.vision_model.pre_layrnorm.weight.fill_(1.3)
    return model


def batch(rows=24):
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 300, (rows, 7), generator=generator)
    mask = torch.ones_like(ids)
    mask[: rows // 2, 5:] = 0
    return {
        "pixel_values": torch.randn(rows, 3, 16, 16, generator=generator),
        "input_ids": ids,
        "attention_mask": mask,
    }


def read_by_layers(model, encoder, inputs):
    """What the encoder's first LayerNorms of each layer read, normalised: [N, D]."""
    rows = []
    handles = [
        layer.layer_norm1.register_forward_pre_hook(
            lambda module, given: rows.append(
                torch.nn.functional.layer_norm(given[0], given[0].shape[-1:]).flatten(0, 1)
            )
        )
        for layer in getattr(model, encoder).encoder.layers
    ]
    with torch.no_grad():
        model(**inputs)
    for handle in handles:
        handle.remove()
    return torch.cat(rows)


def test_a_principal_rotation_is_orthogonal_and_keeps_the_all_ones_vector():
    rows = torch.randn(50, 12)
    rows = rows - rows.mean(1, keepdim=True)
    rotation = principal_rotation(rows.T @ rows / 50)
    torch.testing.assert_close(rotation @ rotation.T, torch.eye(12), atol=1e-5, rtol=0)
    torch.testing.assert_close(rotation @ torch.ones(12), torch.ones(12), atol=1e-5, rtol=0)


def test_a_principal_rotation_puts_a_lone_direction_into_the_first_channel():
    direction = torch.randn(12)
    direction = direction - direction.mean()
    direction /= direction.norm()
    noise = 1e-3 * torch.randn(200, 12)
    rows = torch.randn(200, 1) * direction + noise - noise.mean(1, keepdim=True)
    turned = principal_rotation(rows.T @ rows / 200) @ direction
    # The other channels share what makes the entries sum to zero: 1 / (D + sqrt(D)) each, but for the last.
    expected = torch.full((12,), -1 / (12 + 12**0.5))
    expected[0] += 1
    expected[-1] = -(12**-0.5)
    torch.testing.assert_close(turned * turned[0].sign(), expected, atol=2e-2, rtol=0)


def test_a_turned_clip_computes_what_the_clip_does(clip):
    inputs = batch()
    turned, _ = rotate_channels(clip, [inputs])
    with torch.no_grad():
        before, after = clip(**inputs), turned(**inputs)
    torch.testing.assert_close(after.image_embeds, before.image_embeds, atol=1e-4, rtol=0)
    torch.testing.assert_close(after.text_embeds, before.text_embeds, atol=1e-4, rtol=0)
    assert not torch.allclose(
        turned.vision_model.embeddings.class_embedding, clip.vision_model.embeddings.class_embedding
    )


def test_turning_leaves_the_ancestor_as_it_is(clip):
    before = {name: weight.clone() for name, weight in clip.state_dict().items()}
    rotate_channels(clip, [batch()])
    for name, weight in clip.state_dict().items():
        assert torch.equal(weight, before[name]), name
    assert not any(module._forward_pre_hooks for module in clip.modules())


@pytest.mark.parametrize("encoder", ["vision_model", "text_model"])
def test_leading_channels_of_a_turned_clip_hold_more_than_their_share(clip, encoder):
    inputs = batch()

    def share(model):
        rows = read_by_layers(model, encoder, inputs)
        return rows[:, : rows.shape[1] // 4].square().sum() / rows.square().sum()

    turned, _ = rotate_channels(clip, [inputs])
    assert share(turned) > 0.4 > share(clip)


def test_padding_has_no_say_in_the_rotation(clip):
    inputs = batch()
    other = dict(inputs, input_ids=inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, 5))
    first, second = rotate_channels(clip, [inputs])[0], rotate_channels(clip, [other])[0]
    name = "text_model.encoder.layers.0.mlp.fc1.weight"
    torch.testing.assert_close(first.get_parameter(name), second.get_parameter(name), atol=1e-4, rtol=0)


def centred_cosine(first, second):
    return torch.nn.functional.cosine_similarity(first - first.mean(0), second - second.mean(0)).mean().item()


@pytest.mark.parametrize(("spread", "least"), [(0.0, 0.99999), (0.3, 0.9998), (0.6, 0.9993), (1.0, 0.999)])
def test_a_norm_that_varies_before_the_layers_is_folded_into_the_embeddings(spread, least):
    clip = pico_clip(vision_depth=4, text_depth=1, vision_width=128, text_width=16).eval()
    norm, generator = clip.vision_model.pre_layrnorm, torch.Generator().manual_seed(2)
    with torch.no_grad():
        norm.weight.copy_(0.5 * torch.exp(spread * torch.randn(norm.weight.shape, generator=generator)))
    inputs = batch(64)
    turned, kept = rotate_channels(clip, [inputs], least_cosine=0.9)
    with torch.no_grad():
        before, after = clip(**inputs), turned(**inputs)
        unseen = torch.randn(64, 3, 16, 16, generator=generator)
        one, two = (model.get_image_features(unseen).pooler_output for model in (clip, turned))
    assert centred_cosine(before.image_embeds, after.image_embeds) >= least
    assert centred_cosine(one, two) >= least
    assert kept["image"] == pytest.approx(centred_cosine(before.image_embeds, after.image_embeds), abs=1e-4)
    assert kept["text"] > 0.9999


@pytest.mark.parametrize("outlier", [1.0, 20.0])
def test_a_folded_norm_gives_each_token_its_direction_and_with_an_outlier_channel_its_length(outlier):
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randn(40, 10, 64, generator=generator)
    tokens[..., 5] *= outlier
    norm = torch.nn.LayerNorm(64)
    with torch.no_grad():
        norm.weight.copy_(torch.exp(0.5 * torch.randn(64, generator=generator)))
        norm.bias.copy_(torch.randn(64, generator=generator))
        before = norm(tokens)
        rows = (before - norm.bias).flatten(0, 1)
        turn = principal_rotation(rows.T @ rows)
        written = fold_pre_norm(norm, lambda batch: batch, tokens.split(16), turn)
        wanted, made = (before @ turn.T).flatten(0, 1), norm(tokens @ written.T).flatten(0, 1)
    # The bias is turned as it is; all but the all-ones direction, which the next LayerNorm takes out, is compared.
    wanted, made = (rows - rows.mean(-1, keepdim=True) for rows in (wanted - norm.bias, made - norm.bias))
    torch.testing.assert_close(torch.nn.functional.cosine_similarity(wanted, made), torch.ones(400), atol=1e-5, rtol=0)
    ratio = made.norm(dim=-1) / wanted.norm(dim=-1)
    assert (ratio - 1).abs().mean() < 0.06
    # By a constant weight an outlier, whose own weight is not the mean of all, would have taken its token along.
    constant = wanted.norm(dim=-1)
    assert (ratio - 1).std() < 0.5 * (constant / constant.mean() - 1).std()


def test_a_norm_that_lets_nothing_pass_is_folded_too():
    norm = torch.nn.LayerNorm(8)
    torch.nn.init.zeros_(norm.weight)
    written = fold_pre_norm(norm, lambda batch: batch, [torch.randn(2, 3, 8)], torch.eye(8))
    assert not norm(torch.randn(2, 3, 8) @ written.T).any()


def test_an_encoder_that_would_lose_too_much_is_left_as_it_is(clip):
    norm, generator = clip.vision_model.pre_layrnorm, torch.Generator().manual_seed(2)
    with torch.no_grad():
        norm.weight.copy_(torch.exp(3 * torch.randn(norm.weight.shape, generator=generator)))
    inputs = batch()
    turned, kept = rotate_channels(clip, [inputs], least_cosine=0.9999)
    assert set(kept) == {"text"}
    for name in ("vision_model.encoder.layers.0.mlp.fc1.weight", "visual_projection.weight"):
        assert torch.equal(turned.get_parameter(name), clip.get_parameter(name))
    name = "text_model.encoder.layers.0.mlp.fc1.weight"
    assert not torch.equal(turned.get_parameter(name), clip.get_parameter(name))
    with torch.no_grad():
        torch.testing.assert_close(turned(**inputs).image_embeds, clip(**inputs).image_embeds)


def test_the_rotation_does_not_depend_on_how_its_rows_are_batched(clip):
    inputs = batch()
    halves = [{name: rows[start : start + 12] for name, rows in inputs.items()} for start in (0, 12)]
    halves = [half | {"attention_mask": torch.ones_like(half["attention_mask"])} for half in halves]
    whole = inputs | {"attention_mask": torch.ones_like(inputs["attention_mask"])}
    first, second = rotate_channels(clip, [whole])[0], rotate_channels(clip, halves)[0]
    with torch.no_grad():
        torch.testing.assert_close(first(**whole).image_embeds, second(**whole).image_embeds, atol=1e-4, rtol=0)
    torch.testing.assert_close(first.vision_model.pre_layrnorm.weight, second.vision_model.pre_layrnorm.weight)


@pytest.mark.parametrize(
    ("scale_norms", "factor"), [(False, 1.0), (True, 2**0.5), (["text"], 1.0), (["image"], 2**0.5)]
)
def test_slices_scale_their_layer_norms_by_the_root_of_the_width_lost(scale_norms, factor):
    torch.manual_seed(0)
    gene = LearngeneModel(gene_config(vision_depth=2, text_depth=2, scale_norms=scale_norms))
    with torch.no_grad():
        for blocks in gene.block_groups().values():
            for parameter in blocks.parameters():
                parameter.normal_()
    width = gene.config.vision_config.hidden_size
    whole, half = gene.descendant(), gene.descendant(width=width // 2)
    for name in ("layer_norm1", "layer_norm2"):
        key = f"vision_model.encoder.layers.1.{name}."
        torch.testing.assert_close(
            half.get_parameter(key + "weight"), factor * whole.get_parameter(key + "weight")[: width // 2]
        )
        torch.testing.assert_close(half.get_parameter(key + "bias"), whole.get_parameter(key + "bias")[: width // 2])
    assert slice_norm_scale(width // 2, width) == pytest.approx(2**0.5)


def test_turning_runs_its_rows_once_and_compares_the_first_of_them(clip, monkeypatch):
    inputs = batch()
    read = {"CLIPVisionEmbeddings": 0, "CLIPTextEmbeddings": 0, "CLIPEncoder": 0}
    batches = [{name: rows[start : start + 8] for name, rows in inputs.items()} for start in (0, 8, 16)]
    monkeypatch.setattr(rotation, "COMPARED_ROWS", 9)

    def count(module, given, made):
        if type(module).__name__ in read:
            read[type(module).__name__] += len(made if isinstance(made, torch.Tensor) else made[0])

    handle = torch.nn.modules.module.register_module_forward_hook(count)
    try:
        _, kept = rotate_channels(clip, batches)
    finally:
        handle.remove()
    # The norm before an image encoder's layers is fitted to what is read there once the rotation is known.
    sides = 2 * (24 + 16)
    assert read == {"CLIPVisionEmbeddings": 24 + 24 + 16, "CLIPTextEmbeddings": 24 + 16, "CLIPEncoder": sides}
    assert kept == {"image": pytest.approx(1, abs=1e-4), "text": pytest.approx(1, abs=1e-4)}
