"""Blocks to layer weights: mixing coefficients, weighted sums, and width slices. Imports torch alone.

Layer l of L is a weighted sum of blocks, parameter by parameter (MM-LG, arXiv 2506.16673; TLEG, arXiv 2312.05614):

    image encoder   W_l = sum_n f_n(l/L) * M_n + sum_n g_n(l/L) * V_n
    text encoder    W_l = sum_n f_n(l/L) * M_n + sum_n g_n(l/L) * T_n

With one block each that is M + (l/L) * V, or, with a base of each encoder's own and a shared slope, V + (l/L) * M.
Each matrix may then be scaled by factors of its layer, diag(r_l) W_l diag(c_l) (FINE, CVPR-26).

The gene's own forward and every descendant are made by the functions below and by nothing else.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

# The parameters of one CLIP encoder layer. "hidden" axes follow the width, "mlp" axes the width times the MLP ratio.
LAYER_AXES: dict[str, tuple[str | None, ...]] = {
    "layer_norm1.weight": ("hidden",),
    "layer_norm1.bias": ("hidden",),
    "self_attn.q_proj.weight": ("hidden", "hidden"),
    "self_attn.q_proj.bias": ("hidden",),
    "self_attn.k_proj.weight": ("hidden", "hidden"),
    "self_attn.k_proj.bias": ("hidden",),
    "self_attn.v_proj.weight": ("hidden", "hidden"),
    "self_attn.v_proj.bias": ("hidden",),
    "self_attn.out_proj.weight": ("hidden", "hidden"),
    "self_attn.out_proj.bias": ("hidden",),
    "layer_norm2.weight": ("hidden",),
    "layer_norm2.bias": ("hidden",),
    "mlp.fc1.weight": ("mlp", "hidden"),
    "mlp.fc1.bias": ("mlp",),
    "mlp.fc2.weight": ("hidden", "mlp"),
    "mlp.fc2.bias": ("hidden",),
}

MATRIX_SIDES = ("rows", "columns")  # what scales a matrix along its first and its second axis

TOKEN_EMBEDDING = "text_model.embeddings.token_embedding.weight"
TOKEN_PROJECTION = "text_model.embeddings.token_projection.weight"


def layer_positions(depth: int, **kwargs) -> Tensor:
    """Return l/L for l = 0 .. L-1, [depth]: TLEG's positions (i/L)."""
    return torch.arange(depth, **kwargs) / depth


def basis_functions(mixing: str, num_functions: int, positions: Tensor) -> Tensor:
    """Evaluate the first basis functions at the given positions.

    Args:
        mixing: "linear" gives 1 and x (TLEG), "chebyshev" gives T_n(x) (Linearly Decomposing and Recomposing ViTs,
            NeurIPS-24); "learned" starts from the latter, of which the former are the first two.
        positions: x = l/L, [depth].

    Returns:
        [depth, num_functions]
    """
    values = [torch.ones_like(positions), positions]
    if mixing == "linear" and num_functions > 2:
        raise ValueError(f'mixing "linear" has two basis functions, 1 and l/L; {num_functions} were asked for')
    while len(values) < num_functions:
        values.append(2 * positions * values[-1] - values[-2])
    return torch.stack(values, dim=1)[:, :num_functions]


def shares_slope(mixing: str, num_multimodal: int, num_unimodal: int) -> bool:
    """Whether the multimodal block is the slope (l/L) and the unimodal one the base; "learned" starts so."""
    return num_multimodal == num_unimodal == 1 and mixing in ("shared-slope", "learned")


def mixing_coefficients(mixing: str, num_multimodal: int, num_unimodal: int, depth: int) -> Tensor:
    """Return the fixed coefficients of one encoder's layers, [depth, num_multimodal + num_unimodal].

    In each group the n-th block takes basis function n. A lone unimodal block beside multimodal ones takes l/L, so
    that the multimodal block is the common part and the unimodal one the growing difference; where `shares_slope`,
    these two are turned about, and the first layers of both encoders have nothing in common.
    """
    positions = layer_positions(depth)
    if shares_slope(mixing, num_multimodal, num_unimodal):
        return torch.stack([positions, torch.ones_like(positions)], dim=1)
    if mixing == "shared-slope":
        raise ValueError(
            f'mixing "shared-slope" is for one multimodal and one unimodal block, not {num_multimodal} and '
            f"{num_unimodal}"
        )
    multimodal = basis_functions(mixing, num_multimodal, positions)
    if num_multimodal and num_unimodal == 1:
        unimodal = positions[:, None]
    else:
        unimodal = basis_functions(mixing, num_unimodal, positions)
    return torch.cat([multimodal, unimodal], dim=1)


def interpolate_coefficients(learned: Tensor, depth: int) -> Tensor:
    """Read learned coefficients, [L, ...], at another depth's l/depth: linear in between, held at the end."""
    known = learned.shape[0]
    if depth == known:
        return learned
    position = layer_positions(depth, device=learned.device) * known
    below = position.floor().long().clamp(max=known - 1)
    above = (below + 1).clamp(max=known - 1)
    share = (position - below).to(learned.dtype).reshape(-1, *[1] * (learned.dim() - 1))
    return learned[below] * (1 - share) + learned[above] * share


def take_slice(tensor: Tensor, axes: tuple[str | None, ...], sizes: Mapping[str, int]) -> Tensor:
    """Return the leading slice of a (stack of) parameter(s): each named axis is cut to its size, [..., *axes].

    Heads are stored one after another in q, k, v and out, so a width that is a multiple of the head size keeps whole
    heads. A "qkv" axis is three "hidden" ones, one after another, and each is cut.
    """
    for offset, axis in enumerate(reversed(axes), start=1):
        if axis == "qkv":
            parts = tensor.unflatten(-offset, (3, -1)).narrow(-offset, 0, sizes["hidden"])
            tensor = parts.flatten(-offset - 1, -offset)
        elif axis is not None and tensor.shape[-offset] != sizes[axis]:
            tensor = tensor.narrow(-offset, 0, sizes[axis])
    return tensor


def expand_layers(
    multimodal: Mapping[str, Tensor],
    unimodal: Mapping[str, Tensor],
    coefficients: Tensor | Mapping[str, Tensor],
    sizes: Mapping[str, int],
    norm_scale: float = 1.0,
    scales: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Compute the weights of all layers of one encoder, one matrix product per parameter.

    Args:
        multimodal: stacked multimodal blocks by layer parameter, each [N_m, ...]; empty if there are none. May be
            wider than the encoder: the leading slice counts.
        unimodal: the same for the encoder's own blocks, each [N_u, ...]; [N_m + N_u, ...] for a parameter that the
            multimodal blocks lack, as the encoders cannot share it.
        coefficients: [depth, N_m + N_u] for every parameter, or one such matrix per parameter.
        sizes: the wanted size of the "hidden" and the "mlp" axis.
        norm_scale: a factor on the weights of the layers' LayerNorms, see `slice_norm_scale`.
        scales: factors [depth, size] on the matrices, by "LINEAR.rows" and "LINEAR.columns"; None has none.

    Returns:
        for each layer parameter a tensor [depth, ...].
    """
    expanded = {}
    for name, axes in LAYER_AXES.items():
        groups = [take_slice(group[name], axes, sizes) for group in (multimodal, unimodal) if name in group]
        blocks = torch.cat(groups) if len(groups) > 1 else groups[0]  # [N, ...]
        mixing = coefficients if isinstance(coefficients, Tensor) else coefficients[name]  # [depth, N]
        mixing = mixing.to(device=blocks.device, dtype=blocks.dtype)
        # In full precision under autocast too: a LayerNorm takes no other, and a sum of blocks should not lose digits.
        with torch.autocast(blocks.device.type, enabled=False):
            expanded[name] = (mixing @ blocks.flatten(1)).unflatten(1, blocks.shape[1:])
        if norm_scale != 1 and name in ("layer_norm1.weight", "layer_norm2.weight"):
            expanded[name] = expanded[name] * norm_scale
        for factors in _factors_on(name, scales):
            expanded[name] = expanded[name] * factors.to(expanded[name])
    return expanded


def _factors_on(name: str, scales: Mapping[str, Tensor] | None) -> list[Tensor]:
    """What a layer parameter is multiplied by, after another: rows [depth, out, 1] and columns [depth, 1, in]."""
    if not scales or len(LAYER_AXES[name]) != 2:
        return []
    linear = name.removesuffix(".weight")
    sides = zip(MATRIX_SIDES, (-1, -2), strict=True)
    return [scales[key].unsqueeze(axis) for side, axis in sides if (key := f"{linear}.{side}") in scales]


# Integers of a type's size: as such, numbers are compared bit by bit, in half of the time.
_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def _same_bits(tensor: Tensor, copy: Tensor) -> bool:
    if (tensor.shape, tensor.dtype, tensor.device) != (copy.shape, copy.dtype, copy.device):
        return False
    bits = _BITS[tensor.element_size()]
    return torch.equal(tensor.view(bits), copy.view(bits))


class KeptLayers:
    """The layers of encoders as they were last expanded, for as long as nothing changes that they were expanded from.

    What they were expanded from is kept as a copy and compared bit by bit, at a small part of the cost of expanding
    it: a tensor's version says nothing of `.data` that was written to, nor of inference tensors. A copy of this, or a
    pickle, is empty.
    """

    def __init__(self) -> None:
        self._kept: tuple[dict, dict, dict] = {}, {}, {}

    def __reduce__(self) -> tuple[type, tuple]:
        return KeptLayers, ()

    def clear(self) -> None:
        """Forget them, and free their memory."""
        self._kept = {}, {}, {}

    def expand(self, sources: Mapping[str, tuple]) -> dict[str, dict[str, Tensor]]:
        """Return `expand_layers` of each encoder, by name; `sources` are its arguments, by the same names.

        The layers are shared by all who ask: they are not to be written to, and no gradient flows through them.
        """
        about, tensors = _taken_apart(sources)
        known, copies, layers = self._kept  # read at once: another thread may put others there
        if not all(_same_bits(tensor, copies[key]) for key, tensor in tensors.items() if key in copies):
            known, copies, layers = {}, {}, {}
        new = [encoder for encoder in sources if known.get(encoder) != about[encoder]]
        if new:
            with torch.no_grad():
                layers = layers | {encoder: expand_layers(*sources[encoder]) for encoder in new}
                more = {key: tensor.detach().clone() for key, tensor in tensors.items() if key not in copies}
            self._kept = known | about, copies | more, layers
        return {encoder: layers[encoder] for encoder in sources}


def _taken_apart(sources: Mapping[str, tuple]) -> tuple[dict[str, tuple], dict[tuple, Tensor]]:
    """Return the arguments of `expand_layers` for several encoders as settings of each, and the tensors of all."""
    about: dict[str, tuple] = {}
    tensors: dict[tuple, Tensor] = {}
    for encoder, (multimodal, unimodal, coefficients, sizes, norm_scale, scales) in sources.items():
        mixing = {"": coefficients} if isinstance(coefficients, Tensor) else coefficients
        tensors |= {("multimodal", name): block for name, block in multimodal.items()}
        tensors |= {(encoder, "blocks", name): block for name, block in unimodal.items()}
        tensors |= {(encoder, "coefficients", name): matrix for name, matrix in mixing.items()}
        tensors |= {(encoder, "scales", name): factors for name, factors in scales.items()}
        about[encoder] = (list(multimodal), list(unimodal), list(mixing), dict(sizes), norm_scale, list(scales))
    return about, tensors


def sum_type(stored: torch.dtype) -> torch.dtype:
    """The type in which weights stored in a type are summed for a descendant: float32, or their own if it is finer."""
    return torch.promote_types(stored, torch.float32)


# Numbers of a layer that `fill_layers` writes at once: enough for torch to share them among threads, few enough for
# those of all layers to stay in the cache until they are written.
WRITTEN_AT_ONCE = 2**17


@torch.no_grad()
def fill_layers(
    multimodal: Mapping[str, Tensor],
    unimodal: Mapping[str, Tensor],
    coefficients: Tensor | Mapping[str, Tensor],
    sizes: Mapping[str, int],
    norm_scale: float,
    scales: Mapping[str, Tensor],
    layers: Mapping[str, Sequence[Tensor]],
) -> None:
    """Write what `expand_layers` computes into the memory of layers that are there, some rows at a time.

    The sums are the same to the last bit, in the blocks' `sum_type`. But only what is kept is read, and it is written
    once, where `expand_layers` makes one stack of all layers, of which a model's own tensors would be copies.

    Args:
        multimodal, unimodal, coefficients, sizes, norm_scale, scales: as for `expand_layers`.
        layers: by layer parameter, the tensor of each layer, of any type and on any device.
    """
    for name, axes in LAYER_AXES.items():
        stacks = [take_slice(group[name], axes, sizes) for group in (multimodal, unimodal) if name in group]
        blocks = [block for stack in stacks for block in stack]
        mixing = coefficients if isinstance(coefficients, Tensor) else coefficients[name]  # [depth, N]
        mixing = mixing.to(device=blocks[0].device, dtype=sum_type(blocks[0].dtype))
        rows = max(1, WRITTEN_AT_ONCE // blocks[0][0].numel())
        targets = [layer.split(rows) for layer in layers[name]]
        factors = [factor.to(mixing) for factor in _factors_on(name, scales)]
        for index, parts in enumerate(zip(*(block.split(rows) for block in blocks), strict=True)):
            with torch.autocast(mixing.device.type, enabled=False):
                sums = mixing @ torch.stack([part.to(mixing.dtype) for part in parts]).flatten(1)
            if norm_scale != 1 and name in ("layer_norm1.weight", "layer_norm2.weight"):
                sums = sums * norm_scale
            for factor in factors:
                part = factor if factor.shape[1] == 1 else factor.narrow(1, index * rows, len(parts[0]))
                sums = (sums.unflatten(1, parts[0].shape) * part).flatten(1)
            for total, target in zip(sums, targets, strict=True):
                target[index].copy_(total.view(target[index].shape))


def slice_norm_scale(width: int, own_width: int) -> float:
    """Return sqrt(W/w): what a narrower slice's LayerNorms are short of, where its channels hold most of the stream.

    A LayerNorm divides by the root mean square of its channels. Leading channels that hold all of the stream's power
    (see `mmlg_hf.extraction.rotation`) have sqrt(W/w) times that of all W, and would come out smaller by as much.
    """
    return (own_width / width) ** 0.5


def factor_table(table: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return factors [V, rank] and [D, rank] whose product is closest to a table [V, D] (Eckart and Young, 1936)."""
    directions = torch.linalg.eigh(table.double().T @ table.double())[1].flip(1)[:, :rank]
    return (table.double() @ directions).to(table.dtype), directions.to(table.dtype)


def join_table(factor: Tensor, projection: Tensor, out: Tensor | None = None) -> Tensor:
    """Compute the whole table [V, D] from the factors of `factor_table`, into `out` of any type where it is given."""
    with torch.autocast(factor.device.type, enabled=False):  # as in `expand_layers`
        if out is None:
            return factor @ projection.T
        if (out.dtype, out.device) == (factor.dtype, factor.device):
            return torch.mm(factor, projection.T, out=out)
        return out.copy_(factor @ projection.T)


def depth_of(coefficients: Tensor | Mapping[str, Tensor]) -> int:
    """How many layers there are mixing coefficients for."""
    return len(coefficients if isinstance(coefficients, Tensor) else next(iter(coefficients.values())))
