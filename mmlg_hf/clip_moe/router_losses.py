"""What keeps the routers of one encoder in order: an even load over the experts, and small logits."""

from typing import Any

import torch
from torch import Tensor
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func


def balance_loss(
    router_logits: tuple[Tensor, ...],
    num_experts: int,
    num_experts_per_tok: int,
    attention_mask: Tensor | None = None,
) -> Tensor:
    """Load-balancing loss, E * sum_e f_e * P_e over the tokens of all mixtures.

    f_e is the share of tokens routed to expert e, counted over the k slots, and P_e its mean probability. The least
    value, k, is that of an even load.

    Args:
        router_logits: one [B * T, E] for each mixture, at least one.
        num_experts: E.
        num_experts_per_tok: k.
        attention_mask: tokens [B, T] that are 0 here are left out; None takes all.
    """
    logits: Any = router_logits  # annotated there as one layer's
    loss: Any = load_balancing_loss_func(logits, num_experts, num_experts_per_tok, attention_mask)
    return loss


def router_z_loss(router_logits: tuple[Tensor, ...], attention_mask: Tensor | None = None) -> Tensor:
    """Router z-loss (ST-MoE, arXiv 2202.08906, equation 5): the mean over tokens of (log sum_e exp x_e)^2.

    It keeps logits small, where a softmax is exact and its gradient alive. The mean is over the tokens of all
    mixtures, in float32.

    Args:
        router_logits: one [B * T, E] for each mixture, at least one.
        attention_mask: tokens [B, T] that are 0 here are left out; None takes all.
    """
    device = router_logits[0].device  # a model spread over devices has its layers' elsewhere
    squares = torch.stack([x.float().logsumexp(dim=-1).square().to(device) for x in router_logits])  # [layers, B * T]
    if attention_mask is None:
        return squares.mean()
    kept = attention_mask.reshape(-1).to(squares)  # [B * T]
    return (squares * kept).sum() / (kept.sum() * len(squares))
