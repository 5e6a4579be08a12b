"""Every family: the gene is its ancestor, its descendants are the gene, and what is no family is refused by name."""

import json

import pytest
import torch
from pico import pico_pairs, pico_processor
from pico_families import FAMILIES, family_inputs, make_hostile, pico_ancestor
from torch.nn import functional as F
from transformers import AutoModel, AutoModelForZeroShotImageClassification, MetaClip2TextModel

import mmlg_hf.modeling_learngene as modeling
from mmlg_hf import (
    ExtractionArguments,
    LearngeneConfig,
    LearngeneModel,
    evaluate_retrieval,
    extract_learngene,
    from_learngene,
    load_learngene,
)
from mmlg_hf.data.identity import fingerprint_gene
from mmlg_hf.errors import LearngeneError
from mmlg_hf.extraction.ancestors import ancestor_outputs, copy_outer_weights, gene_config, load_ancestor
from mmlg_hf.extraction.fitting import fit_gene
from mmlg_hf.extraction.trainer import ExtractionTrainer
from mmlg_hf.inspection import learngene_parameters, measure_size

SIZES = {
    "alike": {"vision_depth": 2, "text_depth": 2, "vision_width": 32, "text_width": 32},
    "unlike": {"vision_depth": 3, "text_depth": 2, "vision_width": 32, "text_width": 16},
}


def fitted_gene(ancestor, *, blocks=(1, 2), **changes):
    """A gene with as many blocks as layers, which can be what its ancestor is."""
    config = gene_config(ancestor, num_multimodal_blocks=blocks[0], num_unimodal_blocks=blocks[1], mixing="learned")
    gene = LearngeneModel(LearngeneConfig(**{**config.to_dict(), **changes})).eval()
    copy_outer_weights(gene, ancestor)
    fit_gene(gene, ancestor)
    return gene


@pytest.fixture(scope="module", params=[(family, sizes) for family in FAMILIES for sizes in SIZES], ids="-".join)
def kin(request):
    """The family, an ancestor with hostile statistics, and the gene fitted to it."""
    family, sizes = request.param
    ancestor = make_hostile(pico_ancestor(family, **SIZES[sizes]))
    return family, ancestor, fitted_gene(ancestor, blocks=(1, 3))


def outputs(model, inputs):
    with torch.no_grad():
        return model(**inputs)


def embeds(output):
    return output.image_embeds, output.text_embeds


def close(own, theirs, atol):
    for one, other in zip(own, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=atol)


# --- the gene is its ancestor ----------------------------------------------------------------------------------------


def test_a_full_size_descendant_computes_what_the_ancestor_does(kin):
    family, ancestor, gene = kin
    grown = gene.descendant()
    assert type(grown) is type(ancestor)
    inputs = family_inputs(family)
    own, theirs = outputs(grown, inputs), outputs(ancestor, inputs)
    close(embeds(own), embeds(theirs), 1e-4)
    torch.testing.assert_close(own.logits_per_image, theirs.logits_per_image, rtol=1e-4, atol=1e-4)


def test_a_full_size_descendant_computes_what_the_gene_does(kin):
    family, _, gene = kin
    inputs = family_inputs(family)
    grown = gene.descendant()
    close(embeds(outputs(grown, inputs)), embeds(outputs(gene, inputs)), 1e-5)
    with torch.no_grad():
        text = {name: tensor for name, tensor in inputs.items() if name != "pixel_values"}
        pairs = [
            (model.get_image_features(inputs["pixel_values"]), model.get_text_features(**text))
            for model in (grown, gene)
        ]
    close(*[[side.pooler_output for side in pair] for pair in pairs], 1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_gene_with_scales_starts_as_one_without_and_computes_what_its_descendants_do(family):
    ancestor, inputs = pico_ancestor(family, **SIZES["alike"]), family_inputs(family)
    plain, scaled = fitted_gene(ancestor), fitted_gene(ancestor, weight_scales=True)
    close(embeds(outputs(scaled, inputs)), embeds(outputs(plain, inputs)), 0)
    with torch.no_grad():
        for name, parameter in scaled.named_parameters():
            if "_scales." in name:
                parameter.mul_(torch.linspace(0.5, 1.5, parameter.numel()).view_as(parameter))
    for size in ({}, {"depth": 3, "width": 16}):
        with torch.no_grad():
            own = scaled(**inputs, **size)
        close(embeds(outputs(scaled.descendant(**size), inputs)), embeds(own), 1e-5)
    assert not torch.allclose(outputs(scaled, inputs).image_embeds, outputs(plain, inputs).image_embeds, atol=1e-3)


@pytest.mark.parametrize("modality", ["image", "text"])
def test_a_descendant_of_one_modality_embeds_as_the_ancestor_does(kin, modality):
    family, ancestor, gene = kin
    inputs = family_inputs(family)
    pixels = inputs.pop("pixel_values")
    grown = gene.descendant(modality=modality)
    with torch.no_grad():
        if modality == "image":
            own, theirs = grown(pixels), ancestor.get_image_features(pixels).pooler_output
        else:
            own, theirs = grown(**inputs), ancestor.get_text_features(**inputs).pooler_output
    own = own.pooler_output if family == "siglip" else getattr(own, f"{modality}_embeds")
    torch.testing.assert_close(own, theirs, rtol=1e-4, atol=1e-4)


def test_the_loss_and_its_gradients_are_those_of_the_descendant(kin):
    family, _, gene = kin
    inputs = {**family_inputs(family), "return_loss": True}
    grown = gene.descendant().requires_grad_(True)
    gene.zero_grad()
    own, theirs = gene(**inputs).loss, grown(**inputs).loss
    torch.testing.assert_close(own, theirs, rtol=1e-5, atol=1e-5)
    own.backward()
    theirs.backward()
    name = "text_model.final_layer_norm.weight"
    torch.testing.assert_close(gene.get_parameter(name).grad, grown.get_parameter(name).grad, rtol=1e-3, atol=1e-6)
    assert all(parameter.grad is not None for name, parameter in gene.named_parameters())


# --- descendants of other sizes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("depth", "width"), [(1, 16), (3, (24, 16)), ((2, 1), (16, 8))])
def test_running_as_another_size_is_growing_it(kin, depth, width):
    family, _, gene = kin
    inputs = family_inputs(family)
    grown = gene.descendant(depth, width)
    close(embeds(outputs(gene, {**inputs, "depth": depth, "width": width})), embeds(outputs(grown, inputs)), 1e-5)


@pytest.mark.parametrize("modality", ["image", "text"])
def test_classifiers_grow_where_the_family_has_them(kin, modality):
    family, _, gene = kin
    if modality == "text" and family != "clip":
        with pytest.raises(LearngeneError, match="has no text classifier"):
            gene.descendant(1, 16, "text", num_labels=3)
        return
    grown = gene.descendant(1, 16, modality, num_labels=3)
    inputs = family_inputs(family)
    pixels = inputs.pop("pixel_values")
    given = {"pixel_values": pixels} if modality == "image" else inputs
    assert outputs(grown, given).logits.shape == (3, 3)


def test_a_siglip_of_half_the_width_has_half_the_embedding_in_its_leading_components():
    ancestor = make_hostile(pico_ancestor("siglip"))
    gene = fitted_gene(ancestor)
    grown, inputs = gene.descendant(width=16), family_inputs("siglip")
    assert grown.config.text_config.projection_size == 16
    assert outputs(grown, inputs).text_embeds.shape == outputs(grown, inputs).image_embeds.shape == (3, 16)
    assert torch.equal(grown.text_model.head.weight, ancestor.text_model.head.weight[:16, :16])
    assert torch.equal(grown.text_model.head.bias, ancestor.text_model.head.bias[:16])
    # Queries, keys and values lie one after another, each head by head: the first two of four heads of each are kept.
    own, theirs = grown.vision_model.head.attention, ancestor.vision_model.head.attention
    for part in range(3):
        kept = theirs.in_proj_weight[32 * part : 32 * part + 16, :16]
        assert torch.equal(own.in_proj_weight[16 * part : 16 * part + 16], kept)
        assert torch.equal(own.in_proj_bias[16 * part : 16 * part + 16], theirs.in_proj_bias[32 * part :][:16])
    assert torch.equal(own.out_proj.weight, theirs.out_proj.weight[:16, :16])
    assert own.num_heads == 2


def test_a_siglip_text_encoder_alone_keeps_the_size_of_the_genes_embedding():
    gene = fitted_gene(make_hostile(pico_ancestor("siglip")))
    assert gene.descendant(1, 16, "text").head.out_features == 32


def test_slices_of_a_turned_siglip_scale_the_norms_outside_the_layers_too():
    gene = fitted_gene(make_hostile(pico_ancestor("siglip")), scale_norms=["image"])
    grown = gene.descendant(width=16)
    for name in ("post_layernorm", "head.layernorm"):
        own, whole = (model.vision_model.get_submodule(name).weight for model in (grown, gene))
        torch.testing.assert_close(own, whole[:16] * 2**0.5)
    assert torch.equal(grown.text_model.final_layer_norm.weight, gene.text_model.final_layer_norm.weight[:16])


# --- the end token ---------------------------------------------------------------------------------------------------


def test_metaclip_2_reads_the_first_end_token_where_clip_reads_the_largest():
    ancestor = pico_ancestor("metaclip_2")
    ancestor.config.text_config.eos_token_id = ancestor.text_model.eos_token_id = 2
    gene = fitted_gene(make_hostile(ancestor))
    tokens = torch.tensor([[5, 9, 2, 300, 2, 1], [7, 8, 200, 4, 2, 1]])  # the largest is no end token
    with torch.no_grad():
        theirs = ancestor.get_text_features(tokens).pooler_output
        torch.testing.assert_close(gene.get_text_features(tokens).pooler_output, theirs, rtol=1e-4, atol=1e-4)
        grown = gene.descendant(modality="text")
        assert isinstance(grown.text_model, MetaClip2TextModel)
        torch.testing.assert_close(grown(tokens).text_embeds, theirs, rtol=1e-4, atol=1e-4)
        states = gene.text_model(tokens, layer_weights={"text": gene.layer_weights("text")})
    assert torch.equal(states.pooler_output, states.last_hidden_state[[0, 1], [2, 4]])


# --- saving and loading ----------------------------------------------------------------------------------------------


def test_a_saved_gene_is_loaded_as_its_familys_class_by_every_way_in(kin, tmp_path):
    family, _, gene = kin
    gene.save_pretrained(tmp_path)
    inputs = family_inputs(family)
    expected = outputs(gene, inputs).logits_per_image
    ways = (LearngeneModel.from_pretrained, load_learngene, AutoModel.from_pretrained)
    for load in (*ways, AutoModelForZeroShotImageClassification.from_pretrained):
        loaded = load(tmp_path)
        assert type(loaded) is type(gene)
        assert loaded.config.family == family
        torch.testing.assert_close(outputs(loaded, inputs).logits_per_image, expected, rtol=0, atol=1e-5)
    grown = from_learngene(tmp_path, 1, 16)
    assert type(grown).__name__ == gene.config.kin.descendants["multimodal", False]


@pytest.mark.parametrize("modality", ["image", "text"])
def test_one_side_of_a_gene_is_enough_for_its_descendants(kin, tmp_path, modality):
    _, _, gene = kin
    gene.save_pretrained(tmp_path)
    own, whole = (
        load_learngene(tmp_path, modality=modality).descendant(1, 16, modality),
        gene.descendant(1, 16, modality),
    )
    for name, tensor in whole.state_dict().items():
        assert torch.equal(own.state_dict()[name], tensor), name


def test_a_descendant_is_saved_and_loaded_as_a_stock_model(kin, tmp_path):
    family, _, gene = kin
    grown = gene.descendant(1, 16)
    grown.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert type(loaded) is type(grown)
    inputs = family_inputs(family)
    torch.testing.assert_close(outputs(loaded, inputs).logits_per_text, outputs(grown, inputs).logits_per_text)


def test_a_factored_token_table_serves_every_family(kin):
    family, ancestor, _ = kin
    gene = fitted_gene(ancestor, token_embedding_rank=5)
    table = gene.text_model.embeddings
    whole = table.token_embedding.weight @ table.token_projection.weight.T
    torch.testing.assert_close(gene.descendant().text_model.embeddings.token_embedding.weight, whole)
    inputs = family_inputs(family)
    close(embeds(outputs(gene.descendant(), inputs)), embeds(outputs(gene, inputs)), 1e-5)


def test_sizes_are_measured_by_the_familys_classes(kin):
    _, ancestor, gene = kin
    assert learngene_parameters(gene.config) == gene.num_parameters()
    for modality in ("multimodal", "image", "text"):
        size = measure_size(gene.config.descendant_config(modality=modality), modality)
        assert size.parameters == gene.descendant(modality=modality).num_parameters()
    assert measure_size(ancestor.config).parameters == ancestor.num_parameters()


# --- encoders that cannot share all ----------------------------------------------------------------------------------


def unequal(family):
    """An ancestor whose encoders have heads of 8 and of 4 channels, and MLPs of 4 and of 2 times the width."""
    ancestor = pico_ancestor(family, vision_width=32, text_width=16)
    config = ancestor.config
    config.text_config.num_attention_heads, config.text_config.intermediate_size = 4, 32
    torch.manual_seed(0)
    return make_hostile(type(ancestor)(config))


@pytest.mark.parametrize("family", FAMILIES)
def test_encoders_with_unlike_heads_and_mlps_share_their_norms_and_have_the_rest_alone(family):
    ancestor = unequal(family)
    gene = fitted_gene(ancestor)
    assert {name.split(".")[0] for name, _ in gene.multimodal_blocks.named_parameters()} == {
        "layer_norm1",
        "layer_norm2",
    }
    assert gene.text_blocks.self_attn.q_proj.weight.shape == (3, 16, 16)  # one in place of the shared block
    assert gene.text_blocks.layer_norm1.weight.shape == (2, 16)
    inputs = family_inputs(family)
    grown = gene.descendant()
    close(embeds(outputs(grown, inputs)), embeds(outputs(ancestor, inputs)), 1e-4)
    close(embeds(outputs(grown, inputs)), embeds(outputs(gene, inputs)), 1e-5)
    close(
        embeds(outputs(gene, {**inputs, "depth": 1, "width": 16})),
        embeds(outputs(gene.descendant(1, 16), inputs)),
        1e-5,
    )


def test_unlike_heads_alone_leave_the_mlp_shared_also_without_blocks_of_their_own():
    ancestor = pico_ancestor()
    ancestor.config.text_config.num_attention_heads = 8
    ancestor = make_hostile(type(ancestor)(ancestor.config))
    gene = fitted_gene(ancestor, blocks=(2, 0))
    assert "mlp.fc1.weight" in dict(gene.multimodal_blocks.named_parameters())
    assert {name.split(".")[0] for name, _ in gene.vision_blocks.named_parameters()} == {"self_attn"}
    close(
        embeds(outputs(gene.descendant(), family_inputs("clip"))), embeds(outputs(gene, family_inputs("clip"))), 1e-5
    )


def test_what_the_encoders_cannot_share_is_said_in_one_sentence(monkeypatch):
    said = []
    monkeypatch.setattr(modeling.logger, "warning_once", said.append)
    gene = fitted_gene(unequal("clip"))
    assert set(said) == {gene.config.explain_unshared()}
    assert "attention (heads of 8 and 4 channels) and MLP (ratios to the width of 4 and 2)" in said[0]
    assert fitted_gene(pico_ancestor()).config.explain_unshared() is None


# --- what is refused -------------------------------------------------------------------------------------------------


def test_a_family_that_is_not_there_is_refused_with_those_that_are():
    with pytest.raises(
        LearngeneError, match="family is 'dinov3': it takes one of 'clip', 'metaclip_2', 'siglip', 'vit'"
    ):
        LearngeneConfig(family="dinov3")


def test_a_siglip_text_embedding_of_another_size_is_refused():
    fields = gene_config(pico_ancestor("siglip"), num_multimodal_blocks=1, num_unimodal_blocks=1, mixing="linear")
    text = {**fields.text_config.to_dict(), "projection_size": 24}
    with pytest.raises(LearngeneError, match="projection_size of text_config is 24: .* 32"):
        LearngeneConfig(**{**fields.to_dict(), "text_config": text})


@pytest.mark.parametrize(
    ("model_type", "architecture", "reason"),
    [
        ("siglip2", "Siglip2Model", "its NaFlex patches have no fixed resolution"),
        ("chinese_clip", "ChineseCLIPModel", "its text encoder is a BERT"),
        ("altclip", "AltCLIPModel", "its text encoder is an XLM-R"),
        ("dinov3_vit", "DINOv3ViTModel", "rotary positions"),
        ("dinov2", "Dinov2Model", "SwiGLU"),
        ("bert", "BertModel", "which no gene comes from"),
    ],
)
def test_an_ancestor_of_no_family_is_refused_by_name_with_the_reason_and_those_that_are(
    tmp_path, model_type, architecture, reason
):
    config = {"model_type": model_type, "architectures": [architecture], "use_swiglu_ffn": model_type == "dinov2"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(LearngeneError) as caught:
        load_ancestor(tmp_path)
    for part in (architecture, reason, "CLIPModel, MetaClip2Model, SiglipModel", "ViTForImageClassification"):
        assert part in str(caught.value)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_ancestor_is_taken_from_a_folder_also_where_its_config_names_no_class(tmp_path, family):
    ancestor = pico_ancestor(family)
    ancestor.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["architectures"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert type(load_ancestor(tmp_path)) is type(load_ancestor(ancestor)) is type(ancestor)


# --- extraction ------------------------------------------------------------------------------------------------------


def extract(folder, family, **changes):
    settings = {"max_steps": 3, "per_device_train_batch_size": 8, "report_to": "none", "disable_tqdm": True}
    args = ExtractionArguments(str(folder), **{**settings, "use_cpu": True, "logging_steps": 1, **changes})
    return extract_learngene(pico_ancestor(family), pico_pairs(16), args, processor=pico_processor())


@pytest.mark.parametrize("family", ["metaclip_2", "siglip"])
def test_a_gene_is_extracted_from_every_family(tmp_path, family):
    gene = extract(tmp_path, family, affinity_weight=1.0, feature_weight=1.0)
    assert {"loss_feature", "loss_feature_smaller", "loss_affinity"} <= set(gene.config.recipe["final_losses"])
    assert gene.config.ancestor["class"] == type(pico_ancestor(family)).__name__
    loaded = load_learngene(tmp_path)
    assert type(loaded) is type(gene)
    assert type(from_learngene(tmp_path, 1, 16)) is type(pico_ancestor(family))
    for name in gene.config.kin.whole:
        assert torch.equal(getattr(gene, name), getattr(pico_ancestor(family), name))


def test_a_narrower_siglip_is_compared_with_the_leading_part_of_its_ancestors_embedding(tmp_path):
    ancestor, inputs = make_hostile(pico_ancestor("siglip")), family_inputs("siglip")
    gene = fitted_gene(ancestor)
    args = ExtractionArguments(str(tmp_path), use_cpu=True, report_to="none", feature_weight=1.0, affinity_weight=0.0)
    trainer = ExtractionTrainer(gene, args, ancestor=ancestor)
    smaller = outputs(gene, {**inputs, "width": 16})
    targets = ancestor_outputs(ancestor, inputs)
    found = trainer._losses(gene, smaller, targets)["feature"]
    wanted = [
        2 - 2 * F.cosine_similarity(own, theirs[:, :16]).mean()
        for own, theirs in zip(embeds(smaller), targets.values(), strict=True)
    ]
    torch.testing.assert_close(found, sum(wanted) / 2, rtol=1e-5, atol=1e-6)


def test_genes_of_two_families_with_the_same_tensors_are_told_apart():
    fields = gene_config(pico_ancestor(), num_multimodal_blocks=1, num_unimodal_blocks=1, mixing="linear").to_dict()
    clip = LearngeneModel(LearngeneConfig(**fields))
    other = LearngeneModel(LearngeneConfig(**{**fields, "family": "metaclip_2"}))
    other.load_state_dict(clip.state_dict())
    assert fingerprint_gene(clip) != fingerprint_gene(other)


@pytest.mark.parametrize("family", ["metaclip_2", "siglip"])
def test_a_gene_is_evaluated_as_its_full_size_descendant_is(family):
    gene = fitted_gene(make_hostile(pico_ancestor(family)))
    processor, pairs = pico_processor(), pico_pairs(8)
    own, grown = (evaluate_retrieval(model, pairs, processor=processor) for model in (gene, gene.descendant()))
    for name, value in grown.items():
        if "per_second" not in name and "seconds" not in name:
            assert own[name] == pytest.approx(value, abs=1e-4), name
