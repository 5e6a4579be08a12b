"""Numbers that are none, or hardly: NaN, infinity and denormals in weights, data, learning rates and losses."""

import math

import pytest
import torch
from pico import pico_clip, pico_pairs, pico_processor
from pico_genes import multimodal_gene, reference_clip
from pico_training import contrastive
from PIL import Image

from mmlg_hf import ExtractionArguments, LearngeneError, extract_learngene, from_learngene
from mmlg_hf.data import process_pairs
from mmlg_hf.data.pictures import read_image
from mmlg_hf.training.resuming import last_checkpoint

DENORMAL = 1e-40  # below float32's 1.2e-38: leading bits are lost, so that a sum keeps an error of 1.4e-45 at most


def extract(folder, ancestor, rows, **settings):
    settings = {"max_steps": 1, "per_device_train_batch_size": 4, "save_strategy": "no", **settings}
    args = ExtractionArguments(str(folder), use_cpu=True, report_to="none", disable_tqdm=True, **settings)
    return extract_learngene(ancestor, rows, args, processor=pico_processor())


# --- losses, weights and learning rates ------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_no_number_stops_the_run_with_its_step_and_keeps_the_last_checkpoint(
    tmp_path, value, monkeypatch
):
    trainer = contrastive(tmp_path)
    stock = trainer.compute_loss

    def compute_loss(*args, **kwargs):
        return stock(*args, **kwargs) * (value if trainer.state.global_step == 2 else 1.0)

    monkeypatch.setattr(trainer, "compute_loss", compute_loss)
    with pytest.raises(LearngeneError, match=rf"the loss became {value} at step 3: .*checkpoint-2'"):
        trainer.train()
    assert last_checkpoint(tmp_path / "run").endswith("checkpoint-2")
    kept = pico_clip().from_pretrained(tmp_path / "run" / "checkpoint-2")
    assert all(torch.isfinite(weight).all() for weight in kept.parameters())


def test_weights_that_became_nan_are_not_saved(tmp_path):
    trainer = contrastive(tmp_path)
    trainer.train()
    with torch.no_grad():
        trainer.model.visual_projection.weight[0, 0] = math.nan
    with pytest.raises(LearngeneError, match="visual_projection.weight is no longer finite after step 6"):
        trainer.save_model(str(tmp_path / "final"))
    assert not (tmp_path / "final").exists()


@pytest.mark.parametrize("rate", [math.nan, math.inf])
def test_a_learning_rate_that_is_no_number_is_refused(tmp_path, rate):
    with pytest.raises(LearngeneError, match=f"learning_rate is {rate}"):
        contrastive(tmp_path, learning_rate=rate)


def test_a_learning_rate_of_a_denormal_number_changes_nothing(tmp_path):
    trainer = contrastive(tmp_path, learning_rate=5e-324, weight_decay=0.0, max_steps=1)
    trainer.train()
    before = pico_clip().state_dict()
    assert all(torch.equal(weight, before[name]) for name, weight in trainer.model.state_dict().items())


# --- data ------------------------------------------------------------------------------------------------------------


def pixels_of(value):
    """Eight pairs as tensors; one pixel of the fifth is `value`."""

    def change(row, index):
        row["pixel_values"][0][0][0] = value if index == 4 else row["pixel_values"][0][0][0]
        return row

    rows = process_pairs(pico_pairs(8), pico_processor())
    return rows.with_format(None).map(change, with_indices=True).with_format("torch")


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_pixel_that_is_no_number_stops_the_run_before_the_weights_are_changed(tmp_path, value):
    trainer = contrastive(tmp_path, pixels_of(value), max_steps=2, save_strategy="no")
    with pytest.raises(LearngeneError, match=r"the loss became nan at step \d: look for values in the data that are"):
        trainer.train()
    assert all(weight.isfinite().all() for weight in trainer.model.parameters())


def test_a_denormal_pixel_counts_as_zero(tmp_path):
    models = []
    for value in (DENORMAL, 0.0):
        trainer = contrastive(tmp_path, pixels_of(value), max_steps=2, save_strategy="no")
        trainer.train()
        models.append(trainer.model.state_dict())
    for name, weight in models[0].items():
        torch.testing.assert_close(weight, models[1][name], rtol=0, atol=1e-6)


def floats_with(value):
    picture = Image.new("F", (16, 16), 0.5)
    picture.putpixel((3, 4), value)
    return picture


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_picture_of_floats_that_are_no_numbers_is_refused_with_its_row(value):
    with pytest.raises(LearngeneError, match="row 7 cannot be read .the range of its values cannot be told"):
        read_image(floats_with(value), "row 7")


def test_a_denormal_in_a_picture_of_floats_is_black():
    assert read_image(floats_with(DENORMAL), "row 7").getpixel((3, 4)) == (0, 0, 0)


# --- denormal weights ------------------------------------------------------------------------------------------------


def test_an_ancestor_with_a_layer_of_denormal_weights_gives_a_finite_gene(tmp_path):
    ancestor = pico_clip()
    with torch.no_grad():
        for parameter in ancestor.vision_model.encoder.layers[0].parameters():
            parameter.mul_(DENORMAL)
    gene = extract(tmp_path, ancestor, pico_pairs(8))
    assert all(weight.isfinite().all() for weight in gene.state_dict().values())


def test_denormal_weights_of_a_gene_are_grown_by_the_formula(tmp_path):
    gene = multimodal_gene()
    with torch.no_grad():
        for name, parameter in gene.named_parameters():
            if "_blocks" in name:
                parameter.mul_(DENORMAL)
    gene.save_pretrained(tmp_path)
    grown, want = from_learngene(tmp_path).state_dict(), reference_clip(gene).state_dict()
    weight = "vision_model.encoder.layers.1.mlp.fc1.weight"
    assert 0 < grown[weight].abs().max() < 1e-38
    for name, tensor in want.items():
        torch.testing.assert_close(grown[name], tensor, rtol=1e-6, atol=4e-45)
