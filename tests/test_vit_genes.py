"""Image genes of ViT and DINOv2: the gene is its ancestor, its descendants are stock ViTs, and every way in works."""

import json

import pytest
import torch
from pico import pico_clip, pico_pairs, pico_processor
from pico_families import decaying_map, make_hostile
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import (
    AutoModel,
    AutoModelForImageClassification,
    CLIPForImageClassification,
    Dinov2Config,
    Dinov2ForImageClassification,
    Dinov2Model,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
)
from typer.testing import CliRunner

from mmlg_hf import (
    ExtractionArguments,
    LearngeneConfig,
    LearngeneForImageClassification,
    LearngeneModel,
    create_model_card,
    evaluate_classification,
    extract_learngene,
    from_learngene,
    load_learngene,
)
from mmlg_hf.cli import app
from mmlg_hf.errors import LearngeneError
from mmlg_hf.extraction import extracting
from mmlg_hf.extraction.ancestors import copy_outer_weights, gene_config, load_ancestor
from mmlg_hf.extraction.fitting import fit_gene
from mmlg_hf.extraction.rotation import rotate_channels
from mmlg_hf.extraction.trainer import ExtractionTrainer
from mmlg_hf.extraction.vit import stock_vit
from mmlg_hf.inspection import learngene_parameters, measure_size
from mmlg_hf.modeling_learngene import LearngeneViTForImageClassification, LearngeneViTModel, class_of_gene

ENCODER = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "image_size": 16, "patch_size": 8}
NAMES = {0: "bag", 1: "shoe", 2: "watch", 3: "shirt", 4: "dress"}
CLASSES = (ViTModel, Dinov2Model, ViTForImageClassification, Dinov2ForImageClassification)
EXACT = CLASSES[:3]  # a stock ViT classifier can be all of these


def ancestor_of(cls, **changes):
    """A model with outlier channels, large biases, varying norms and, in DINOv2, varying layer scales."""
    torch.manual_seed(0)
    labels = {"id2label": NAMES, "label2id": {name: index for index, name in NAMES.items()}}
    if cls in (Dinov2Model, Dinov2ForImageClassification):
        model = make_hostile(cls(Dinov2Config(**(ENCODER | {"mlp_ratio": 3} | labels | changes))))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lambda" in name:
                    parameter.copy_(torch.randn(parameter.shape))
        return model
    return make_hostile(cls(ViTConfig(**(ENCODER | {"intermediate_size": 96} | labels | changes))))


def pixels(batch=5, size=16, seed=3):
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(seed))


def fitted_gene(vit, blocks=3, mixing="learned"):
    config = gene_config(vit, num_multimodal_blocks=0, num_unimodal_blocks=blocks, mixing=mixing)
    gene = class_of_gene(config)(config).eval()
    copy_outer_weights(gene, vit)
    fit_gene(gene, vit)
    return gene


def run(model, *args, **kwargs):
    with torch.no_grad():
        return model(*args, **kwargs)


def answer(output):
    return output.logits if "logits" in output else output.pooler_output


def wanted(ancestor, inputs):
    """What a full-size descendant should answer: the ancestor's logits, or its class token."""
    output = run(ancestor, inputs)
    return output.logits if "logits" in output else output.last_hidden_state[:, 0]


def close(own, theirs, atol=1e-5):
    torch.testing.assert_close(own, theirs, rtol=0, atol=atol)


# --- the gene is its ancestor ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("cls", EXACT)
def test_a_full_size_descendant_computes_what_the_ancestor_does(cls, turned):
    ancestor = load_ancestor(ancestor_of(cls))
    vit = stock_vit(load_ancestor(ancestor_of(cls)))
    if turned:
        plain = vit
        vit, kept = rotate_channels(vit, [{"pixel_values": pixels(40, seed=1)}])
        assert kept == {"image": pytest.approx(1, abs=1e-4)}
        assert not torch.allclose(vit.get_parameter(name_of(vit)), plain.get_parameter(name_of(plain)), atol=0.1)
    gene = fitted_gene(vit)
    grown = gene.descendant()
    assert type(grown) is (ViTForImageClassification if "Classification" in cls.__name__ else ViTModel)
    close(answer(run(grown, pixels())), wanted(ancestor, pixels()), 1e-4)
    close(answer(run(grown, pixels())), answer(run(gene, pixels())))
    if type(grown) is ViTModel:  # the linear pooler reads every token as the ancestor has it
        own, theirs = run(grown, pixels()).last_hidden_state, run(ancestor, pixels()).last_hidden_state
        close(grown.pooler.dense(own), theirs, 1e-4)
        close(torch.stack(gene.read_features(run(gene, pixels()))), torch.stack([theirs[:, 0], theirs[:, 1:].mean(1)]),
              1e-4)  # fmt: skip


def name_of(vit):
    return next(name for name, _ in vit.named_parameters() if name.endswith("layers.1.mlp.fc1.weight"))


def test_a_vit_without_biases_of_its_queries_gives_a_gene_whose_are_zero():
    ancestor = ancestor_of(ViTModel, qkv_bias=False)
    grown = fitted_gene(stock_vit(load_ancestor(ancestor))).descendant()
    assert grown.config.qkv_bias
    close(run(grown, pixels()).pooler_output, run(ancestor, pixels()).last_hidden_state[:, 0], 1e-4)


def test_a_dinov2_classifier_starts_from_its_part_for_the_class_token():
    ancestor = load_ancestor(ancestor_of(Dinov2ForImageClassification))
    grown = fitted_gene(stock_vit(ancestor)).descendant()
    tokens = run(ancestor.dinov2, pixels()).last_hidden_state
    expected = F.linear(tokens[:, 0], ancestor.classifier.weight[:, :32], ancestor.classifier.bias)
    close(run(grown, pixels()).logits, expected, 1e-4)
    assert grown.config.id2label == NAMES


# --- descendants of other sizes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("depth", "width"), [(1, 16), (2, None), (5, 24)])
@pytest.mark.parametrize("cls", [Dinov2Model, ViTForImageClassification])
def test_running_as_another_size_is_growing_it(cls, depth, width):
    gene = fitted_gene(stock_vit(load_ancestor(ancestor_of(cls))))
    gene.config.scale_norms = ["image"]
    grown = gene.descendant(depth, width)
    close(answer(run(gene, pixels(), depth=depth, width=width)), answer(run(grown, pixels())))
    assert len(getattr(grown, "vit", grown).layers) == depth
    if cls is Dinov2Model:
        assert run(grown, pixels()).pooler_output.shape == (5, 32)  # of any width, in the ancestor's space
        own = gene.read_features(run(gene, pixels(), depth=depth, width=width))
        states = run(grown, pixels()).last_hidden_state
        close(torch.stack(own), grown.pooler.dense(torch.stack([states[:, 0], states[:, 1:].mean(1)])))


def decaying(cls):
    """An ancestor whose stream lies in directions of falling strength, none of them a channel."""
    torch.manual_seed(0)
    model = cls(Dinov2Config(**ENCODER, mlp_ratio=3) if cls is Dinov2Model else ViTConfig(**ENCODER, num_labels=5))
    generator = torch.Generator().manual_seed(4)
    shrink = decaying_map(32, 0.75, generator)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            writes = ("o_proj", "attention.output.dense", "fc2")  # before transformers 5.18 the second for the first
            if parameter.dim() == 2 and any(part in name for part in writes):
                parameter.copy_(shrink @ torch.randn(parameter.shape, generator=generator) * 0.3)
            elif "projection.weight" in name:
                parameter.copy_((shrink @ torch.randn(32, 192, generator=generator)).view_as(parameter) * 0.1)
            elif "embeddings" in name and parameter.shape[-1] == 32 and parameter.dim() == 3:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) @ shrink)
            elif "norm" in name and name.endswith("weight"):
                parameter.copy_(torch.exp(0.3 * torch.randn(parameter.shape, generator=generator)))
    return model.eval()


@pytest.mark.parametrize("cls", EXACT)
def test_half_width_slices_of_the_turned_ancestor_keep_more_of_it(cls):
    kept, ancestor = {}, load_ancestor(decaying(cls))
    for turned in (False, True):
        vit = stock_vit(load_ancestor(decaying(cls)))
        if turned:
            vit, _ = rotate_channels(vit, [{"pixel_values": pixels(60, seed=1)}])
        gene = fitted_gene(vit)
        gene.config.scale_norms = ["image"] if turned else False
        own, theirs = (rows - rows.mean(0) for rows in (
            answer(run(gene.descendant(width=16), pixels(40))), wanted(ancestor, pixels(40))
        ))  # fmt: skip
        kept[turned] = F.cosine_similarity(own, theirs).mean().item()
    assert kept[True] > max(kept[False] + 0.05, 0.6), kept


def test_a_new_classifier_grows_from_a_gene_of_features():
    gene = fitted_gene(stock_vit(load_ancestor(ancestor_of(Dinov2Model))))
    grown = gene.descendant(2, 16, num_labels=3)
    assert type(grown) is ViTForImageClassification
    assert run(grown, pixels()).logits.shape == (5, 3)
    features = run(grown.vit, pixels()).last_hidden_state
    close(features, run(gene.descendant(2, 16), pixels()).last_hidden_state)


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cls", "gene_class", "auto", "grown_auto"),
    [
        (Dinov2Model, LearngeneViTModel, AutoModel, AutoModel),
        (
            ViTForImageClassification,
            LearngeneViTForImageClassification,
            AutoModelForImageClassification,
            AutoModelForImageClassification,
        ),
    ],
)
def test_a_saved_gene_is_loaded_by_every_way_in(tmp_path, cls, gene_class, auto, grown_auto):
    gene = fitted_gene(stock_vit(load_ancestor(ancestor_of(cls))))
    gene.save_pretrained(tmp_path / "gene")
    whole = LearngeneModel if cls is Dinov2Model else LearngeneForImageClassification
    loaders = (load_learngene, auto.from_pretrained, whole.from_pretrained, gene_class.from_pretrained)
    for load in loaders:
        loaded = load(tmp_path / "gene")
        assert type(loaded) is gene_class
        for name, tensor in gene.state_dict().items():
            assert torch.equal(loaded.state_dict()[name], tensor), name
    assert type(class_of_gene(gene.config)(gene.config)) is type(whole(gene.config)) is gene_class
    grown = from_learngene(tmp_path / "gene", 2, 16)
    grown.save_pretrained(tmp_path / "grown")
    again, info = grown_auto.from_pretrained(tmp_path / "grown", output_loading_info=True)
    assert type(again) is type(grown)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    close(answer(run(again, pixels())), answer(run(gene, pixels(), depth=2, width=16)))


@pytest.mark.parametrize("cls", [Dinov2Model, ViTForImageClassification])
def test_sizes_are_measured_by_the_stock_classes(cls):
    gene = fitted_gene(stock_vit(load_ancestor(ancestor_of(cls))))
    assert learngene_parameters(gene.config) == gene.num_parameters()
    labels = None if cls is Dinov2Model else 5
    size = measure_size(gene.config.descendant_config(2, 16, "image"), "image", num_labels=labels)
    assert size.parameters == gene.descendant(2, 16).num_parameters()
    assert (size.depth, size.width, size.gflops_text) == (2, 16, None)
    with pytest.raises(LearngeneError, match="modality is 'text', but a ViTConfig describes no text encoder"):
        measure_size(gene.config.descendant_config(2, 16, "image"), "text")


def test_hidden_states_and_checkpointed_gradients_are_those_of_the_descendant():
    gene = fitted_gene(stock_vit(load_ancestor(ancestor_of(ViTModel)))).requires_grad_(True)
    own = run(gene, pixels(), output_hidden_states=True).hidden_states
    theirs = run(gene.descendant(), pixels(), output_hidden_states=True).hidden_states
    assert len(own) == len(theirs) == 4
    close(torch.stack(own), torch.stack(theirs), 1e-4)
    gradients = []
    for checkpointed in (False, True):
        gene.train()
        if checkpointed:
            gene.gradient_checkpointing_enable({"use_reentrant": True})
        gene.zero_grad()
        gene(pixels().requires_grad_()).pooler_output.square().mean().backward()
        gradients.append(gene.vision_blocks.mlp.fc1.weight.grad.clone())
    close(gradients[0], gradients[1], 1e-6)


# --- extraction ------------------------------------------------------------------------------------------------------


def extract(folder, ancestor, size=16, **changes):
    settings = {"max_steps": 3, "per_device_train_batch_size": 8, "report_to": "none", "disable_tqdm": True}
    args = ExtractionArguments(str(folder), **{**settings, "use_cpu": True, "logging_steps": 1, **changes})
    pairs = pico_pairs(16).remove_columns("caption")
    return extract_learngene(ancestor, pairs, args, processor=pico_processor(size).image_processor)


STILL = {"max_steps": 1, "learning_rate": 1e-12, "muon_learning_rate": None, "elastic": False}
EXACTLY = {"mixing": "learned", "num_unimodal_blocks": 3}


@pytest.mark.parametrize("cls", EXACT)
def test_extraction_starts_as_the_ancestor_turned(tmp_path, cls):
    ancestor = ancestor_of(cls)
    gene = extract(tmp_path, ancestor, **STILL, **EXACTLY)
    assert gene.config.recipe["turned"] == {"image": pytest.approx(1, abs=1e-3)}
    assert gene.config.ancestor["class"] == cls.__name__
    assert gene.config.ancestor["parameters"] == load_ancestor(ancestor).num_parameters()
    assert gene.config.scale_norms == ["image"]
    grown = from_learngene(tmp_path)
    close(answer(run(grown, pixels())), wanted(ancestor, pixels()), 1e-4)
    name = "loss_soft" if "Classification" in cls.__name__ else "loss_feature"
    assert gene.config.recipe["final_losses"][name] < 1e-4


def test_a_gene_of_a_vit_learns_the_features_of_its_ancestor(tmp_path):
    gene = extract(tmp_path, ancestor_of(ViTModel), max_steps=30, muon_learning_rate=0.01)
    losses = gene.config.recipe["final_losses"]
    assert {"loss_feature", "loss_feature_smaller"} == set(losses) - {"loss"}
    assert type(gene) is LearngeneViTModel
    assert (gene.config.num_unimodal_blocks, gene.config.mixing) == (2, "linear")
    first = extract(tmp_path / "still", ancestor_of(ViTModel), **{**STILL, "elastic": True}).config.recipe
    assert losses["loss_feature"] < first["final_losses"]["loss_feature"] / 2


def test_a_dinov2_classifier_is_learned_from_whole_with_both_parts_of_its_head(tmp_path):
    ancestor = ancestor_of(Dinov2ForImageClassification)
    gene = extract(tmp_path, ancestor, max_steps=2, muon_learning_rate=0.01)
    kept = load_ancestor(ancestor)
    args = ExtractionArguments(str(tmp_path / "t"), use_cpu=True, report_to="none")
    trainer = ExtractionTrainer(gene, args, ancestor=kept)
    close(trainer._targets({"pixel_values": pixels()})["ancestor_logits"], run(ancestor, pixels()).logits)
    assert type(gene) is LearngeneViTForImageClassification


def test_the_feature_loss_is_of_the_class_token_and_the_mean_of_the_patches(tmp_path):
    ancestor = stock_vit(load_ancestor(ancestor_of(Dinov2Model)))
    gene = fitted_gene(ancestor, blocks=2, mixing="linear")
    args = ExtractionArguments(str(tmp_path), use_cpu=True, report_to="none", feature_weight=1.0)
    trainer = ExtractionTrainer(gene, args, ancestor=ancestor)
    inputs = {"pixel_values": pixels()}
    output = run(gene, **inputs, depth=2, width=16)
    found = trainer._losses(gene, output, trainer._targets(inputs))["feature"]
    tokens, states = run(ancestor, pixels()).last_hidden_state, output.last_hidden_state
    dense = gene.descendant(2, 16).pooler.dense
    pairs = [(states[:, 0], tokens[:, 0]), (states[:, 1:].mean(1), tokens[:, 1:].mean(1))]
    expected = sum(2 - 2 * F.cosine_similarity(dense(own), theirs).mean() for own, theirs in pairs) / 2
    close(found, expected, 1e-5)


@pytest.mark.parametrize(("asked", "centered"), [(None, True), (True, True), (False, False)])
def test_a_vits_features_are_compared_about_their_mean(tmp_path, monkeypatch, asked, centered):
    seen = {}

    class Spy(ExtractionTrainer):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            seen.update(self.centers)

    monkeypatch.setattr(extracting, "ExtractionTrainer", Spy)
    ancestor = ancestor_of(ViTModel)
    extract(tmp_path, ancestor, **STILL, center_features=asked)
    assert bool(seen) is centered
    if centered:
        image_processor = pico_processor().image_processor
        all_pixels = image_processor(images=list(pico_pairs(16)["image"]), return_tensors="pt")["pixel_values"]
        tokens = run(ancestor_of(ViTModel), all_pixels).last_hidden_state
        close(seen["ancestor_class_token"], F.normalize(tokens[:, 0], dim=-1).mean(0), 1e-5)
        close(seen["ancestor_mean_patch"], F.normalize(tokens[:, 1:].mean(1), dim=-1).mean(0), 1e-5)


@pytest.mark.parametrize("size", [24, 16])
def test_a_dinov2_is_taken_for_the_pictures_that_the_processor_makes(tmp_path, size):
    ancestor = ancestor_of(Dinov2Model, image_size=40)
    gene = extract(tmp_path, ancestor, size=size, **STILL, **EXACTLY)
    assert gene.config.vision_config.image_size == size
    grown = gene.descendant()
    close(answer(run(grown, pixels(size=size))), wanted(ancestor, pixels(size=size)), 1e-4)


def test_a_run_that_was_stopped_goes_on(tmp_path):
    settings = {"lr_scheduler_type": "constant", "save_steps": 1}
    whole = extract(tmp_path / "whole", ancestor_of(Dinov2Model), max_steps=3, **settings)
    extract(tmp_path / "parts", ancestor_of(Dinov2Model), max_steps=2, **settings)
    args = {"max_steps": 3, "per_device_train_batch_size": 8, "report_to": "none", "disable_tqdm": True}
    args = ExtractionArguments(str(tmp_path / "parts"), **args, use_cpu=True, logging_steps=1, **settings)
    resumed = extract_learngene(
        ancestor_of(Dinov2Model),
        pico_pairs(16).remove_columns("caption"),
        args,
        processor=pico_processor().image_processor,
        resume_from_checkpoint=True,
    )
    for name, weight in whole.state_dict().items():
        close(resumed.state_dict()[name], weight, 1e-6)


# --- the command line and cards --------------------------------------------------------------------------------------


def mmlg(*arguments):
    done = CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=True)
    return done.exit_code, done.stdout + (f"{done.stderr} {done.exception}" if done.exit_code else "")


@pytest.mark.parametrize("cls", [Dinov2Model, ViTForImageClassification])
def test_the_commands_take_it_from_the_ancestors_folder_to_a_measured_descendant(tmp_path, cls):
    ancestor_of(cls).save_pretrained(tmp_path / "ancestor")
    pico_processor().image_processor.save_pretrained(tmp_path / "ancestor")
    pico_pairs(16).remove_columns("caption").to_parquet(tmp_path / "data" / "train.parquet")
    code, said = mmlg(
        *("extract", tmp_path / "ancestor", "--data", tmp_path / "data", "--output", tmp_path / "gene"),
        *("--max-steps", 1, "--batch-size", 8, "--use_cpu", True, "--report_to", "none"),
    )
    assert code == 0, said
    code, said = mmlg("inspect", tmp_path / "gene")
    assert code == 0, said
    assert "3 layers x 32 for images" in said
    shown = json.loads(mmlg("inspect", tmp_path / "gene", "--json")[1])
    assert {size["modality"] for size in shown["descendants"]} == {"image"}
    code, said = mmlg("descend", tmp_path / "gene", "--depth", 2, "--width", 16, "--output", tmp_path / "grown")
    assert code == 0, said
    assert ("ViTForImageClassification" if cls is ViTForImageClassification else "ViTModel") in said
    assert "classifier.weight" in load_file(tmp_path / "grown" / "model.safetensors") or cls is Dinov2Model
    code, said = mmlg("evaluate", tmp_path / "gene", "--data", tmp_path / "data", "--task", "retrieval", "--split",
                      "train")  # fmt: skip
    assert code != 0
    assert "a model that embeds images and texts" in said or "this is an image gene" in said
    if cls is Dinov2Model:
        code, said = mmlg("evaluate", tmp_path / "grown", "--data", tmp_path / "data", "--task", "classification",
                          "--split", "train")  # fmt: skip
        assert code != 0
        assert "has no trained classifier" in said
    code, said = mmlg("descend", tmp_path / "gene", "--modality", "text", "--output", tmp_path / "text")
    assert code != 0
    assert "this is an image gene" in said


def test_a_gene_of_a_classifier_is_measured_as_its_descendant_is():
    gene = fitted_gene(stock_vit(load_ancestor(ancestor_of(ViTForImageClassification))))
    rows = pico_pairs(10).remove_columns("caption").add_column("kind", [0, 1, 2, 3, 4] * 2)
    found = [
        evaluate_classification(model, rows, pico_processor().image_processor, label_column="kind")
        for model in (gene, gene.descendant())
    ]
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("cls", "auto", "grown"),
    [
        (Dinov2Model, "AutoModel.", "a stock ViTModel"),
        (ViTForImageClassification, "AutoModelForImageClassification.", "a stock ViTForImageClassification"),
    ],
)
def test_cards_name_the_stock_classes(tmp_path, cls, auto, grown):
    gene = fitted_gene(stock_vit(load_ancestor(ancestor_of(cls))))
    card = create_model_card(gene, repo_id="someone/gene")
    for part in (f"gene = {auto}", grown, "It grows image encoders"):
        assert part in card.text
    assert "clip" not in card.data.tags
    assert "vit" in card.data.tags
    card = create_model_card(gene.descendant(1, 16), repo_id="someone/small")
    assert card.data.pipeline_tag == ("image-feature-extraction" if cls is Dinov2Model else "image-classification")
    assert "pooler_output.shape" in card.text or cls is not Dinov2Model


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cls", "changes", "message"),
    [
        (ViTModel, {"affinity_weight": 1.0}, "affinity_weight is 1.0, but a ViTModel reads no texts"),
        (Dinov2Model, {"contrastive_weight": 0.5}, "contrastive_weight is 0.5, but a Dinov2Model reads no texts"),
        (ViTModel, {"feature_weight": 0.0, "affinity_weight": 1.0}, "affinity_weight is 1.0, but a ViTModel"),
        (ViTModel, {"num_multimodal_blocks": 1}, "has no text side to share blocks with"),
        (ViTModel, {"max_text_length": 8}, "a ViTModel reads no texts"),
        (Dinov2Model, {"size": 12}, "pictures of 12 x 12 pixels: .* a multiple of its patches' 8"),
        (ViTModel, {"size": 24}, r"makes pictures \[3, 24, 24\], the ancestor takes \[3, 16, 16\]"),
    ],
)
def test_settings_that_no_image_gene_has_are_refused(tmp_path, cls, changes, message):
    with pytest.raises(LearngeneError, match=message):
        extract(tmp_path, ancestor_of(cls), **changes)


def test_a_classifier_without_labels_is_refused(tmp_path):
    ancestor = ancestor_of(ViTForImageClassification, id2label={}, label2id={})
    with pytest.raises(LearngeneError, match="the ViTForImageClassification has no labels"):
        extract(tmp_path, ancestor)


def test_configs_that_no_gene_has_are_refused():
    gene = fitted_gene(stock_vit(load_ancestor(ancestor_of(ViTModel))))
    fields = gene.config.to_dict()
    with pytest.raises(LearngeneError, match='there is a text_config, and family is "vit"|family is "vit", which'):
        LearngeneConfig(**{**fields, "text_config": {}})
    with pytest.raises(LearngeneError, match="an image gene of CLIP is a classifier"):
        LearngeneConfig(family="clip", num_multimodal_blocks=0, num_unimodal_blocks=2, id2label={})
    with pytest.raises(LearngeneError, match="has no classifier: load it as LearngeneModel"):
        LearngeneForImageClassification(gene.config)
    for name, value in (("qkv_bias", False), ("pooler_output_size", 8)):
        with pytest.raises(LearngeneError, match=f"{name} cannot be overridden"):
            gene.descendant(**{name: value})
    with pytest.raises(LearngeneError, match="image_size of vision_config"):
        gene_config(ancestor_of(ViTModel, image_size=[16, 24]), num_multimodal_blocks=0, num_unimodal_blocks=2,
                    mixing="linear")  # fmt: skip


def test_image_genes_of_clip_stay_what_they_were():
    clip = CLIPForImageClassification(pico_clip().config)
    config = gene_config(clip, num_multimodal_blocks=0, num_unimodal_blocks=2, mixing="linear")
    gene = class_of_gene(config)(config)
    assert type(gene) is LearngeneForImageClassification
    assert type(gene.descendant(1)) is CLIPForImageClassification


def test_the_gradient_of_a_stack_of_layers_is_put_together_once():
    """Each layer that takes its weights by number has a stack of zeros of its own in the backward pass."""
    found = []
    for depth in (2, 5):
        vit = ancestor_of(ViTModel, num_hidden_layers=depth)
        config = gene_config(vit, num_multimodal_blocks=0, num_unimodal_blocks=2, mixing="linear")
        gene = LearngeneModel(config).train()
        with torch.profiler.profile() as profile:
            gene(torch.zeros(1, 3, 16, 16)).last_hidden_state.sum().backward()
        found.append(sum(event.count for event in profile.key_averages() if event.key == "aten::select_backward"))
    assert found[0] == found[1]
