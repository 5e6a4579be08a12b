"""CLIPMoEConfig and the CLIP-MoE classes: routing, balance loss, drop-in outputs, loading."""

import json
import math
import subprocess
import sys

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from moe_parts import ROOT
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, AutoModelForImageClassification, pipeline

from mmlg_hf.clip_moe import (
    CLIPMoEConfig,
    CLIPMoEForImageClassification,
    CLIPMoEModel,
    CLIPMoETextModel,
    CLIPMoETextModelWithProjection,
    CLIPMoEVisionConfig,
    CLIPMoEVisionModel,
    CLIPMoEVisionModelWithProjection,
)
from mmlg_hf.clip_moe.router_losses import router_z_loss

IMPLEMENTATIONS = ("eager", "grouped_mm", "batched_mm")


def naive_mixture(mlp, tokens):
    """What one mixture computes for tokens [N, H], token by token, from its definition."""
    rows = []
    for token in tokens:
        probabilities = (mlp.router.weight @ token).softmax(dim=-1)
        chosen = probabilities.argsort(descending=True)[: mlp.router.num_experts_per_tok]
        row = 0
        for expert in chosen:
            inner = mlp.experts.act_fn(mlp.experts.up_proj[expert] @ token + mlp.experts.up_proj_bias[expert])
            outer = mlp.experts.down_proj[expert] @ inner + mlp.experts.down_proj_bias[expert]
            row = row + probabilities[expert] / probabilities[chosen].sum() * outer
        rows.append(row)
    return torch.stack(rows)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@torch.no_grad()
def test_a_mixture_is_the_renormalised_sum_of_its_top_experts(mixture, implementation):
    mixture.set_experts_implementation(implementation)
    mlp = mixture.vision_model.encoder.layers[1].mlp
    tokens = torch.randn(5, 32)
    torch.testing.assert_close(mlp(tokens[None])[0], naive_mixture(mlp, tokens), atol=1e-5, rtol=1e-4)


def test_the_experts_implementation_can_be_chosen_and_all_agree_in_values_and_gradients(mixture, inputs):
    results = {}
    for implementation in IMPLEMENTATIONS:
        mixture.set_experts_implementation(implementation)
        assert mixture.vision_model.config._experts_implementation == implementation
        mixture.zero_grad()
        outputs = mixture(**inputs, return_loss=True, output_router_logits=True)
        outputs.loss.backward()
        gradients = [parameter.grad for parameter in mixture.parameters() if parameter.grad is not None]
        results[implementation] = [outputs.logits_per_image, outputs.loss, *gradients]
    for implementation in IMPLEMENTATIONS[1:]:
        torch.testing.assert_close(results[implementation], results["eager"], atol=2e-5, rtol=1e-4)


@pytest.mark.slow
def test_the_experts_implementation_can_be_chosen_after_a_stock_clip_was_built(tmp_path, mixture):
    """In a fresh process, since transformers caches the answer for a class and all that inherit from it."""
    mixture.save_pretrained(tmp_path)
    program = (
        "from transformers import CLIPConfig, CLIPModel\n"
        "small = {'hidden_size': 8, 'num_attention_heads': 1, 'num_hidden_layers': 1}\n"
        "CLIPModel(CLIPConfig(vision_config=small, text_config=small))\n"
        "from mmlg_hf.clip_moe import CLIPMoEModel\n"
        f"model = CLIPMoEModel.from_pretrained({str(tmp_path)!r}, experts_implementation='batched_mm')\n"
        "assert model.text_model.config._experts_implementation == 'batched_mm'\n"
        "model.set_experts_implementation('eager')\n"
        "assert model.vision_model.config._experts_implementation == 'eager'\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)


@torch.no_grad()
def test_only_the_chosen_layers_are_mixtures_and_only_they_record_router_logits(inputs):
    config = CLIPMoEConfig(
        vision_config={**vision_fields(), "moe_layers": [2]}, text_config={**text_fields(), "moe_layers": []}
    )
    model = CLIPMoEModel(config).eval()
    assert [hasattr(layer.mlp, "experts") for layer in model.vision_model.encoder.layers] == [False, False, True]
    assert not any(hasattr(layer.mlp, "experts") for layer in model.text_model.encoder.layers)
    outputs = model(**inputs, output_router_logits=True)
    assert [logits.shape for logits in outputs.vision_model_output.router_logits] == [(3 * 5, 4)]
    assert outputs.text_model_output.router_logits == ()
    torch.testing.assert_close(outputs.aux_loss, 0.01 * balance(outputs.vision_model_output.router_logits, None))


def vision_fields():
    return {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "image_size": 16,
        "patch_size": 8,
    }


def text_fields():
    return {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


def balance(router_logits, mask, num_experts=4, top_k=2):
    """E * sum_e f_e P_e from its definition, over the tokens of all layers that `mask` [B, T] keeps."""
    logits = torch.cat([layer if mask is None else layer[mask.reshape(-1).bool()] for layer in router_logits])
    probabilities = logits.softmax(dim=-1)
    slots = F.one_hot(logits.topk(top_k).indices, num_experts).float().sum(dim=1)  # [tokens, E]
    return num_experts * (slots.mean(dim=0) * probabilities.mean(dim=0)).sum()


@torch.no_grad()
def test_the_balance_loss_is_per_encoder_and_leaves_out_text_padding(mixture, inputs):
    outputs = mixture(**inputs, output_router_logits=True)
    image = balance(outputs.vision_model_output.router_logits, None)
    text = balance(outputs.text_model_output.router_logits, inputs["attention_mask"])
    torch.testing.assert_close(outputs.aux_loss, 0.01 * (image + text / 2))
    unmasked = balance(outputs.text_model_output.router_logits, None)
    assert not torch.isclose(text, unmasked), "the example must tell the two apart"


@torch.no_grad()
def test_padding_changes_neither_embeddings_nor_balance_loss(mixture, inputs):
    longer = dict(inputs)
    pad = mixture.config.text_config.pad_token_id
    longer["input_ids"] = F.pad(inputs["input_ids"], (0, 4), value=pad)
    longer["attention_mask"] = F.pad(inputs["attention_mask"], (0, 4))
    short, long = mixture(**inputs, output_router_logits=True), mixture(**longer, output_router_logits=True)
    torch.testing.assert_close(long.text_embeds, short.text_embeds, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(long.aux_loss, short.aux_loss)


@torch.no_grad()
def test_equal_gates_give_the_least_balance_loss_k(mixture, inputs):
    for name, parameter in mixture.named_parameters():
        if ".router." in name:
            parameter.zero_()
    outputs = mixture(**inputs, output_router_logits=True)
    # Uniform probabilities make the loss E * sum_e f_e / E = k whatever the top-k picks.
    torch.testing.assert_close(outputs.aux_loss, torch.tensor(0.01 * (2 + 2 / 2)))


@torch.no_grad()
def test_the_z_loss_of_equal_logits_is_that_of_their_logsumexp_and_padding_has_none(mixture, inputs):
    constant = torch.full((6, 4), 0.5)  # [B * T, E], B 2, T 3
    torch.testing.assert_close(router_z_loss((constant, constant)), torch.tensor((math.log(4) + 0.5) ** 2))
    torch.testing.assert_close(router_z_loss((0 * constant,)), torch.tensor(math.log(4) ** 2))
    padded, mask = constant.clone(), torch.tensor([[1, 1, 0], [1, 0, 0]])
    padded[mask.reshape(-1) == 0] = 100.0
    expected = ((math.log(4) + 0.5) ** 2 + math.log(4) ** 2) / 2
    torch.testing.assert_close(router_z_loss((padded, 0 * padded), mask), torch.tensor(expected))
    plain = mixture(**inputs, output_router_logits=True)
    mixture.config.router_z_loss_coef = 0.1
    outputs = mixture(**inputs, output_router_logits=True)
    image = router_z_loss(outputs.vision_model_output.router_logits)
    text = router_z_loss(outputs.text_model_output.router_logits, inputs["attention_mask"])
    torch.testing.assert_close(outputs.aux_loss, plain.aux_loss + 0.1 * (image + text / 2))


def test_a_config_saved_before_the_z_loss_loads_without_one(tmp_path, mixture):
    mixture.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config.pop("router_z_loss_coef") == 0.0
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert CLIPMoEModel.from_pretrained(tmp_path).config.router_z_loss_coef == 0.0


def test_aux_loss_is_in_the_loss_while_training_and_absent_in_evaluation(mixture, inputs):
    mixture.eval()
    evaluated = mixture(**inputs, return_loss=True)
    assert evaluated.aux_loss is None
    assert "router_logits" not in evaluated.vision_model_output
    mixture.train()
    trained = mixture(**inputs, return_loss=True)
    torch.testing.assert_close(trained.loss, evaluated.loss + trained.aux_loss)
    assert mixture(**inputs).aux_loss is None


def test_outputs_stand_where_clip_has_them(mixture, base, inputs):
    ours, stock = (model(**inputs, return_loss=True, return_dict=False) for model in (mixture, base))
    assert [getattr(value, "shape", None) for value in ours] == [getattr(value, "shape", None) for value in stock]
    recorded = mixture(**inputs, output_hidden_states=True, output_attentions=True)
    assert len(recorded.vision_model_output.hidden_states) == 4
    assert recorded.vision_model_output.attentions is not None


def test_gradient_checkpointing_changes_no_gradient(mixture, inputs):
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            mixture.gradient_checkpointing_enable({"use_reentrant": False})
        mixture.train().zero_grad()
        mixture(**inputs, return_loss=True).loss.backward()
        gradients.append({name: p.grad.clone() for name, p in mixture.named_parameters() if p.grad is not None})
    torch.testing.assert_close(gradients[1], gradients[0])


@pytest.mark.parametrize("model_class", [CLIPMoEVisionModel, CLIPMoEVisionModelWithProjection])
@torch.no_grad()
def test_an_image_encoder_loads_from_the_whole_mixture(tmp_path, mixture, inputs, model_class):
    mixture.save_pretrained(tmp_path)
    encoder, found = model_class.from_pretrained(tmp_path, output_loading_info=True)
    assert not found["missing_keys"]
    outputs = encoder(inputs["pixel_values"])
    own = getattr(outputs, "image_embeds", None)
    expected = mixture.vision_model(inputs["pixel_values"]).pooler_output if own is None else None
    expected = mixture.get_image_features(inputs["pixel_values"]).pooler_output if expected is None else expected
    torch.testing.assert_close(outputs.pooler_output if own is None else own, expected)


@pytest.mark.parametrize("model_class", [CLIPMoETextModel, CLIPMoETextModelWithProjection])
@torch.no_grad()
def test_a_text_encoder_loads_from_the_whole_mixture(tmp_path, mixture, inputs, model_class):
    mixture.save_pretrained(tmp_path)
    encoder, found = model_class.from_pretrained(tmp_path, output_loading_info=True)
    assert not found["missing_keys"]
    texts = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    torch.testing.assert_close(encoder(**texts).last_hidden_state, mixture.text_model(**texts).last_hidden_state)


@torch.no_grad()
def test_the_whole_mixture_loads_by_auto_classes_with_equal_outputs(tmp_path, mixture, inputs):
    mixture.save_pretrained(tmp_path)
    assert isinstance(AutoConfig.from_pretrained(tmp_path), CLIPMoEConfig)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert isinstance(loaded, CLIPMoEModel)
    torch.testing.assert_close(loaded(**inputs).logits_per_image, mixture(**inputs).logits_per_image)


def test_the_zero_shot_pipeline_takes_a_mixture(tmp_path, mixture, base):
    from pico import pico_image, pico_processor

    results = []
    for name, model in (("moe", mixture), ("dense", base)):
        model.save_pretrained(tmp_path / name)
        pico_processor().save_pretrained(tmp_path / name)
        classify = pipeline("zero-shot-image-classification", model=str(tmp_path / name))
        results.append(classify(pico_image("red", "blue"), candidate_labels=["red", "green"]))
    assert [sorted(answer["label"] for answer in answers) for answers in results] == [["green", "red"]] * 2


def test_the_classifier_adds_its_balance_loss_in_training_and_its_head_to_the_encoder(tmp_path, mixture, inputs):
    mixture.save_pretrained(tmp_path)
    model = AutoModelForImageClassification.from_pretrained(tmp_path, num_labels=3)
    assert isinstance(model, CLIPMoEForImageClassification)
    labels = torch.tensor([0, 1, 2])
    with torch.no_grad():
        hidden = mixture.vision_model(inputs["pixel_values"]).last_hidden_state
        logits = model.classifier(hidden[:, 1:].mean(dim=1))
    evaluated = model.eval()(inputs["pixel_values"], labels=labels)
    torch.testing.assert_close(evaluated.logits, logits)
    torch.testing.assert_close(evaluated.loss, F.cross_entropy(logits, labels))
    trained = model.train()(inputs["pixel_values"], labels=labels)
    torch.testing.assert_close(trained.loss, evaluated.loss + trained.aux_loss)
    trained.loss.backward()
    assert model.vision_model.encoder.layers[0].mlp.router.weight.grad.abs().sum() > 0


def test_lora_under_peft_trains_a_mixture(mixture, inputs):
    import peft

    model = peft.get_peft_model(mixture, peft.LoraConfig(target_modules=["q_proj", "v_proj"], r=2)).train()
    model(**inputs, return_loss=True).loss.backward()
    trained = [name for name, parameter in model.named_parameters() if parameter.grad is not None]
    assert trained
    assert all("lora_" in name for name in trained)


@pytest.mark.slow
def test_remote_code_loads_where_the_package_is_missing(tmp_path, mixture, inputs):
    mixture.save_pretrained(tmp_path / "plain")
    mixture.save_pretrained(tmp_path / "model", with_code=True)
    mixture.save_pretrained(tmp_path / "again")
    assert (tmp_path / "model" / "modeling_clip_moe.py").exists()
    assert not list(tmp_path.glob("plain/*.py")) + list(tmp_path.glob("again/*.py"))
    torch.save({"inputs": inputs, "logits": mixture(**inputs).logits_per_image.detach()}, tmp_path / "expected.pt")
    program = (
        "import sys, torch\n"
        "sys.modules['mmlg_hf'] = None\n"
        "from transformers import AutoModel\n"
        f"expected = torch.load({str(tmp_path / 'expected.pt')!r})\n"
        f"model = AutoModel.from_pretrained({str(tmp_path / 'model')!r}, trust_remote_code=True)\n"
        "torch.testing.assert_close(model(**expected['inputs']).logits_per_image, expected['logits'])\n"
        "model.set_experts_implementation('batched_mm')\n"
        "assert model.vision_model.config._experts_implementation == 'batched_mm'\n"
    )
    environment = {"HF_HOME": str(tmp_path / "home"), "PATH": "", "HF_HUB_OFFLINE": "1"}
    subprocess.run([sys.executable, "-c", program], check=True, cwd=tmp_path, env=environment)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"num_experts": 3, "num_experts_per_tok": 4}, r"num_experts_per_tok \(4\).*num_experts \(3\)"),
        ({"num_experts_per_tok": 0}, r"num_experts_per_tok \(0\)"),
        ({"num_experts": 0, "num_experts_per_tok": 0}, "num_experts is 0"),
        ({"moe_layers": [0, 12]}, "layers from 0 to 11"),
        ({"moe_layers": [1, 1]}, "distinct"),
    ],
)
def test_a_config_that_cannot_route_says_both_numbers(fields, said):
    with pytest.raises(StrictDataclassError, match=said):
        CLIPMoEVisionConfig(**fields)


def test_routing_is_the_same_in_both_encoders_and_set_for_both(tmp_path):
    config = CLIPMoEConfig(num_experts=6, num_experts_per_tok=3, vision_config=vision_fields(), text_config=None)
    assert [part.num_experts for part in (config, config.vision_config, config.text_config)] == [6, 6, 6]
    config.num_experts_per_tok = 1
    config.num_experts = 2
    config.save_pretrained(tmp_path)
    loaded = CLIPMoEConfig.from_pretrained(tmp_path)
    assert (loaded.num_experts, loaded.num_experts_per_tok) == (2, 1)
    assert CLIPMoEConfig.from_pretrained(tmp_path, num_experts_per_tok=2).text_config.num_experts_per_tok == 2
    with pytest.raises(StrictDataclassError, match="differs from text_config"):
        CLIPMoEConfig(vision_config={"num_experts": 3}, text_config={"num_experts": 4})
    for name in ("router_aux_loss_coef", "router_z_loss_coef"):
        with pytest.raises(StrictDataclassError, match=f"{name} is -0.1"):
            CLIPMoEConfig(**{name: -0.1})
