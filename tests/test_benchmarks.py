"""The starts that the initialisation study compares, by their published rules; and its report against its results."""

import json

import pytest
import torch
from pico import pico_clip
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import report
from benchmarks.cost import muon_gflops
from benchmarks.initialisers import INITIALISERS, Sources, StageWiseModel, turned_ancestor
from mmlg_hf import LearngeneModel
from mmlg_hf.extraction.ancestors import gene_config


def inputs(rows=8):
    generator = torch.Generator().manual_seed(1)
    return {
        "pixel_values": torch.randn(rows, 3, 16, 16, generator=generator),
        "input_ids": torch.randint(0, 300, (rows, 6), generator=generator),
        "attention_mask": torch.ones(rows, 6, dtype=torch.long),
    }


@pytest.fixture(scope="module")
def sources():
    ancestor = pico_clip(vision_depth=4, text_depth=4, vision_width=32, text_width=16, seed=3).eval()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in ancestor.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
        ancestor.vision_model.pre_layrnorm.weight.fill_(1.0)
    return Sources(ancestor, turned_ancestor(ancestor, [inputs()]))


def weight(model, layer, name="mlp.fc1.weight"):
    return model.get_parameter(f"vision_model.encoder.layers.{layer}.{name}")


def test_weight_selection_takes_the_first_layers_and_evenly_spaced_indices(sources):
    small = INITIALISERS["weight selection"](sources, 2, 16, 0)
    rows, columns = torch.linspace(0, 127, 64).round().long(), torch.linspace(0, 31, 16).round().long()
    for layer in range(2):
        torch.testing.assert_close(weight(small, layer), weight(sources.ancestor, layer)[rows][:, columns])
    torch.testing.assert_close(small.logit_scale, sources.ancestor.logit_scale)


def test_inheritance_takes_every_second_layer_and_leading_slices(sources):
    small = INITIALISERS["TinyCLIP inheritance"](sources, 2, 16, 0)
    for layer in range(2):
        torch.testing.assert_close(weight(small, layer), weight(sources.ancestor, 2 * layer)[:64, :16])


def test_inheriting_everything_gives_the_ancestor_turned_or_not(sources):
    with torch.no_grad():
        wanted = sources.ancestor(**inputs())
        for name in ("weight selection", "TinyCLIP inheritance", "rotated inheritance"):
            found = INITIALISERS[name](sources, 4, 32, 0).eval()(**inputs())
            torch.testing.assert_close(found.image_embeds, wanted.image_embeds, rtol=0, atol=1e-4)
            torch.testing.assert_close(found.text_embeds, wanted.text_embeds, rtol=0, atol=1e-4)


def test_scratch_depends_on_the_seed_alone(sources):
    first, again, other = (INITIALISERS["scratch"](sources, 2, 16, seed) for seed in (0, 0, 1))
    assert torch.equal(weight(first, 0), weight(again, 0))
    assert not torch.equal(weight(first, 0), weight(other, 0))


@pytest.mark.parametrize(
    ("depth", "stages"), [(6, [0, 0, 1, 1, 2, 2]), (3, [0, 1, 2]), (4, [0, 0, 1, 2]), (2, [0, 1])]
)
def test_layers_of_one_stage_share_a_block(sources, depth, stages):
    config = gene_config(sources.ancestor, num_multimodal_blocks=0, num_unimodal_blocks=3, mixing="chebyshev")
    gene = StageWiseModel(config)
    with torch.no_grad():
        for parameter in gene.parameters():
            parameter.normal_()
    model = gene.descendant(depth=depth)
    block = dict(gene.vision_blocks.named_parameters())
    for layer, stage in enumerate(stages):
        torch.testing.assert_close(weight(model, layer), block["mlp.fc1.weight"][stage])


def test_the_report_is_what_the_results_say():
    text, rows = report.render(report.read, json.loads(report.ZOO.read_text()))
    assert text == report.README.read_text()
    assert json.loads(json.dumps(rows)) == report.read("summary.json")
    assert "{{" not in text
    for picture in ("curves", "maps", "storage"):
        assert (report.RESULTS / f"initialisation_{picture}.png").stat().st_size > 10_000


def test_the_flops_of_muon_are_those_that_torch_counts():
    config = gene_config(pico_clip(), num_multimodal_blocks=1, num_unimodal_blocks=2, mixing="linear")
    stacks = [p for blocks in LearngeneModel(config).block_groups().values() for p in blocks.parameters()]
    matrices = [torch.nn.Parameter(block) for stack in stacks if stack.dim() == 3 for block in stack.detach()]
    for matrix in matrices:
        matrix.grad = torch.ones_like(matrix)
    muon = torch.optim.Muon(matrices)
    with FlopCounterMode(display=False) as counter:
        muon.step()
    assert muon_gflops(config) == pytest.approx(counter.get_total_flops() / 1e9, rel=1e-12)
