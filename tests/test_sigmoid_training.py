"""ContrastiveTrainer with a model that has a logit bias: the sigmoid loss, texts of one length, a free scale."""

import math

import pytest
import torch
from pico import MAX_LENGTH, pico_pairs, pico_processor, pico_siglip
from transformers import TrainingArguments

from mmlg_hf import ContrastiveTrainer, ImageTextCollator, evaluate_retrieval
from mmlg_hf.data import process_pairs
from mmlg_hf.errors import LearngeneError
from mmlg_hf.evaluation import compute_retrieval
from mmlg_hf.training.trainer import MAX_LOGIT_SCALE


def arguments(folder, **changes):
    settings = {
        "per_device_train_batch_size": 8, "per_device_eval_batch_size": 8, "max_steps": 1, "optim": "sgd",
        "learning_rate": 0.05, "lr_scheduler_type": "constant", "train_sampling_strategy": "sequential",
        "max_grad_norm": 0.0, "save_strategy": "no", "report_to": [], "disable_tqdm": True, "use_cpu": True,
    }  # fmt: skip
    return TrainingArguments(str(folder), **(settings | changes))


def stock_batch(rows):
    """What SigLIP takes of rows: texts padded to the longest length, without a mask."""
    processor = pico_processor()
    texts = processor.tokenizer(rows["caption"], padding="max_length", max_length=MAX_LENGTH, return_tensors="pt")
    pixels = processor.image_processor(rows["image"], return_tensors="pt")["pixel_values"]
    return {"pixel_values": pixels, "input_ids": texts["input_ids"]}


@pytest.mark.parametrize("processed", [False, True])
def test_one_step_makes_the_update_of_stock_siglips_own_loss(tmp_path, processed):
    rows = pico_pairs(8)
    model, stock = pico_siglip(), pico_siglip()
    given = process_pairs(rows, pico_processor()) if processed else rows
    trainer = ContrastiveTrainer(model, arguments(tmp_path), train_dataset=given, processing_class=pico_processor())
    trainer.train()
    loss = stock(**stock_batch(rows[:8]), return_loss=True).loss
    loss.backward()
    torch.optim.SGD(stock.parameters(), 0.05).step()
    assert trainer.state.log_history[-1]["train_loss"] == pytest.approx(loss.item(), rel=1e-4)
    for (name, own), expected in zip(model.named_parameters(), stock.parameters(), strict=True):
        torch.testing.assert_close(own, expected, atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize(("own_range", "expected"), [(None, 6.0), ((None, 5.0), 5.0), ((None, None), 6.0)])
def test_the_scale_is_free_unless_the_model_says_otherwise(tmp_path, own_range, expected):
    model = pico_siglip()
    with torch.no_grad():
        model.logit_scale.fill_(6.0)
    if own_range is not None:
        model.logit_scale_range = own_range
    args = arguments(tmp_path, learning_rate=1e-12)
    ContrastiveTrainer(model, args, train_dataset=pico_pairs(8), processing_class=pico_processor()).train()
    assert model.logit_scale.item() == pytest.approx(expected, abs=1e-4)
    assert MAX_LOGIT_SCALE < 5 < 6


def test_evaluation_measures_loss_and_retrieval_of_a_siglip(tmp_path):
    model, rows = pico_siglip().eval(), pico_pairs(16)
    trainer = ContrastiveTrainer(
        model,
        arguments(tmp_path),
        eval_dataset=rows,
        processing_class=pico_processor(),
        compute_metrics=compute_retrieval,
    )
    metrics = trainer.evaluate()
    with torch.no_grad():
        losses = [model(**stock_batch(rows[start : start + 8]), return_loss=True).loss.item() for start in (0, 8)]
        output = model(**stock_batch(rows[:16]))
    assert metrics["eval_loss"] == pytest.approx(sum(losses) / 2, rel=1e-4)
    hits = (output.logits_per_image.argmax(1) == torch.arange(16)).float().mean().item()
    assert metrics["eval_image_to_text_R@1"] == pytest.approx(hits)
    assert evaluate_retrieval(model, rows, processor=pico_processor())["image_to_text_R@1"] == pytest.approx(hits)


def test_texts_padded_to_the_longest_of_a_batch_are_refused(tmp_path):
    rows = pico_pairs(16).map(lambda row, index: {"caption": "a photo"} if index >= 8 else row, with_indices=True)
    collator = ImageTextCollator(pico_processor())
    trainer = ContrastiveTrainer(
        pico_siglip(),
        arguments(tmp_path, max_steps=2),
        train_dataset=rows,
        data_collator=lambda given: collator(given),
    )
    with pytest.raises(
        LearngeneError, match="texts of 10 and of 4 tokens, but the text encoder reads the last position"
    ):
        trainer.train()


def test_label_smoothing_is_refused_for_the_sigmoid_loss(tmp_path):
    with pytest.raises(
        LearngeneError, match="label_smoothing_factor is 0.1, but a SiglipModel is trained by the sigmoid"
    ):
        ContrastiveTrainer(
            pico_siglip(), arguments(tmp_path, label_smoothing_factor=0.1), processing_class=pico_processor()
        )


def test_a_loss_of_bare_ones_is_what_algebra_says(tmp_path):
    model = pico_siglip()
    with torch.no_grad():
        model.logit_scale.fill_(-30.0)  # logits are the bias alone
        model.logit_bias.fill_(-2.0)
    trainer = ContrastiveTrainer(
        model, arguments(tmp_path), eval_dataset=pico_pairs(8), processing_class=pico_processor()
    )
    expected = math.log1p(math.exp(2)) + 7 * math.log1p(math.exp(-2))
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-4)
