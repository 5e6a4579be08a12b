"""Descendants in the hands of others: copied, pickled, adapted by PEFT, trained and described by the stock Trainer."""

import copy
import io
import json
import pickle
import subprocess
import sys

import pytest
import torch
from pico import pico_processor
from pico_genes import image_gene, multimodal_gene, pair_inputs, perturb
from transformers import AutoModel, AutoTokenizer, CLIPForImageClassification, Trainer, TrainingArguments

from mmlg_hf import from_learngene
from mmlg_hf.clip_moe import CLIPMoEForImageClassification, CLIPMoEModel
from mmlg_hf.descendants import load_learngene, load_processor
from mmlg_hf.errors import LearngeneError
from mmlg_hf.modeling_learngene import LearngeneForImageClassification, LearngeneModel
from mmlg_hf.modeling_text_classification import CLIPTextForSequenceClassification


@pytest.fixture(scope="module")
def gene():
    """A gene with a processor that no test may change."""
    gene = multimodal_gene()
    gene.processor = pico_processor()
    return gene


@pytest.fixture
def folder(gene, tmp_path):
    gene.save_pretrained(tmp_path / "gene")
    return tmp_path / "gene"


def pico_mixture(cls):
    """A mixture of experts of one layer a side, perturbed so that its classes differ."""
    side = {"hidden_size": 8, "num_attention_heads": 1, "intermediate_size": 16, "num_hidden_layers": 1}
    vision, text = {**side, "image_size": 16, "patch_size": 8}, {**side, "vocab_size": 20}
    # Without the balance loss, which is no mean over rows.
    return perturb(cls(cls.config_class(vision_config=vision, text_config=text, router_aux_loss_coef=0.0)))


# --- copies ----------------------------------------------------------------------------------------------------------


def by_torch_save(model):
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


COPIES = {
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "deepcopy": copy.deepcopy,
    "torch.save": by_torch_save,
    "torch.compile": torch.compile,
}


@pytest.mark.parametrize("way", [*list(COPIES)[:-1], pytest.param("torch.compile", marks=pytest.mark.slow)])
@pytest.mark.parametrize("labels", [None, 3])
def test_a_copy_of_a_descendant_saves_itself_and_the_processor(way, labels, gene, tmp_path):
    model = gene.descendant(1, 8, "text", num_labels=labels)
    copied = COPIES[way](model)
    with torch.no_grad():
        next(copied.parameters()).fill_(0.5)
    copied.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert (next(again.parameters()) == 0.5).all()
    assert load_processor(tmp_path)("a red square") == gene.processor.tokenizer("a red square")
    assert way == "torch.compile" or (next(model.parameters()) != 0.5).any()


# --- what stands for a descendant ------------------------------------------------------------------------------------


def test_a_descendant_has_no_name_until_it_is_saved_and_loaded(folder, tmp_path):
    for size in ({}, {"modality": "image"}, {"modality": "text", "num_labels": 2}):
        model = from_learngene(folder, 1, 8, **size)
        assert model.name_or_path == model.config._name_or_path == ""
        model.save_pretrained(tmp_path / "grown")
        assert str(folder) not in (tmp_path / "grown" / "config.json").read_text()
        assert "_name_or_path" not in json.loads((tmp_path / "grown" / "config.json").read_text())
        loaded = type(model).from_pretrained(tmp_path / "grown")
        assert loaded.name_or_path == str(tmp_path / "grown")


def test_an_adapter_on_a_fresh_descendant_names_no_base_and_on_a_saved_one_that(folder, tmp_path):
    peft = pytest.importorskip("peft")
    settings = peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False)
    model = from_learngene(folder, 1, 8, "image")
    adapted = peft.get_peft_model(model, settings)
    adapted.save_pretrained(tmp_path / "adapter")
    recorded = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert not recorded["base_model_name_or_path"]

    saved = from_learngene(folder, 1, 8, "image")
    saved.save_pretrained(tmp_path / "base")
    base = type(saved).from_pretrained(tmp_path / "base")
    adapted = peft.get_peft_model(base, settings).eval()
    adapted.save_pretrained(tmp_path / "adapter")
    recorded = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert recorded["base_model_name_or_path"] == str(tmp_path / "base")
    pixels = pair_inputs()["pixel_values"]
    again = peft.PeftModel.from_pretrained(saved, tmp_path / "adapter")
    with torch.no_grad():
        assert torch.equal(again(pixels).image_embeds, adapted(pixels).image_embeds)


def test_the_stock_trainers_card_names_no_base_of_a_descendant(gene, tmp_path):
    own = multimodal_gene()
    own.config._name_or_path = own.name_or_path = "mmlg-fashion-48"
    model = own.descendant(1, 8, "image", num_labels=2)
    trainer = Trainer(model, TrainingArguments(str(tmp_path), report_to=[], use_cpu=True))
    trainer.create_model_card()
    card = (tmp_path / "README.md").read_text()
    assert "base_model" not in card
    assert "mmlg-fashion-48" not in card


def test_peft_trains_the_text_classifier_as_a_sequence_classifier(gene):
    peft = pytest.importorskip("peft")
    inputs = pair_inputs()
    tokens = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    model = gene.descendant(1, 8, "text", num_labels=3)
    with torch.no_grad():
        plain = model(**tokens).logits
    adapted = peft.get_peft_model(model, peft.LoraConfig(task_type="SEQ_CLS", target_modules=["q_proj"])).eval()
    outputs = adapted(**tokens, labels=torch.tensor([0, 1, 2]))
    torch.testing.assert_close(outputs.logits, plain)  # a fresh LoRA adds nothing
    outputs.loss.backward()
    trained = {name for name, value in adapted.named_parameters() if value.grad is not None}
    assert any("lora" in name for name in trained)
    assert any("classifier" in name for name in trained)


def test_the_text_classifier_refuses_embeddings_in_place_of_tokens(gene):
    model = gene.descendant(1, 8, "text", num_labels=3)
    with pytest.raises(LearngeneError, match="takes input_ids and no inputs_embeds"):
        model(inputs_embeds=torch.zeros(1, 4, 8))


# --- the stock Trainer -----------------------------------------------------------------------------------------------


def updates(model, tmp_path, accumulation):
    """The change of every trained parameter after one SGD step over the same eight rows."""
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    rows = [{"pixel_values": pixels, "labels": index % 2} for index, pixels in enumerate(torch.randn(8, 3, 16, 16))]
    args = TrainingArguments(
        str(tmp_path), per_device_train_batch_size=8 // accumulation, gradient_accumulation_steps=accumulation,
        max_steps=1, optim="sgd", learning_rate=0.1, max_grad_norm=0.0, report_to=[], save_strategy="no", use_cpu=True,
        lr_scheduler_type="constant", disable_tqdm=True,
    )  # fmt: skip
    Trainer(model, args, train_dataset=rows).train()
    return {name: value.detach() - before[name] for name, value in model.named_parameters()}


@pytest.mark.parametrize("kind", ["image gene", "reloaded image gene", "mixture", "descendant"])
def test_gradient_accumulation_gives_the_update_of_the_whole_batch(kind, gene, tmp_path):
    if kind == "descendant":
        models = [gene.descendant(1, 8, "image", num_labels=2) for _ in range(2)]
        models[1].load_state_dict(models[0].state_dict())
    elif kind == "mixture":
        pico_mixture(CLIPMoEForImageClassification).save_pretrained(tmp_path / "mixture")
        models = [CLIPMoEForImageClassification.from_pretrained(tmp_path / "mixture") for _ in range(2)]
    else:
        models = [image_gene(num_labels=2) for _ in range(2)]
        if kind.startswith("reloaded"):
            models[0].save_pretrained(tmp_path / "gene")
            models = [LearngeneForImageClassification.from_pretrained(tmp_path / "gene") for _ in range(2)]
    found = []
    for model, accumulation in zip(models, (1, 4), strict=True):
        torch.manual_seed(0)
        found.append(updates(model, tmp_path, accumulation))
    assert any(change.abs().max() > 1e-4 for change in found[0].values())
    for name, change in found[0].items():
        torch.testing.assert_close(found[1][name], change, atol=1e-6, rtol=1e-3, msg=name)


def test_our_own_classes_say_in_the_class_that_their_loss_is_a_mean():
    ours = (
        LearngeneModel, LearngeneForImageClassification, CLIPTextForSequenceClassification, CLIPMoEModel,
        CLIPMoEForImageClassification,
    )  # fmt: skip
    assert [cls.accepts_loss_kwargs for cls in ours] == [False] * 5
    for modality, labels in (("multimodal", None), ("image", None), ("image", 2), ("text", None)):
        assert multimodal_gene().descendant(1, 8, modality, num_labels=labels).accepts_loss_kwargs is False


# --- genes by transformers' own ways ---------------------------------------------------------------------------------


@pytest.mark.parametrize("load", [AutoModel.from_pretrained, LearngeneModel.from_pretrained, load_learngene])
def test_a_gene_loaded_in_any_way_brings_its_processor_which_its_descendants_save(load, gene, folder, tmp_path):
    loaded = load(folder)
    loaded.descendant(1, 8, "text").save_pretrained(tmp_path / "grown")
    assert AutoTokenizer.from_pretrained(tmp_path / "grown")("pink") == gene.processor.tokenizer("pink")


def test_a_gene_that_auto_model_loads_in_half_precision_grows_the_same_float32_sums(tmp_path):
    multimodal_gene().half().save_pretrained(tmp_path)
    half = AutoModel.from_pretrained(tmp_path)
    assert half.dtype == torch.float16
    expected, found = from_learngene(tmp_path, 3, 16).state_dict(), half.descendant(3, 16).state_dict()
    assert {tensor.dtype for tensor in found.values()} == {torch.float32}
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_a_save_with_code_leaves_no_auto_map_for_the_next_plain_save(tmp_path):
    for name, model in (("gene", multimodal_gene()), ("mixture", pico_mixture(CLIPMoEModel))):
        model.save_pretrained(tmp_path / "with", with_code=True)
        model.save_pretrained(tmp_path / name)
        assert "auto_map" in json.loads((tmp_path / "with" / "config.json").read_text())
        assert "auto_map" not in json.loads((tmp_path / name / "config.json").read_text())
        # Loaded by this package, it knows of code that a plain save does not write.
        type(model).from_pretrained(tmp_path / "with").save_pretrained(tmp_path / "again")
        assert "auto_map" not in json.loads((tmp_path / "again" / "config.json").read_text())
        assert not list((tmp_path / "again").glob("*.py"))


REMOTE = """
import sys

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "mmlg_hf":
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Hidden())
import torch
from transformers import AutoModelForSequenceClassification
model = AutoModelForSequenceClassification.from_pretrained("text", trust_remote_code=True).eval()
with torch.no_grad():
    torch.save(model(**torch.load("inputs.pt")).logits, "logits.pt")
"""


@pytest.mark.slow
def test_a_saved_text_classifier_loads_by_its_own_code_where_the_package_is_not_installed(gene, tmp_path):
    model = gene.descendant(1, 8, "text", num_labels=3)
    model.save_pretrained(tmp_path / "text")
    inputs = {name: pair_inputs()[name] for name in ("input_ids", "attention_mask")}
    torch.save(inputs, tmp_path / "inputs.pt")
    environment = {"HF_MODULES_CACHE": str(tmp_path / "code"), "HF_HUB_OFFLINE": "1"}
    subprocess.run([sys.executable, "-c", REMOTE], cwd=tmp_path, env=environment, check=True)
    with torch.no_grad():
        torch.testing.assert_close(torch.load(tmp_path / "logits.pt"), model(**inputs).logits)


def test_the_image_descendant_of_an_image_gene_is_the_default(tmp_path):
    image_gene().save_pretrained(tmp_path)
    for source in (tmp_path, image_gene()):
        assert type(from_learngene(source)) is CLIPForImageClassification
