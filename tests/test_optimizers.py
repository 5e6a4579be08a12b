"""The extraction's optimizer does what torch's Muon and AdamW do on the same gradients, and resumes."""

from copy import deepcopy

import torch
from torch import nn
from torch.optim import AdamW, Muon
from torch.optim.lr_scheduler import LambdaLR

from mmlg_hf.optimizers import MuonAdamW

ADAMW = {"lr": 0.1, "betas": (0.9, 0.98)}


def parameters():
    """A stack of two blocks [2, 6, 4] and a vector [5], the same each time."""
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((2, 6, 4), (5,))]


def optimizer_of(stack, vector):
    return MuonAdamW([stack], [{"params": [vector]}], learning_rate=0.3, weight_decay=0.05, **ADAMW)


def set_gradients(step, stack, vector):
    generator = torch.Generator().manual_seed(1 + step)
    stack.grad = torch.randn(stack.shape, generator=generator)
    vector.grad = torch.randn(vector.shape, generator=generator)


def test_blocks_step_as_matrices_of_muon_and_the_rest_as_adamw():
    stack, vector = parameters()
    optimizer = optimizer_of(stack, vector)
    theirs = [nn.Parameter(block.clone()) for block in stack.detach()] + [nn.Parameter(vector.detach().clone())]
    muon = Muon(theirs[:2], lr=0.3, weight_decay=0.05, adjust_lr_fn="match_rms_adamw")
    adamw = AdamW(theirs[2:], **ADAMW)
    for step in range(3):
        set_gradients(step, stack, vector)
        theirs[0].grad, theirs[1].grad = stack.grad.clone().unbind()
        theirs[2].grad = vector.grad.clone()
        for each in (optimizer, muon, adamw):
            each.step()
    torch.testing.assert_close(stack.detach(), torch.stack([m.detach() for m in theirs[:2]]), rtol=0, atol=0)
    torch.testing.assert_close(vector, theirs[2], rtol=0, atol=0)


def test_a_matrix_is_a_stack_of_one():
    matrix, stack = (nn.Parameter(torch.ones(shape)) for shape in ((6, 4), (1, 6, 4)))
    for parameter in (matrix, stack):
        parameter.grad = torch.arange(24.0).reshape(parameter.shape)
        MuonAdamW([parameter], [{"params": [nn.Parameter(torch.ones(1))]}], learning_rate=0.3).step()
    torch.testing.assert_close(matrix.detach(), stack.detach()[0], rtol=0, atol=0)
    assert not torch.equal(matrix.detach(), torch.ones(6, 4))


def test_a_restored_optimizer_goes_on_as_the_first_would_have():
    stack, vector = parameters()
    optimizer = optimizer_of(stack, vector)
    set_gradients(0, stack, vector)
    optimizer.step()
    other_stack, other_vector = (nn.Parameter(p.detach().clone()) for p in (stack, vector))
    other = optimizer_of(other_stack, other_vector)
    other.load_state_dict(deepcopy(optimizer.state_dict()))  # as from a file: loading copies no tensor
    for own in ((optimizer, stack, vector), (other, other_stack, other_vector)):
        set_gradients(1, *own[1:])
        own[0].step()
    torch.testing.assert_close(other_stack, stack, rtol=0, atol=0)
    torch.testing.assert_close(other_vector, vector, rtol=0, atol=0)


def test_a_schedule_reaches_both_optimizers_after_a_resume_too():
    stack, vector = parameters()
    optimizer = optimizer_of(stack, vector)
    optimizer.load_state_dict(optimizer.state_dict())
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

    def closure():
        loss = stack.square().sum() + vector.square().sum()
        loss.backward()
        return loss

    before = stack.detach().clone()
    assert optimizer.step(closure).item() > 0
    assert not torch.equal(stack.detach(), before)
