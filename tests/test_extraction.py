"""Extraction end to end on pico models: what is trained, what the artifact records, resuming, and bad input."""

import numpy as np
import pytest
import torch
from datasets import Dataset, Image, IterableDataset
from pico import pico_clip, pico_pairs, pico_processor
from torch.nn import functional as F
from transformers import BertConfig, BertModel, CLIPForImageClassification

from mmlg_hf import (
    ExtractionArguments,
    LearngeneForImageClassification,
    LearngeneModel,
    extract_learngene,
    from_learngene,
)
from mmlg_hf.data import process_pairs
from mmlg_hf.errors import LearngeneError
from mmlg_hf.extraction.ancestors import EMBEDDING_COLUMNS, ancestor_outputs
from mmlg_hf.extraction.outputs import cache_ancestor_outputs
from mmlg_hf.extraction.trainer import AncestorCollator, size_grid
from mmlg_hf.training import ImageTextCollator
from mmlg_hf.training.losses import soft_distillation_loss


def arguments(folder, **changes):
    settings = {
        "max_steps": 4,
        "per_device_train_batch_size": 8,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "save_steps": 2,
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
    }
    return ExtractionArguments(str(folder), **(settings | changes))


@pytest.fixture(scope="module")
def extracted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gene")
    args = arguments(folder, trim_vocabulary=True, affinity_weight=1.0, contrastive_weight=0.5)
    return extract_learngene(pico_clip(), pico_pairs(32), args, processor=pico_processor()), folder


def classifier(num_labels=3):
    config = pico_clip().config
    config.num_labels = num_labels
    torch.manual_seed(0)
    return CLIPForImageClassification(config)


def test_the_recipe_records_what_turning_kept(extracted):
    gene, folder = extracted
    kept = gene.config.recipe["turned"]
    assert set(kept) == {"image", "text"}
    assert kept["text"] == pytest.approx(1, abs=1e-3)
    assert 0.99 <= kept["image"] <= 1.0001
    assert LearngeneModel.from_pretrained(folder).config.recipe["turned"] == kept


@pytest.mark.parametrize(("rotate", "turned"), [(False, set()), (True, {"text"})])
def test_the_recipe_leaves_out_what_was_not_turned(tmp_path, rotate, turned):
    clip = pico_clip()
    vision, half = clip.vision_model, clip.vision_model.config.hidden_size // 2
    with torch.no_grad():  # the norm before the layers all but shuts off the channels of the class token
        vision.pre_layrnorm.weight[half:] = 1e-3
        vision.embeddings.class_embedding.normal_(generator=torch.Generator().manual_seed(0))
        vision.embeddings.class_embedding[:half] = 0
        vision.embeddings.patch_embedding.weight[half:] = 0
        vision.embeddings.position_embedding.weight.zero_()
    args = arguments(tmp_path, max_steps=1, elastic=False, rotate=rotate)
    gene = extract_learngene(clip, pico_pairs(16), args, processor=pico_processor())
    assert set(gene.config.recipe["turned"]) == turned


def test_artifact_loads_as_the_gene_that_was_trained(extracted):
    gene, folder = extracted
    loaded = LearngeneModel.from_pretrained(folder)
    for name, weight in gene.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], weight, rtol=0, atol=0)
    assert from_learngene(folder, 1, 16).config.vision_config.hidden_size == 16


def test_artifact_records_ancestor_and_recipe(extracted):
    gene, folder = extracted
    config = LearngeneModel.from_pretrained(folder).config
    assert config.ancestor["class"] == "CLIPModel"
    assert config.ancestor["parameters"] == pico_clip().num_parameters()  # counted before the vocabulary was trimmed
    for key in ("dataset", "split", "rows", "steps", "seconds", "hardware", "torch", "transformers", "final_losses"):
        assert key in config.recipe
    assert config.recipe["steps"] == 4
    assert {"loss_affinity", "loss_feature", "loss_contrastive"} <= set(config.recipe["final_losses"])
    assert config.text_config.vocab_size == len(gene.processor.tokenizer) < len(pico_processor().tokenizer)


def test_outer_weights_start_from_the_ancestor(tmp_path):
    ancestor = pico_clip()
    args = arguments(tmp_path, max_steps=1, learning_rate=0.0, trim_vocabulary=True, rotate=False)
    gene = extract_learngene(ancestor, pico_pairs(8), args, processor=pico_processor())
    assert not gene.config.scale_norms
    own, theirs = gene.state_dict(), ancestor.state_dict()
    for name in ("visual_projection.weight", "vision_model.post_layernorm.weight", "logit_scale"):
        torch.testing.assert_close(own[name], theirs[name], rtol=0, atol=0)
    assert ancestor.config.text_config.vocab_size == len(pico_processor().tokenizer)  # the caller's is not trimmed
    assert all(parameter.requires_grad for parameter in ancestor.parameters())


def test_outer_weights_of_a_turned_ancestor_embed_alike(tmp_path):
    ancestor, pairs, processor = pico_clip().eval(), pico_pairs(8), pico_processor()
    settings = {"learning_rate": 1e-12, "muon_learning_rate": None, "token_embedding_rank": 999}  # stored whole
    args = arguments(tmp_path, max_steps=1, num_unimodal_blocks=2, mixing="chebyshev", **settings)
    gene = extract_learngene(ancestor, pairs, args, processor=processor)
    assert gene.config.scale_norms
    assert not torch.allclose(gene.visual_projection.weight, ancestor.visual_projection.weight)
    # Two layers have an exact fit in two blocks each (and one shared), turned or not: the gene is the ancestor.
    inputs = processor(text=["a red square", "a blue square"], return_tensors="pt", padding=True)
    inputs["pixel_values"] = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        own, theirs = gene(**inputs), ancestor(**inputs)
    torch.testing.assert_close(own.image_embeds, theirs.image_embeds, rtol=0, atol=1e-4)
    torch.testing.assert_close(own.text_embeds, theirs.text_embeds, rtol=0, atol=1e-4)


def test_a_short_extraction_warms_up_for_a_share_of_its_steps(tmp_path):
    args = ExtractionArguments(str(tmp_path), max_steps=100)
    assert args.get_warmup_steps(100) == 5


@pytest.mark.parametrize(
    ("blocks", "mixing"),
    [((None, None), "shared-slope"), ((1, 1), "shared-slope"), ((0, 2), "linear"), ((2, 1), "linear")],
)
def test_the_slope_is_shared_and_layers_are_scaled_where_there_is_one_block_of_each_kind(blocks, mixing, tmp_path):
    multimodal, unimodal = blocks
    args = arguments(tmp_path, max_steps=1, num_multimodal_blocks=multimodal, num_unimodal_blocks=unimodal)
    config = extract_learngene(pico_clip(), pico_pairs(8), args, processor=pico_processor()).config
    assert (config.mixing, config.weight_scales) == (mixing, mixing == "shared-slope")


def test_scales_can_be_left_out_and_given_to_any_gene(tmp_path):
    for blocks, scales in ((1, False), (2, True)):
        args = arguments(tmp_path / str(blocks), max_steps=1, num_unimodal_blocks=blocks, weight_scales=scales)
        gene = extract_learngene(pico_clip(), pico_pairs(8), args, processor=pico_processor())
        assert gene.config.weight_scales is scales


def test_interrupted_extraction_resumes_to_the_same_weights(tmp_path):
    pairs, processor, scales = pico_pairs(32), pico_processor(), {"weight_scales": True}
    whole = extract_learngene(pico_clip(), pairs, arguments(tmp_path / "whole", **scales), processor=processor)
    # The schedule is constant, so that stopping early is the only difference.
    args = arguments(tmp_path / "parts", max_steps=2, lr_scheduler_type="constant", **scales)
    reference = extract_learngene(
        pico_clip(),
        pairs,
        arguments(tmp_path / "reference", lr_scheduler_type="constant", **scales),
        processor=processor,
    )
    half = extract_learngene(pico_clip(), pairs, args, processor=processor)
    resumed = extract_learngene(
        pico_clip(),
        pairs,
        arguments(tmp_path / "parts", lr_scheduler_type="constant", **scales),
        processor=processor,
        resume_from_checkpoint=True,
    )
    assert any(not torch.equal(half.state_dict()[name], weight) for name, weight in resumed.state_dict().items())
    assert whole.config.weight_scales
    assert whole.config.recipe["steps"] == resumed.config.recipe["steps"] == 4
    for name, weight in reference.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], weight, rtol=0, atol=0)


def test_cached_outputs_are_the_ancestors_and_are_kept(tmp_path):
    ancestor, processor = pico_clip().eval(), pico_processor()
    pairs = process_pairs(pico_pairs(12), processor)
    collator = AncestorCollator(ImageTextCollator(processor))
    cached = cache_ancestor_outputs(ancestor, pairs, collator, processor, tmp_path, batch_size=5)
    batch = collator([cached[index] for index in range(12)])
    for name, expected in ancestor_outputs(ancestor, collator([pairs[index] for index in range(12)])).items():
        torch.testing.assert_close(batch[name], expected, rtol=0, atol=1e-5)
    files = list(tmp_path.iterdir())
    assert len(files) == 1
    stamp = files[0].stat().st_mtime_ns
    cache_ancestor_outputs(ancestor, pairs, collator, processor, tmp_path, batch_size=5)
    assert files[0].stat().st_mtime_ns == stamp
    with torch.no_grad():
        ancestor.visual_projection.weight.mul_(2)
    cache_ancestor_outputs(ancestor, pairs, collator, processor, tmp_path, batch_size=5)
    assert len(list(tmp_path.iterdir())) == 2


def test_caching_does_not_change_what_is_learned(tmp_path):
    pairs, processor = pico_pairs(16), pico_processor()
    genes = [
        extract_learngene(pico_clip(), pairs, arguments(tmp_path / str(c), cache_ancestor=c), processor=processor)
        for c in (True, False)
    ]
    for name, weight in genes[0].state_dict().items():
        torch.testing.assert_close(weight, genes[1].state_dict()[name], rtol=0, atol=1e-5)


def test_streams_are_learned_from(tmp_path):
    stream = pico_pairs(32).to_iterable_dataset()
    assert isinstance(stream, IterableDataset)
    gene = extract_learngene(pico_clip(), stream, arguments(tmp_path, max_steps=2), processor=pico_processor())
    assert gene.config.recipe["rows"] is None
    assert gene.config.recipe["steps"] == 2


def test_elastic_training_makes_slices_better_than_training_the_whole_alone(tmp_path):
    pairs, processor, ancestor = pico_pairs(32), pico_processor(), pico_clip()
    collator = ImageTextCollator(processor)
    batch = collator([pairs[index] for index in range(32)])
    theirs = ancestor_outputs(ancestor.eval(), batch)
    distance = {}
    for elastic in (True, False):
        args = arguments(tmp_path / str(elastic), elastic=elastic, max_steps=30)
        gene = extract_learngene(ancestor, pairs, args, processor=processor)
        small = gene.descendant(1, 16)(**batch)
        distance[elastic] = (small.image_embeds - theirs[EMBEDDING_COLUMNS[0]]).square().sum(-1).mean()
    assert distance[True] < distance[False]


def test_sizes_reach_a_quarter_each_way_and_leave_the_whole_out(extracted):
    gene, _ = extracted
    grid = size_grid(gene.config)
    assert min(grid) == (1, 8)
    assert (2, 32) not in grid
    assert (2, 24) in grid
    assert (1, 32) in grid


def test_image_gene_learns_a_classifiers_logits(tmp_path):
    ancestor = classifier()
    images = pico_pairs(24).remove_columns("caption")
    args = arguments(tmp_path, max_steps=40, elastic=False)
    gene = extract_learngene(ancestor, images, args, processor=pico_processor().image_processor)
    assert isinstance(gene, LearngeneForImageClassification)
    assert (gene.config.num_multimodal_blocks, gene.config.num_unimodal_blocks) == (0, 2)
    recipe = gene.config.recipe
    assert recipe["final_losses"]["loss_soft"] < 0.05
    descendant = from_learngene(tmp_path, modality="image")
    assert type(descendant) is CLIPForImageClassification
    pixels = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(descendant(pixels).logits, gene(pixels).logits, rtol=0, atol=1e-5)


def test_soft_distillation_is_the_divergence_from_the_ancestor():
    own, ancestor = torch.randn(5, 3), torch.randn(5, 3)
    p, q = F.softmax(ancestor / 2, -1), F.softmax(own / 2, -1)
    expected = 4 * (p * (p.log() - q.log())).sum(-1).mean()
    torch.testing.assert_close(soft_distillation_loss(own, ancestor, 2.0), expected)
    assert soft_distillation_loss(own, own).abs() < 1e-6
    with pytest.raises(LearngeneError, match="same labels"):
        soft_distillation_loss(own, torch.randn(5, 4))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"initialisation": "zero"}, 'initialisation is .zero.: it takes "random" or "fitted"'),
        ({"affinity_weight": -1.0}, "affinity_weight is -1.0"),
        ({"feature_weight": 0.0}, "all loss weights are 0"),
        ({"elastic_samples": 0}, "elastic_samples is 0"),
        ({"muon_learning_rate": -1.0}, "muon_learning_rate is -1.0: it cannot be negative"),
        ({"muon_learning_rate": 1e-3, "fsdp": True}, "muon_learning_rate is 0.001 with fsdp"),
        ({"token_embedding_rank": 0}, "token_embedding_rank is 0: it takes 1 or more"),
        ({"distillation_temperature": 0.0}, "distillation_temperature is 0.0"),
    ],
)
def test_bad_arguments_are_named(tmp_path, changes, message):
    with pytest.raises(LearngeneError, match=message):
        arguments(tmp_path, **changes)


def refused(match, ancestor, dataset, folder, **changes):
    with pytest.raises(LearngeneError, match=match):
        extract_learngene(ancestor, dataset, arguments(folder, **changes), processor=pico_processor())
    assert not folder.exists() or not list(folder.glob("*.safetensors"))


def test_an_ancestor_that_is_no_clip_is_refused(tmp_path):
    bert = BertModel(
        BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=9)
    )
    other = "BertModel.* which no gene comes from. Give a CLIPModel"
    refused(other, bert, pico_pairs(8), tmp_path / "a")
    bert.save_pretrained(tmp_path / "bert")
    refused(
        "BertModel .*which no gene comes from. Give a CLIPModel", str(tmp_path / "bert"), pico_pairs(8), tmp_path / "b"
    )
    refused("there is no folder .*nowhere", str(tmp_path / "nowhere"), pico_pairs(8), tmp_path / "c")


def test_data_without_the_columns_or_rows_is_refused(tmp_path):
    refused("no text column.*'image'", pico_clip(), pico_pairs(8).remove_columns("caption"), tmp_path / "a")
    refused("no image column.*'caption'", pico_clip(), pico_pairs(8).remove_columns("image"), tmp_path / "b")
    refused("empty", pico_clip(), pico_pairs(8).select([]), tmp_path / "c")
    refused("is a list", pico_clip(), [1, 2], tmp_path / "d")


def test_an_unreadable_image_is_raised_with_its_index_or_skipped(tmp_path):
    rows = [dict(row) for row in pico_pairs(12).cast_column("image", Image(decode=False))]
    rows[5]["image"] = {"bytes": b"no image", "path": None}
    pairs = Dataset.from_list(rows).cast_column("image", Image())
    refused("image of row 5 cannot be read", pico_clip(), pairs, tmp_path / "a")
    args = arguments(tmp_path / "b", max_steps=1, on_bad_image="skip")
    assert extract_learngene(pico_clip(), pairs, args, processor=pico_processor()).config.recipe["rows"] == 11


def test_a_gene_without_text_side_cannot_share_blocks(tmp_path):
    refused("no text side to share", classifier(), pico_pairs(8), tmp_path, num_multimodal_blocks=1)


def test_the_token_embedding_is_stored_at_a_quarter_of_the_text_width(tmp_path):
    args = arguments(tmp_path, max_steps=1, learning_rate=0.0, rotate=False)
    ancestor = pico_clip()
    gene = extract_learngene(ancestor, pico_pairs(8), args, processor=pico_processor())
    width = ancestor.config.text_config.hidden_size
    assert gene.config.token_embedding_rank == width // 4
    embeddings = gene.text_model.embeddings
    table = ancestor.text_model.embeddings.token_embedding.weight.detach()
    assert embeddings.token_embedding.weight.shape == (len(table), width // 4)
    # The closest table of that rank, by numpy's singular values.
    left, values, right = np.linalg.svd(table.double().numpy(), full_matrices=False)
    best = (left[:, : width // 4] * values[: width // 4]) @ right[: width // 4]
    product = embeddings.token_projection(embeddings.token_embedding.weight).detach()
    np.testing.assert_allclose(product.numpy(), best, atol=1e-5)
    descendant = gene.descendant(1, 16)
    shown = descendant.text_model.embeddings.token_embedding.weight
    torch.testing.assert_close(shown, product[:, : shown.shape[1]], rtol=0, atol=1e-6)


@pytest.mark.parametrize("muon", [None, 0.0, 0.5])
def test_muon_moves_the_matrices_of_the_blocks_alone(tmp_path, muon):
    settings = {"max_steps": 1, "learning_rate": 1e-12, "warmup_steps": 0, "lr_scheduler_type": "constant"}
    genes = []
    for rate, folder in ((1e-12, "still"), (muon, "moved")):
        args = arguments(tmp_path / folder, muon_learning_rate=rate, **settings)
        genes.append(extract_learngene(pico_clip(), pico_pairs(8), args, processor=pico_processor()).state_dict())
    moved = {name for name in genes[0] if not torch.allclose(genes[0][name], genes[1][name], rtol=0, atol=1e-8)}
    matrices = {name for name in genes[0] if "_blocks." in name and genes[0][name].dim() == 3}
    assert moved == (matrices if muon else set())


def test_the_ancestor_computes_in_the_type_asked_for_and_its_weights_are_read_as_they_are(tmp_path):
    pairs, processor, ancestor = pico_pairs(16), pico_processor(), pico_clip()
    seen = []
    hook = torch.nn.modules.module.register_module_forward_hook(
        lambda module, inputs, output: seen.append(output.dtype) if module.__class__.__name__ == "CLIPMLP" else None
    )
    try:
        halved = extract_learngene(
            ancestor, pairs, arguments(tmp_path / "b", ancestor_dtype="bfloat16", max_steps=1, learning_rate=1e-9,
                                       muon_learning_rate=1e-9, rotate=False), processor=processor
        )  # fmt: skip
    finally:
        hook.remove()
    assert torch.bfloat16 in seen
    assert {parameter.dtype for parameter in ancestor.parameters()} == {torch.float32}
    whole = extract_learngene(
        ancestor, pairs, arguments(tmp_path / "f", max_steps=1, learning_rate=1e-9, muon_learning_rate=1e-9,
                                   rotate=False), processor=processor
    )  # fmt: skip
    for name, weight in whole.state_dict().items():
        torch.testing.assert_close(halved.state_dict()[name], weight, rtol=0, atol=1e-6, msg=name)


@pytest.mark.parametrize(("dtype", "told"), [("int8", "int8"), ("auto", "ancestor_dtype is 'auto'"), ("half", "half")])
def test_a_type_that_no_ancestor_computes_in_is_refused(tmp_path, dtype, told):
    with pytest.raises(LearngeneError, match=told):
        arguments(tmp_path, ancestor_dtype=dtype)
