"""Turning the LayerNorm before a CLIP's image layers, whose weight acts on the residual stream itself."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.nn import functional as F

# How strongly the turned norm's weight is held to a constant, and how far it may be from it, as a ratio of squares.
# Chosen on random ancestors with outlier channels, 128 to 768 wide: from a tenth to ten times as strong is much alike.
_RIDGE, _FARTHEST = 1e-2, 4.0


@torch.no_grad()
def fold_pre_norm(
    norm: torch.nn.LayerNorm,
    embed: Callable[[Tensor], Tensor],
    pixels: Iterable[Tensor],
    rotation: Tensor,
) -> Tensor:
    """Turn the norm before the layers, in place, and return the map [D, D] that its embeddings are to pass.

    With C the centring matrix, c = Ce / std(Ce) and Q the rotation, the layers are to get Q (w * c + b). A weight w
    that varies cannot be turned, as an elementwise product is none in other channels; it moves into the embeddings,
    A e = (Q (w * Ce) + beta(e) 1) / g, where g is the turned norm's weight. Whatever g is, each token's direction is
    right then: beta, linear in e, makes the mean of A e zero, and what it adds lies along the all-ones vector, which
    no later LayerNorm reads. A token's length is right where std(A e) = std(Ce), which for y = Q (w * c) says that
    sum_j y_j^2 / g_j^2 = D. That is linear in 1 / g^2, which is therefore fitted to the tokens by least squares, held
    to a constant. The constant alone is exact where w is constant, and gets tokens wrong where some channels of c are
    much stronger than others.

    Args:
        norm: the LayerNorm, of D channels; its weight becomes g, its bias is turned.
        embed: makes of pixels [B, 3, H, W] what the norm reads, [B, T, D].
        pixels: batches; nothing of them is kept but sums.
        rotation: Q [D, D], orthogonal, Q 1 = 1.

    Returns:
        A, in place of Q for all that is summed into the embeddings.
    """
    size, device = len(norm.weight), norm.weight.device
    squares = torch.zeros(size, size, dtype=torch.double)  # sum over tokens of the outer product of y^2
    second = torch.zeros(size, size, dtype=torch.double)  # and of y
    tokens = 0
    for batch in pixels:
        rows = embed(batch.to(device)).float().flatten(0, -2)
        rows = F.layer_norm(rows, rows.shape[-1:], eps=norm.eps) * norm.weight
        rows = ((rows - rows.mean(-1, keepdim=True)) @ rotation.T).cpu().double()
        squares += rows.square().T @ rows.square()
        second += rows.T @ rows
        tokens += len(rows)
    inverse = _inverse_squares(squares, second.diagonal()).sqrt()  # 1 / g, [D]
    onto = inverse[:, None] * (torch.eye(size, dtype=torch.double) - inverse / inverse.sum())
    # Root mean square over the tokens c of std(A e).
    deviation = ((onto @ second).mul(onto).sum() / (tokens * size)).sqrt()
    weight, turn = norm.weight.cpu().double(), rotation.cpu().double()
    centring = torch.eye(size, dtype=torch.double) - 1 / size
    norm.weight.copy_((deviation / inverse).to(norm.weight))
    norm.bias.copy_(rotation @ norm.bias)
    return (onto @ turn @ (centring * weight) @ centring).to(rotation)


def _inverse_squares(squares: Tensor, powers: Tensor) -> Tensor:
    """Fit a [D] so that the tokens' sums a . y^2 are D, from the sums over tokens of y^2 y^2' [D, D] and y^2 [D]."""
    size = len(powers)
    total = squares.sum()  # of |y|^4
    if total == 0:  # the weight is zero, and nothing passes
        return torch.ones_like(powers)
    constant = size * powers.sum() / total
    held = squares + _RIDGE * total / size * torch.eye(size, dtype=squares.dtype)
    change = torch.linalg.solve(held, size * powers - constant * squares.sum(1))
    return (constant + change).clamp(constant / _FARTHEST, constant * _FARTHEST)
