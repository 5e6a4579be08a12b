"""An aligned pair embeds, pools, trains and merges as it says."""

import math

import pytest
import torch
from pico import pico_clip, pico_pairs, pico_processor
from pico_encoders import batch, make_encoder, perturb
from torch.nn import functional as F
from transformers import (
    BertConfig,
    BertForMaskedLM,
    CLIPForImageClassification,
    TrainingArguments,
    VisionTextDualEncoderModel,
    VisionTextDualEncoderProcessor,
    pipeline,
)

from mmlg_hf import ContrastiveTrainer, ImageTextCollator
from mmlg_hf.alignment import RECIPES, DualEncoderConfig, DualEncoderModel, align, processor_of_pair
from mmlg_hf.errors import LearngeneError


def unbiased_pair(vision, text, **config):
    """A pair without projection bias, as the stock class has none."""
    settings = DualEncoderConfig.from_vision_text_configs(vision.config, text.config, projection_bias=False, **config)
    return DualEncoderModel(settings, vision, text).eval()


def test_a_pair_of_clip_encoders_computes_what_clip_computes():
    clip = pico_clip().eval()
    ours = unbiased_pair(clip.vision_model, clip.text_model, text_pooling="end", projection_dim=16)
    ours.visual_projection, ours.text_projection = clip.visual_projection, clip.text_projection
    inputs = batch()
    expected, found = clip(**inputs, return_loss=True), ours(**inputs, return_loss=True)
    torch.testing.assert_close(found.logits_per_image, expected.logits_per_image)
    torch.testing.assert_close(found.loss, expected.loss)
    torch.testing.assert_close(found.text_embeds, expected.text_embeds)


def test_the_encoders_own_pooling_gives_the_stock_dual_encoder():
    vision, text = make_encoder("vit"), make_encoder("bert")
    stock = VisionTextDualEncoderModel(vision_model=vision, text_model=text).eval()
    ours = unbiased_pair(vision, text, vision_pooling="pooler", text_pooling="pooler", projection_dim=512)
    ours.load_state_dict(stock.state_dict())
    inputs = batch()
    expected, found = stock(**inputs, return_loss=True), ours(**inputs, return_loss=True)
    torch.testing.assert_close(found.logits_per_text, expected.logits_per_text)
    torch.testing.assert_close(found.loss, expected.loss)
    for ours_features, stock_features in (
        (ours.get_image_features(inputs["pixel_values"]), stock.get_image_features(inputs["pixel_values"])),
        (ours.get_text_features(inputs["input_ids"]), stock.get_text_features(inputs["input_ids"])),
    ):
        torch.testing.assert_close(ours_features.pooler_output, stock_features.pooler_output)


def text_state(pooling, ids, mask):
    """What a BERT pair projects, found by giving its projection the identity."""
    model = align(make_encoder("vit"), make_encoder("bert"), "projections", text_pooling=pooling, projection_dim=32)
    torch.nn.init.eye_(model.text_projection.weight)
    states = model.eval().text_model(input_ids=ids, attention_mask=mask).last_hidden_state
    return model.get_text_features(ids, mask).pooler_output, states


@pytest.mark.parametrize("left", [False, True])
def test_text_poolings_leave_padding_out_on_either_side(left):
    ids = torch.tensor([[5, 6, 7, 8, 9], [5, 6, 7, 8, 9]])
    mask = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1] if left else [1, 1, 1, 0, 0]])
    own = slice(2, 5) if left else slice(0, 3)
    for pooling, pick in {"class": 0, "end": -1}.items():
        pooled, states = text_state(pooling, ids, mask)
        torch.testing.assert_close(pooled[0], states[0, pick])
        torch.testing.assert_close(pooled[1], states[1, own][pick])
    pooled, states = text_state("mean", ids, mask)
    torch.testing.assert_close(pooled[1], states[1, own].mean(dim=0))


@pytest.mark.parametrize(("kind", "num_special"), [("vit", 1), ("deit", 2), ("dinov2", 1), ("siglip-vision", 0)])
def test_the_mean_over_patches_leaves_class_and_distillation_tokens_out(kind, num_special):
    model = align(
        make_encoder(kind), make_encoder("bert"), "projections", vision_pooling="mean", projection_dim=32
    ).eval()
    torch.nn.init.eye_(model.visual_projection.weight)
    pixels = batch()["pixel_values"]
    states = model.vision_model(pixels).last_hidden_state
    assert states.shape[1] == num_special + 4
    torch.testing.assert_close(model.get_image_features(pixels).pooler_output, states[:, num_special:].mean(dim=1))


def test_poolings_are_chosen_by_the_encoder_where_none_is_named():
    clip = align(make_encoder("clip-vision"), make_encoder("clip-text"))
    assert (clip.config.vision_pooling, clip.config.text_pooling) == ("class", "end")
    other = align(make_encoder("siglip-vision"), make_encoder("gpt2"))
    assert (other.config.vision_pooling, other.config.text_pooling) == ("pooler", "end")
    assert align(make_encoder("vit"), make_encoder("xlm-r")).config.text_pooling == "class"


def test_heads_and_unread_poolers_are_dropped_from_encoders():
    classifier = CLIPForImageClassification(pico_clip(num_labels=3).config)
    bert = BertForMaskedLM(BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, vocab_size=60))
    model = align(classifier, bert, "full")
    assert type(model.vision_model).__name__ == "CLIPVisionModel"
    assert type(model.text_model).__name__ == "BertModel"
    assert align(make_encoder("vit"), make_encoder("bert")).vision_model.pooler is None
    assert align(make_encoder("vit"), make_encoder("bert"), vision_pooling="pooler").vision_model.pooler is not None


def test_the_temperature_starts_where_it_is_told_and_training_keeps_it_within_its_bounds():
    model = align(make_encoder("vit"), make_encoder("bert"), temperature=0.1)
    assert math.isclose(float(model.logit_scale.detach().exp()), 10, rel_tol=1e-5)
    for start, temperature in ((-3.0, 0.5), (12.0, 0.001)):
        with torch.no_grad():
            model.logit_scale.fill_(start)
        model.eval()(**batch())
        assert math.isclose(float(model.logit_scale.detach()), start, rel_tol=1e-6)
        model.train()(**batch())
        assert math.isclose(1 / float(model.logit_scale.detach().exp()), temperature, rel_tol=1e-5)
    with pytest.raises(LearngeneError, match=r"temperature is 2: it takes 0\.001 to 0\.5"):
        align(make_encoder("vit"), make_encoder("bert"), temperature=2)


def test_embeddings_are_normalised_and_the_loss_is_the_symmetric_cross_entropy():
    model = align(make_encoder("vit"), make_encoder("bert")).eval()
    outputs = model(**batch(), return_loss=True)
    torch.testing.assert_close(outputs.image_embeds.norm(dim=-1), torch.ones(3))
    labels = torch.arange(3)
    logits = outputs.logits_per_image
    torch.testing.assert_close(outputs.loss, (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2)
    assert model(**batch()).loss is None
    assert len(model(**batch(), return_dict=False)) == 6


def test_hidden_states_and_attentions_are_given_when_asked_for():
    model = align(make_encoder("clip-vision"), make_encoder("distilbert")).eval()
    outputs = model(**batch(), output_hidden_states=True)
    assert len(outputs.vision_model_output.hidden_states) == 3
    assert len(outputs.text_model_output.hidden_states) == 3


def train(model, folder, steps=3, **settings):
    processor = pico_processor()
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        report_to="none",
        use_cpu=True,
        save_strategy="no",
        disable_tqdm=True,
        **settings,
    )
    return ContrastiveTrainer(
        model, arguments, train_dataset=pico_pairs(16), data_collator=ImageTextCollator(processor)
    )


@pytest.mark.parametrize("recipe", RECIPES)
def test_training_moves_what_the_recipe_trains_and_nothing_else(recipe, tmp_path):
    model = align(make_encoder("clip-vision"), make_encoder("clip-text"), recipe)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    # From the third step on: LoRA's first factor has no gradient while the second is zero.
    train(model, tmp_path).train()
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved <= trained
    # Attention ignores a bias that all keys share, up to rounding.
    assert all(".k_proj.bias" in name for name in trained - moved if "token_embedding" not in name)


def test_gradient_checkpointing_gives_the_same_gradients():
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model = align(make_encoder("clip-vision"), make_encoder("clip-text"), "lilt").train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        model(**batch(), return_loss=True).loss.backward()
        gradients.append({name: value.grad for name, value in model.named_parameters() if value.requires_grad})
    for name, expected in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], expected)


@pytest.mark.parametrize("recipe", ["lora", "layernorm", "lora+layernorm", "bitfit", "lit"])
def test_merging_folds_what_was_trained_into_plain_weights(recipe):
    model = align(make_encoder("vit"), make_encoder("bert"), recipe)
    perturb(model)
    expected = model.eval()(**batch()).logits_per_image
    merged = model.merge_and_unload()
    torch.testing.assert_close(merged(**batch()).logits_per_image, expected, rtol=1e-4, atol=1e-5)
    plain = align(make_encoder("vit"), make_encoder("bert"), "full")
    assert {name for name, _ in merged.named_parameters()} == {name for name, _ in plain.named_parameters()}
    assert merged.config.recipe == "full"


@pytest.mark.parametrize("recipe", ["adapters", "lilt"])
def test_merging_adapters_is_refused_and_leaves_the_pair_as_it_was(recipe):
    model = align(make_encoder("vit"), make_encoder("bert"), recipe).eval()
    expected = model(**batch()).logits_per_image
    with pytest.raises(LearngeneError, match="cannot be merged"):
        model.merge_and_unload()
    torch.testing.assert_close(model(**batch()).logits_per_image, expected)
    assert model.config.recipe == recipe


def test_the_zero_shot_pipeline_takes_an_aligned_pair():
    model = align(make_encoder("clip-vision"), make_encoder("clip-text")).eval()
    processor = processor_of_pair(
        model, image_processor=pico_processor().image_processor, tokenizer=pico_processor().tokenizer
    )
    classify = pipeline(
        "zero-shot-image-classification",
        model=model,
        image_processor=processor.image_processor,
        tokenizer=processor.tokenizer,
        device="cpu",
    )
    answers = classify(pico_pairs(1)[0]["image"], candidate_labels=["red", "blue"])
    assert math.isclose(sum(answer["score"] for answer in answers), 1, rel_tol=1e-5)


def test_load_processor_joins_image_processor_and_tokenizer_of_the_two_encoders(saved):
    model = align(saved("clip-vision"), saved("clip-text"))
    processor = processor_of_pair(model)
    assert isinstance(processor, VisionTextDualEncoderProcessor)
    rows = ImageTextCollator(processor)(list(pico_pairs(2)))
    assert model(**rows).logits_per_image.shape == (2, 2)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"image_processor": pico_processor(24).image_processor}, r"images of \[3, 24, 24\].*image_size is 16"),
        ({"tokenizer": "BIGGER"}, "600 tokens and the text encoder embeddings for 553"),
        ({"tokenizer": "OTHER END"}, "ends texts with token 551 and the text encoder reads the state at token 552"),
        ({"image_processor": "no/such-folder/here"}, "no image_processor can be loaded from"),
    ],
)
def test_a_processor_of_other_encoders_is_refused(settings, told):
    tokenizer = pico_processor().tokenizer
    if settings.get("tokenizer") == "BIGGER":
        tokenizer.add_tokens([f"<{index}>" for index in range(600 - len(tokenizer))])
        settings = {"tokenizer": tokenizer}
    elif "tokenizer" in settings:
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(551)
        settings = {"tokenizer": tokenizer}
    model = align(make_encoder("clip-vision"), make_encoder("clip-text"))
    own = {"image_processor": pico_processor().image_processor, "tokenizer": pico_processor().tokenizer}
    with pytest.raises(LearngeneError, match=told):
        processor_of_pair(model, **{**own, **settings})
    with pytest.raises(LearngeneError, match="pass image_processor="):
        processor_of_pair(model)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("bert", "vit"), "the vision encoder is a BertModel, which takes input_ids: give an encoder of pixel_values"),
        (("vit", "dinov2"), "the text encoder is a Dinov2Model, which takes pixel_values"),
        (("siglip-vision", "bert", {"vision_pooling": "class"}), "SiglipVisionModel has no class token"),
        (("vit", "distilbert", {"text_pooling": "pooler"}), "DistilBertModel gives no pooler_output"),
        (
            ("vit", "bert", {"text_pooling": "last"}),
            "text_pooling is 'last': it takes 'class', 'mean', 'end', 'pooler'",
        ),
        (("vit", "bert", {"vision_pooling": "end"}), "vision_pooling is 'end': it takes 'class', 'mean', 'pooler'"),
        (("vit", "bert", {"projection_dim": 0}), "projection_dim is 0"),
    ],
)
def test_encoders_that_cannot_be_joined_are_refused_in_one_sentence(arguments, told):
    vision, text, settings = (*arguments, {})[:3]
    with pytest.raises(LearngeneError) as error:
        align(make_encoder(vision), make_encoder(text), "projections", **settings)
    assert told in str(error.value)


def test_forward_without_one_of_the_two_inputs_says_what_to_call_instead():
    model = align(make_encoder("vit"), make_encoder("bert"))
    with pytest.raises(LearngeneError, match=r"input_ids is missing.*get_image_features"):
        model(pixel_values=batch()["pixel_values"])
