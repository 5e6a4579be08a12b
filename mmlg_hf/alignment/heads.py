"""What leads from an encoder's state into the shared space: a linear map, an MLP, or a gated linear unit."""

from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import LearngeneError

HEADS = {
    "linear": "one linear map, as LilT's",
    "mlp": "LayerNorm, linear map, GELU, linear map",
    "glu": "LayerNorm, two linear maps of which one gates the other, linear map (SAIL)",
}
# How many times the state's width the inner layer has: a transformer's own MLP, and SAIL's head.
_EXPANSIONS = {"mlp": 4, "glu": 8}


def check_head(head: str, expansion: int | None) -> None:
    """Raise a LearngeneError unless there is such a head, and its expansion is None or 1 or more."""
    if head not in HEADS:
        raise LearngeneError(f"projection_head is {head!r}: it takes {', '.join(map(repr, HEADS))}")
    if expansion is not None and (head == "linear" or expansion < 1):
        reason = (
            "a linear head has no inner layer: leave it out" if head == "linear" else "it takes 1 or more, or None"
        )
        raise LearngeneError(f"head_expansion is {expansion}: {reason}")


class ProjectionHead(nn.Module):
    """A head with an inner layer: [..., width] to [..., size].

    "mlp" is down(GELU(up(x))) and "glu" is down(SiLU(gate(x)) * up(x)), SAIL's gated head (Zhang et al., arXiv
    2412.04616), both of the normalised state: states of pretrained encoders come on all scales.

    Args:
        kind: "mlp" or "glu".
        width: of the state.
        size: of the shared space.
        expansion: the inner layer has this many times the width; None takes 4 for an MLP and SAIL's 8 for a GLU.
    """

    def __init__(self, kind: str, width: int, size: int, expansion: int | None = None) -> None:
        super().__init__()
        inner = width * (expansion or _EXPANSIONS[kind])
        self.norm = nn.LayerNorm(width)
        self.gate = nn.Linear(width, inner) if kind == "glu" else None
        self.up = nn.Linear(width, inner)
        self.down = nn.Linear(inner, size)

    def forward(self, states: Tensor) -> Tensor:
        states = self.norm(states)
        inner = F.gelu(self.up(states)) if self.gate is None else F.silu(self.gate(states)) * self.up(states)
        return self.down(inner)


def make_head(kind: str, width: int, size: int, *, bias: bool, expansion: int | None) -> nn.Module:
    """Return the head of one encoder; `bias` is that of a linear one."""
    if kind == "linear":
        return nn.Linear(width, size, bias=bias)
    return ProjectionHead(kind, width, size, expansion)
