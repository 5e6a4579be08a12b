"""Growing writes each weight once, and gives to the last bit what was summed, cut and copied before."""

import copy

import pytest
import torch
from pico_genes import MIXINGS, multimodal_gene
from transformers import CLIPConfig, CLIPModel

from mmlg_hf import LearngeneError, from_learngene, growth
from mmlg_hf.expansion import LAYER_AXES, fill_layers, interpolate_coefficients, slice_norm_scale
from mmlg_hf.families import FAMILIES
from mmlg_hf.modeling_learngene import LearngeneModel

MODALITIES = ("multimodal", "image", "text")
SIZES = ((None, None), (5, 16), (1, 24))


def sides_of(descendant):
    """The configs of a descendant's encoders, by the first word of their weights' names."""
    config = descendant.config
    if isinstance(config, CLIPConfig):
        both = {"vision": config.vision_config, "text": config.text_config}
        return {side: both[side] for side in both if hasattr(descendant, f"{side}_model")}
    return {"text" if hasattr(descendant, "text_model") else "vision": config}


def summed_whole(gene, descendant):
    """A descendant's weights as they were once computed: stacks of whole layers, and copies of their slices."""
    own = {name: tensor.float() for name, tensor in gene.named_parameters()}
    weights = {}
    for side, config in sides_of(descendant).items():
        sizes = {"hidden": config.hidden_size, "mlp": config.intermediate_size, None: None}
        modality = "image" if side == "vision" else "text"
        coefficients = gene.float().coefficients(modality, config.num_hidden_layers)
        own_width = gene.config.encoder_configs[modality].hidden_size
        scale = slice_norm_scale(config.hidden_size, own_width) if gene.config.scales_norms(modality) else 1
        for name, axes in LAYER_AXES.items():
            leading = (slice(None), *(slice(sizes[axis]) for axis in axes))
            groups = [own.get(f"{group}_blocks.{name}") for group in ("multimodal", side)]
            blocks = torch.cat([group[leading] for group in groups if group is not None])
            mixing = coefficients if isinstance(coefficients, torch.Tensor) else coefficients[name]
            layers = (mixing @ blocks.flatten(1)).unflatten(1, blocks.shape[1:])
            layers = layers * scale if scale != 1 and "layer_norm" in name and "weight" in name else layers
            if gene.config.weight_scales and len(axes) == 2:
                for factors, axis in zip(("rows", "columns"), axes, strict=True):
                    known = own[f"{side}_scales.{name.removesuffix('.weight')}.{factors}"]
                    read = interpolate_coefficients(known, config.num_hidden_layers)[:, : sizes[axis]]
                    layers = layers * (read[:, :, None] if factors == "rows" else read[:, None, :])
            weights |= {f"{side}_model.encoder.layers.{index}.{name}": layer for index, layer in enumerate(layers)}
        for name, axes in (
            FAMILIES["clip"].outer["image"] if side == "vision" else FAMILIES["clip"].outer["text"]
        ).items():
            if name not in own or (type(descendant).__name__.endswith("Classification") and "projection" in name):
                continue
            weight = own[name]
            if name.endswith("token_embedding.weight") and gene.config.token_embedding_rank:
                weight = weight @ own["text_model.embeddings.token_projection.weight"][: sizes["hidden"]].T
            weights[name] = weight[tuple(slice(sizes[axis]) for axis in axes)]
    if len(sides_of(descendant)) == 2:
        weights["logit_scale"] = own["logit_scale"]
    return {name: weight.detach().clone() for name, weight in weights.items()}


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("modality", MODALITIES)
@pytest.mark.parametrize("mixing", MIXINGS)
def test_grown_weights_are_to_the_last_bit_those_summed_whole_and_copied(mixing, modality, size):
    gene = multimodal_gene(vision_width=32, text_width=32, **MIXINGS[mixing])
    descendant = gene.descendant(*size, modality)
    expected, grown = summed_whole(gene, descendant), descendant.state_dict()
    assert expected.keys() == grown.keys()
    assert not [name for name, weight in expected.items() if not torch.equal(grown[name], weight)]


@pytest.mark.parametrize("scales", [False, True])
def test_sums_taken_some_rows_at_a_time_are_to_the_last_bit_those_of_the_whole(monkeypatch, scales):
    gene = multimodal_gene(vision_depth=5, weight_scales=scales)
    whole = gene.descendant().state_dict()
    monkeypatch.setitem(fill_layers.__wrapped__.__globals__, "WRITTEN_AT_ONCE", 1000)
    parts = gene.descendant().state_dict()
    assert all(torch.equal(parts[name], weight) for name, weight in whole.items())


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("mixing", ["shared-slope", "learned", "factored tokens", "scales"])
def test_weights_are_summed_in_float32_or_finer_whatever_the_gene_is_stored_in(mixing, stored):
    gene = multimodal_gene(vision_width=32, text_width=32, **MIXINGS[mixing]).to(stored)
    grown = gene.descendant(5, 16)
    assert next(gene.parameters()).dtype == stored
    expected = summed_whole(copy.deepcopy(gene), grown)
    for name, weight in grown.state_dict().items():
        torch.testing.assert_close(weight, expected[name], rtol=2e-7 if stored != torch.float64 else 2e-6, atol=1e-6)
    half = gene.descendant(5, 16, dtype=torch.bfloat16).state_dict()
    assert all(torch.equal(half[name], weight.bfloat16()) for name, weight in grown.state_dict().items())


KINDS = [("multimodal", None), ("image", None), ("text", None), ("image", 3), ("text", 3)]


@pytest.mark.parametrize(("modality", "labels"), KINDS)
def test_a_grown_model_differs_in_nothing_from_one_that_transformers_loads(modality, labels):
    gene = multimodal_gene()
    torch.manual_seed(0)
    grown = gene.descendant(2, 16, modality, num_labels=labels)
    state = summed_whole(gene, grown)
    config = copy.deepcopy(grown.config)
    config.dtype = None
    torch.manual_seed(0)
    stock = type(grown).from_pretrained(None, config=config, state_dict=state, dtype=torch.float32)
    # Set after loading, by `descendant` itself.
    ours = {"accepts_loss_kwargs", "grown_from", "save_pretrained", "_use_kernels"}
    assert grown.__dict__.keys() | ours == stock.__dict__.keys() | ours
    for name, value in stock.__dict__.items():
        if name in ("training", "all_tied_weights_keys", "_weight_conversions", "_is_hf_initialized", "loss_type"):
            assert grown.__dict__[name] == value, name
    stock.config._name_or_path = ""  # of from_pretrained(None) it is "None"
    assert grown.config.to_dict() == stock.config.to_dict()
    assert grown.config.dtype == stock.config.dtype == torch.float32
    assert [name for name, _ in grown.named_parameters()] == [name for name, _ in stock.named_parameters()]
    for (name, mine), theirs in zip(grown.named_parameters(), stock.parameters(), strict=True):
        assert torch.equal(mine, theirs), name
        assert mine.requires_grad
        assert mine.__dict__ == theirs.__dict__, name
    for (name, mine), theirs in zip(grown.named_buffers(), stock.buffers(), strict=True):
        assert torch.equal(mine, theirs), name
        assert mine.dtype == theirs.dtype
    modules = zip(grown.modules(), stock.modules(), strict=True)
    assert all(mine.training == theirs.training for mine, theirs in modules)


def test_growing_multiplies_out_no_more_of_the_token_table_than_is_kept(monkeypatch):
    gene, seen = multimodal_gene(**MIXINGS["factored tokens"]), []
    join = growth.join_table
    monkeypatch.setattr(growth, "join_table", lambda *given: seen.append(join(*given)) or seen[-1])
    gene.descendant(1, (16, 8), "text")
    assert [table.shape[1] for table in seen] == [8]


def test_growing_copies_no_gene_and_loads_no_model(monkeypatch):
    gene = multimodal_gene().half()

    def refuse(*args, **kwargs):
        raise AssertionError("called")

    monkeypatch.setattr(CLIPModel, "from_pretrained", refuse)
    monkeypatch.setattr(LearngeneModel, "__deepcopy__", refuse, raising=False)
    assert gene.descendant(1, 16).dtype == torch.float32


def test_growing_under_autocast_sums_in_float32():
    gene = multimodal_gene(**MIXINGS["factored tokens"])
    plain = gene.descendant(2, 16).state_dict()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = gene.descendant(2, 16).state_dict()
    assert all(torch.equal(mixed[name], weight) for name, weight in plain.items())


def test_a_device_map_or_a_default_device_is_followed_as_by_from_pretrained():
    gene = multimodal_gene()
    plain = gene.descendant(2, 16)
    mapped = gene.descendant(2, 16, device_map="cpu")
    assert all(torch.equal(mapped.state_dict()[name], weight) for name, weight in plain.state_dict().items())
    with pytest.raises(LearngeneError, match="no CLIPModel can be built so"):
        gene.descendant(2, 16, device_map="nowhere")
    with torch.device("meta"), pytest.raises(LearngeneError, match="no CLIPModel can be built so"):
        gene.descendant(2, 16)


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("modality", MODALITIES)
def test_growing_from_a_folder_copies_nothing_of_the_gene_and_equals_growing_in_memory(
    modality, stored, tmp_path, monkeypatch
):
    gene = multimodal_gene(**MIXINGS["factored tokens"]).to(stored)
    gene.save_pretrained(tmp_path)
    expected = gene.descendant(2, 16, modality)
    opened = []
    grow = LearngeneModel.descendant
    monkeypatch.setattr(
        LearngeneModel, "descendant", lambda self, *a, **kw: opened.append(self) or grow(self, *a, **kw)
    )
    grown = from_learngene(tmp_path, 2, 16, modality)
    assert grown.dtype == torch.float32
    assert grown.config.to_dict()["learngene"] | {"learngene": None} == expected.config.to_dict()["learngene"]
    for name, weight in expected.state_dict().items():
        assert torch.equal(grown.state_dict()[name], weight), name
    there = [weight for weight in opened[0].parameters() if not weight.is_meta]
    assert {weight.dtype for weight in there} == {stored}
    assert from_learngene(gene, dtype="auto").dtype == stored


def test_a_gene_whose_sum_alone_overflows_is_taken_for_finite(tmp_path):
    gene = multimodal_gene()
    with torch.no_grad():
        gene.visual_projection.weight.fill_(3e38)
    gene.save_pretrained(tmp_path)
    assert from_learngene(tmp_path, 1, 16, "image").visual_projection.weight.max() > 2e38
