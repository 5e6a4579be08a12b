"""LearngeneModel and LearngeneForImageClassification beside stock CLIP: outputs, gradients, sizes, files."""

import copy
import inspect

import pytest
import torch
from pico_genes import MIXINGS, WIDTHS, gene_config, image_gene, multimodal_gene, pair_inputs, perturb, reference_clip
from torch import nn
from transformers import AutoModel, AutoModelForImageClassification, CLIPForImageClassification, CLIPModel

from mmlg_hf.errors import LearngeneError
from mmlg_hf.expansion import LAYER_AXES, mixing_coefficients
from mmlg_hf.modeling_learngene import LearngeneForImageClassification, LearngeneModel

CLOSE = {"atol": 1e-5, "rtol": 1e-5}


@pytest.fixture(scope="module")
def inputs():
    return pair_inputs()


@pytest.fixture(scope="module")
def shared_gene():
    """A gene that no test may change."""
    return multimodal_gene()


@pytest.fixture(scope="module")
def shared_image_gene():
    return image_gene()


def assert_same_outputs(outputs, expected, **tolerance):
    assert list(outputs.keys()) == list(expected.keys())
    for name, value in expected.items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(
                outputs[name], value, msg=lambda text, name=name: f"{name}: {text}", **(tolerance or CLOSE)
            )
        elif isinstance(value, tuple):
            for got, tensor in zip(outputs[name], value, strict=True):
                torch.testing.assert_close(got, tensor, **(tolerance or CLOSE))
        else:
            assert_same_outputs(outputs[name], value, **tolerance)


# --- the auxiliary model ---------------------------------------------------------------------------------------------


def test_a_gene_stores_blocks_and_no_layers(shared_gene):
    names = set(shared_gene.state_dict())
    blocks = {f"{group}_blocks.{name}" for group in ("multimodal", "vision", "text") for name in LAYER_AXES}
    assert blocks <= names
    assert not [name for name in names if ".layers." in name]
    stock = {name for name in reference_clip(shared_gene).state_dict() if ".layers." not in name}
    assert names - blocks == stock


def test_blocks_are_stacked_and_multimodal_ones_have_the_wider_encoders_width():
    gene = multimodal_gene(mixing="chebyshev", num_multimodal_blocks=2, num_unimodal_blocks=3, text_width=16)
    assert gene.multimodal_blocks.mlp.fc1.weight.shape == (2, 128, 32)
    assert gene.vision_blocks.mlp.fc1.weight.shape == (3, 128, 32)
    assert gene.text_blocks.mlp.fc1.weight.shape == (3, 64, 16)


@pytest.mark.parametrize("widths", WIDTHS)
@pytest.mark.parametrize("mixing", MIXINGS)
def test_a_gene_computes_what_a_stock_clip_filled_by_the_papers_formula_computes(mixing, widths, inputs):
    vision, text = WIDTHS[widths]
    # In float64: states go up to 20, and rounding of float32 alone comes to the bound.
    gene = multimodal_gene(vision_width=vision, text_width=text, **MIXINGS[mixing]).double()
    inputs = inputs | {"pixel_values": inputs["pixel_values"].double()}
    with torch.no_grad():
        expected = reference_clip(gene)(**inputs, return_loss=True)
        assert_same_outputs(gene(**inputs, return_loss=True), expected)


def test_features_are_those_of_stock_clip(shared_gene, inputs):
    reference = reference_clip(shared_gene)
    pixels, tokens = inputs["pixel_values"], {key: inputs[key] for key in ("input_ids", "attention_mask")}
    with torch.no_grad():
        assert_same_outputs(shared_gene.get_image_features(pixels), reference.get_image_features(pixels))
        assert_same_outputs(shared_gene.get_text_features(**tokens), reference.get_text_features(**tokens))
        assert_same_outputs(shared_gene.get_text_features(*tokens.values()), reference.get_text_features(**tokens))
        larger = torch.nn.functional.interpolate(pixels, size=24)
        assert_same_outputs(
            shared_gene.get_image_features(larger, interpolate_pos_encoding=True),
            reference.get_image_features(larger, interpolate_pos_encoding=True),
        )


def test_hidden_states_and_attentions_are_those_of_stock_clip(inputs):
    gene = multimodal_gene()
    reference = reference_clip(gene)
    for model in (gene, reference):
        model.set_attn_implementation("eager")
    with torch.no_grad():
        outputs = gene(**inputs, output_hidden_states=True, output_attentions=True)
        expected = reference(**inputs, output_hidden_states=True, output_attentions=True)
    assert len(expected.vision_model_output.hidden_states) == 4
    assert len(expected.text_model_output.attentions) == 2
    assert_same_outputs(outputs, expected)


def test_eager_and_sdpa_attention_agree(shared_gene, inputs):
    eager = copy.deepcopy(shared_gene)
    eager.set_attn_implementation("eager")
    assert shared_gene.config._attn_implementation == "sdpa"
    with torch.no_grad():
        assert_same_outputs(eager(**inputs), shared_gene(**inputs))


def test_forward_takes_what_stock_clip_takes_in_the_same_order(shared_gene, shared_image_gene, inputs):
    # The Trainer keeps the columns of a dataset that are named here.
    for cls, stock in ((LearngeneModel, CLIPModel), (LearngeneForImageClassification, CLIPForImageClassification)):
        expected = [name for name in inspect.signature(stock.forward).parameters if name != "kwargs"]
        assert list(inspect.signature(cls.forward).parameters)[: len(expected)] == expected
    with torch.no_grad():
        outputs = shared_gene(inputs["input_ids"], inputs["pixel_values"], inputs["attention_mask"])
        assert_same_outputs(outputs, shared_gene(**inputs))


def test_without_return_dict_a_tuple_comes_back(shared_gene, inputs):
    with torch.no_grad():
        outputs = shared_gene(**inputs, return_loss=True, return_dict=False)
        assert torch.equal(outputs[0], shared_gene(**inputs, return_loss=True).loss)


def test_an_image_gene_computes_what_a_stock_classifier_filled_by_tlegs_formula_computes(shared_image_gene, inputs):
    gene = shared_image_gene
    config = gene.config.descendant_config(modality="image")
    config.id2label = {index: str(index) for index in range(5)}
    stock = CLIPForImageClassification(config).eval()
    state = {name: tensor for name, tensor in gene.state_dict().items() if "blocks" not in name}
    for layer in range(3):
        for name in LAYER_AXES:
            base, slope = gene.vision_blocks.get_parameter(name).detach()
            state[f"vision_model.encoder.layers.{layer}.{name}"] = base + layer / 3 * slope
    stock.load_state_dict(state)
    labels = torch.tensor([0, 4, 2])
    with torch.no_grad():
        assert_same_outputs(gene(inputs["pixel_values"], labels), stock(inputs["pixel_values"], labels))


# --- sizes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mixing", "depth", "width"),
    [
        *[(mixing, 5, 24) for mixing in MIXINGS],
        *[("linear", *size) for size in ((1, None), (None, 16), ((2, 4), (8, 16)))],
    ],
)
def test_running_at_a_size_equals_the_descendant_built_at_that_size(mixing, depth, width, inputs):
    gene = multimodal_gene(**MIXINGS[mixing])
    with torch.no_grad():
        expected = gene.descendant(depth, width)(**inputs, return_loss=True)
        assert_same_outputs(gene(**inputs, return_loss=True, depth=depth, width=width), expected)


def test_an_image_gene_run_at_a_size_equals_its_descendant_loss_included(shared_image_gene, inputs):
    labels = torch.tensor([0, 4, 2])
    with torch.no_grad():
        expected = shared_image_gene.descendant(2, 16)(inputs["pixel_values"], labels)
        outputs = shared_image_gene(inputs["pixel_values"], labels, depth=2, width=16)
    assert outputs.logits.shape == (3, 5)
    assert_same_outputs(outputs, expected)


def test_running_at_a_size_sends_gradients_to_the_leading_slices_alone(inputs):
    gene = multimodal_gene()
    gene(**inputs, return_loss=True, depth=2, width=16).loss.backward()
    gradient = gene.vision_blocks.self_attn.v_proj.weight.grad
    assert gradient[:, :16, :16].abs().sum() > 0
    assert gradient[:, 16:].abs().sum() == gradient[:, :, 16:].abs().sum() == 0


def test_running_at_a_size_follows_training_mode(inputs):
    gene = multimodal_gene()
    gene.config.vision_config.attention_dropout = 0.5
    gene.train()
    first, second = (gene(**inputs, depth=2).image_embeds for _ in range(2))
    assert not torch.allclose(first, second)
    gene.eval()
    first, second = (gene(**inputs, depth=2).image_embeds for _ in range(2))
    assert torch.equal(first, second)


def test_running_at_a_size_holds_no_second_set_of_weights(inputs):
    gene = multimodal_gene()
    before = set(gene.state_dict())
    with torch.no_grad():
        gene(**inputs, depth=2, width=16)
    assert set(gene.state_dict()) == before
    assert len(list(gene.modules())) == len(list(multimodal_gene().modules()))


def test_a_size_the_gene_has_not_is_refused_as_by_descendant(shared_gene, shared_image_gene, inputs):
    for gene in (shared_gene, shared_image_gene):
        with pytest.raises(LearngeneError, match="width 40 is above the image encoder's 32"):
            gene(pixel_values=inputs["pixel_values"], depth=2, width=40)


# --- training --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mixing", MIXINGS)
def test_gradients_reach_every_parameter(mixing, inputs):
    gene = multimodal_gene(**MIXINGS[mixing]).train()
    gene(**inputs, return_loss=True).loss.backward()
    without = [name for name, parameter in gene.named_parameters() if parameter.grad is None]
    assert without == []
    zero = [name for name, parameter in gene.named_parameters() if not parameter.grad.abs().sum() > 0]
    assert zero == []


def test_gradients_are_those_of_the_layers_times_the_coefficients(inputs):
    gene = multimodal_gene()
    reference = reference_clip(gene)
    for model in (gene, reference):
        model(**inputs, return_loss=True).loss.backward()
    layers = torch.stack([layer.mlp.fc1.weight.grad for layer in reference.vision_model.encoder.layers])
    position = torch.arange(3)[:, None, None] / 3
    torch.testing.assert_close(gene.vision_blocks.mlp.fc1.weight.grad[0], (position * layers).sum(0), **CLOSE)
    text = torch.stack([layer.mlp.fc1.weight.grad for layer in reference.text_model.encoder.layers]).sum(0)
    multimodal = layers.sum(0)
    multimodal[:64, :16] += text
    torch.testing.assert_close(gene.multimodal_blocks.mlp.fc1.weight.grad[0], multimodal, **CLOSE)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing_gives_the_same_gradients(use_reentrant, inputs):
    plain, checkpointed = multimodal_gene().train(), multimodal_gene().train()
    checkpointed.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    assert checkpointed.is_gradient_checkpointing
    for gene in (plain, checkpointed):
        gene(**inputs, return_loss=True).loss.backward()
    for (name, parameter), other in zip(plain.named_parameters(), checkpointed.parameters(), strict=True):
        torch.testing.assert_close(other.grad, parameter.grad, msg=name, **CLOSE)


def test_gradient_checkpointing_runs_each_layer_again(inputs):
    gene = multimodal_gene().train()
    gene.gradient_checkpointing_enable()
    calls = []
    gene.vision_model.encoder.layers[0].layer.mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    gene(**inputs, return_loss=True).loss.backward()
    assert len(calls) == 2


def test_a_new_gene_starts_as_a_clip_with_plain_layer_norms():
    torch.manual_seed(0)
    gene = LearngeneModel(gene_config(**MIXINGS["chebyshev"]))
    for modality in ("image", "text"):
        layers = gene.layer_weights(modality)
        for name, stacked in layers.items():
            if name.endswith("bias"):
                assert torch.equal(stacked, torch.zeros_like(stacked)), name
            elif "norm" not in name:
                assert 0.01 < stacked.std() < 0.06, name
    # The first block of a group is the constant one: the norms of both groups are 1, and their sum is 2.
    assert torch.equal(gene.multimodal_blocks.layer_norm1.weight[0], torch.ones(32))
    assert not gene.multimodal_blocks.layer_norm1.weight[1:].any()


@pytest.mark.parametrize("mixing", ["shared-slope", "linear", "linear-unimodal"])
def test_every_layer_norm_of_a_new_gene_is_one(mixing):
    gene = LearngeneModel(gene_config(**MIXINGS[mixing]))
    for modality in ("image", "text"):
        weights = gene.layer_weights(modality)["layer_norm1.weight"]
        assert torch.equal(weights, torch.ones_like(weights))


def test_factored_tokens_of_a_new_gene_have_the_spread_of_a_whole_table():
    torch.manual_seed(0)
    gene = LearngeneModel(gene_config(text_width=128, token_embedding_rank=32))
    embeddings = gene.text_model.embeddings
    table = embeddings.token_projection(embeddings.token_embedding.weight)
    assert table.std().item() == pytest.approx(0.02, rel=0.1)


def test_learned_mixing_starts_from_the_fixed_coefficients():
    gene = LearngeneModel(gene_config(**MIXINGS["learned"]))
    expected = mixing_coefficients("chebyshev", 2, 1, depth=3)
    for matrix in gene.coefficients("image").values():
        assert torch.equal(matrix, expected)


# --- precision and compilation ---------------------------------------------------------------------------------------


def test_bfloat16_stays_close_to_float32(shared_gene, inputs):
    half = copy.deepcopy(shared_gene).to(torch.bfloat16)
    with torch.no_grad():
        expected = shared_gene(**inputs)
        outputs = half(**{**inputs, "pixel_values": inputs["pixel_values"].bfloat16()})
    assert outputs.image_embeds.dtype == torch.bfloat16
    for name in ("image_embeds", "text_embeds"):
        similarity = (outputs[name].float() * expected[name]).sum(-1)
        assert (similarity > 0.99).all(), name


def test_training_under_bfloat16_autocast_gives_finite_gradients(inputs):
    gene = multimodal_gene().train()
    with torch.autocast("cpu", torch.bfloat16):
        gene(**inputs, return_loss=True, depth=2, width=16).loss.backward()
        gene(**inputs, return_loss=True).loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in gene.parameters())


@pytest.mark.slow
def test_compiled_and_eager_agree_in_outputs_and_gradients(inputs):
    """One graph, forward and backward, as it is given to inductor; a minute of g++ would tell of torch alone."""
    gene, plain = multimodal_gene(), multimodal_gene()
    torch._dynamo.reset()
    outputs = torch.compile(gene, fullgraph=True, backend="aot_eager_decomp_partition")(**inputs, return_loss=True)
    expected = plain(**inputs, return_loss=True)
    torch.testing.assert_close(outputs.logits_per_image, expected.logits_per_image, **CLOSE)
    outputs.loss.backward()
    expected.loss.backward()
    for (name, parameter), other in zip(gene.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, other.grad, msg=name, **CLOSE)


# --- saving ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mixing", MIXINGS)
def test_a_gene_survives_saving_and_auto_model_loads_it(mixing, inputs, tmp_path):
    gene = multimodal_gene(**MIXINGS[mixing])
    gene.save_pretrained(tmp_path)
    assert not list(tmp_path.glob("*.bin"))
    for cls in (LearngeneModel, AutoModel):
        loaded = cls.from_pretrained(tmp_path)
        assert type(loaded) is LearngeneModel
        assert not loaded.training
        for name, tensor in gene.state_dict().items():
            assert torch.equal(loaded.state_dict()[name], tensor), name
    with torch.no_grad():
        assert_same_outputs(loaded(**inputs), gene(**inputs), atol=0, rtol=0)


def test_an_image_gene_survives_saving_and_auto_model_loads_it(shared_image_gene, inputs, tmp_path):
    shared_image_gene.save_pretrained(tmp_path)
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path)
    assert type(loaded) is LearngeneForImageClassification
    with torch.no_grad():
        pixels = inputs["pixel_values"]
        assert_same_outputs(loaded(pixels), shared_image_gene(pixels), atol=0, rtol=0)


def test_a_gene_stored_in_half_precision_loads_as_asked(shared_gene, tmp_path):
    copy.deepcopy(shared_gene).half().save_pretrained(tmp_path)
    assert LearngeneModel.from_pretrained(tmp_path).dtype == torch.float16
    loaded = LearngeneModel.from_pretrained(tmp_path, dtype=torch.float32)
    assert loaded.dtype == torch.float32
    expected = {name: tensor.half().float() for name, tensor in shared_gene.state_dict().items()}
    assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.state_dict().items())


def test_a_copy_of_a_gene_is_independent(inputs):
    gene = multimodal_gene()
    with torch.no_grad():
        before = gene(**inputs, depth=2).logits_per_image
        clone = copy.deepcopy(gene)
        perturb(clone, seed=3)
        assert torch.equal(gene(**inputs, depth=2).logits_per_image, before)
        assert not torch.allclose(clone(**inputs, depth=2).logits_per_image, before)


def test_each_class_refuses_the_other_kind_of_gene():
    with pytest.raises(LearngeneError, match=r"image gene .*load it as LearngeneForImageClassification"):
        LearngeneModel(image_gene().config)
    with pytest.raises(LearngeneError, match="has a text side: load it as LearngeneModel"):
        LearngeneForImageClassification(gene_config())


def test_both_kinds_are_stock_models_to_everything_else(shared_gene, shared_image_gene):
    assert isinstance(shared_gene, CLIPModel)
    assert isinstance(shared_image_gene, CLIPForImageClassification)
    assert isinstance(shared_gene.text_model.get_input_embeddings(), nn.Embedding)


def test_the_layers_of_an_encoder_share_no_module():
    encoder = multimodal_gene(vision_depth=3).vision_model.encoder
    modules = [module for layer in encoder.layers for module in layer.modules()]
    assert len({id(module) for module in modules}) == len(modules)
    state = [module.__dict__[name] for module in modules for name in ("_parameters", "_modules", "_forward_hooks")]
    assert len({id(held) for held in state}) == len(state)
    encoder.layers[0].layer.mlp.register_forward_hook(lambda *args: None)
    assert not encoder.layers[1].layer.mlp._forward_hooks
