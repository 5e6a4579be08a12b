"""CLIP-Map: a small CLIP whose weights are learnt maps of a large one's."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPModel

from mmlg_hf.expansion import LAYER_AXES, slice_norm_scale
from mmlg_hf.extraction.fitting import stack_layers
from mmlg_hf.families import FAMILIES

OUTER = FAMILIES["clip"].outer
MODALITIES = {"vision": "image", "text": "text"}  # as transformers and as `families.py` name them
_NORMS = ("layer_norm1.weight", "layer_norm2.weight")
_OWN = {"q_proj": "q", "k_proj": "k", "v_proj": "v", "out_proj": "out", "fc1": "fc1", "fc2": "fc2"}


def maps_of(name: str) -> tuple[str, ...]:
    """The map on each axis of a layer's parameter: "hidden" on those that face the residual stream, else its own."""
    own, axes = _OWN.get(name.split(".")[-2]), LAYER_AXES[name]
    if own is None:  # a norm
        return ("hidden",)
    facing = ("hidden", own) if own in ("out", "fc2") else (own, "hidden")
    return facing[: len(axes)]


class MappedCLIP(nn.Module):
    """A CLIP of which layer l' has W' = F_out (sum_l c_l'l W_l) F_in^T of a frozen one's layers (arXiv 2602.05909).

    The paper's "full mapping" of all entries of a weight, factorised as a Kronecker product, is a matrix on each
    side. It starts from inheritance: every map has ones on its diagonal, every layer is one of the large model's.

    Ours, where the abstract leaves it open: one map of the residual stream in each encoder, used wherever a parameter
    faces it (embeddings, norms and projections, too), a map of its own for what each matrix kind has on its other
    side (heads, MLP), all shared over layers; coefficients of layers for each parameter. The frozen model is the
    turned one and norms are scaled, so that it starts as turned inheritance does.

    Args:
        large: the frozen model.
        config: of the small one.
    """

    def __init__(self, large: CLIPModel, config: Any) -> None:
        super().__init__()
        self.config, self.small = config, CLIPModel(config).requires_grad_(False)
        self.maps, self.mixing = nn.ParameterDict(), nn.ParameterDict()
        self._freeze("logit_scale", large.logit_scale)
        self.outer = {}
        for modality, group in MODALITIES.items():
            encoder = getattr(large, f"{modality}_model")
            for name, stack in stack_layers(encoder.encoder).items():
                target = getattr(self.small, f"{modality}_model").encoder
                self._freeze(f"{modality}.{name}", stack)
                self._start(modality, name, stack, len(target.layers), target.layers[0].get_parameter(name).shape)
            self.outer[modality] = {name: axes for name, axes in OUTER[group].items() if "classifier" not in name}
            for name in self.outer[modality]:
                self._freeze(name, large.get_parameter(name))

    def _freeze(self, name: str, weight: Tensor) -> None:
        self.register_buffer(_flat(name), weight.detach())

    def _frozen(self, name: str) -> Tensor:
        return self.get_buffer(_flat(name))

    def _start(self, modality: str, name: str, stack: Tensor, depth: int, shape: torch.Size) -> None:
        """Maps and coefficients of one kind of parameter, as inheritance has them."""
        every = len(stack) // depth
        layers = nn.functional.one_hot(torch.arange(depth) * every, len(stack)).float()
        self.mixing[_flat(f"{modality}.{name}")] = nn.Parameter(layers)
        for want, have, kind in zip(shape, stack.shape[1:], maps_of(name), strict=True):
            self.maps[f"{modality}_{kind}"] = nn.Parameter(torch.eye(want, have))

    def weights(self) -> dict[str, Tensor]:
        """All parameters of the small model, mapped: with gradients of the maps and coefficients."""
        return dict(self._weights())

    def _weights(self) -> Iterator[tuple[str, Tensor]]:
        yield "logit_scale", self._frozen("logit_scale")
        for modality, outer in self.outer.items():
            hidden = self.maps[f"{modality}_hidden"]
            scale = slice_norm_scale(*hidden.shape)
            for name in LAYER_AXES:
                key = f"{modality}.{name}"
                mixed = torch.tensordot(self.mixing[_flat(key)], self._frozen(key), 1)
                for axis, kind in enumerate(maps_of(name), start=1):
                    mixed = _along(mixed, self.maps[f"{modality}_{kind}"], axis)
                for layer, weight in enumerate(mixed * scale if name in _NORMS else mixed):
                    yield f"{modality}_model.encoder.layers.{layer}.{name}", weight
            for name, axes in outer.items():
                weight = self._frozen(name)
                for axis in (axis for axis, kind in enumerate(axes) if kind == "hidden"):
                    weight = _along(weight, hidden, axis)
                yield name, weight

    def forward(self, **inputs: Any) -> Any:
        return functional_call(self.small, self.weights(), kwargs=inputs)

    @torch.no_grad()
    def plain(self) -> CLIPModel:
        """The small model with its weights as they are now mapped."""
        model = CLIPModel(self.config)
        for name, weight in self._weights():
            model.get_parameter(name).copy_(weight)
        return model.eval()

    def mapping_gflops(self) -> float:
        """Mapping all weights once, there and back."""
        with FlopCounterMode(display=False) as counter:
            torch.stack([weight.sum() for weight in self.weights().values()]).sum().backward()
        self.zero_grad()
        return counter.get_total_flops() / 1e9


def _flat(name: str) -> str:
    """A name without dots, which modules take for one of their own."""
    return name.replace(".", "_")


def _along(weight: Tensor, mapped: Tensor, axis: int) -> Tensor:
    """Map one axis of a weight: [.., have, ..] by [want, have] to [.., want, ..]."""
    return torch.tensordot(weight, mapped, dims=([axis], [1])).movedim(-1, axis)
