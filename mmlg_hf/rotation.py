"""Turning an ancestor's residual stream so that its leading channels carry most of what passes through it.

Every layer of an encoder reads and writes the same residual stream, through a LayerNorm on the way in. A LayerNorm
without weight and bias commutes with every rotation that keeps the all-ones vector in place, so that the stream's
channels can be mixed at will as long as all that reads and writes them is turned along (SliceGPT, arXiv 2401.15024,
which does the same for RMSNorm). Turned to its principal components, the leading channels hold nearly all of the
stream, and a leading slice, which is how a gene grows narrow descendants, keeps nearly all of the encoder.
"""

from collections.abc import Iterable, Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_ENCODERS = {
    "vision_model": ("post_layernorm", "visual_projection"),
    "text_model": ("final_layer_norm", "text_projection"),
}


@torch.no_grad()
def rotate_channels(ancestor: Any, batches: Iterable[Mapping[str, Tensor]]) -> Any:
    """Return a copy of a CLIP whose channels are the principal components of what its LayerNorms read.

    The copy computes what the ancestor does, but for the LayerNorm before the image encoder's layers: its weight acts
    on the stream itself, and a turned elementwise product is none. The closest one is taken (in CLIPs the weight is
    near to constant there).

    Args:
        ancestor: a `CLIPModel`; left as it is.
        batches: `pixel_values` [B, 3, H, W], `input_ids` and `attention_mask` [B, T] to read the stream from.
    """
    model = deepcopy(ancestor).eval()
    moments, embedded = _read_moments(model, batches)
    for name, (final_norm, projection) in _ENCODERS.items():
        encoder = getattr(model, name)
        rotation = principal_rotation(moments[name]).to(encoder.embeddings.position_embedding.weight.device)
        _turn_layers(encoder.encoder.layers, rotation)
        _turn_embeddings(encoder.embeddings, rotation)
        _turn_outputs(getattr(encoder, final_norm), getattr(model, projection), rotation)
        if name == "vision_model":
            _turn_pre_norm(encoder.pre_layrnorm, embedded, rotation)
    return model


def principal_rotation(moment: Tensor) -> Tensor:
    """Return the rotation onto principal components, strongest first, that keeps the all-ones vector in place.

    Args:
        moment: [D, D], mean outer product of vectors whose entries sum to zero.

    Returns:
        Q [D, D] in float32: orthogonal, Q 1 = 1, and Q x has the components of x in its channels, the i-th strongest
        in channel i but for a share of 1 / (D + sqrt(D)) of the sum of all, which makes its entries sum to zero too.
    """
    size = len(moment)
    ones = torch.full((size,), size**-0.5, dtype=torch.double)
    centred = torch.eye(size, dtype=torch.double) - torch.outer(ones, ones)
    # The all-ones direction has no moment; as the weakest one it comes last, whatever rounding makes of it.
    moment = centred @ moment.double().cpu() @ centred
    components = torch.linalg.eigh(moment - torch.outer(ones, ones) * (1 + moment.diagonal().sum()))[1].flip(1)
    components[:, -1] = -ones
    # The reflection that swaps the last axis and the negative all-ones direction: it moves the other axes least.
    normal = torch.eye(size, dtype=torch.double)[-1] + ones
    reflection = torch.eye(size, dtype=torch.double) - 2 * torch.outer(normal, normal) / normal.dot(normal)
    return (reflection @ components.T).float()


def _read_moments(model: Any, batches: Iterable[Mapping[str, Tensor]]) -> tuple[dict[str, Tensor], Tensor]:
    """Return, per encoder, the mean outer product [D, D] of what its LayerNorms read, and the image embeddings.

    Each layer's two LayerNorms count once, and the final one, which all of the output passes, as often as the layers.
    """
    moments: dict[str, Tensor] = {}
    embedded: list[Tensor] = []
    mask: Tensor | None = None
    handles = []

    def reader(name: str, weight: float):
        def read(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            rows = F.layer_norm(inputs[0].float(), inputs[0].shape[-1:])
            rows = rows[mask] if name == "text_model" and rows.dim() == 3 else rows.flatten(0, -2)
            moments[name] = moments.get(name, 0) + weight * (rows.T @ rows).cpu().double() / len(rows)

        return read

    for name, (final_norm, _) in _ENCODERS.items():
        encoder = getattr(model, name)
        layers = encoder.encoder.layers
        for norm in (norm for layer in layers for norm in (layer.layer_norm1, layer.layer_norm2)):
            handles.append(norm.register_forward_pre_hook(reader(name, 1.0)))
        handles.append(getattr(encoder, final_norm).register_forward_pre_hook(reader(name, 2.0 * len(layers))))
    pre_norm = model.vision_model.pre_layrnorm
    handles.append(
        pre_norm.register_forward_pre_hook(
            lambda module, inputs: embedded.append(F.layer_norm(inputs[0].float(), inputs[0].shape[-1:]).flatten(0, 1))
        )
    )
    for batch in batches:
        inputs = {name: batch[name].to(model.device) for name in ("pixel_values", "input_ids", "attention_mask")}
        mask = inputs["attention_mask"].bool()
        model(**inputs)
    for handle in handles:
        handle.remove()
    return moments, torch.cat(embedded)


def _turn_layers(layers: Iterable[Any], rotation: Tensor) -> None:
    for layer in layers:
        attention = layer.self_attn
        for norm, linears in (
            (layer.layer_norm1, (attention.q_proj, attention.k_proj, attention.v_proj)),
            (layer.layer_norm2, (layer.mlp.fc1,)),
        ):
            for linear in linears:
                linear.bias.add_(linear.weight @ norm.bias)
                linear.weight.copy_((linear.weight * norm.weight) @ rotation.T)
            nn.init.ones_(norm.weight)
            nn.init.zeros_(norm.bias)
        for linear in (attention.out_proj, layer.mlp.fc2):
            linear.weight.copy_(rotation @ linear.weight)
            linear.bias.copy_(rotation @ linear.bias)


def _turn_embeddings(embeddings: Any, rotation: Tensor) -> None:
    for name, weight in embeddings.named_parameters():
        if name.startswith(("class_embedding", "patch_embedding")):  # channels first
            weight.copy_((rotation @ weight.flatten(1)).view_as(weight) if weight.dim() > 1 else rotation @ weight)
        else:
            weight.copy_(weight @ rotation.T)


def _turn_outputs(norm: nn.LayerNorm, projection: nn.Linear, rotation: Tensor) -> None:
    """Move the final LayerNorm's weight into the projection, which has no bias to take up the norm's."""
    # A channel that the norm shuts off entirely has nothing to move: its bias alone passes, through the projection.
    scale = torch.where(norm.weight.abs() > 1e-6, norm.weight, torch.full_like(norm.weight, 1e-6))
    projection.weight.copy_((projection.weight * scale) @ rotation.T)
    norm.bias.copy_(rotation @ (norm.bias / scale))
    nn.init.ones_(norm.weight)


def _turn_pre_norm(norm: nn.LayerNorm, embedded: Tensor, rotation: Tensor) -> None:
    turned = embedded @ rotation.T  # [N, D]
    wanted = (embedded * norm.weight) @ rotation.T
    power = turned.square().mean(0)
    # Least squares per channel; a channel without power takes the mean.
    weight = torch.where(power > 1e-8, (turned * wanted).mean(0) / power.clamp(min=1e-8), norm.weight.mean())
    norm.weight.copy_(weight)
    norm.bias.copy_(rotation @ norm.bias)
