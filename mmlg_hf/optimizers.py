"""The optimizer of an extraction: Muon for the blocks' matrices, AdamW for everything else."""

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Muon, Optimizer
from transformers import TrainingArguments


class MuonAdamW(Optimizer):
    """torch's Muon (Jordan et al., 2024) and AdamW as one optimizer, which a Trainer can schedule, save and resume.

    Muon steps along the gradient's momentum with all singular values made equal. A gene's few matrices serve every
    layer and every slice, so that a few directions dominate their gradients. The step is scaled to AdamW's (Liu et
    al., arXiv 2502.16982).

    Args:
        stacks: Muon's parameters: matrices [out, in], or stacks [N, out, in] of them. They must stay where they are
            in memory.
        groups: AdamW's parameter groups.
        learning_rate: Muon's.
        weight_decay: Muon's.
        adamw: AdamW's own keywords.
    """

    def __init__(
        self,
        stacks: Iterable[nn.Parameter],
        groups: list[dict[str, Any]],
        *,
        learning_rate: float,
        weight_decay: float = 0.0,
        **adamw: Any,
    ) -> None:
        self.stacks = list(stacks)
        # Muon takes matrices: each block is one, as a leaf of its own over the stack's memory.
        self.matrices = [[nn.Parameter(block) for block in _blocks(stack.detach())] for stack in self.stacks]
        flat = [matrix for blocks in self.matrices for matrix in blocks]
        self.muon = Muon(flat, lr=learning_rate, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
        self.adamw = AdamW(groups, **adamw)
        super().__init__([*self.muon.param_groups, *self.adamw.param_groups], {})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take one step of both; `closure` computes the loss anew and returns it."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for stack, blocks in zip(self.stacks, self.matrices, strict=True):
            gradients = [None] * len(blocks) if stack.grad is None else _blocks(stack.grad)
            for matrix, gradient in zip(blocks, gradients, strict=True):
                matrix.grad = gradient
        self.muon.step()
        self.adamw.step()
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients of the stacks and of AdamW's parameters."""
        super().zero_grad(set_to_none)
        for stack in self.stacks:
            if set_to_none:
                stack.grad = None
            elif stack.grad is not None:
                stack.grad.zero_()

    def state_dict(self) -> dict[str, Any]:
        """Return both optimizers' states."""
        return {"muon": self.muon.state_dict(), "adamw": self.adamw.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore both optimizers' states."""
        self.muon.load_state_dict(state_dict["muon"])
        self.adamw.load_state_dict(state_dict["adamw"])
        # Loading makes new groups, and a scheduler reads them here.
        self.param_groups = [*self.muon.param_groups, *self.adamw.param_groups]


def _blocks(stack: Tensor) -> Sequence[Tensor]:
    """The matrices of a stack, as views of its memory."""
    return stack.unbind() if stack.dim() == 3 else [stack]


def muon_adamw(
    model: nn.Module,
    stacks: Iterable[nn.Parameter],
    muon_learning_rate: float,
    args: TrainingArguments,
    decayed: Collection[str],
) -> MuonAdamW:
    """Return the optimizer of a model: Muon for the given parameters, AdamW for all others that are trained.

    Args:
        model: all of whose parameters with requires_grad are trained.
        stacks: see `MuonAdamW`.
        muon_learning_rate: Muon's; AdamW takes `args.learning_rate`.
        args: the Trainer's.
        decayed: names of the parameters with weight decay, as `Trainer.get_decay_parameter_names` gives them.
    """
    stacks = list(stacks)
    by_muon = {id(stack) for stack in stacks}
    groups: dict[bool, list[Tensor]] = {True: [], False: []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and id(parameter) not in by_muon:
            groups[name in decayed].append(parameter)
    return MuonAdamW(
        stacks,
        [{"params": params, "weight_decay": args.weight_decay * decay} for decay, params in groups.items()],
        learning_rate=muon_learning_rate,
        weight_decay=args.weight_decay,
        lr=args.learning_rate,
        betas=(args.adam_beta1, args.adam_beta2),
        eps=args.adam_epsilon,
    )
