"""A gene in evaluation mode expands its layers once, and anew whenever anything that they come from has changed."""

import copy
import pickle

import pytest
import torch
from pico_genes import MIXINGS, image_gene, multimodal_gene, pair_inputs, perturb
from torch.func import functional_call

from mmlg_hf import LearngeneModel, expansion


@pytest.fixture(scope="module")
def inputs():
    return pair_inputs()


@pytest.fixture
def expansions(monkeypatch):
    """The encoders' depths, one for each expansion of an encoder's layers."""
    seen, expand = [], expansion.expand_layers

    def counted(multimodal, unimodal, coefficients, *args):
        seen.append(len(coefficients if isinstance(coefficients, torch.Tensor) else next(iter(coefficients.values()))))
        return expand(multimodal, unimodal, coefficients, *args)

    monkeypatch.setattr(expansion, "expand_layers", counted)
    return seen


def logits(gene, inputs):
    with torch.no_grad():
        return gene(**inputs).logits_per_image


def fresh(gene, inputs):
    """What a gene computes that never computed anything before, by the path that keeps nothing."""
    other = type(gene)(gene.config)
    other = other.to(next(gene.parameters()).dtype).eval()
    other.load_state_dict({name: tensor.clone() for name, tensor in gene.state_dict().items()})
    return other(**inputs).logits_per_image.detach()


@pytest.mark.parametrize("mixing", MIXINGS)
def test_layers_are_expanded_once_for_each_encoder(mixing, inputs, expansions):
    gene = multimodal_gene(**MIXINGS[mixing])
    first = logits(gene, inputs)
    assert len(expansions) == 2
    for _ in range(3):
        assert torch.equal(logits(gene, inputs), first)
        with torch.no_grad():
            gene.get_text_features(inputs["input_ids"], inputs["attention_mask"])
            gene.get_image_features(inputs["pixel_values"])
    assert len(expansions) == 2
    assert torch.equal(first, fresh(gene, inputs))


def test_encoders_asked_for_in_turn_are_expanded_once_each(inputs, expansions):
    gene = multimodal_gene()
    with torch.no_grad():
        for _ in range(3):
            gene.get_text_features(inputs["input_ids"])
            gene.get_image_features(inputs["pixel_values"])
    assert sorted(expansions) == [2, 3]


def optimizer_step(gene, inputs):
    optimizer = torch.optim.SGD(gene.parameters(), lr=0.5)
    gene(**inputs, return_loss=True).loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def step_in_training_mode(gene, inputs):
    gene.train()
    optimizer_step(gene, inputs)
    gene.eval()


def write_to_data(gene, inputs):
    for block in gene.text_blocks.parameters():
        block.data.copy_(block.data.flip(-1))  # also leaves the sum as it was


def load(gene, inputs):
    gene.load_state_dict(multimodal_gene(seed=5).state_dict())


def assign(gene, inputs):
    gene.load_state_dict(multimodal_gene(seed=6).state_dict(), assign=True)


def through_numpy(gene, inputs):
    gene.multimodal_blocks.mlp.fc1.weight.detach().numpy()[0, 0, 0] += 1


def negate_one_zero(gene, inputs):
    gene.vision_blocks.mlp.fc1.bias.data.zero_()
    logits(gene, inputs)
    gene.vision_blocks.mlp.fc1.bias.data[0, 0] = 1e-3


def in_inference_mode(gene, inputs):
    with torch.inference_mode():
        perturb(gene, seed=9)


def make_inference_tensors(gene, inputs):
    with torch.inference_mode():
        for module in gene.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    module._parameters[name] = torch.nn.Parameter(parameter * 1.5, requires_grad=False)
        logits(gene, inputs)
        perturb(gene, seed=9)  # an inference tensor counts no versions


CHANGES = (
    optimizer_step, step_in_training_mode, write_to_data, load, assign, through_numpy, negate_one_zero,
    in_inference_mode, make_inference_tensors,
)  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_any_change_of_a_block_is_noticed(change, inputs):
    gene = multimodal_gene()
    before = logits(gene, inputs)
    change(gene, inputs)
    assert not torch.equal(logits(gene, inputs), before)
    assert torch.equal(logits(gene, inputs), fresh(gene, inputs))


def test_learned_coefficients_that_change_are_noticed(inputs):
    gene = multimodal_gene(**MIXINGS["learned"])
    before = logits(gene, inputs)
    gene.vision_coefficients.data.mul_(1.1)
    assert not torch.equal(logits(gene, inputs), before)
    assert torch.equal(logits(gene, inputs), fresh(gene, inputs))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_another_type_is_expanded_anew(dtype, inputs):
    gene = multimodal_gene()
    logits(gene, inputs)
    given = inputs | {"pixel_values": inputs["pixel_values"].to(dtype)}
    found = logits(gene.to(dtype), given)
    assert found.dtype == dtype
    assert torch.equal(found, fresh(gene, given))
    assert torch.equal(logits(gene.float(), inputs), fresh(gene, inputs))


def test_gradients_flow_in_evaluation_mode_after_layers_were_kept(inputs):
    gene, plain = multimodal_gene(), multimodal_gene()
    logits(gene, inputs)
    gene(**inputs, return_loss=True).loss.backward()
    plain(**inputs, return_loss=True).loss.backward()
    for (name, parameter), other in zip(gene.named_parameters(), plain.parameters(), strict=True):
        assert torch.equal(parameter.grad, other.grad), name
    assert parameter.grad is not None


def test_layers_kept_in_inference_mode_serve_without_gradients_too(inputs, expansions):
    gene = multimodal_gene()
    with torch.inference_mode():
        first = gene(**inputs).logits_per_image
    assert torch.equal(logits(gene, inputs), first)
    assert len(expansions) == 2
    gene(**inputs, return_loss=True).loss.backward()


def test_nothing_is_kept_in_training_mode(inputs, expansions):
    gene = multimodal_gene()
    logits(gene, inputs)
    gene.train()
    assert gene._kept_layers._kept == ({}, {}, {})
    with torch.no_grad():
        gene(**inputs)
    assert gene._kept_layers._kept == ({}, {}, {})


def test_kept_layers_are_neither_saved_nor_copied(inputs, tmp_path):
    gene = multimodal_gene()
    logits(gene, inputs)
    names = set(multimodal_gene().state_dict())
    assert set(gene.state_dict()) == names
    for other in (copy.deepcopy(gene), pickle.loads(pickle.dumps(gene)), copy.copy(gene._kept_layers)):
        kept = other if isinstance(other, expansion.KeptLayers) else other._kept_layers
        assert kept._kept == ({}, {}, {})
    gene.save_pretrained(tmp_path)
    assert torch.equal(logits(LearngeneModel.from_pretrained(tmp_path), inputs), logits(gene, inputs))
    clone = perturb(copy.deepcopy(gene), seed=4)
    assert not torch.equal(logits(clone, inputs), logits(gene, inputs))


def test_a_shallow_copy_with_other_blocks_computes_with_its_own(inputs):
    gene, other = multimodal_gene(), multimodal_gene(seed=7)
    logits(gene, inputs)
    named = dict(other.named_parameters())
    with torch.no_grad():
        found = functional_call(gene, named, (), inputs).logits_per_image
    assert torch.equal(found, fresh(other, inputs))
    assert torch.equal(logits(gene, inputs), fresh(gene, inputs))


def test_other_sizes_and_the_own_one_are_not_taken_for_each_other(inputs):
    gene = multimodal_gene()
    with torch.no_grad():
        for _ in range(2):
            for size in ({}, {"depth": 1}, {"width": 16}, {"depth": (4, 1), "width": 16}):
                expected = gene.descendant(**size)(**inputs).logits_per_image
                torch.testing.assert_close(gene(**inputs, **size).logits_per_image, expected)


def test_a_config_that_changes_is_noticed(inputs):
    gene = multimodal_gene(**MIXINGS["shared-slope"])
    before = logits(gene, inputs)
    gene.config.mixing = "linear"
    assert not torch.equal(logits(gene, inputs), before)


def test_an_image_gene_expands_once(inputs, expansions):
    gene = image_gene()
    with torch.no_grad():
        first = gene(inputs["pixel_values"]).logits
        assert torch.equal(gene(inputs["pixel_values"]).logits, first)
        assert len(expansions) == 1
        gene.vision_blocks.mlp.fc2.weight.data.neg_()
        assert not torch.equal(gene(inputs["pixel_values"]).logits, first)


def test_vmap_over_genes_runs(inputs):
    genes = [multimodal_gene(seed=seed) for seed in (1, 2)]
    stacked, _ = torch.func.stack_module_state(genes)

    def run(parameters):
        return functional_call(genes[0], parameters, (), given).image_embeds

    given = {name: inputs[name] for name in ("pixel_values", "input_ids")}
    with torch.no_grad():
        logits(genes[0], inputs)
        found = torch.vmap(run)(stacked)
        expected = torch.stack([gene(**given).image_embeds for gene in genes])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_export_and_compile_bake_in_no_layers(inputs):
    gene = multimodal_gene()
    before = logits(gene, inputs)
    torch._dynamo.reset()
    with torch.no_grad():
        compiled = torch.compile(gene, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(**inputs).logits_per_image, before)
        exported = torch.export.export(gene, (), dict(inputs), strict=False).module()
        torch.testing.assert_close(exported(**inputs).logits_per_image, before)
        perturb(gene, seed=3)
        after = fresh(gene, inputs)
        torch.testing.assert_close(compiled(**inputs).logits_per_image, after)
        exported.load_state_dict(gene.state_dict(), strict=False)
        torch.testing.assert_close(exported(**inputs).logits_per_image, after)
