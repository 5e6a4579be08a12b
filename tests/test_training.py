"""ContrastiveTrainer on one process, beside the stock Trainer."""

import math
from types import SimpleNamespace

import peft
import pytest
import torch
from datasets import Dataset
from pico import MAX_LENGTH, pico_clip, pico_pairs, pico_processor
from torch import nn
from torch.nn import functional as F
from transformers import (
    BertConfig,
    BertModel,
    CLIPVisionModel,
    Trainer,
    TrainingArguments,
    VisionTextDualEncoderConfig,
    VisionTextDualEncoderModel,
)

from mmlg_hf.errors import LearngeneError
from mmlg_hf.evaluation import compute_retrieval
from mmlg_hf.training import ContrastiveTrainer, ImageTextCollator


@pytest.fixture(scope="module")
def processor():
    return pico_processor()


@pytest.fixture
def arguments(tmp_path):
    def make(**kwargs):
        settings = {
            "per_device_train_batch_size": 8,
            "per_device_eval_batch_size": 8,
            "max_steps": 3,
            # Adam turns the rounding noise of gradients that are zero (such as key biases) into whole steps.
            "optim": "sgd",
            "learning_rate": 0.05,
            "lr_scheduler_type": "constant",
            # Clipping would hide an update scaled by a constant.
            "max_grad_norm": 0.0,
            "save_strategy": "no",
            "report_to": [],
            "disable_tqdm": True,
            "use_cpu": True,
            **kwargs,
        }
        return TrainingArguments(str(tmp_path), **settings)

    return make


def assert_same_weights(model, other):
    for (name, tensor), expected in zip(model.state_dict().items(), other.state_dict().values(), strict=True):
        torch.testing.assert_close(
            tensor, expected, atol=1e-6, rtol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
        )


def largest_change(model, other):
    return {
        name: (tensor - expected).abs().max().item()
        for (name, tensor), expected in zip(model.state_dict().items(), other.state_dict().values(), strict=True)
    }


# ------------------------------------------------------------------------------------------------- trainer


@pytest.mark.parametrize("accumulation", [1, 2])
def test_one_process_gets_the_weights_of_the_stock_trainer(processor, arguments, accumulation):
    pairs, models = pico_pairs(48), [pico_clip(), pico_clip()]
    settings = {"gradient_accumulation_steps": accumulation}
    ContrastiveTrainer(models[0], arguments(**settings), train_dataset=pairs, processing_class=processor).train()
    settings |= {"remove_unused_columns": False, "dataloader_drop_last": True}
    Trainer(models[1], arguments(**settings), data_collator=ImageTextCollator(processor), train_dataset=pairs).train()
    assert_same_weights(*models)
    assert max(largest_change(models[0], pico_clip()).values()) > 1e-3


def test_labels_in_a_batch_do_not_change_the_update_under_accumulation(processor, arguments):
    pairs, models, collator = pico_pairs(48), [pico_clip(), pico_clip()], ImageTextCollator(processor)

    def with_labels(rows):
        return {**collator(rows), "labels": torch.arange(len(rows))}

    for model, collate in zip(models, (collator, with_labels), strict=True):
        args = arguments(gradient_accumulation_steps=2, label_names=["labels"])
        ContrastiveTrainer(model, args, data_collator=collate, train_dataset=pairs).train()
    assert_same_weights(*models)


def test_the_incomplete_last_batch_is_left_out(processor, arguments):
    models = [pico_clip(), pico_clip()]
    for model, rows in zip(models, (range(16), range(19)), strict=True):
        args = arguments(max_steps=-1, num_train_epochs=1, train_sampling_strategy="sequential")
        trainer = ContrastiveTrainer(
            model, args, train_dataset=pico_pairs(24).select(rows), processing_class=processor
        )
        assert trainer.train().global_step == 2
    assert_same_weights(*models)


def test_label_smoothing_factor_reaches_the_loss(processor, arguments):
    model, batch = pico_clip(), ImageTextCollator(processor)(list(pico_pairs(8)))
    trainer = ContrastiveTrainer(model, arguments(label_smoothing_factor=0.3), processing_class=processor)
    logits = model(**batch).logits_per_image
    labels = torch.arange(8)
    expected = F.cross_entropy(logits, labels, label_smoothing=0.3) / 2
    expected = expected + F.cross_entropy(logits.T, labels, label_smoothing=0.3) / 2
    torch.testing.assert_close(trainer.compute_loss(model, batch), expected)


def test_the_aux_loss_of_an_output_is_added(processor, arguments):
    class WithAuxLoss(nn.Module):
        def __init__(self):
            super().__init__()
            self.logit_scale = nn.Parameter(torch.tensor(1.0))

        def forward(self, aux_loss=None, **inputs):
            zeros = torch.zeros(4, 2)
            return SimpleNamespace(image_embeds=zeros, text_embeds=zeros, aux_loss=aux_loss)

    model = WithAuxLoss()
    trainer = ContrastiveTrainer(model, arguments(), processing_class=processor)
    assert trainer.compute_loss(model, {}).item() == pytest.approx(math.log(4))
    assert trainer.compute_loss(model, {"aux_loss": torch.tensor(0.5)}).item() == pytest.approx(math.log(4) + 0.5)


@pytest.mark.parametrize("frozen", [False, True])
def test_the_logit_scale_is_held_at_ln_100_unless_it_is_frozen(processor, arguments, frozen):
    model = pico_clip()
    nn.init.constant_(model.logit_scale, 5.0)
    model.logit_scale.requires_grad_(not frozen)
    args = arguments(max_steps=1, learning_rate=1e-6)
    ContrastiveTrainer(model, args, train_dataset=pico_pairs(8), processing_class=processor).train()
    assert model.logit_scale.item() == pytest.approx(5.0 if frozen else math.log(100))


VISION, TEXT = ("vision_model", "visual_projection"), ("text_model", "text_projection")


@pytest.mark.parametrize(("frozen", "trained"), [(VISION, TEXT), (TEXT, VISION)])
def test_a_frozen_side_stays_and_the_other_learns(processor, arguments, frozen, trained):
    model = pico_clip()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.startswith(frozen))
    ContrastiveTrainer(model, arguments(), train_dataset=pico_pairs(24), processing_class=processor).train()
    changes = largest_change(model, pico_clip())
    assert all(change == 0 for name, change in changes.items() if name.startswith(frozen))
    assert all(change > 0 for name, change in changes.items() if name.startswith(trained) and "fc1.weight" in name)


def test_lora_adapters_train_and_the_rest_stays(processor, arguments):
    lora = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    torch.manual_seed(0)
    model = peft.get_peft_model(pico_clip(), lora)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    ContrastiveTrainer(model, arguments(), train_dataset=pico_pairs(24), processing_class=processor).train()
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {name for name in before if "lora_" in name}


def test_a_vision_text_dual_encoder_trains_and_learns(processor, arguments):
    text_config = BertConfig(
        vocab_size=len(processor.tokenizer), hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=64, max_position_embeddings=MAX_LENGTH,
    )  # fmt: skip
    vision_config = pico_clip().config.vision_config
    config = VisionTextDualEncoderConfig.from_vision_text_configs(vision_config, text_config, projection_dim=16)
    torch.manual_seed(0)
    model = VisionTextDualEncoderModel(config, CLIPVisionModel(vision_config), BertModel(text_config))
    args = arguments(max_steps=20, optim="adamw_torch", learning_rate=3e-3)
    pairs = pico_pairs(8)
    trainer = ContrastiveTrainer(model, args, train_dataset=pairs, eval_dataset=pairs, processing_class=processor)
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < before - 0.3


def test_evaluation_reports_the_loss_and_if_asked_retrieval(processor, arguments):
    pairs, model = pico_pairs(20), pico_clip()
    plain = ContrastiveTrainer(model, arguments(), eval_dataset=pairs, processing_class=processor).evaluate()
    collator = ImageTextCollator(processor)
    with torch.no_grad():
        losses = [model(**collator(list(pairs.select(rows)))).loss.item() for rows in (range(8), range(8, 16))]
    assert plain["eval_loss"] == pytest.approx(sum(losses) / 2, rel=1e-5)
    asked = ContrastiveTrainer(
        model, arguments(), eval_dataset=pairs, processing_class=processor, compute_metrics=compute_retrieval
    ).evaluate()
    with torch.no_grad():
        output = model(**collator(list(pairs.select(range(16)))))
    prediction = SimpleNamespace(predictions=(output.image_embeds, output.text_embeds))
    expected = compute_retrieval(prediction)
    assert {name: asked[f"eval_{name}"] for name in expected} == pytest.approx(expected)
    assert asked["eval_loss"] == pytest.approx(plain["eval_loss"])


def test_evaluating_on_the_way_does_not_change_the_training(processor, arguments):
    pairs = pico_pairs(24)
    captions = [[text, text.replace("square", "photo"), "a " + text] for text in pairs["caption"]]
    pairs = pairs.remove_columns("caption").add_column("captions", captions)
    models, losses = [], []
    for strategy in ("no", "steps", "steps"):
        models.append(pico_clip())
        args = arguments(eval_strategy=strategy, eval_steps=1)
        trainer = ContrastiveTrainer(
            models[-1], args, train_dataset=pairs, eval_dataset=pairs, processing_class=processor
        )
        trainer.train()
        losses.append([entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry])
    assert_same_weights(models[0], models[1])
    assert losses[1] == losses[2]
    assert len(losses[1]) == 3


def test_a_stream_trains(processor, arguments):
    stream = pico_pairs(32).to_iterable_dataset()
    model = pico_clip()
    ContrastiveTrainer(model, arguments(), train_dataset=stream, processing_class=processor).train()
    assert max(largest_change(model, pico_clip()).values()) > 1e-3


def test_less_data_than_a_batch_is_refused(processor, arguments):
    trainer = ContrastiveTrainer(
        pico_clip(), arguments(), train_dataset=pico_pairs(5), eval_dataset=pico_pairs(6), processing_class=processor
    )
    with pytest.raises(LearngeneError, match="the training data has 5 rows, fewer than one batch of 8"):
        trainer.train()
    with pytest.raises(LearngeneError, match="the evaluation data has 6 rows, fewer than one batch of 8"):
        trainer.evaluate()


def test_a_trainer_without_collator_or_for_another_kind_of_model_is_refused(processor, arguments):
    with pytest.raises(LearngeneError, match="needs processing_class"):
        ContrastiveTrainer(pico_clip(), arguments(), train_dataset=Dataset.from_dict({"a": [1]}))
    with pytest.raises(LearngeneError, match="such as CLIPModel; CLIPVisionModel has none"):
        ContrastiveTrainer(CLIPVisionModel(pico_clip().config.vision_config), arguments(), processing_class=processor)
