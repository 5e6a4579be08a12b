"""Saving writes the trained part alone; loading puts the pair together again, or says what is wrong."""

import json
import shutil

import pytest
import torch
from pico import pico_clip, pico_pairs, pico_processor
from pico_encoders import batch, make_encoder, perturb
from pico_genes import multimodal_gene
from safetensors.torch import load_file, save_file
from transformers import AutoModel, TrainingArguments

from mmlg_hf import ContrastiveTrainer, ImageTextCollator, from_learngene
from mmlg_hf.alignment import RECIPES, DualEncoderModel, align, processor_of_pair
from mmlg_hf.errors import LearngeneError


def aligned(vision, text, recipe="lilt", **settings):
    model = align(vision, text, recipe, **settings)
    perturb(model)
    return model.eval()


def logits(model):
    return model.eval()(**batch()).logits_per_image


CLIP = ("clip-vision", "clip-text")


@pytest.mark.parametrize(
    ("kinds", "recipe"),
    [*((("vit", "bert"), recipe) for recipe in [*RECIPES, "lora+layernorm"]), (CLIP, "lilt"), (CLIP, "layernorm")],
)
def test_a_saved_pair_loads_with_equal_outputs_and_the_same_trainable_part(kinds, recipe, saved, tmp_path):
    model = aligned(*map(saved, kinds), recipe)
    model.save_pretrained(tmp_path / "pair")
    loaded = AutoModel.from_pretrained(tmp_path / "pair")
    assert type(loaded) is DualEncoderModel
    torch.testing.assert_close(logits(loaded), logits(model), rtol=1e-5, atol=1e-6)
    for (name, expected), (found_name, found) in zip(model.named_parameters(), loaded.named_parameters(), strict=True):
        assert (name, expected.requires_grad) == (found_name, found.requires_grad)
        assert torch.equal(expected, found)
    tensors = load_file(tmp_path / "pair" / "model.safetensors")
    assert set(tensors) == {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("kinds", [("deit", "xlm-r"), ("dinov2", "distilbert"), ("siglip-vision", "gpt2")])
def test_other_encoders_make_the_round_trip_too(kinds, saved, tmp_path):
    model = aligned(*map(saved, kinds))
    model.save_pretrained(tmp_path / "pair")
    torch.testing.assert_close(logits(DualEncoderModel.from_pretrained(tmp_path / "pair")), logits(model))


def test_a_pair_of_encoders_made_in_memory_is_saved_whole(tmp_path):
    model = aligned(make_encoder("vit"), make_encoder("bert"))
    model.save_pretrained(tmp_path)
    assert set(load_file(tmp_path / "model.safetensors")) == set(model.state_dict())
    torch.testing.assert_close(logits(DualEncoderModel.from_pretrained(tmp_path)), logits(model))
    with pytest.raises(LearngeneError, match="no name is recorded for an encoder"):
        model.save_pretrained(tmp_path / "other", trained_only=True)
    assert not (tmp_path / "other").exists()


def test_the_config_names_both_encoders_with_a_fingerprint(saved, tmp_path):
    folders = saved("vit"), saved("bert")
    aligned(*folders).save_pretrained(tmp_path / "pair")
    config = json.loads((tmp_path / "pair" / "config.json").read_text())
    assert config["vision_base"]["name"] == folders[0]
    assert config["text_base"]["name"] == folders[1]
    assert config["vision_base"]["fingerprint"] != config["text_base"]["fingerprint"]
    assert config["recipe"] == "lilt"


def test_a_whole_pair_needs_no_encoders(saved, tmp_path):
    folders = saved("vit"), saved("bert")
    model = aligned(*folders)
    model.save_pretrained(tmp_path / "pair", trained_only=False)
    for folder in folders:
        shutil.rmtree(folder)
    torch.testing.assert_close(logits(DualEncoderModel.from_pretrained(tmp_path / "pair")), logits(model))


def test_lit_needs_the_image_encoder_alone_and_full_needs_none(saved, tmp_path):
    folders = {"vision": saved("vit"), "text": saved("bert")}
    lit, full = aligned(**folders, recipe="lit"), aligned(**folders, recipe="full")
    lit.save_pretrained(tmp_path / "lit")
    full.save_pretrained(tmp_path / "full")
    shutil.rmtree(folders["text"])
    torch.testing.assert_close(logits(DualEncoderModel.from_pretrained(tmp_path / "lit")), logits(lit))
    shutil.rmtree(folders["vision"])
    torch.testing.assert_close(logits(DualEncoderModel.from_pretrained(tmp_path / "full")), logits(full))


def test_a_model_frozen_for_inference_is_saved_with_all_it_learnt(saved, tmp_path):
    model = aligned(saved("vit"), saved("bert"))
    model.requires_grad_(False)
    model.save_pretrained(tmp_path / "pair")
    torch.testing.assert_close(logits(DualEncoderModel.from_pretrained(tmp_path / "pair")), logits(model))


def test_a_layer_that_the_user_unfroze_is_saved_too(saved, tmp_path):
    model = align(saved("vit"), saved("bert"), "projections")
    model.text_model.encoder.layer[1].requires_grad_(True)
    perturb(model)
    model.save_pretrained(tmp_path / "pair")
    torch.testing.assert_close(logits(DualEncoderModel.from_pretrained(tmp_path / "pair")), logits(model))


def test_half_precision_encoders_are_aligned_in_float32_and_stay_so(saved, tmp_path):
    folder = saved("vit")
    make_encoder("vit").half().save_pretrained(folder)
    model = aligned(folder, saved("bert"))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    model.save_pretrained(tmp_path / "pair")
    loaded = DualEncoderModel.from_pretrained(tmp_path / "pair")
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    torch.testing.assert_close(logits(loaded), logits(model))
    half = DualEncoderModel.from_pretrained(tmp_path / "pair", dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}


def test_a_missing_encoder_is_named_and_can_be_given_from_elsewhere(saved, tmp_path):
    vision = saved("vit")
    model = aligned(vision, saved("bert"))
    model.save_pretrained(tmp_path / "pair")
    shutil.move(vision, tmp_path / "moved")
    with pytest.raises(LearngeneError) as error:
        DualEncoderModel.from_pretrained(tmp_path / "pair")
    assert f"the base vision encoder {vision!r} of this aligned pair is missing" in str(error.value)
    assert "from_pretrained(..., vision=...)" in str(error.value)
    for place in (tmp_path / "moved", make_encoder("vit")):
        loaded = DualEncoderModel.from_pretrained(tmp_path / "pair", vision=place)
        torch.testing.assert_close(logits(loaded), logits(model))


@pytest.mark.parametrize(
    ("other", "told"),
    [
        (("text", "bert", 1), "was trained on another text encoder.*fingerprint"),
        (("text", "distilbert", 0), "belongs to another text encoder than DistilBertModel"),
        (("vision", "clip-vision", 0), "belongs to another vision encoder than CLIPVisionModel"),
    ],
)
def test_a_trained_part_of_other_encoders_is_refused(other, told, saved, tmp_path):
    aligned(saved("vit"), saved("bert")).save_pretrained(tmp_path / "pair")
    modality, kind, seed = other
    with pytest.raises(LearngeneError, match=told):
        DualEncoderModel.from_pretrained(tmp_path / "pair", **{modality: saved(kind, seed)})


def test_an_encoder_whose_weights_were_changed_in_place_is_refused(saved, tmp_path):
    text = saved("bert")
    aligned(saved("vit"), text).save_pretrained(tmp_path / "pair")
    make_encoder("bert", seed=5).save_pretrained(text)
    with pytest.raises(LearngeneError, match="was trained on another text encoder"):
        DualEncoderModel.from_pretrained(tmp_path / "pair")


def damage(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda tensors: tensors.pop("visual_projection.weight"), "visual_projection.weight is missing"),
        (lambda tensors: tensors.update(strange=torch.ones(2)), "strange is unexpected"),
        (
            lambda tensors: tensors.update({"text_projection.bias": torch.ones(3)}),
            "text_projection.bias is of another shape",
        ),
    ],
)
def test_weights_that_do_not_fit_are_listed(change, told, saved, tmp_path):
    aligned(saved("vit"), saved("bert")).save_pretrained(tmp_path / "pair")
    damage(tmp_path / "pair", change)
    with pytest.raises(LearngeneError, match=told):
        DualEncoderModel.from_pretrained(tmp_path / "pair")


def test_a_truncated_or_absent_weights_file_is_said_in_one_sentence(saved, tmp_path):
    aligned(saved("vit"), saved("bert")).save_pretrained(tmp_path / "pair")
    weights = tmp_path / "pair" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:200])
    with pytest.raises(LearngeneError, match=r"cannot read model.safetensors of"):
        DualEncoderModel.from_pretrained(tmp_path / "pair")
    weights.unlink()
    with pytest.raises(LearngeneError, match=r"cannot read model.safetensors of"):
        DualEncoderModel.from_pretrained(tmp_path / "pair")


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("no/such-model", "cannot load the vision encoder 'no/such-model'"),
        ("EMPTY", "the vision encoder .* has no config.json"),
    ],
)
def test_an_encoder_that_cannot_be_loaded_is_named(source, told, saved, tmp_path):
    (tmp_path / "empty").mkdir()
    source = str(tmp_path / "empty") if source == "EMPTY" else source
    with pytest.raises(LearngeneError, match=told):
        align(source, saved("bert"), local_files_only=True)


def test_an_encoder_with_missing_weights_is_refused(saved):
    folder = saved("bert")
    tensors = load_file(f"{folder}/model.safetensors")
    tensors.pop("encoder.layer.1.output.dense.weight")
    save_file(tensors, f"{folder}/model.safetensors", metadata={"format": "pt"})
    with pytest.raises(LearngeneError, match=r"lacks 1 tensor of a BertModel, such as encoder.layer.1.output.dense"):
        align(saved("vit"), folder)


def test_a_clip_checkpoint_gives_the_encoder_of_the_modality_asked_for(tmp_path):
    clip = pico_clip().eval()
    clip.save_pretrained(tmp_path / "clip")
    model = align(tmp_path / "clip", tmp_path / "clip", "projections").eval()
    inputs = batch()
    for found, expected in (
        (model.text_model(inputs["input_ids"]), clip.text_model(inputs["input_ids"])),
        (model.vision_model(inputs["pixel_values"]), clip.vision_model(inputs["pixel_values"])),
    ):
        torch.testing.assert_close(found.pooler_output, expected.pooler_output)


@pytest.mark.parametrize("recipe", ["lilt", "layernorm"])
def test_an_interrupted_training_resumes_from_small_checkpoints_to_the_same_weights(recipe, saved, tmp_path):
    folders = saved("clip-vision"), saved("clip-text")

    def trainer(folder, steps):
        torch.manual_seed(0)
        model = align(*folders, recipe)
        arguments = TrainingArguments(
            output_dir=str(folder),
            max_steps=4,
            per_device_train_batch_size=4,
            learning_rate=1e-2,
            lr_scheduler_type="constant",
            save_steps=2,
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
        )
        collator = ImageTextCollator(pico_processor())
        made = ContrastiveTrainer(model, arguments, train_dataset=pico_pairs(16), data_collator=collator)
        made.args.max_steps = steps
        return made

    whole = trainer(tmp_path / "whole", 4)
    whole.train()
    broken = trainer(tmp_path / "broken", 2)
    broken.train()
    tensors = load_file(tmp_path / "broken" / "checkpoint-2" / "model.safetensors")
    assert len(tensors) < len(broken.model.state_dict())
    resumed = trainer(tmp_path / "broken", 4)
    resumed.train(resume_from_checkpoint=str(tmp_path / "broken" / "checkpoint-2"))
    for (name, expected), (_, found) in zip(
        whole.model.named_parameters(), resumed.model.named_parameters(), strict=True
    ):
        torch.testing.assert_close(found, expected, msg=lambda told, name=name: f"{name}: {told}")


def test_descendants_in_memory_are_recorded_as_gene_and_size(tmp_path):
    gene = multimodal_gene()
    gene.processor = pico_processor()
    gene.save_pretrained(tmp_path / "gene")
    image = from_learngene(tmp_path / "gene", depth=2, width=24, modality="image")
    text = from_learngene(tmp_path / "gene", depth=3, width=8, modality="text")
    model = aligned(image, text)
    model.save_pretrained(tmp_path / "pair")
    config = json.loads((tmp_path / "pair" / "config.json").read_text())
    assert config["text_base"]["name"] == str(tmp_path / "gene")
    assert config["text_base"]["grown"] == {"depth": 3, "width": 8}
    loaded = DualEncoderModel.from_pretrained(tmp_path / "pair")
    torch.testing.assert_close(logits(loaded), logits(model))
    processor = processor_of_pair(loaded)
    assert loaded(**ImageTextCollator(processor)(list(pico_pairs(2)))).logits_per_image.shape == (2, 2)


def test_a_model_trained_since_it_was_loaded_is_saved_whole(saved, tmp_path):
    text = AutoModel.from_pretrained(saved("bert"))
    with torch.no_grad():
        text.embeddings.word_embeddings.weight.mul_(2)
    model = aligned(saved("vit"), text)
    assert model.config.text_base is None
    model.save_pretrained(tmp_path / "pair")
    torch.testing.assert_close(logits(DualEncoderModel.from_pretrained(tmp_path / "pair")), logits(model))


def test_a_model_as_it_was_loaded_is_recorded_by_its_name(saved):
    folder = saved("bert")
    assert align(saved("vit"), AutoModel.from_pretrained(folder)).config.text_base["name"] == folder


def test_descendants_of_a_bundled_gene_are_recorded_by_its_name_and_not_by_where_it_is_installed(tmp_path):
    image = from_learngene("mmlg-fashion-48", depth=1, width=32, modality="image")
    text = from_learngene("mmlg-fashion-48", depth=1, width=32, modality="text")
    model = aligned(image, text)
    assert model.config.text_base["name"] == "mmlg-fashion-48"
    model.save_pretrained(tmp_path / "pair")
    assert "/zoo/" not in (tmp_path / "pair" / "config.json").read_text().replace("\\", "/")
    loaded = DualEncoderModel.from_pretrained(tmp_path / "pair")
    for name, value in model.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], value)
    assert processor_of_pair(loaded).tokenizer.eos_token_id == text.config.eos_token_id
