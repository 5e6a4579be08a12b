"""The cost model of an extraction: its FLOPs are those that torch counts, its fit finds prices that are known."""

from pathlib import Path

import pytest
import torch
from pico import pico_clip
from pico_genes import gene_config

from benchmarks.family.cost import extraction_gflops
from benchmarks.speed import cost
from mmlg_hf import LearngeneModel
from mmlg_hf.inspection import measure_size


@pytest.mark.parametrize("sizes", [{}, {"vision_depth": 3, "text_width": 16, "projection_dim": 8}], ids=str)
def test_the_flops_of_a_forward_are_those_that_torch_counts(sizes):
    config = pico_clip(**sizes).config
    counted = measure_size(config)
    assert cost.forward_gflops(config) == pytest.approx(counted.gflops_image + counted.gflops_text, rel=1e-9)


def test_the_flops_of_a_pair_are_those_that_the_study_of_the_family_counts():
    config = gene_config(vision_depth=1, text_depth=1)
    own = cost.forward_gflops(config.descendant_config())
    assert cost.pair_gflops(config) == pytest.approx(extraction_gflops(config, own), rel=1e-9)
    assert cost.pair_gflops(config, ancestor=False) == pytest.approx(cost.pair_gflops(config) - own)


def test_a_ring_sends_nearly_twice_the_gradients():
    assert cost.network_bytes(1000, 1) == 0
    assert cost.network_bytes(1000, 2) == 4000
    assert cost.network_bytes(1000, 8) == 7000


def test_prices_are_found_again_from_what_they_make():
    prices = cost.Prices(gflops=0.02, parameters=0.003, layers=0.001)
    generator = torch.Generator().manual_seed(0)
    works = [
        dict(zip(("gflops", "parameters", "layers"), torch.rand(3, generator=generator).tolist(), strict=True))
        for _ in range(5)
    ]
    found = cost.fit([work | {"seconds": prices.seconds(work)} for work in works])
    for name in ("gflops", "parameters", "layers"):
        assert getattr(found, name) == pytest.approx(getattr(prices, name))


@pytest.mark.slow
def test_a_small_extraction_says_what_its_step_is_made_of(monkeypatch):
    monkeypatch.setattr(cost, "STEPS", 3)
    monkeypatch.setattr(cost, "WARM", 1)
    run = cost.small_extraction(2, 64, 2)
    assert run["seconds"] > 0
    assert run["layers"] == 4
    assert run["gflops"] > 0


def test_the_work_of_a_step_grows_with_the_batch_by_what_a_pair_takes():
    gene = LearngeneModel(gene_config(vision_depth=2, text_depth=2))
    few, many = (cost.step_work(gene, batch) for batch in (1000, 3000))
    assert many["gflops"] - few["gflops"] == pytest.approx(2000 * cost.pair_gflops(gene.config), abs=2e-3)
    assert many["parameters"] == few["parameters"]


def test_the_docs_say_what_the_cost_model_predicts():
    page = Path(__file__).parent.parent.joinpath("docs", "scale.md").read_text(encoding="utf-8")
    config = cost.large_config()
    assert cost.predictions() in page
    assert f"{cost.pair_gflops(config):.0f} gigaflops a pair ({cost.pair_gflops(config, ancestor=False):.0f}" in page
    assert f"{cost.muon_gflops(config):.0f} a step" in page
    assert f"{cost.READ} photos of 640 px" in page
    with torch.device("meta"):
        assert LearngeneModel(config).num_parameters() == cost.PARAMETERS
