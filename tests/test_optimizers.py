"""The extraction's optimizer does what torch's Muon and AdamW do on the same gradients, wherever parameters go."""

from copy import deepcopy

import pytest
import torch
from pico import pico_clip, pico_processor
from pico_genes import gene_config
from torch import nn
from torch.optim import SGD, AdamW, Muon
from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainingArguments, ViTConfig, ViTModel

from mmlg_hf.modeling_learngene import LearngeneModel
from mmlg_hf.training import ContrastiveTrainer
from mmlg_hf.training.optimizers import MuonFactory, OptimizerPair, StackedMuon, is_layer_matrix, with_muon

ADAMW = {"lr": 0.1, "betas": (0.9, 0.98)}
MUON = {"lr": 0.3, "weight_decay": 0.05}


def parameters():
    """A stack of two blocks [2, 6, 4] and a vector [5], the same each time."""
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((2, 6, 4), (5,))]


def optimizer_of(stack, vector):
    return OptimizerPair(StackedMuon([stack], **MUON), AdamW([vector], **ADAMW))


def set_gradients(step, stack, vector):
    generator = torch.Generator().manual_seed(1 + step)
    stack.grad = torch.randn(stack.shape, generator=generator)
    vector.grad = torch.randn(vector.shape, generator=generator)


def stepped_by_torch(steps):
    """What torch's own Muon makes of the blocks, each a matrix of its own, and AdamW of the vector."""
    stack, vector = parameters()
    blocks = [nn.Parameter(block.clone()) for block in stack.detach()]
    optimizers = (Muon(blocks, **MUON, adjust_lr_fn="match_rms_adamw"), AdamW([vector], **ADAMW))
    for step in range(steps):
        set_gradients(step, stack, vector)
        blocks[0].grad, blocks[1].grad = stack.grad.unbind()
        for optimizer in optimizers:
            optimizer.step()
    return torch.stack([block.detach() for block in blocks]), vector.detach()


def test_blocks_step_as_matrices_of_torchs_muon_and_the_rest_as_adamw():
    stack, vector = parameters()
    optimizer = optimizer_of(stack, vector)
    for step in range(3):
        set_gradients(step, stack, vector)
        optimizer.step()
    expected = stepped_by_torch(3)
    torch.testing.assert_close(stack.detach(), expected[0], rtol=0, atol=0)
    torch.testing.assert_close(vector.detach(), expected[1], rtol=0, atol=0)


def to_another_place(module):
    for parameter in module.parameters():
        parameter.data = parameter.data.clone()


def to_another_dtype_and_back(module):
    module.to(torch.float64)
    module.to(torch.float32)


@pytest.mark.parametrize("move", [to_another_place, to_another_dtype_and_back])
@pytest.mark.parametrize("when", [0, 1])
def test_parameters_that_are_moved_after_the_optimizer_was_made_are_trained(move, when):
    module = nn.Module()
    module.stack, module.vector = parameters()
    optimizer = optimizer_of(module.stack, module.vector)
    for step in range(3):
        if step == when:
            move(module)
        set_gradients(step, module.stack, module.vector)
        optimizer.step()
    expected = stepped_by_torch(3)
    torch.testing.assert_close(module.stack.detach(), expected[0], rtol=0, atol=1e-6)
    torch.testing.assert_close(module.vector.detach(), expected[1], rtol=0, atol=1e-6)


def test_parameters_that_are_replaced_in_the_groups_are_trained():
    # As accelerate does where moving a model makes new parameters (`_switch_parameters`).
    stack, vector = parameters()
    optimizer = optimizer_of(stack, vector)
    new_stack, new_vector = (nn.Parameter(p.detach().clone()) for p in (stack, vector))
    for group in optimizer.param_groups:
        group["params"] = [{stack: new_stack, vector: new_vector}[p] for p in group["params"]]
    set_gradients(0, new_stack, new_vector)
    optimizer.step()
    expected = stepped_by_torch(1)
    torch.testing.assert_close(new_stack.detach(), expected[0], rtol=0, atol=0)
    torch.testing.assert_close(new_vector.detach(), expected[1], rtol=0, atol=0)


def test_a_matrix_is_a_stack_of_one():
    matrix, stack = (nn.Parameter(torch.ones(shape)) for shape in ((6, 4), (1, 6, 4)))
    for parameter in (matrix, stack):
        parameter.grad = torch.arange(24.0).reshape(parameter.shape)
        StackedMuon([parameter], lr=0.3).step()
    torch.testing.assert_close(matrix.detach(), stack.detach()[0], rtol=0, atol=0)
    assert not torch.equal(matrix.detach(), torch.ones(6, 4))


def test_a_restored_optimizer_goes_on_as_the_first_would_have(tmp_path):
    stack, vector = parameters()
    optimizer = optimizer_of(stack, vector)
    set_gradients(0, stack, vector)
    optimizer.step()
    other_stack, other_vector = (nn.Parameter(p.detach().clone()) for p in (stack, vector))
    other = optimizer_of(other_stack, other_vector)
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    other.load_state_dict(torch.load(tmp_path / "optimizer.pt", weights_only=True))
    for own in ((optimizer, stack, vector), (other, other_stack, other_vector)):
        set_gradients(1, *own[1:])
        own[0].step()
    torch.testing.assert_close(other_stack, stack, rtol=0, atol=0)
    torch.testing.assert_close(other_vector, vector, rtol=0, atol=0)


def test_a_schedule_reaches_both_optimizers_after_a_resume_too():
    stack, vector = parameters()
    optimizer = optimizer_of(stack, vector)
    optimizer.load_state_dict(deepcopy(optimizer.state_dict()))
    LambdaLR(optimizer, lambda step: 0.0)
    before = stack.detach().clone(), vector.detach().clone()
    set_gradients(0, stack, vector)
    optimizer.step()
    torch.testing.assert_close(stack.detach(), before[0], rtol=0, atol=0)
    torch.testing.assert_close(vector.detach(), before[1], rtol=0, atol=0)


def test_gradients_are_cleared_and_a_stack_without_one_stays():
    stack, vector = parameters()
    optimizer = optimizer_of(stack, vector)
    set_gradients(0, stack, vector)
    optimizer.zero_grad()
    assert stack.grad is None
    assert vector.grad is None
    before = stack.detach().clone()
    optimizer.step()
    torch.testing.assert_close(stack.detach(), before, rtol=0, atol=0)
    set_gradients(0, stack, vector)
    optimizer.zero_grad(set_to_none=False)
    assert not stack.grad.any()
    assert not vector.grad.any()


def test_a_closure_is_called_once_and_its_loss_returned():
    stack, vector = parameters()
    optimizer = optimizer_of(stack, vector)
    calls = []

    def closure():
        loss = stack.square().sum() + vector.square().sum()
        loss.backward()
        calls.append(loss)
        return loss

    before = stack.detach().clone()
    assert optimizer.step(closure).item() > 0
    assert len(calls) == 1
    assert not torch.equal(stack.detach(), before)


def test_the_factory_gives_muon_its_stacks_and_the_rest_to_the_optimizer_that_was_asked_for():
    model = nn.Linear(3, 3)
    model.frozen = nn.Parameter(torch.ones(2), requires_grad=False)
    settings = {"muon_learning_rate": 0.3, "weight_decay": 0.1, "rest": (SGD, {"lr": 0.5})}
    optimizer = MuonFactory()(
        model, is_stack=lambda name, p: name == "weight", is_decayed=lambda name, p: False, **settings
    )
    muon, rest = optimizer.pair
    assert isinstance(muon, StackedMuon)
    assert type(rest) is SGD
    assert muon.param_groups[0]["params"][0] is model.weight
    assert [p is model.bias for group in rest.param_groups for p in group["params"]] == [True]
    assert {group["weight_decay"] for group in rest.param_groups if group["params"]} == {0.0}
    alone = MuonFactory()(model, is_stack=lambda name, p: False, is_decayed=lambda name, p: True, **settings)
    assert type(alone) is SGD


def test_muon_trains_the_matrices_of_layers_and_of_a_genes_blocks_and_nothing_else():
    clip = [name for name, value in pico_clip().named_parameters() if is_layer_matrix(name, value)]
    assert len(clip) == 2 * 2 * 6  # two encoders of two layers, six matrices each
    assert all(name.endswith(("_proj.weight", "fc1.weight", "fc2.weight")) for name in clip)
    gene = LearngeneModel(gene_config())
    stacks = [name for name, value in gene.named_parameters() if is_layer_matrix(name, value)]
    assert len(stacks) == 3 * 6
    assert all("_blocks." in name for name in stacks)
    vit = ViTModel(ViTConfig(hidden_size=16, intermediate_size=32, num_attention_heads=2, num_hidden_layers=2))
    assert sum(is_layer_matrix(name, value) for name, value in vit.named_parameters()) == 2 * 6


def test_a_trainer_takes_muon_with_its_own_arguments_for_the_rest(tmp_path):
    args = TrainingArguments(str(tmp_path), learning_rate=2e-3, weight_decay=0.1, adam_beta2=0.98, use_cpu=True)
    model = pico_clip()
    by_muon = with_muon(args, 3e-3)
    trainer = ContrastiveTrainer(model, args, processing_class=pico_processor(), optimizer_cls_and_kwargs=by_muon)
    optimizer = trainer.create_optimizer()
    muon, rest = optimizer.pair
    assert (muon.defaults["lr"], muon.defaults["weight_decay"]) == (3e-3, 0.1)
    assert (rest.defaults["lr"], rest.defaults["betas"]) == (2e-3, (0.9, 0.98))
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    assert {id(parameter) for parameter in trained} == {id(parameter) for parameter in model.parameters()}
    assert len(trained) == len(list(model.parameters()))
