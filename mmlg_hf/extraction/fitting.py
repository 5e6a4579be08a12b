"""Starting a gene from its ancestor: blocks fitted to the ancestor's layers in closed form.

Permuting the heads or the MLP neurons of a layer leaves what it computes unchanged, but each layer orders them
at will, so that their average is no sensible layer. The fit alternates: blocks by least squares, then each layer's
heads and neurons matched to the blocks' (Hungarian method), kept whole.
"""

from collections.abc import Collection, Mapping
from typing import Any

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from ..expansion import LAYER_AXES, expand_layers, take_slice
from ..families import ENCODERS, FAMILIES, Family

Layers = dict[str, Tensor]  # by layer parameter, [depth, ...]

_HEAD_ROWS = ("self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight")
_HEAD_BIASES = ("self_attn.q_proj.bias", "self_attn.k_proj.bias", "self_attn.v_proj.bias")


def stack_layers(encoder: Any, family: Family = FAMILIES["clip"]) -> Layers:
    """Stack the parameters of an encoder's layers, each [depth, ...]; of a bias that is not there, zeros."""
    stacked = {}
    for name in LAYER_AXES:
        owner, kind = family.in_layer(name).rsplit(".", 1)
        modules = [layer.get_submodule(owner) for layer in encoder.layers]
        weights = [getattr(module, kind) for module in modules]
        weights = [
            module.weight.new_zeros(len(module.weight)) if weight is None else weight
            for module, weight in zip(modules, weights, strict=True)
        ]
        stacked[name] = torch.stack([weight.detach().float() for weight in weights])
    return stacked


def unit_features(layers: Layers, head_size: int) -> tuple[Tensor, Tensor]:
    """Return what identifies each head [depth, heads, F] and each MLP neuron [depth, neurons, F]."""
    depth = len(layers["mlp.fc1.bias"])
    heads = [layers[name].unflatten(1, (-1, head_size)).flatten(2) for name in (*_HEAD_ROWS, *_HEAD_BIASES)]
    out = layers["self_attn.out_proj.weight"].transpose(1, 2).unflatten(1, (-1, head_size)).flatten(2)
    neurons = [layers["mlp.fc1.weight"], layers["mlp.fc1.bias"].reshape(depth, -1, 1)]
    return (
        torch.cat([*heads, out], dim=2),
        torch.cat([*neurons, layers["mlp.fc2.weight"].transpose(1, 2)], dim=2),
    )


def permute_units(layers: Layers, heads: Tensor, neurons: Tensor, head_size: int) -> Layers:
    """Reorder each layer's heads and neurons, which leaves its function unchanged.

    Args:
        heads: [depth, heads], the old index of each new head.
        neurons: [depth, neurons], likewise.
    """
    rows = (heads[:, :, None] * head_size + torch.arange(head_size)).flatten(1)  # [depth, hidden]
    permuted = dict(layers)
    for names, order, axis in (
        ((*_HEAD_ROWS, *_HEAD_BIASES), rows, 1),
        (("self_attn.out_proj.weight",), rows, 2),
        (("mlp.fc1.weight", "mlp.fc1.bias"), neurons, 1),
        (("mlp.fc2.weight",), neurons, 2),
    ):
        for name in names:
            permuted[name] = torch.stack(
                [w.index_select(axis - 1, o) for w, o in zip(layers[name], order, strict=True)]
            )
    return permuted


def match_units(layers: Layers, wanted: Layers, head_size: int) -> Layers:
    """Reorder each layer's heads and neurons to lie closest to those of `wanted`, in squared distance.

    Returns:
        the layers reordered; `layers` itself where all lie closest as they are.
    """
    orders: tuple[list[Tensor], list[Tensor]] = ([], [])
    for number in range(len(layers["mlp.fc1.bias"])):  # one layer at a time: features are copies
        have, want = (
            unit_features({name: stack[number : number + 1] for name, stack in each.items()}, head_size)
            for each in (layers, wanted)
        )
        for order, own, other in zip(orders, have, want, strict=True):
            # Minimising the squared distance is maximising the inner product: norms do not depend on the order.
            order.append(_assign(other[0] @ own[0].T))
    heads, neurons = (torch.stack(order) for order in orders)
    if all(torch.equal(order, torch.arange(order.shape[1]).expand_as(order)) for order in (heads, neurons)):
        return layers
    return permute_units(layers, heads, neurons, head_size)


def _assign(products: Tensor) -> Tensor:
    """Return the column of each row, no column twice, by which the sum of products [N, N] is the largest."""
    best = products.argmax(1)
    # Where no two rows want the same column each has the most that it can get.
    return best if len(best.unique()) == len(best) else torch.tensor(linear_sum_assignment(-products.numpy())[1])


def order_units(layers: Layers, head_size: int) -> Layers:
    """Put each layer's strongest heads and neurons (by norm) first, so that leading slices keep what matters most."""
    orders = [features.norm(dim=2).argsort(dim=1, descending=True) for features in unit_features(layers, head_size)]
    return permute_units(layers, orders[0], orders[1], head_size)


def fit_blocks(
    layers: Mapping[str, Layers],
    coefficients: Mapping[str, Tensor],
    num_multimodal: int,
    sizes: Mapping[str, Mapping[str, int]],
    shared: Collection[str] = tuple(LAYER_AXES),
) -> dict[str, Layers]:
    """Solve for the blocks whose weighted sums come closest to the given layers, one least squares per parameter.

    Args:
        layers: each encoder's layers by modality.
        coefficients: each encoder's mixing coefficients, [depth, blocks], multimodal blocks first.
        num_multimodal: how many of them are multimodal.
        sizes: each encoder's "hidden" and "mlp" size. Where the encoders differ, the part of the multimodal blocks
            beyond the narrower one is fitted to the wider one alone.
        shared: the layer parameters that the multimodal blocks have; of the others each encoder has as many blocks
            of its own in their place.

    Returns:
        stacks of blocks under "multimodal" (if there are any) and each modality.
    """
    modalities = list(layers)
    narrow = min((sizes[modality] for modality in modalities), key=lambda size: size["hidden"])
    wide = max(modalities, key=lambda modality: sizes[modality]["hidden"])
    fitted: dict[str, Layers] = {name: {} for name in ("multimodal", *modalities)}
    joint = _joint_design(coefficients, num_multimodal)
    for name, axes in LAYER_AXES.items():
        alone = {m: _least_squares(coefficients[m], layers[m][name]) for m in modalities}  # [blocks, ...]
        own = num_multimodal if name in shared else 0  # where the encoder's own blocks start
        blocks = {m: solution[own:].clone() for m, solution in alone.items()}
        if num_multimodal and name in shared:
            targets = torch.cat([take_slice(layers[m][name], axes, narrow) for m in modalities])
            solution = _least_squares(joint, targets)
            common = alone[wide][:num_multimodal].clone()
            take_slice(common, axes, narrow).copy_(solution[:num_multimodal])
            fitted["multimodal"][name] = common
            start = num_multimodal
            for m in modalities:
                count = coefficients[m].shape[1] - num_multimodal
                take_slice(blocks[m], axes, narrow).copy_(solution[start : start + count])
                start += count
        for m in modalities:
            fitted[m][name] = blocks[m]
    return fitted


def _joint_design(coefficients: Mapping[str, Tensor], num_multimodal: int) -> Tensor:
    """Lay out both encoders' coefficients over the unknowns [multimodal, image, text]."""
    own = [matrix[:, num_multimodal:] for matrix in coefficients.values()]
    shared = torch.cat([matrix[:, :num_multimodal] for matrix in coefficients.values()])
    return torch.cat([shared, torch.block_diag(*own)], dim=1)


def _least_squares(design: Tensor, layers: Tensor) -> Tensor:
    # The design is tiny, [layers, blocks]: its inverse is taken in double precision, and applied in one product.
    inverse = torch.linalg.pinv(design.double()).to(layers.dtype)
    return (inverse @ layers.flatten(1)).unflatten(1, layers.shape[1:])


@torch.no_grad()
def fit_gene(gene: Any, ancestor: Any, iterations: int = 3) -> dict[str, float]:
    """Set a gene's blocks to the least-squares fit of its ancestor's layers, where their widths agree.

    Args:
        gene: a gene whose encoders have the ancestor's widths; depths may differ from the ancestor's only if the gene
            is to be fitted at the ancestor's own positions l/L, which is what happens.
        ancestor: the stock model; of its family.
        iterations: most rounds of matching heads and neurons; 0 fits the layers as they are.

    Returns:
        the share of the layers' squared norm that the fit leaves unexplained, by modality.
    """
    config = gene.config
    kin = config.kin
    paths = {m: kin.name_in(type(ancestor), f"{ENCODERS[m]}.{kin.layers}") for m in config.encoder_configs}
    layers = {m: stack_layers(ancestor.get_submodule(path.rpartition(".")[0]), kin) for m, path in paths.items()}
    heads = {m: c.hidden_size // c.num_attention_heads for m, c in config.encoder_configs.items()}
    sizes = {m: {"hidden": c.hidden_size, "mlp": c.intermediate_size} for m, c in config.encoder_configs.items()}
    depths = {m: len(stack["mlp.fc1.bias"]) for m, stack in layers.items()}
    coefficients = {m: gene.fixed_coefficients(depth) for m, depth in depths.items()}
    layers = {m: order_units(stack, heads[m]) for m, stack in layers.items()}
    blocks_of = {group: dict(blocks.named_parameters()) for group, blocks in gene.block_groups().items()}
    shared = tuple(blocks_of.get("multimodal", LAYER_AXES))
    for remaining in range(iterations, -1, -1):
        fitted = fit_blocks(layers, coefficients, config.num_multimodal_blocks, sizes, shared)
        rebuilt = {m: expand_layers(fitted["multimodal"], fitted[m], coefficients[m], sizes[m]) for m in layers}
        if remaining:
            matched = {m: match_units(layers[m], rebuilt[m], heads[m]) for m in layers}
            if all(matched[m] is layers[m] for m in layers):
                break  # the next round would only repeat this one
            layers = matched
    for group, blocks in blocks_of.items():
        for name, parameter in blocks.items():
            parameter.copy_(fitted[group][name])
    return {
        m: float(
            sum((rebuilt[m][name] - layers[m][name]).square().sum() for name in LAYER_AXES)
            / sum(layers[m][name].square().sum() for name in LAYER_AXES)
        )
        for m in layers
    }
