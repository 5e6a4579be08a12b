"""save_as_deltas() and load_from_deltas(): a mixture as a gene plus differences."""

import json

import pytest
import torch
from moe_parts import perturbed_mlps

from mmlg_hf import LearngeneConfig, LearngeneModel
from mmlg_hf.clip_moe import load_from_deltas, save_as_deltas, upcycle
from mmlg_hf.errors import LearngeneError

SIZE = {"depth": (3, 2), "width": (24, 16)}


@pytest.fixture(scope="module")
def gene():
    """A gene of 4 x 32 image and 4 x 24 text layers."""
    from pico import pico_clip

    ancestor = pico_clip().config
    vision = {**ancestor.vision_config.to_dict(), "num_hidden_layers": 4}
    text = {**ancestor.text_config.to_dict(), "num_hidden_layers": 4, "hidden_size": 24, "intermediate_size": 96}
    text |= {"num_attention_heads": 3}
    torch.manual_seed(0)
    return LearngeneModel(LearngeneConfig(vision_config=vision, text_config=text, projection_dim=16)).eval()


@pytest.fixture
def grown(gene):
    """A descendant, two experts of it, and their mixture."""
    base = gene.descendant(**SIZE)
    return upcycle(base, [perturbed_mlps(base, seed, scale=0.02) for seed in range(2)])


def worst(one, other):
    return max((one.state_dict()[name] - tensor).abs().max().item() for name, tensor in other.state_dict().items())


def test_a_mixture_comes_back_exactly_from_float32_deltas_and_nearly_from_float16(gene, grown, tmp_path, inputs):
    save_as_deltas(grown, gene, tmp_path / "whole", **SIZE, dtype=torch.float32)
    assert worst(load_from_deltas(tmp_path / "whole"), grown) < 1e-7
    save_as_deltas(grown, gene, tmp_path / "half", **SIZE)
    loaded = load_from_deltas(tmp_path / "half")
    assert 0 < worst(loaded, grown) < 1e-4
    with torch.no_grad():
        torch.testing.assert_close(
            loaded(**inputs).logits_per_image, grown(**inputs).logits_per_image, atol=1e-2, rtol=1e-2
        )


def test_a_base_that_is_the_descendant_itself_takes_no_space(gene, grown, tmp_path):
    from safetensors.torch import load_file

    sizes = save_as_deltas(grown, gene, tmp_path / "deltas", **SIZE)
    stored = load_file(tmp_path / "deltas" / "deltas.safetensors")
    assert all(".expert_" in name or ".router." in name for name in stored)
    assert sizes["deltas"] == (tmp_path / "deltas" / "deltas.safetensors").stat().st_size
    assert sizes["deltas"] < sizes["mixture"]


def test_deltas_do_not_tell_the_folder_that_the_mixture_came_from(gene, grown, tmp_path):
    from mmlg_hf.clip_moe import CLIPMoEModel

    grown.save_pretrained(tmp_path / "mixture")
    save_as_deltas(CLIPMoEModel.from_pretrained(tmp_path / "mixture"), gene, tmp_path / "deltas", **SIZE)
    assert str(tmp_path) not in (tmp_path / "deltas" / "deltas.json").read_text()


def test_a_base_that_was_fine_tuned_comes_back_too(gene, tmp_path):
    base = gene.descendant(**SIZE)
    with torch.no_grad():
        for parameter in base.parameters():
            parameter += 0.01 * torch.randn_like(parameter)
    mixture = upcycle(base, [perturbed_mlps(base, 0)])
    save_as_deltas(mixture, gene, tmp_path / "deltas", **SIZE, dtype=torch.float32)
    assert worst(load_from_deltas(tmp_path / "deltas"), mixture) < 1e-6


def test_deltas_of_low_rank_are_kept_exactly_by_that_rank_and_take_less_space(gene, tmp_path):
    base = gene.descendant(**SIZE)
    expert = perturbed_mlps(base, 0, scale=0.0)
    with torch.no_grad():
        for name, parameter in expert.named_parameters():
            if ".mlp." in name and parameter.ndim == 2:
                parameter += 0.1 * torch.outer(torch.randn(parameter.shape[0]), torch.randn(parameter.shape[1]))
    mixture = upcycle(base, [expert])
    sizes = {}
    for rank in (1, None):
        folder = tmp_path / str(rank)
        sizes[rank] = save_as_deltas(mixture, gene, folder, **SIZE, rank=rank, dtype=torch.float32)["deltas"]
        assert worst(load_from_deltas(folder), mixture) < 1e-6
    assert sizes[1] < sizes[None] / 3


def test_an_earlier_folder_is_replaced_whole(gene, grown, tmp_path):
    save_as_deltas(grown, gene, tmp_path / "deltas", **SIZE, rank=1)
    save_as_deltas(grown, gene, tmp_path / "deltas", **SIZE, dtype=torch.float32)
    assert worst(load_from_deltas(tmp_path / "deltas"), grown) < 1e-7
    assert [path.name for path in tmp_path.iterdir()] == ["deltas"]


def test_a_gene_kept_elsewhere_is_given_at_loading(gene, grown, tmp_path):
    sizes = save_as_deltas(grown, gene, tmp_path / "deltas", **SIZE, dtype=torch.float32, with_gene=False)
    assert sorted(path.name for path in (tmp_path / "deltas").iterdir()) == ["deltas.json", "deltas.safetensors"]
    assert sizes["gene"] == 0
    assert worst(load_from_deltas(tmp_path / "deltas", gene), grown) < 1e-7
    with pytest.raises(LearngeneError, match="stored without its gene"):
        load_from_deltas(tmp_path / "deltas")


def test_another_gene_size_is_refused_and_nothing_written(gene, grown, tmp_path):
    with pytest.raises(LearngeneError, match="give the gene, depth and width"):
        save_as_deltas(grown, gene, tmp_path / "deltas", depth=(3, 2))
    with pytest.raises(LearngeneError, match="rank is 0"):
        save_as_deltas(grown, gene, tmp_path / "deltas", **SIZE, rank=0)
    assert not list(tmp_path.iterdir())


def test_damaged_folders_are_refused(gene, grown, tmp_path):
    from safetensors.torch import load_file, save_file

    with pytest.raises(LearngeneError, match=r"no deltas\.json and deltas\.safetensors"):
        load_from_deltas(tmp_path)
    save_as_deltas(grown, gene, tmp_path / "deltas", **SIZE)
    file = tmp_path / "deltas" / "deltas.safetensors"
    stored = load_file(file)
    save_file(stored | {"odd": torch.zeros(1)}, file)
    with pytest.raises(LearngeneError, match="lacks: \\['odd'\\]"):
        load_from_deltas(tmp_path / "deltas")
    router = next(name for name in stored if ".router." in name)
    save_file({name: tensor for name, tensor in stored.items() if name != router}, file)
    with pytest.raises(LearngeneError, match="store the mixture again"):
        load_from_deltas(tmp_path / "deltas")
    assert json.loads((tmp_path / "deltas" / "deltas.json").read_text())["depth"] == [3, 2]
