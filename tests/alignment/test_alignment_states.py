"""States of frozen encoders that are kept: the same training, at the cost of the heads."""

import pytest
import torch
from pico import pico_pairs, pico_processor
from pico_encoders import batch, make_encoder
from transformers import TrainingArguments

from mmlg_hf import ContrastiveTrainer, ImageTextCollator
from mmlg_hf.alignment import align, keep_states
from mmlg_hf.errors import LearngeneError


def pair(recipe="projections", **settings):
    torch.manual_seed(0)
    return align(make_encoder("vit"), make_encoder("clip-text"), recipe, projection_dim=8, **settings)


def trained_on(rows, tmp_path, **settings):
    model = pair(**settings)
    for encoder in (model.vision_model, model.text_model):
        encoder.config.attention_probs_dropout_prob = encoder.config.hidden_dropout_prob = 0.0
    options = {"per_device_train_batch_size": 4, "max_steps": 4, "learning_rate": 0.01, "seed": 3, "report_to": "none"}
    args = TrainingArguments(str(tmp_path), save_strategy="no", disable_tqdm=True, use_cpu=True, **options)
    trainer = ContrastiveTrainer(model, args, train_dataset=rows, processing_class=pico_processor())
    trainer.train()
    return trainer


@pytest.mark.parametrize("settings", [{}, {"projection_head": "glu", "structure_weight": 2.0}])
def test_training_on_kept_states_is_training_on_the_pairs(settings, tmp_path):
    pairs = pico_pairs(16)
    kept = keep_states(pair(**settings), pairs, pico_processor(), batch_size=5)
    assert kept.column_names == ["image_states", "text_states"]
    assert len(kept) == 16
    one, other = (trained_on(rows, tmp_path, **settings) for rows in (pairs, kept))
    start = pair(**settings).state_dict()
    for name, value in one.model.state_dict().items():
        torch.testing.assert_close(other.model.state_dict()[name], value, msg=name)
    assert not torch.equal(one.model.logit_scale, start["logit_scale"])
    found = [trainer.evaluate(rows)["eval_loss"] for trainer, rows in ((one, pairs), (other, kept))]
    assert found[0] == pytest.approx(found[1], rel=1e-5)


def test_states_are_kept_without_dropout_and_the_model_goes_on_training():
    model = align(make_encoder("vit"), make_encoder("bert"), "projections", projection_dim=8)
    assert model.text_model.config.hidden_dropout_prob > 0
    first, again = (keep_states(model, pico_pairs(4), pico_processor())[:] for _ in range(2))
    torch.testing.assert_close(first["text_states"], again["text_states"], rtol=0, atol=0)
    assert all(module.training for module in model.modules())


def test_batches_of_kept_states_ask_for_the_loss_that_the_stock_trainer_needs():
    model, processor = pair().eval(), pico_processor()
    kept = keep_states(model, pico_pairs(4), processor)
    batch_of_states = ImageTextCollator(processor)([kept[row] for row in range(4)])
    expected = model(**ImageTextCollator(processor)(list(pico_pairs(4)))).loss
    torch.testing.assert_close(model(**batch_of_states).loss, expected)


def test_states_in_place_of_inputs_give_the_same_outputs():
    model, inputs = pair().eval(), batch()
    images, texts = model.encode_images(inputs["pixel_values"])[0], model.encode_texts(inputs["input_ids"])[0]
    expected = model(**inputs, return_loss=True)
    found = model(image_states=images, text_states=texts, return_loss=True)
    torch.testing.assert_close(found.loss, expected.loss)
    torch.testing.assert_close(found.logits_per_text, expected.logits_per_text)
    mixed = model(input_ids=inputs["input_ids"], image_states=images)
    torch.testing.assert_close(mixed.image_embeds, expected.image_embeds)


def test_inputs_beside_their_states_or_neither_are_refused():
    model, inputs = pair().eval(), batch()
    with pytest.raises(LearngeneError, match="pixel_values is given beside image_states"):
        model(**inputs, image_states=torch.zeros(3, 32))
    with pytest.raises(LearngeneError, match="input_ids is missing"):
        model(pixel_values=inputs["pixel_values"])


@pytest.mark.parametrize("recipe", ["full", "lit", "lilt", "bitfit"])
def test_states_of_encoders_that_train_are_not_kept(recipe):
    with pytest.raises(LearngeneError, match=f"the recipe '{recipe}' trains encoders"):
        keep_states(pair(recipe), pico_pairs(4), pico_processor())


def test_an_encoder_that_the_user_unfroze_trains_and_no_pairs_are_refused():
    model = pair()
    with pytest.raises(LearngeneError, match="no pairs"):
        keep_states(model, pico_pairs(4).select([]), pico_processor())
    next(model.text_model.parameters()).requires_grad = True
    with pytest.raises(LearngeneError, match="trains encoders"):
        keep_states(model, pico_pairs(4), pico_processor())
