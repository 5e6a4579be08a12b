"""Muon for the matrices of layers or of a gene's blocks, the Trainer's own choice for everything else."""

import re
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim._muon import DEFAULT_A, DEFAULT_B, DEFAULT_C, DEFAULT_NS_STEPS, EPS, muon
from transformers import Trainer

# Parts of the names of what is no matrix of weights, though a gene may hold a stack of it.
_NO_MATRICES = ("bias", "norm", "coefficients", "_scales.", "class_embedding", "cls_token")


def is_decayed(name: str, parameter: Tensor) -> bool:
    """Whether a parameter has weight decay: matrices have it.

    Scalars and vectors (logit scale, class embedding, biases, norms) have none, nor have stacks of them, as a gene's
    blocks hold, nor its learned coefficients and scales, which would decay to no layers at all.
    """
    return parameter.dim() >= 2 and not any(word in name for word in _NO_MATRICES)


class StackedMuon(Optimizer):
    """torch's Muon (Jordan et al., 2024) on stacks of matrices: each matrix of a stack takes a step of its own.

    Muon steps along the gradient's momentum with all singular values made equal. A gene's few matrices serve every
    layer and every slice, so that a few directions dominate their gradients. The step is scaled to AdamW's (Liu et
    al., arXiv 2502.16982). `torch.optim.Muon` takes matrices alone; views of a stack would be lost where a model is
    moved after its optimizer was made, so that the matrices are taken from the stacks at each step.

    Args:
        params: parameters [out, in], or stacks [N, out, in] of them.
        lr: learning rate.
        weight_decay: decoupled, as AdamW's.
        momentum: of the gradient's mean.
    """

    def __init__(self, params: Any, lr: float, weight_decay: float = 0.0, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take one step; `closure` computes the loss anew and returns it."""
        loss = _call(closure)
        for group in self.param_groups:
            stacks = [stack for stack in group["params"] if stack.grad is not None]
            for stack in stacks:
                if "momentum_buffer" not in self.state[stack]:
                    self.state[stack]["momentum_buffer"] = torch.zeros_like(stack.grad)
            muon(
                _matrices(stacks),
                _matrices(stack.grad for stack in stacks),
                _matrices(self.state[stack]["momentum_buffer"] for stack in stacks),
                lr=group["lr"],
                weight_decay=group["weight_decay"],
                momentum=group["momentum"],
                nesterov=True,
                ns_coefficients=(DEFAULT_A, DEFAULT_B, DEFAULT_C),
                ns_steps=DEFAULT_NS_STEPS,
                eps=EPS,
                adjust_lr_fn="match_rms_adamw",
                has_complex=False,
            )
        return loss


def _matrices(stacks: Iterable[Tensor]) -> list[Tensor]:
    """The matrices of stacks, as views of their memory."""
    return [matrix for stack in stacks for matrix in (stack.unbind() if stack.dim() == 3 else [stack])]


def _call(closure: Callable[[], float] | None) -> float | None:
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


class OptimizerPair(Optimizer):
    """Two optimizers as one, which a Trainer can schedule, save and resume; their parameters must differ."""

    def __init__(self, first: Optimizer, second: Optimizer) -> None:
        self.pair = (first, second)
        super().__init__(self._groups(), {})

    def _groups(self) -> list[dict[str, Any]]:
        return [group for optimizer in self.pair for group in optimizer.param_groups]

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take one step of both; `closure` computes the loss anew and returns it."""
        loss = _call(closure)
        for optimizer in self.pair:
            optimizer.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """Return both optimizers' states."""
        return {"first": self.pair[0].state_dict(), "second": self.pair[1].state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore both optimizers' states."""
        for optimizer, state in zip(self.pair, (state_dict["first"], state_dict["second"]), strict=True):
            optimizer.load_state_dict(state)
        self.param_groups = self._groups()  # loading makes new groups, and a scheduler reads them here


class MuonFactory:
    """What a Trainer's `optimizer_cls_and_kwargs` takes to build Muon beside another optimizer."""

    def __call__(
        self,
        model: nn.Module,
        *,
        is_stack: Callable[[str, Tensor], bool],
        is_decayed: Callable[[str, Tensor], bool],
        muon_learning_rate: float | None,
        weight_decay: float,
        rest: tuple[Any, dict[str, Any]],
    ) -> Optimizer:
        """Return the optimizer of a model.

        Args:
            model: all of whose parameters with requires_grad are trained.
            is_stack: whether Muon takes a parameter, by its name and value; see `StackedMuon`.
            is_decayed: whether another parameter has weight decay.
            muon_learning_rate: Muon's; 0 or None leaves everything to the other.
            weight_decay: of both.
            rest: the optimizer of all other parameters, class and keywords.
        """
        rate, stacks = muon_learning_rate or 0.0, list[Tensor]()
        others: dict[bool, list[Tensor]] = {True: [], False: []}
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                to = stacks if rate and is_stack(name, parameter) else others[is_decayed(name, parameter)]
                to.append(parameter)
        rest_class, settings = rest
        groups = [{"params": params, "weight_decay": weight_decay * decay} for decay, params in others.items()]
        beside = rest_class(groups, **settings)
        if not stacks:
            return beside
        return OptimizerPair(StackedMuon(stacks, lr=rate, weight_decay=weight_decay), beside)


def at_own_rate(
    optimizer: tuple[Any, dict[str, Any]], parameters: Iterable[Tensor], rate: float
) -> tuple[Callable[..., Optimizer], dict[str, Any]]:
    """Return an optimizer, class and keywords, that trains some parameters without decay, at a rate of their own."""
    cls, settings = optimizer
    return partial(_apart, cls, list(parameters), rate), settings


def _apart(cls: Any, own: list[Tensor], rate: float, groups: list[dict[str, Any]], **settings: Any) -> Optimizer:
    named = {id(parameter) for parameter in own}
    groups = [{**group, "params": [p for p in group["params"] if id(p) not in named]} for group in groups]
    return cls([*groups, {"params": own, "lr": rate, "weight_decay": 0.0}], **settings)


def is_layer_matrix(name: str, parameter: Tensor) -> bool:
    """Whether Muon trains a parameter: a layer's matrix [out, in], or a stack of a gene's blocks [N, out, in]."""
    if "_blocks." in name:
        return parameter.dim() == 3
    return parameter.dim() == 2 and re.search(r"\blayers?\.\d+\.", name) is not None


def with_muon(
    args: Any, learning_rate: float | None, rest: tuple[Any, dict[str, Any]] | None = None
) -> tuple[type[MuonFactory], dict[str, Any]]:
    """Return the `optimizer_cls_and_kwargs` of a Trainer that trains the layers' matrices by Muon.

        ContrastiveTrainer(model, args, collator, rows, optimizer_cls_and_kwargs=with_muon(args, 3e-3))

    Args:
        args: `TrainingArguments`: their weight decay holds for all, the other settings for what Muon leaves, which
            are embeddings, heads, norms and biases; see `is_layer_matrix`.
        learning_rate: Muon's peak; it is scheduled as the other is. 0 or None leaves everything to the other.
        rest: optimizer of all other parameters, class and keywords; None takes the one that `args` name.
    """
    settings = {
        "is_stack": is_layer_matrix,
        "is_decayed": is_decayed,
        "muon_learning_rate": learning_rate,
        "weight_decay": args.weight_decay,
        "rest": rest or Trainer.get_optimizer_cls_and_kwargs(args),
    }
    return MuonFactory, settings
