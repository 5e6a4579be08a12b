"""What a gene can grow: counted parameters and traced FLOPs against real models and CLIP's own arithmetic."""

import pytest
import torch
from pico import pico_clip
from pico_genes import gene_config, image_gene, multimodal_gene
from torch.utils.flop_counter import FlopCounterMode

from mmlg_hf import LearngeneError
from mmlg_hf.inspection import descendant_sizes, format_size, learngene_parameters, measure_size, vocabulary_parameters


@pytest.fixture(scope="module")
def gene():
    return multimodal_gene(ancestor={"id": "pico/ancestor", "parameters": 100_000})


def encoder_flops(config, tokens: int) -> int:
    """Twice the multiply-adds of CLIP's layers: q, k, v, out, two MLP products, scores and their sum of values."""
    width, mlp = config.hidden_size, config.intermediate_size
    one_layer = tokens * (4 * width**2 + 2 * width * mlp) + 2 * tokens**2 * width
    return 2 * config.num_hidden_layers * one_layer


@pytest.mark.parametrize("modality", ["multimodal", "image", "text"])
def test_sizes_are_those_of_the_descendant_that_is_grown(gene, modality):
    sizes = descendant_sizes(gene.config, [1, 3], [8, 16], [modality])
    assert len(sizes) == 4
    for size in sizes:
        grown = gene.descendant(size.depth, size.width, modality)
        assert size.parameters == grown.num_parameters()
        assert size.megabytes == sum(p.numel() * p.element_size() for p in grown.parameters()) / 1e6
        assert size.share == size.parameters / 100_000
        table = None if modality == "image" else grown.text_model.embeddings.token_embedding.weight
        assert size.vocabulary == (0 if table is None else table.numel())


def test_flops_are_the_products_of_clips_layers():
    config = pico_clip(vision_depth=3, text_depth=2, text_width=16).config
    size, vision, text = measure_size(config), config.vision_config, config.text_config
    patches = (vision.image_size // vision.patch_size) ** 2
    patch_products = (
        patches * vision.hidden_size * 3 * vision.patch_size**2 + vision.hidden_size * vision.projection_dim
    )
    assert size.gflops_image * 1e9 == pytest.approx(encoder_flops(vision, patches + 1) + 2 * patch_products, rel=1e-12)
    length = text.max_position_embeddings
    projection = text.hidden_size * text.projection_dim
    assert size.gflops_text * 1e9 == pytest.approx(encoder_flops(text, length) + 2 * projection, rel=1e-12)
    assert (size.depth, size.width) == ((3, 2), (32, 16))


def test_flops_without_memory_are_those_counted_on_a_real_model():
    model = pico_clip(attn_implementation="eager")
    with FlopCounterMode(display=False) as counter:
        model.get_image_features(torch.zeros(1, 3, 16, 16))
    assert measure_size(model.config).gflops_image * 1e9 == counter.get_total_flops()


def test_a_head_counts_as_many_labels_as_asked_for(gene):
    (size,) = descendant_sizes(gene.config, [2], [16], ["image"], num_labels=5)
    assert size.parameters == gene.descendant(2, 16, "image", num_labels=5).num_parameters()
    assert size.gflops_text is None


def test_measuring_leaves_the_config_as_it_was():
    config = pico_clip().config
    before = (config.to_dict(), config._attn_implementation)
    measure_size(config, "image", num_labels=7)
    assert (config.to_dict(), config._attn_implementation) == before


def test_without_sizes_thirds_of_the_genes_own_are_shown():
    sizes = descendant_sizes(gene_config(vision_depth=6, text_depth=3))
    shown = {modality: [size for size in sizes if size.modality == modality] for modality in ("multimodal", "image")}
    assert sorted({size.depth for size in shown["image"]}) == [2, 4, 6]
    assert sorted({size.width for size in shown["image"]}) == [8, 24, 32]
    assert sorted({size.depth for size in shown["multimodal"]}) == [(2, 1), (4, 2), (6, 3)]
    assert {size.width for size in shown["multimodal"]} == {(8, 8), (24, 16), (32, 16)}
    assert {size.share for size in sizes} == {None}


def test_an_image_gene_shows_image_models_with_its_own_classes():
    gene = image_gene(num_labels=4)
    sizes = descendant_sizes(gene.config)
    assert {size.modality for size in sizes} == {"image"}
    full = next(size for size in sizes if (size.depth, size.width) == (3, 32))
    assert full.parameters == gene.descendant().num_parameters()
    with pytest.raises(LearngeneError, match="image gene"):
        descendant_sizes(gene.config, modalities=["text"])


def test_the_genes_own_parameters_are_counted_from_its_config(gene):
    assert learngene_parameters(gene.config) == gene.num_parameters()


def test_the_vocabulary_of_a_gene_is_its_table_or_both_factors_of_it():
    assert vocabulary_parameters(multimodal_gene()) == 553 * 16
    assert vocabulary_parameters(multimodal_gene(token_embedding_rank=4)) == 553 * 4 + 4 * 16
    assert vocabulary_parameters(image_gene()) == 0


def test_sizes_that_cannot_be_grown_are_refused(gene):
    with pytest.raises(LearngeneError, match="no multiple of the head size"):
        descendant_sizes(gene.config, widths=[12])
    with pytest.raises(LearngeneError, match="takes one of 'multimodal', 'image', 'text'"):
        measure_size(pico_clip().config, "audio")


def test_pairs_are_shown_as_the_command_line_takes_them():
    assert (format_size(6), format_size((6, 4))) == ("6", "6,4")
