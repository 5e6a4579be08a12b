"""Aligned pairs at the edges: fine-tuned encoders, data types, damage, SigLIP, runs that go on with other settings."""

import copy
import json
import math

import pytest
import torch
from pico import pico_pairs, pico_processor
from pico_encoders import batch, make_encoder, perturb
from pico_genes import multimodal_gene
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoProcessor,
    BertConfig,
    BertModel,
    SiglipTextConfig,
    SiglipTextModel,
    Trainer,
    TrainingArguments,
    pipeline,
)

from mmlg_hf import ImageTextCollator, from_learngene
from mmlg_hf.alignment import DualEncoderModel, align, processor_of_pair
from mmlg_hf.errors import LearngeneError


def logits(model):
    return model.eval()(**batch()).logits_per_image


def similarity(one, other):
    return torch.nn.functional.cosine_similarity(one, other, dim=-1).min().item()


# --- encoders that were fine-tuned -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_encoder_fine_tuned_in_one_late_row_of_its_embedding_is_saved(dtype, saved, tmp_path):
    text = AutoModel.from_pretrained(saved("bert"), dtype=dtype)
    with torch.no_grad():
        text.embeddings.word_embeddings.weight[50:60] += 0.5
    model = align(saved("vit"), text)
    assert model.config.text_base is None
    model.save_pretrained(tmp_path / "pair")
    torch.testing.assert_close(logits(DualEncoderModel.from_pretrained(tmp_path / "pair")), logits(model))


def test_a_buffer_that_training_moved_counts_as_well(saved):
    text = AutoModel.from_pretrained(saved("bert"))
    text.register_buffer("running_mean", torch.zeros(3))
    assert align(saved("vit"), text).config.text_base is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_pair_recorded_in_float32_loads_in_half_precision_from_its_recorded_encoders(dtype, saved, tmp_path):
    model = align(saved("vit"), saved("bert"), "lilt")
    perturb(model)
    model.save_pretrained(tmp_path / "pair")
    half = DualEncoderModel.from_pretrained(tmp_path / "pair", dtype=dtype)
    expected = copy.deepcopy(model).to(dtype)
    assert all(map(torch.equal, half.state_dict().values(), expected.state_dict().values()))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_pair_aligned_in_half_precision_knows_its_float32_encoders_again(dtype, saved, tmp_path):
    model = align(saved("vit"), saved("bert"), "lora", dtype=dtype)
    assert {value.dtype for value in model.parameters()} == {getattr(torch, dtype)}
    model.save_pretrained(tmp_path / "pair")
    loaded = DualEncoderModel.from_pretrained(tmp_path / "pair")
    assert {value.dtype for value in loaded.parameters()} == {getattr(torch, dtype)}
    assert all(map(torch.equal, loaded.state_dict().values(), model.state_dict().values()))


def test_a_rounded_encoder_is_no_stand_in_for_the_recorded_one_and_a_widened_one_is(saved, tmp_path):
    folder = saved("bert")
    AutoModel.from_pretrained(folder).half().save_pretrained(folder)
    align(saved("vit"), folder).save_pretrained(tmp_path / "pair")
    in_half = AutoModel.from_pretrained(folder, dtype=torch.float16)
    DualEncoderModel.from_pretrained(tmp_path / "pair", text=in_half)
    rounded = AutoModel.from_pretrained(folder, dtype=torch.bfloat16)
    with pytest.raises(LearngeneError, match=r"another text encoder.*float32.*in bfloat16|\(bfloat16\)"):
        DualEncoderModel.from_pretrained(tmp_path / "pair", text=rounded)


# --- encoders grown from a gene --------------------------------------------------------------------------------------


@pytest.fixture
def gene(tmp_path):
    made = multimodal_gene()
    made.processor = pico_processor()
    made.save_pretrained(tmp_path / "gene")
    return tmp_path / "gene"


def grown(gene, forget_name=False):
    pair = [from_learngene(gene, 2, 8, modality) for modality in ("image", "text")]
    for model in pair if forget_name else ():
        model.config._name_or_path = model.name_or_path = ""
        for part in (model.config, model.base_model.config):
            part._name_or_path = ""
    return pair


@pytest.mark.parametrize("forget_name", [False, True])
def test_encoders_grown_from_a_gene_are_recorded_by_the_gene_whatever_their_own_name(forget_name, gene, tmp_path):
    model = align(*grown(gene, forget_name))
    assert model.config.vision_base["name"] == model.config.text_base["name"] == str(gene)
    assert model.config.text_base["grown"] == {"depth": 2, "width": 8}
    perturb(model)
    model.save_pretrained(tmp_path / "pair")
    torch.testing.assert_close(logits(DualEncoderModel.from_pretrained(tmp_path / "pair")), logits(model))


def test_a_descendant_trained_since_it_grew_is_saved_whole(gene):
    image, text = grown(gene)
    with torch.no_grad():
        text.text_model.embeddings.token_embedding.weight[-1, -1] += 1e-3
    model = align(image, text)
    assert model.config.text_base is None
    assert model.config.vision_base is not None


def test_a_descendant_that_was_saved_is_recorded_by_its_folder(gene, tmp_path):
    image, text = grown(gene)
    text.save_pretrained(tmp_path / "text")
    base = align(image, type(text).from_pretrained(tmp_path / "text")).config.text_base
    assert base["name"] == str(tmp_path / "text")
    assert "grown" not in base


def test_another_gene_in_the_place_of_the_recorded_one_is_refused_and_a_moved_one_is_taken(gene, tmp_path):
    model = align(*grown(gene))
    model.save_pretrained(tmp_path / "pair")
    gene.rename(tmp_path / "moved")
    places = {"vision": tmp_path / "moved", "text": tmp_path / "moved"}
    torch.testing.assert_close(logits(DualEncoderModel.from_pretrained(tmp_path / "pair", **places)), logits(model))
    other = multimodal_gene()
    with torch.no_grad():
        next(other.parameters()).mul_(1.5)
        for parameter in other.parameters():
            parameter.add_(0.01)
    other.save_pretrained(gene)
    with pytest.raises(LearngeneError, match="this is the gene with fingerprint"):
        DualEncoderModel.from_pretrained(tmp_path / "pair")


# --- data types and devices ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_encoders_in_memory_are_aligned_in_float32(dtype):
    model = align(make_encoder("vit").to(dtype), make_encoder("bert").to(dtype), "lilt")
    assert {value.dtype for value in model.parameters()} == {torch.float32}
    expected = align(make_encoder("vit").to(dtype).float(), make_encoder("bert").to(dtype).float(), "projections")
    pixels = batch()["pixel_values"]
    torch.testing.assert_close(
        align(make_encoder("vit").to(dtype), make_encoder("bert"), "projections").vision_model(pixels)[0],
        expected.vision_model(pixels)[0],
    )


@pytest.mark.parametrize("dtype", ["bfloat16", "torch.bfloat16", torch.bfloat16])
@pytest.mark.parametrize("recipe", ["lilt", "lora", "layernorm", "full"])
def test_a_pair_is_of_one_data_type_wherever_its_encoders_come_from(dtype, recipe, saved):
    model = align(saved("vit"), make_encoder("bert"), recipe, dtype=dtype)
    assert {value.dtype for value in model.parameters()} == {torch.bfloat16}
    inputs = {**batch(), "pixel_values": batch()["pixel_values"].bfloat16()}
    assert model.eval()(**inputs).logits_per_image.isfinite().all()


def test_auto_keeps_the_data_type_that_both_encoders_have(saved):
    vision = saved("vit")
    make_encoder("vit").half().save_pretrained(vision)
    model = align(vision, make_encoder("bert").half(), dtype="auto")
    assert {value.dtype for value in model.parameters()} == {torch.float16}
    with pytest.raises(LearngeneError, match="the vision encoder is in float16, the text encoder in float32: name"):
        align(vision, saved("bert"), dtype="auto")
    assert {value.dtype for value in align(vision, saved("bert"), dtype=None).parameters()} == {torch.float32}


@pytest.mark.parametrize("dtype", ["float15", torch.int64, 32, torch.float8_e4m3fn])
def test_a_data_type_that_is_none_is_refused(dtype, saved):
    with pytest.raises(LearngeneError, match="it takes float32, float16, bfloat16 or float64"):
        align(saved("vit"), saved("bert"), dtype=dtype)


def test_encoders_on_two_devices_are_refused_or_brought_together():
    with pytest.raises(LearngeneError, match="the vision encoder on meta, the text encoder on cpu: load both on one"):
        align(make_encoder("vit").to("meta"), make_encoder("bert"))
    if torch.cuda.is_available():
        model = align(make_encoder("vit"), make_encoder("bert").cuda().half())
        assert {value.device.type for value in model.parameters()} == {"cuda"}


def test_a_wrapped_encoder_is_refused():
    with pytest.raises(LearngeneError, match="the text encoder is a DataParallel: give a Hub id"):
        align(make_encoder("vit"), torch.nn.DataParallel(make_encoder("bert")))


def test_encoders_that_cannot_be_joined_keep_their_modes():
    vision, text = make_encoder("vit").train(), make_encoder("distilbert").train()
    text.transformer.layer[0].eval()
    modes = [(module, module.training) for module in (*vision.modules(), *text.modules())]
    with pytest.raises(LearngeneError, match="gives no pooler_output"):
        align(vision, text, "projections", text_pooling="pooler")
    assert all(module.training is mode for module, mode in modes)
    assert all(module.training for module in align(make_encoder("vit"), make_encoder("bert")).modules())


# --- damage ----------------------------------------------------------------------------------------------------------


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def point(path):
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")


def poison(path):
    tensors = load_file(path)
    next(value for value in tensors.values() if value.ndim == 2)[0, -1] = math.nan
    save_file(tensors, path, metadata={"format": "pt"})


def widen(path):
    config = path.with_name("config.json")
    config.write_text(config.read_text().replace('"hidden_size": 32', '"hidden_size": 34'))


def garble(path):
    path.with_name("config.json").write_text("{")


DAMAGE = [
    (cut, "damaged|cannot read"),
    (lambda path: path.write_bytes(b""), "is empty"),
    (point, "is a Git LFS pointer"),
    (poison, "holds NaN or infinity"),
    (widen, "of another shape|of another text encoder|no aligned pair can be made|do not fit"),
    (garble, "config"),
]


@pytest.mark.parametrize(("damage", "told"), DAMAGE)
def test_a_damaged_encoder_is_one_sentence(damage, told, saved, tmp_path):
    folder = saved("bert")
    damage(type(tmp_path)(folder) / "model.safetensors")
    with pytest.raises(LearngeneError, match=told):
        align(saved("vit"), folder)


@pytest.mark.parametrize(("damage", "told"), DAMAGE)
@pytest.mark.parametrize("recipe", ["lilt", "full"])
def test_a_damaged_pair_is_one_sentence(damage, told, recipe, saved, tmp_path):
    align(saved("vit"), saved("bert"), recipe).save_pretrained(tmp_path / "pair")
    damage(tmp_path / "pair" / "model.safetensors")
    with pytest.raises(LearngeneError, match=told):
        DualEncoderModel.from_pretrained(tmp_path / "pair")


def test_an_encoder_in_memory_with_a_nan_is_refused(saved):
    text = make_encoder("bert")
    with torch.no_grad():
        text.embeddings.word_embeddings.weight[-1, -1] = math.nan
    with pytest.raises(LearngeneError, match=r"embeddings.word_embeddings.weight of the text encoder holds NaN"):
        align(saved("vit"), text)


def test_a_pair_saved_in_several_files_loads(tmp_path):
    model = align(make_encoder("vit"), make_encoder("bert"))
    model.save_pretrained(tmp_path, max_shard_size="50KB")
    assert not (tmp_path / "model.safetensors").exists()
    torch.testing.assert_close(logits(DualEncoderModel.from_pretrained(tmp_path)), logits(model))
    next(tmp_path.glob("*.safetensors")).write_bytes(b"")
    with pytest.raises(LearngeneError, match="is empty"):
        DualEncoderModel.from_pretrained(tmp_path)


# --- SigLIP ----------------------------------------------------------------------------------------------------------


def siglip_text(pad_token_id=551):
    torch.manual_seed(0)
    config = SiglipTextConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, vocab_size=600,
        max_position_embeddings=16, pad_token_id=pad_token_id, projection_size=32,
    )  # fmt: skip
    model = SiglipTextModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return model


TEXTS = ["red", "a red square on a blue photo of a square"]


@pytest.mark.parametrize("pooling", ["pooler", "mean", "end"])
@pytest.mark.parametrize("with_mask", [False, True])
def test_a_siglip_text_embedded_alone_equals_itself_in_a_batch(pooling, with_mask):
    model = align(make_encoder("vit"), siglip_text(), "projections", text_pooling=pooling).eval()
    processor = processor_of_pair(
        model, image_processor=pico_processor().image_processor, tokenizer=pico_processor().tokenizer
    )

    def embed(texts):
        inputs = processor(text=texts, padding=True, return_tensors="pt")
        inputs = inputs if with_mask else {"input_ids": inputs["input_ids"]}
        return model.get_text_features(**inputs).pooler_output

    torch.testing.assert_close(embed(TEXTS[:1]), embed(TEXTS)[:1])
    assert similarity(embed(TEXTS[:1]), embed(TEXTS[1:])) < 0.999


def test_a_siglip_text_has_the_state_that_stock_siglip_gives_at_its_full_length():
    stock = siglip_text()
    model = align(make_encoder("vit"), copy.deepcopy(stock), "projections", projection_dim=32).eval()
    tokenizer = pico_processor().tokenizer
    processor_of_pair(model, image_processor=pico_processor().image_processor, tokenizer=tokenizer)
    assert model.config.text_config.pad_token_id == tokenizer.pad_token_id
    with torch.no_grad():
        torch.nn.init.eye_(model.text_projection.weight)
        model.text_projection.bias.zero_()
    whole = tokenizer(TEXTS, padding="max_length", max_length=16, truncation=True, return_tensors="pt")
    short = tokenizer(TEXTS, padding=True, return_tensors="pt")
    found = model.get_text_features(**short).pooler_output
    torch.testing.assert_close(found, stock(input_ids=whole["input_ids"]).pooler_output)
    images = batch(2)["pixel_values"]
    torch.testing.assert_close(
        model(**short, pixel_values=images).text_embeds, torch.nn.functional.normalize(found, dim=-1)
    )


def test_a_siglip_encoder_by_name_takes_its_padding_from_the_tokenizer_beside_it(saved, tmp_path):
    siglip_text(pad_token_id=1).save_pretrained(tmp_path / "siglip")
    pico_processor().save_pretrained(tmp_path / "siglip")
    model = align(saved("vit"), tmp_path / "siglip")
    assert model.config.text_config.pad_token_id == pico_processor().tokenizer.pad_token_id
    model.save_pretrained(tmp_path / "pair")
    loaded = AutoModel.from_pretrained(tmp_path / "pair")
    assert loaded.config.text_config.pad_token_id == pico_processor().tokenizer.pad_token_id


def test_siglip_texts_without_any_padding_token_are_refused():
    with pytest.raises(LearngeneError, match="has no pad_token_id: pad texts to 16 tokens"):
        align(make_encoder("vit"), siglip_text(pad_token_id=None))


# --- training --------------------------------------------------------------------------------------------------------


def arguments(folder, **settings):
    common = {"report_to": "none", "use_cpu": True, "disable_tqdm": True, "save_strategy": "no", "max_steps": 1}
    return TrainingArguments(str(folder), **{**common, "learning_rate": 1.0, "optim": "sgd", **settings})


def test_four_accumulation_steps_of_the_stock_trainer_update_by_the_mean_of_the_four(saved, tmp_path):
    """A stock Trainer that is not told divides nothing: its update would be four times as large."""
    vision, text = saved("vit"), saved("clip-text")
    torch.manual_seed(0)
    start = align(vision, text, "projections")
    collator = ImageTextCollator(pico_processor())
    pairs = pico_pairs(8)
    expected = copy.deepcopy(start).train()
    for step in range(4):
        rows = [pairs[row] for row in (2 * step, 2 * step + 1)]
        (expected(**collator(rows)).loss / 4).backward()
    settings = arguments(
        tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=4, remove_unused_columns=False,
        max_grad_norm=0.0, lr_scheduler_type="constant", train_sampling_strategy="sequential",
    )  # fmt: skip
    trained = copy.deepcopy(start)
    Trainer(trained, settings, train_dataset=pairs, data_collator=collator).train()
    moved = trained.visual_projection.weight - start.visual_projection.weight
    torch.testing.assert_close(moved, -expected.visual_projection.weight.grad, rtol=1e-3, atol=1e-5)


def test_the_pair_tells_the_trainer_how_far_its_scale_may_go(saved):
    model = align(saved("vit"), saved("clip-text"), "projections", temperature=0.002)
    assert model.logit_scale_range == pytest.approx((math.log(2), math.log(1000)))
    assert model.train()(**batch()).logits_per_image.isfinite().all()
    assert model.logit_scale.detach().exp().item() == pytest.approx(500, rel=1e-5)


def test_a_merged_pair_keeps_its_mode_and_its_encoders_places(saved, tmp_path):
    model = align(saved("vit"), saved("clip-text"), "lora", dtype=torch.float64)
    perturb(model)
    expected = copy.deepcopy(model).eval()
    merged = model.merge_and_unload()
    assert merged.training
    assert {value.dtype for value in merged.parameters()} == {torch.float64}
    assert processor_of_pair(merged).tokenizer.eos_token_id == pico_processor().tokenizer.eos_token_id
    merged.merge_and_unload().save_pretrained(tmp_path / "merged")
    loaded = DualEncoderModel.from_pretrained(tmp_path / "merged")
    inputs = {**batch(), "pixel_values": batch()["pixel_values"].double()}
    torch.testing.assert_close(loaded(**inputs).logits_per_image, expected(**inputs).logits_per_image)


# --- the pipeline of the card ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["clip-text", "siglip"])
def test_the_zero_shot_pipeline_loads_a_saved_pair_and_gives_what_the_pair_gives_by_hand(kind, saved, tmp_path):
    text = saved("clip-text") if kind == "clip-text" else siglip_text()
    model = align(saved("vit"), text, "lilt")
    perturb(model)
    processor = processor_of_pair(
        model, image_processor=pico_processor().image_processor, tokenizer=pico_processor().tokenizer
    )
    model.save_pretrained(tmp_path / "pair")
    processor.save_pretrained(tmp_path / "pair")
    classify = pipeline("zero-shot-image-classification", model=str(tmp_path / "pair"), device="cpu")
    image, labels = pico_pairs(1)[0]["image"], ["red", "a square on blue", "photo"]
    answers = {answer["label"]: answer["score"] for answer in classify(image, candidate_labels=labels)}
    by_hand = AutoProcessor.from_pretrained(tmp_path / "pair")
    prompts = [f"This is a photo of {label}." for label in labels]
    inputs = by_hand(text=prompts, images=image, padding=True, return_tensors="pt")
    expected = AutoModel.from_pretrained(tmp_path / "pair")(**inputs).logits_per_image.softmax(-1)[0]
    torch.testing.assert_close(torch.tensor([answers[label] for label in labels]), expected.detach())


def test_an_unread_pooler_that_the_checkpoint_lacks_is_no_damage(tmp_path, saved):
    config = BertConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, vocab_size=600
    )
    BertModel(config, add_pooling_layer=False).save_pretrained(tmp_path / "bert")
    model = align(saved("vit"), tmp_path / "bert")
    assert model.text_model.pooler is None
    with pytest.raises(LearngeneError, match="gives no pooler_output"):
        align(saved("vit"), tmp_path / "bert", text_pooling="pooler")


# --- the published pair ----------------------------------------------------------------------------------------------


def test_the_published_pair_names_its_gene_by_namespace_and_version_and_its_card_says_what_it_needs(tmp_path):
    from upload.manifest import read_manifest
    from upload.staging import stage

    manifest = read_manifest()
    name = "mmlg-fashion-48-pair-3x96"
    folder = stage(manifest[name], manifest, tmp_path / "staged", "some-org")
    config = json.loads((folder / "config.json").read_text())
    for modality in ("vision", "text"):
        base = config[f"{modality}_base"]
        assert base["name"] == config[f"{modality}_config"]["learngene"]["learngene"] == "some-org/mmlg-fashion-48"
        assert base["revision"] == f"v{manifest.version}"
        assert "_name_or_path" not in config[f"{modality}_config"]
    card = (folder / "README.md").read_text()
    assert "pip install mmlg_hf" in card
    assert f'pipeline("zero-shot-image-classification", model="some-org/{name}")' in card
    # Both as it lies in the repository and as it is published it is the pair of the bundled gene.
    source = DualEncoderModel.from_pretrained(manifest.root / str(manifest[name].source))
    given = {"vision": "mmlg-fashion-48", "text": "mmlg-fashion-48"}
    staged = DualEncoderModel.from_pretrained(folder, **given)
    assert all(map(torch.equal, staged.state_dict().values(), source.state_dict().values()))
