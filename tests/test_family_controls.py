"""The study's controls of 2026: FRONT, CLIP-Map and students without a gene, each by what algebra says of it."""

import math

import pytest
import torch
from pico import pico_clip, pico_processor
from pico_starts import inputs, pico_sources, weight
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPModel

from benchmarks.common.training import Rows
from benchmarks.family.controls import Controls, records, student_steps
from benchmarks.family.cost import extraction_gflops, forward_gflops, muon_gflops, muon_gflops_of_layers
from benchmarks.family.front import by_low_frequencies, cosines, resize
from benchmarks.family.mapping import MappedCLIP
from benchmarks.family.settings import SETTINGS
from benchmarks.family.starts import CLIP_MAP, STARTS, STUDENTS, Sources
from mmlg_hf.extraction.ancestors import gene_config
from mmlg_hf.training import ImageTextCollator
from mmlg_hf.training.optimizers import is_layer_matrix


@pytest.fixture(scope="module")
def sources():
    return pico_sources()


@pytest.mark.parametrize("size", [1, 2, 7, 32])
def test_the_cosines_are_orthonormal_and_rise_in_frequency(size):
    matrix = cosines(size)
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(size).double())
    turns = [int((row[1:] * row[:-1] < 0).sum()) for row in matrix]
    assert turns == list(range(size))


def test_low_frequencies_at_the_ancestors_own_size_give_its_weights_back(sources):
    small = STARTS["FRONT"](sources, 4, 32, 0)
    for name, own in sources.ancestor.named_parameters():
        torch.testing.assert_close(small.get_parameter(name), own)


@pytest.mark.parametrize("shape", [(8, 16), (8, 64), (16, 64), (40, 16)])
def test_a_weight_there_and_back_again_is_the_same(shape):
    """Through a larger size nothing is lost; through a smaller one what has only low frequencies is kept."""
    low = torch.randn(8, 16, generator=torch.Generator().manual_seed(0)).double()
    smooth = resize(low, (16, 32))
    torch.testing.assert_close(resize(resize(smooth, shape), (16, 32)), smooth)


def test_a_smooth_weight_that_all_layers_share_keeps_its_mean_and_spread_at_half_size():
    ancestor = pico_clip(vision_depth=4, text_depth=4, vision_width=32, text_width=16)
    wave = [torch.cos(math.pi * (torch.arange(size) + 0.5) / size) for size in (128, 32, 64, 16)]
    with torch.no_grad():
        for layer in range(4):
            weight(ancestor, layer).copy_(3 + 0.7 * torch.outer(wave[0], wave[1]))
    small = by_low_frequencies(ancestor, Sources(ancestor, ancestor).config(2, 16))
    # The product of two half waves: no mean, and half a wave's spread along both axes.
    for layer in range(2):
        resized = weight(small, layer).detach()
        torch.testing.assert_close(resized, 3 + 0.7 * torch.outer(wave[2], wave[3]))
        assert resized.mean().item() == pytest.approx(3, abs=1e-6)
        assert resized.std(correction=0).item() == pytest.approx(0.35, rel=1e-5)


def test_norms_that_are_ones_stay_ones():
    ancestor = pico_clip(vision_depth=4, text_depth=4, vision_width=32, text_width=16)
    small = by_low_frequencies(ancestor, Sources(ancestor, ancestor).config(2, 16))
    assert torch.equal(weight(small, 0, "layer_norm1.weight"), torch.ones(16))
    assert torch.equal(weight(small, 1, "layer_norm2.bias"), torch.zeros(16))
    torch.testing.assert_close(small.logit_scale, ancestor.logit_scale)
    assert all(torch.isfinite(parameter).all() for parameter in small.parameters())


def test_all_students_together_cost_as_much_as_the_extraction():
    # A step of 10 pairs: the ancestor's 2, three times 1 + 3, and 20 of Muon: 10 * 14 + 20 gigaflops.
    assert student_steps(budget=16_000, batch_size=10, ancestor=2, students=[1, 3], muon=20) == 100


def test_the_flops_of_muon_on_a_clip_are_those_that_torch_counts():
    model = pico_clip(vision_depth=2, text_depth=3, text_width=16)
    matrices = [p for name, p in model.named_parameters() if is_layer_matrix(name, p)]
    for matrix in matrices:
        matrix.grad = torch.ones_like(matrix)
    with FlopCounterMode(display=False) as counter:
        torch.optim.Muon(matrices).step()
    assert muon_gflops_of_layers(model.config) == pytest.approx(counter.get_total_flops() / 1e9, rel=1e-12)


@pytest.fixture
def controls(sources, tmp_path, monkeypatch):
    """Controls of two sizes that cost as much as an extraction of few steps; `asked` counts the pairs asked for."""
    monkeypatch.setitem(SETTINGS["controls"][STUDENTS], "extraction_steps", 6)
    asked = []

    def pairs(count):
        asked.append(count)
        columns = inputs(count)
        return Rows(pixel_values=columns["pixel_values"], input_ids=columns["input_ids"].tolist())

    collator = ImageTextCollator(pico_processor())
    made = Controls(sources, [(2, 16), (2, 24)], collator, pairs, tmp_path / "controls-0", 0, (4, 8))
    made.asked = asked
    return made


def distance(model, ancestor):
    """The mean squared distance of both sides' embeddings to the ancestor's."""
    with torch.no_grad():
        own, theirs = model.eval()(**inputs()), ancestor(**inputs())
    return sum(
        float((getattr(own, name) - getattr(theirs, name)).square().sum(-1).mean())
        for name in ("image_embeds", "text_embeds")
    )


def test_students_imitate_the_ancestor_once_from_outputs_that_all_share(controls, sources):
    start = STARTS["rotated inheritance"](sources, 2, 16, 0)
    trained = [controls(STUDENTS, 2, width) for width in (16, 24)]
    assert distance(trained[0], sources.ancestor) < 0.9 * distance(start, sources.ancestor)
    assert controls.asked == [controls.student_steps * 16]
    with_trainer_broken = Controls(sources, [], None, None, controls.folder, 0, (4, 8))
    again = with_trainer_broken(STUDENTS, 2, 16)
    assert torch.equal(weight(again, 0), weight(trained[0], 0))


def test_what_students_cost_together_is_what_the_extraction_costs(controls, sources):
    for width in (16, 24):
        controls(STUDENTS, 2, width)
    gene = gene_config(sources.ancestor, num_multimodal_blocks=1, num_unimodal_blocks=1, mixing="linear")
    own = forward_gflops(sources.ancestor.config)
    budget = 6 * (16 * extraction_gflops(gene, own) + muon_gflops(gene)) / 1e3
    (record,) = records(controls.folder.parent).values()
    assert record["sizes"] == 2
    assert record["teraflops"] == pytest.approx(budget, rel=0.5 / controls.student_steps)
    assert record["parameters"] == sum(STARTS["scratch"](sources, 2, w, 0).num_parameters() for w in (16, 24))


def test_maps_start_as_turned_inheritance(sources):
    mapped, start = MappedCLIP(sources.turned, sources.config(2, 16)), STARTS["rotated inheritance"](sources, 2, 16, 0)
    weights = mapped.weights()
    assert set(weights) == {name for name, _ in start.named_parameters()}
    for name, wanted in start.named_parameters():
        torch.testing.assert_close(weights[name], wanted, rtol=1e-6, atol=1e-6)
    with torch.no_grad():
        found, wanted = mapped(**inputs()), start.eval()(**inputs())
    torch.testing.assert_close(found.image_embeds, wanted.image_embeds)
    torch.testing.assert_close(found.text_embeds, wanted.text_embeds)


def test_every_weight_is_a_map_of_mixed_layers(sources):
    """W' = F_out (sum_l c_l W_l) F_in^T, with maps and coefficients that are not their start."""
    mapped = MappedCLIP(sources.turned, sources.config(2, 16))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in (*mapped.maps.values(), *mapped.mixing.values()):
            parameter.add_(torch.randn(parameter.shape, generator=generator))
    mixing = mapped.mixing["vision_self_attn_out_proj_weight"][1]
    own = sum(c * weight(sources.turned, layer, "self_attn.out_proj.weight") for layer, c in enumerate(mixing))
    wanted = mapped.maps["vision_hidden"] @ own @ mapped.maps["vision_out"].T
    torch.testing.assert_close(mapped.weights()["vision_model.encoder.layers.1.self_attn.out_proj.weight"], wanted)
    wanted = sources.turned.text_projection.weight @ mapped.maps["text_hidden"].T
    torch.testing.assert_close(mapped.weights()["text_projection.weight"], wanted)


def test_a_clip_made_plain_computes_what_the_trained_maps_compute(controls, sources):
    mapped = MappedCLIP(sources.turned, sources.config(2, 16))
    before = distance(mapped, sources.ancestor)
    trained = {name: parameter for name, parameter in mapped.named_parameters() if parameter.requires_grad}
    start = {name: parameter.detach().clone() for name, parameter in trained.items()}
    controls.distil(mapped, {"max_steps": 20, "per_device_train_batch_size": 8} | SETTINGS["controls"][CLIP_MAP])
    assert all(name.startswith(("maps.", "mixing.")) for name in trained)
    kept = {name for name, parameter in trained.items() if torch.equal(parameter, start[name])}
    # Turning has folded the biases of norms into what reads them: zeros, however they are mixed.
    assert kept == {f"mixing.{side}_layer_norm{n}_bias" for side in ("vision", "text") for n in (1, 2)}
    assert distance(mapped, sources.ancestor) < 0.95 * before
    plain = mapped.plain()
    assert type(plain) is CLIPModel
    with torch.no_grad():
        found, wanted = plain(**inputs()), mapped(**inputs())
    torch.testing.assert_close(found.image_embeds, wanted.image_embeds)
    torch.testing.assert_close(found.text_embeds, wanted.text_embeds)
    torch.testing.assert_close(plain.logit_scale, sources.ancestor.logit_scale)


def test_maps_are_trained_for_the_steps_of_an_extraction(controls):
    controls(CLIP_MAP, 2, 16)
    assert controls.asked == [4 * 8]
    (record,) = records(controls.folder.parent).values()
    assert (record["steps"], record["batch_size"]) == (4, 8)
    small = forward_gflops(controls.sources.config(2, 16))
    own = forward_gflops(controls.sources.ancestor.config)
    assert 1e3 * record["teraflops"] > 4 * 8 * (own + 3 * small)  # and what the maps cost
