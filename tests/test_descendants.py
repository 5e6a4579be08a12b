"""Descendants: stock classes whose every weight is the gene's, at every size and modality, saved and trained."""

import copy
import math

import pytest
import torch
from pico import COLORS, pico_pairs, pico_processor
from pico_genes import MIXINGS, WIDTHS, image_gene, multimodal_gene, pair_inputs, perturb, reference_clip
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    AutoProcessor,
    AutoTokenizer,
    CLIPForImageClassification,
    CLIPModel,
    CLIPTextModelWithProjection,
    CLIPVisionModelWithProjection,
    Trainer,
    TrainingArguments,
    pipeline,
)

# Not from `transformers` itself: in 5.15, without torchvision, that name is a stand-in that raises.
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from mmlg_hf.configuration_learngene import MODALITIES
from mmlg_hf.errors import LearngeneError
from mmlg_hf.modeling_text_classification import CLIPTextForSequenceClassification

STOCK = {
    ("multimodal", None): CLIPModel,
    ("image", None): CLIPVisionModelWithProjection,
    ("text", None): CLIPTextModelWithProjection,
    ("image", 8): CLIPForImageClassification,
    ("text", 8): CLIPTextForSequenceClassification,
}
CLOSE = {"atol": 1e-5, "rtol": 0}


@pytest.fixture(scope="module")
def gene():
    """A gene that no test may change."""
    return multimodal_gene(ancestor={"id": "someone/clip", "revision": "0" * 40})


@pytest.fixture(scope="module")
def wide_gene():
    """A gene of unequal encoders that are both wide enough for three widths."""
    return multimodal_gene(vision_width=40, text_width=32)


@pytest.fixture(scope="module")
def tleg_gene():
    return image_gene()


@pytest.fixture(scope="module")
def inputs():
    return pair_inputs()


def inputs_of(model, inputs):
    """The part of the inputs that a model takes."""
    text = {key: inputs[key] for key in ("input_ids", "attention_mask")}
    image = {"pixel_values": inputs["pixel_values"]}
    takes_text = isinstance(model, (CLIPModel, CLIPTextModelWithProjection, CLIPTextForSequenceClassification))
    takes_image = not isinstance(model, (CLIPTextModelWithProjection, CLIPTextForSequenceClassification))
    return {**(text if takes_text else {}), **(image if takes_image else {})}


def result(model, inputs):
    """What the model is used for: embeddings or logits, as one tensor."""
    with torch.no_grad():
        outputs = model(**inputs_of(model, inputs))
    parts = [outputs[name] for name in ("logits", "image_embeds", "text_embeds") if name in outputs]
    return torch.cat(parts)


# --- weights ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("widths", WIDTHS)
@pytest.mark.parametrize("mixing", MIXINGS)
def test_a_full_size_descendants_embeddings_are_the_genes_own(mixing, widths, inputs):
    vision, text = WIDTHS[widths]
    gene = multimodal_gene(vision_width=vision, text_width=text, **MIXINGS[mixing])
    with torch.no_grad():
        own = gene(**inputs)
        both = gene.descendant()(**inputs)
        image = gene.descendant(modality="image")(inputs["pixel_values"]).image_embeds
        text = gene.descendant(modality="text")(inputs["input_ids"], inputs["attention_mask"]).text_embeds
    torch.testing.assert_close(both.image_embeds, own.image_embeds, **CLOSE)
    torch.testing.assert_close(both.text_embeds, own.text_embeds, **CLOSE)
    torch.testing.assert_close(both.logits_per_image, own.logits_per_image, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(torch.nn.functional.normalize(image), own.image_embeds, **CLOSE)
    torch.testing.assert_close(torch.nn.functional.normalize(text), own.text_embeds, **CLOSE)


@pytest.mark.parametrize(
    ("mixing", "widths", "depth", "width"),
    [
        *[(mixing, "wide-vision", 7, 24) for mixing in MIXINGS],
        *[("chebyshev", widths, (2, 5), (16, 8)) for widths in WIDTHS],
        *[("learned", "wide-text", depth, width) for depth, width in ((None, None), (1, 8), (4, 24))],
    ],
)
def test_every_weight_is_the_leading_slice_of_the_papers_formula(mixing, widths, depth, width):
    vision, text = WIDTHS[widths]
    gene = multimodal_gene(vision_width=vision, text_width=text, **MIXINGS[mixing])
    descendant = gene.descendant(depth, width)
    expected = reference_clip(gene, descendant.config).state_dict()
    assert list(descendant.state_dict()) == list(expected)
    for name, tensor in descendant.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize(("modality", "labels"), STOCK)
@pytest.mark.parametrize("width", [8, 16, 32])
@pytest.mark.parametrize("depth", [1, 3, 5])
def test_every_size_is_a_stock_model_that_survives_saving(depth, width, modality, labels, wide_gene, inputs, tmp_path):
    descendant = wide_gene.descendant(depth, width, modality, num_labels=labels)
    assert type(descendant) is STOCK[modality, labels]
    assert not descendant.training
    perturb(descendant)
    descendant.save_pretrained(tmp_path)
    loaded, found = STOCK[modality, labels].from_pretrained(tmp_path, output_loading_info=True)
    assert not any(found.values())
    assert torch.equal(result(loaded, inputs), result(descendant, inputs))
    assert result(loaded, inputs).shape[-1] == (labels or wide_gene.config.projection_dim)


def test_one_side_alone_equals_its_side_of_the_multimodal_descendant(gene, inputs):
    both = gene.descendant(2, (16, 8))
    image = gene.descendant(2, 16, "image")
    text = gene.descendant(2, 8, "text")
    with torch.no_grad():
        image_embeds, text_embeds = (
            both.get_image_features(inputs["pixel_values"]),
            both.get_text_features(inputs["input_ids"], inputs["attention_mask"]),
        )
        assert torch.equal(image(inputs["pixel_values"]).image_embeds, image_embeds.pooler_output)
        text_out = text(inputs["input_ids"], inputs["attention_mask"]).text_embeds
        assert torch.equal(text_out, text_embeds.pooler_output)


@pytest.mark.parametrize(("modality", "labels"), STOCK)
def test_no_tensor_is_shared_with_the_gene(modality, labels, inputs):
    gene = multimodal_gene()
    descendant = gene.descendant(modality=modality, num_labels=labels)
    assert not storages(gene) & storages(descendant)
    before = {name: tensor.clone() for name, tensor in gene.state_dict().items()}
    grown = result(descendant, inputs)
    perturb(descendant, seed=2)
    assert all(torch.equal(gene.state_dict()[name], tensor) for name, tensor in before.items())
    descendant = gene.descendant(modality=modality, num_labels=labels)
    if labels is None:
        assert torch.equal(result(descendant, inputs), grown)
    unchanged = result(descendant, inputs)
    perturb(gene, seed=2)
    assert torch.equal(result(descendant, inputs), unchanged)


def storages(model):
    return {tensor.untyped_storage().data_ptr() for tensor in model.state_dict().values()}


def test_tensors_of_a_descendant_are_contiguous_and_hold_no_more_than_themselves(gene):
    for name, tensor in gene.descendant(2, 16).state_dict().items():
        assert tensor.is_contiguous(), name
        assert tensor.untyped_storage().nbytes() == tensor.nbytes, name


def test_growing_draws_no_random_number_unless_there_is_a_new_head(gene):
    state = torch.get_rng_state()
    for modality in MODALITIES:
        gene.descendant(2, 16, modality)
    assert torch.equal(torch.get_rng_state(), state)
    gene.descendant(2, 16, "image", num_labels=3)
    assert not torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("modality", ["image", "text"])
def test_a_new_head_is_initialised_as_transformers_does(modality, gene):
    torch.manual_seed(0)
    descendant = gene.descendant(modality=modality, num_labels=4000)
    head = descendant.classifier
    assert torch.equal(head.bias, torch.zeros(4000))
    assert head.weight.std().item() == pytest.approx(head.in_features**-0.5, rel=0.02)
    torch.manual_seed(0)
    assert torch.equal(gene.descendant(modality=modality, num_labels=4000).classifier.weight, head.weight)
    torch.manual_seed(1)
    assert not torch.equal(gene.descendant(modality=modality, num_labels=4000).classifier.weight, head.weight)


def test_all_parameters_are_trainable(gene):
    assert all(parameter.requires_grad for parameter in gene.descendant().parameters())


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_a_descendant_is_float32_unless_another_type_is_asked_for(stored, gene, tmp_path):
    half = copy.deepcopy(gene).to(stored)
    descendant = half.descendant(2, 16)
    assert {tensor.dtype for tensor in descendant.parameters()} == {torch.float32}
    descendant.save_pretrained(tmp_path)
    assert CLIPModel.from_pretrained(tmp_path).dtype == torch.float32
    assert half.descendant(2, 16, dtype=torch.bfloat16).dtype == torch.bfloat16


# --- the image gene --------------------------------------------------------------------------------------------------


def test_an_image_genes_full_size_descendant_gives_its_own_logits(tleg_gene, inputs):
    descendant = tleg_gene.descendant()
    assert type(descendant) is CLIPForImageClassification
    with torch.no_grad():
        own = tleg_gene(inputs["pixel_values"]).logits
    torch.testing.assert_close(result(descendant, inputs), own, **CLOSE)


@pytest.mark.parametrize(("depth", "width"), [(1, 8), (5, 24)])
def test_an_image_genes_descendants_keep_the_slice_of_its_head_and_survive_saving(
    depth, width, tleg_gene, inputs, tmp_path
):
    descendant = tleg_gene.descendant(depth, width)
    assert torch.equal(descendant.classifier.weight, tleg_gene.classifier.weight[:, :width])
    descendant.save_pretrained(tmp_path)
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path)
    assert type(loaded) is CLIPForImageClassification
    assert torch.equal(result(loaded, inputs), result(descendant, inputs))


def test_an_image_genes_descendant_has_its_labels_or_new_ones_with_a_new_head():
    names = {0: "cat", 1: "dog", 2: "bird"}
    gene = image_gene(num_labels=3, id2label=names)
    assert gene.descendant().config.id2label == names
    renewed = gene.descendant(num_labels=3)
    assert renewed.config.id2label == {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}
    assert not torch.allclose(renewed.classifier.weight, gene.classifier.weight)
    assert gene.config.id2label == names


def test_an_image_gene_grows_images_only(tleg_gene):
    for modality in ("multimodal", "text"):
        with pytest.raises(LearngeneError, match='an image gene: it grows modality "image" only'):
            tleg_gene.descendant(modality=modality)


# --- config ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("modality", "labels"), STOCK)
def test_a_descendant_says_where_it_comes_from_even_when_one_side_of_it_is_loaded(modality, labels, gene, tmp_path):
    descendant = gene.descendant(2, 16, modality, num_labels=labels)
    descendant.save_pretrained(tmp_path)
    expected = {"learngene": None, "revision": None, "ancestor": gene.config.ancestor, "modality": modality}
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert loaded.learngene == expected
    if modality == "multimodal":
        assert CLIPVisionModelWithProjection.from_pretrained(tmp_path).config.learngene == expected


def test_growing_leaves_the_genes_config_as_it_was(gene):
    before = copy.deepcopy(gene.config.to_dict())
    for (modality, labels), _ in STOCK.items():
        gene.descendant(2, 16, modality, num_labels=labels, attention_dropout=0.25)
    assert gene.config.to_dict() == before


@pytest.mark.parametrize("modality", ["image", "text"])
def test_label_names_imply_their_number_in_either_direction(modality, gene):
    names = {0: "no", 1: "yes", 2: "perhaps"}
    ids = {name: index for index, name in names.items()}
    for given in ({"id2label": names}, {"label2id": ids}, {"id2label": names, "label2id": ids, "num_labels": 3}):
        descendant = gene.descendant(1, 8, modality, **given)
        assert descendant.config.id2label == names
        assert descendant.config.label2id == ids
        assert descendant.classifier.out_features == descendant.num_labels == 3


@pytest.mark.parametrize(
    ("labels", "sentence"),
    [
        ({"num_labels": 8, "modality": "multimodal"}, 'num_labels is 8 with modality "multimodal", which has no head'),
        ({"id2label": {0: "a"}, "modality": "multimodal"}, "num_labels is 1 with modality"),
        ({"num_labels": 0}, "num_labels is 0: it takes a whole number of at least 1"),
        ({"num_labels": -3}, "num_labels is -3"),
        ({"num_labels": 2.0}, "num_labels is 2.0"),
        ({"num_labels": True}, "num_labels is True"),
        ({"num_labels": 2, "id2label": {0: "a"}}, "disagree on the number of labels: 1, 2"),
        ({"id2label": {0: "a"}, "label2id": {"a": 0, "b": 1}}, "disagree on the number of labels: 1, 2"),
    ],
)
def test_labels_that_cannot_be_are_refused(labels, sentence, gene):
    with pytest.raises(LearngeneError, match=sentence):
        gene.descendant(**{"modality": "image", **labels})


def test_config_overrides_reach_every_encoder_that_the_descendant_has(gene):
    both = gene.descendant(2, 16, attention_dropout=0.25)
    assert both.config.vision_config.attention_dropout == both.config.text_config.attention_dropout == 0.25
    assert both.vision_model.encoder.layers[0].self_attn.dropout == 0.25
    assert gene.descendant(2, 16, "text", attention_dropout=0.25).config.attention_dropout == 0.25
    assert gene.descendant(2, 16, "image", num_labels=2, problem_type="regression").config.problem_type == "regression"


@pytest.mark.parametrize("field", ["hidden_size", "projection_dim", "vocab_size", "vision_config"])
def test_a_field_that_the_gene_decides_cannot_be_overridden(field, gene):
    with pytest.raises(LearngeneError, match=f"{field} cannot be overridden .7.: the gene, depth and width decide it"):
        gene.descendant(**{field: 7})


def test_an_unknown_config_field_is_refused(gene):
    with pytest.raises(LearngeneError, match="no field 'drop_out' .given 0.1."):
        gene.descendant(drop_out=0.1)


@pytest.mark.parametrize(
    ("size", "sentence"),
    [
        ({"depth": 0}, "depth is 0"),
        ({"depth": -2}, "depth is -2"),
        ({"width": 12}, "width 12 is no multiple of the head size 8: take 8 or 16"),
        ({"width": 64}, "width 64 is above the image encoder's 32 in this gene"),
        ({"width": 0}, "width is 0"),
        ({"modality": "audio"}, "'audio': it takes one of 'multimodal', 'image', 'text'"),
    ],
)
def test_sizes_that_cannot_be_are_refused_in_one_sentence(size, sentence, gene):
    with pytest.raises(LearngeneError, match=sentence) as caught:
        gene.descendant(**size)
    assert "\n" not in str(caught.value)


# --- beside the stock tools ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("modality", "labels", "load", "absent"),
    [
        ("multimodal", None, AutoProcessor, None),
        ("image", 8, AutoImageProcessor, "tokenizer.json"),
        ("text", 8, AutoTokenizer, "preprocessor_config.json"),
    ],
)
def test_the_processor_is_saved_along_as_far_as_the_modality_needs_it(modality, labels, load, absent, tmp_path):
    gene = multimodal_gene()
    gene.processor = pico_processor()
    gene.descendant(1, 8, modality, num_labels=labels).save_pretrained(tmp_path)
    loaded = load.from_pretrained(tmp_path)
    part = {"image": gene.processor.image_processor, "text": gene.processor.tokenizer}.get(modality, gene.processor)
    assert type(loaded) is type(part)
    assert absent is None or not (tmp_path / absent).exists()
    if modality != "image":
        assert loaded(text="a red square")["input_ids"] == part(text="a red square")["input_ids"]


def test_a_copy_of_a_descendant_saves_the_copys_weights(tmp_path, inputs):
    gene = multimodal_gene()
    gene.processor = pico_processor()
    descendant = gene.descendant(1, 8)
    clone = perturb(copy.deepcopy(descendant))
    clone.save_pretrained(tmp_path)
    assert torch.equal(result(CLIPModel.from_pretrained(tmp_path), inputs), result(clone, inputs))


def test_without_a_processor_a_descendant_saves_itself_alone(gene, tmp_path):
    gene.descendant(1, 8).save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "model.safetensors"}


def test_auto_model_and_pipelines_take_saved_descendants(tmp_path):
    gene = multimodal_gene()
    gene.processor = pico_processor()
    names = dict(enumerate(COLORS))
    gene.descendant(2, 16, "image", id2label=names).save_pretrained(tmp_path / "classifier")
    gene.descendant(2, 16).save_pretrained(tmp_path / "multimodal")
    image = pico_pairs(1)[0]["image"]
    predicted = pipeline("image-classification", model=str(tmp_path / "classifier"), top_k=8)(image)
    assert {entry["label"] for entry in predicted} == set(COLORS)
    assert type(AutoModel.from_pretrained(tmp_path / "multimodal")) is CLIPModel
    zero_shot = pipeline("zero-shot-image-classification", model=str(tmp_path / "multimodal"))
    scores = zero_shot(image, candidate_labels=["red", "blue"], hypothesis_template="a {} square")
    assert sum(entry["score"] for entry in scores) == pytest.approx(1, abs=1e-4)


# --- training with the stock Trainer ---------------------------------------------------------------------------------


def arguments(folder, **kwargs):
    settings = {"optim": "sgd", "learning_rate": 0.1, "lr_scheduler_type": "constant", "max_grad_norm": 0.0}
    return TrainingArguments(
        str(folder), report_to=[], save_strategy="no", disable_tqdm=True, use_cpu=True, **{**settings, **kwargs}
    )


def labelled_pairs(n):
    processor = pico_processor()
    pairs = pico_pairs(n, labels=True)
    tokens = processor.tokenizer(pairs["caption"][:], padding=True)
    pixels = processor.image_processor(pairs["image"][:], return_tensors="pt")["pixel_values"]
    return [
        {
            "pixel_values": pixels[row],
            "input_ids": torch.tensor(tokens["input_ids"][row]),
            "attention_mask": torch.tensor(tokens["attention_mask"][row]),
            "labels": pairs["label"][row],
        }
        for row in range(n)
    ]


def trained_weights(gene, modality, folder, batch, accumulation):
    torch.manual_seed(0)
    model = gene.descendant(2, 16, modality, num_labels=8)
    args = arguments(folder, max_steps=2, per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation)
    Trainer(model, args, train_dataset=labelled_pairs(16)).train()
    return model.state_dict()


@pytest.mark.parametrize("modality", ["image", "text"])
def test_a_classifier_learns_the_same_with_and_without_gradient_accumulation(modality, gene, tmp_path):
    whole = trained_weights(gene, modality, tmp_path, batch=8, accumulation=1)
    parts = trained_weights(gene, modality, tmp_path, batch=2, accumulation=4)
    for name, tensor in whole.items():
        torch.testing.assert_close(parts[name], tensor, atol=1e-5, rtol=1e-4, msg=lambda t, name=name: f"{name}: {t}")


def test_a_text_classifier_learns_the_colours_in_its_texts(gene, tmp_path):
    torch.manual_seed(0)
    model = gene.descendant(2, None, "text", num_labels=8)
    data = labelled_pairs(32)
    args = arguments(tmp_path, max_steps=60, per_device_train_batch_size=16, optim="adamw_torch", learning_rate=1e-2)
    trainer = Trainer(model, args, train_dataset=data, eval_dataset=data)
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert before > 0.9 * math.log(8)
    assert trainer.evaluate()["eval_loss"] < 0.5


def test_a_text_classifier_reads_the_end_token_of_padded_texts(gene, inputs):
    model = perturb(gene.descendant(2, None, "text", num_labels=8))
    alone = inputs["input_ids"][1:2, : inputs["attention_mask"][1].sum()]
    with torch.no_grad():
        padded = model(inputs["input_ids"], inputs["attention_mask"]).logits[1:2]
        torch.testing.assert_close(model(alone).logits, padded, **CLOSE)


@pytest.mark.parametrize(
    ("problem", "labels"),
    [
        ("single_label_classification", torch.tensor([0, 1, 2])),
        ("regression", torch.zeros(3, 3)),
        ("multi_label_classification", torch.ones(3, 3)),
    ],
)
def test_a_text_classifiers_loss_follows_the_problem_type(problem, labels, gene, inputs):
    model = gene.descendant(1, None, "text", num_labels=3, problem_type=problem)
    with torch.no_grad():
        outputs = model(inputs["input_ids"], inputs["attention_mask"], labels=labels)
    losses = {
        "single_label_classification": torch.nn.functional.cross_entropy,
        "regression": torch.nn.functional.mse_loss,
        "multi_label_classification": torch.nn.functional.binary_cross_entropy_with_logits,
    }
    torch.testing.assert_close(outputs.loss, losses[problem](outputs.logits, labels))


def test_a_text_classifiers_embeddings_can_be_resized_for_a_larger_vocabulary(gene):
    model = gene.descendant(1, None, "text", num_labels=3)
    size = model.get_input_embeddings().num_embeddings
    model.resize_token_embeddings(size + 4)
    assert model.get_input_embeddings().num_embeddings == model.config.vocab_size == size + 4


# --- label maps ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [["cat", "dog"], ("cat", "dog"), {1: "dog", 0: "cat"}, {"0": "cat", "1": "dog"}])
def test_label_names_are_a_map_in_any_order_or_a_list(given, gene):
    for labels in ({"id2label": given}, {"id2label": given, "label2id": {"dog": 1, "cat": 0}}):
        config = gene.descendant(1, 8, "image", **labels).config
        assert config.id2label == {0: "cat", 1: "dog"}
        assert config.label2id == {"cat": 0, "dog": 1}


@pytest.mark.parametrize(
    ("labels", "sentence"),
    [
        ({"id2label": {1: "a", 2: "b"}}, "id2label has the ids 1, 2: they must run from 0 to 1 without a gap"),
        ({"id2label": {0: "a", 2: "b"}}, "id2label has the ids 0, 2"),
        ({"label2id": {"a": 1, "b": 2}}, "label2id has the ids 1, 2"),
        ({"id2label": ["a", "a"]}, "id2label has more than one label named 'a'"),
        ({"label2id": {"a": 0, "b": 0}}, "label2id has the id 0 twice"),
        ({"id2label": {0: "a", "0": "b"}}, "id2label has the id 0 twice"),
        ({"id2label": ["a", "b"], "label2id": {"a": 1, "b": 0}}, "label 0 is 'a' in id2label and 'b' in label2id"),
        ({"id2label": {}}, "id2label is empty"),
        ({"id2label": []}, "id2label is empty"),
        ({"id2label": "ab"}, "id2label is 'ab': it takes a mapping, or a list of names"),
        ({"id2label": {0.5: "a"}}, "id2label has the id 0.5"),
        ({"id2label": {"x": "a"}}, "id2label has the id 'x'"),
        ({"id2label": [1, 2]}, "id2label names label 0 1: a name is a string"),
        ({"num_labels": 3, "id2label": ["a", "b"]}, "disagree on the number of labels: 2, 3"),
        ({"num_labels": 10**12}, "num_labels is 1000000000000: it takes a whole number from 1 to"),
    ],
)  # fmt: skip
def test_label_maps_that_cannot_be_are_refused_in_one_sentence(labels, sentence, gene):
    with pytest.raises(LearngeneError) as caught:
        gene.descendant(1, 8, "image", **labels)
    assert sentence in str(caught.value)


def test_a_depth_that_no_memory_holds_is_refused(gene):
    with pytest.raises(LearngeneError, match="depth is 1000000000: it takes at most 1024 layers"):
        gene.descendant(10**9)


@pytest.mark.parametrize("override", [{"attention_dropout": "high"}, {"hidden_act": "none"}, {"to_dict": 1}])
def test_an_override_that_cannot_be_is_refused_in_one_sentence(override, gene):
    with pytest.raises(LearngeneError):
        gene.descendant(1, 8, **override)


def test_attention_is_computed_as_asked():
    gene = multimodal_gene()
    assert gene.descendant(1, attn_implementation="eager").vision_model.config._attn_implementation == "eager"
    assert gene.descendant(1).vision_model.config._attn_implementation == "sdpa"
    with pytest.raises(LearngeneError, match="attn_implementation is 'fast'"):
        gene.descendant(1, attn_implementation="fast")
