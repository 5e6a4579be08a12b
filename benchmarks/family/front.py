"""FRONT: a CLIP of another size from the low frequencies of a large one's weights, without any training."""

import math
import re
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPModel

_LAYER = re.compile(r"^(.*\.layers\.)(\d+)(\..*)$")
_CONSTANT = 1e-6  # a spread so much smaller than the mean is rounding, and what is resized has no shape


def cosines(size: int) -> Tensor:
    """The orthonormal DCT-II as a matrix [frequency, place]."""
    place, frequency = torch.arange(size).double() + 0.5, torch.arange(size).double()
    matrix = torch.cos(math.pi / size * torch.outer(frequency, place)) * math.sqrt(2 / size)
    matrix[0] /= math.sqrt(2)
    return matrix


def resize(weight: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A weight of another shape with the same low frequencies along every axis, the same mean and spread.

    Along an axis that keeps its size, the transform and its inverse cancel out, whatever is done along the others.
    Frequencies that the smaller size has none of are cropped, those that only the larger one has are 0. Orthonormal
    coefficients give other values at another size (by the root of the ratio, where the weight is smooth), so that
    the spread is set to the weight's own, as the paper restores it.
    """
    if tuple(weight.shape) == tuple(shape):
        return weight
    values = weight.double()
    mean, spread = values.mean(), values.std(correction=0)
    if spread <= _CONSTANT * mean.abs():
        return mean.expand(shape).to(weight.dtype)
    values = (values - mean) / spread
    for axis, (have, want) in enumerate(zip(weight.shape, shape, strict=True)):
        if have != want:
            kept = min(have, want)
            along = cosines(want)[:kept].T @ cosines(have)[:kept]  # [want, have]
            values = torch.tensordot(values, along, dims=([axis], [1])).movedim(-1, axis)
    values = (values - values.mean()) / values.std(correction=0)
    return (values * spread + mean).to(weight.dtype)


@torch.no_grad()
def by_low_frequencies(large: CLIPModel, config: Any) -> CLIPModel:
    """FRONT (arXiv 2603.07523), without its optional refinement: normalise, DCT, keep the low corner, invert, restore.

    The layers' parameters of one kind are a stack, [layers, out, in] or [layers, out], transformed along its layers,
    too. What lies outside the layers is resized along the axes that follow the width. Heads are not kept whole.
    """
    model, stacks = CLIPModel(config), dict[str, dict[int, Tensor]]()
    own = dict(large.named_parameters())
    for name, weight in model.named_parameters():
        layer = _LAYER.match(name)
        if layer is None:
            weight.copy_(resize(own[name], tuple(weight.shape)))
        else:
            stacks.setdefault(layer[1] + "{}" + layer[3], {})[int(layer[2])] = weight
    for name, layers in stacks.items():
        depth = sum(name.format(number) in own for number in range(len(own)))
        whole = torch.stack([own[name.format(number)] for number in range(depth)])
        for number, weights in enumerate(resize(whole, (len(layers), *layers[0].shape))):
            layers[number].copy_(weights)
    return model
