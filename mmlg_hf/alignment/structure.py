"""STRUCTURE: what is aligned keeps the neighbourhoods that its encoder saw."""

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import LearngeneError


def structure_loss(states: Tensor, embeds: Tensor, *, temperature: float = 0.05, levels: int = 1) -> Tensor:
    """How far neighbourhoods of a batch in the shared space are from the encoder's own (STRUCTURE, arXiv 2506.16895).

    Both sides have their mean taken out and are normalised; P = softmax(cosines / temperature) over the rows of the
    batch says whose neighbour a row is, and its l-th power does so over l steps. The loss is the mean over levels l of
    JS(P_states^l, P_embeds^l) / l, the Jensen-Shannon divergence of each row's two distributions being between 0 and
    ln 2. Computed in float32, over the rows of this process. No gradient reaches the states.

    Args:
        states: [B, D], what the encoder gave.
        embeds: [B, E], what became of it.
        temperature: of the softmax, above 0.
        levels: how many steps are looked at, 1 or more.

    Returns:
        a scalar, 0 where both spaces have the same cosines, and for a batch of fewer than 3 rows, whose cosines are
        the same in all spaces.

    Raises:
        LearngeneError: if rows do not match, the temperature is not above 0 or there is no level.
    """
    if states.dim() != 2 or embeds.dim() != 2 or len(states) != len(embeds):
        raise LearngeneError(
            f"states and embeddings must be [B, D] and [B, E], got {list(states.shape)} and {list(embeds.shape)}"
        )
    check_structure(0.0, temperature, levels)
    if len(states) < 3:
        return embeds.sum() * 0.0
    with torch.autocast(embeds.device.type, enabled=False):
        own, theirs = _neighbours(embeds, temperature), _neighbours(states.detach(), temperature)
        loss, steps_own, steps_theirs = embeds.new_zeros((), dtype=torch.float32), own, theirs
        for level in range(1, levels + 1):
            if level > 1:
                steps_own, steps_theirs = steps_own @ own, steps_theirs @ theirs
            loss = loss + _divergence(steps_theirs, steps_own) / level
    return loss / levels


def check_structure(weight: float, temperature: float, levels: int) -> None:
    """Raise a LearngeneError unless the weight is 0 or more, the temperature above 0 and there is a level."""
    if not weight >= 0:
        raise LearngeneError(f"structure_weight is {weight}: it takes 0 (off) or more; the paper has 10")
    if not temperature > 0:
        raise LearngeneError(f"structure_temperature is {temperature}: give a number above 0; the paper has 0.05")
    if levels < 1:
        raise LearngeneError(f"structure_levels is {levels}: it takes 1 or more")


def _neighbours(rows: Tensor, temperature: float) -> Tensor:
    rows = F.normalize(rows.float() - rows.float().mean(dim=0), dim=-1)
    return (rows @ rows.T / temperature).softmax(dim=-1)


def _divergence(first: Tensor, second: Tensor) -> Tensor:
    """Jensen-Shannon divergence of each row's distributions [B, N], the mean over rows."""
    middle = ((first + second) / 2).clamp(min=1e-12).log()
    one, other = (
        F.kl_div(middle, side.clamp(min=1e-12).log(), reduction="batchmean", log_target=True)
        for side in (first, second)
    )
    return (one + other) / 2
