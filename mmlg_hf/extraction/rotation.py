"""Turning an ancestor's residual stream so that its leading channels carry most of what passes through it.

Every layer of an encoder reads and writes the same residual stream, through a LayerNorm on the way in. A LayerNorm
without weight and bias commutes with every rotation that keeps the all-ones vector in place, so that the stream's
channels can be mixed at will as long as all that reads and writes them is turned along (SliceGPT, arXiv 2401.15024,
which does the same for RMSNorm). Turned to its principal components, the leading channels hold nearly all of the
stream, and a leading slice, which is how a gene grows narrow descendants, keeps nearly all of the encoder.
"""

from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.utils import logging

logger = logging.get_logger(__name__)

_ENCODERS = {
    "image": ("vision_model", "post_layernorm", "visual_projection"),
    "text": ("text_model", "final_layer_norm", "text_projection"),
}
TURNED = ("clip", "metaclip_2")  # the families whose ancestors `rotate_channels` takes
# A turned encoder must keep this much of its embeddings; only the norm before an image encoder's layers loses any.
LEAST_COSINE = 0.99


@torch.no_grad()
def rotate_channels(
    ancestor: Any, batches: Sequence[Mapping[str, Tensor]], least_cosine: float = LEAST_COSINE
) -> tuple[Any, dict[str, float]]:
    """Return a copy of a CLIP whose channels are the principal components of what its LayerNorms read.

    The copy computes what the ancestor does, but for the LayerNorm before the image encoder's layers: its weight acts
    on the stream itself, and a turned elementwise product is none. The weight moves into the embeddings, so that the
    direction of each token is exact and its length, where the weight varies, near (see `_fold_pre_norm`).

    Args:
        ancestor: a `CLIPModel`; left as it is.
        batches: `pixel_values` [B, 3, H, W], `input_ids` and `attention_mask` [B, T] to read the stream from; read
            twice, and nothing of them is kept but sums.
        least_cosine: an encoder whose turned embeddings fall below this is left as it is.

    Returns:
        the copy, and for each modality that was turned how near its embeddings are to the ancestor's on the batches:
        the mean cosine, both sides' means over the batches taken out.
    """
    model = deepcopy(ancestor).eval()
    moments = _read_moments(model, batches)
    for modality, (name, final_norm, projection) in _ENCODERS.items():
        encoder = getattr(model, name)
        rotation = principal_rotation(moments[modality]).to(encoder.embeddings.position_embedding.weight.device)
        if modality == "image":
            _fold_pre_norm(encoder, _mean_ratio(encoder, batches))
        _turn_layers(encoder.encoder.layers, rotation)
        _turn_embeddings(encoder.embeddings, rotation)
        _turn_outputs(getattr(encoder, final_norm), getattr(model, projection), rotation)
        if modality == "image":
            encoder.pre_layrnorm.bias.copy_(rotation @ encoder.pre_layrnorm.bias)
    kept = _compare(ancestor, model, batches)
    for modality, cosine in list(kept.items()):
        logger.info(f"the turned {modality} encoder keeps a cosine of {cosine:.4f} to the ancestor's")
        if not cosine >= least_cosine:
            logger.warning(
                f"the {modality} encoder is not turned: turned it would keep a cosine of {kept.pop(modality):.4f} to "
                f"the ancestor's, and {least_cosine} is asked"
            )
            for name in _ENCODERS[modality][::2]:
                getattr(model, name).load_state_dict(getattr(ancestor, name).state_dict())
    return model, kept


def _compare(ancestor: Any, turned: Any, batches: Iterable[Mapping[str, Tensor]]) -> dict[str, float]:
    """Return the mean centred cosine of both models' normalised embeddings, by modality."""
    pairs: dict[str, list[tuple[Tensor, Tensor]]] = {"image": [], "text": []}
    for batch in batches:
        outputs = [model(**_inputs(model, batch)) for model in (ancestor, turned)]
        for modality, found in pairs.items():
            found.append(tuple(getattr(output, f"{modality}_embeds").float().cpu() for output in outputs))
    cosines = {}
    for modality, found in pairs.items():
        theirs, ours = (torch.cat(rows) for rows in zip(*found, strict=True))
        centred = (theirs - theirs.mean(0), ours - ours.mean(0)) if len(theirs) > 1 else (theirs, ours)
        cosines[modality] = F.cosine_similarity(*centred).mean().item()
    return cosines


def _inputs(model: Any, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: batch[name].to(model.device) for name in ("pixel_values", "input_ids", "attention_mask")}


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


def _read_moments(model: Any, batches: Iterable[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return, per modality, the mean outer product [D, D] of what its LayerNorms read.

    Each layer's two LayerNorms count once, and the final one, which all of the output passes, as often as the layers.
    """
    moments: dict[str, Tensor] = {}
    mask: Tensor | None = None
    handles = []

    def reader(modality: str, weight: float):
        def read(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            rows = F.layer_norm(inputs[0].float(), inputs[0].shape[-1:])
            rows = rows[mask] if modality == "text" and rows.dim() == 3 else rows.flatten(0, -2)
            moments[modality] = moments.get(modality, 0) + weight * (rows.T @ rows).cpu().double() / len(rows)

        return read

    for modality, (name, final_norm, _) in _ENCODERS.items():
        encoder = getattr(model, name)
        layers = encoder.encoder.layers
        for norm in (norm for layer in layers for norm in (layer.layer_norm1, layer.layer_norm2)):
            handles.append(norm.register_forward_pre_hook(reader(modality, 1.0)))
        handles.append(getattr(encoder, final_norm).register_forward_pre_hook(reader(modality, 2.0 * len(layers))))
    try:
        for batch in batches:
            inputs = _inputs(model, batch)
            mask = inputs["attention_mask"].bool()
            model(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    return moments


def _mean_ratio(encoder: Any, batches: Iterable[Mapping[str, Tensor]]) -> float:
    """Return the mean over tokens of std(w * c) / std(c), c the centred embedding and w the first norm's weight."""
    norm, total, count = encoder.pre_layrnorm, 0.0, 0
    for batch in batches:
        embedded = encoder.embeddings(batch["pixel_values"].to(norm.weight.device)).float()  # [B, N, D]
        rows = F.layer_norm(embedded, embedded.shape[-1:], eps=norm.eps)
        total += (rows * norm.weight).std(dim=-1, correction=0).sum().item()
        count += rows.shape[0] * rows.shape[1]
    return total / count


def _fold_pre_norm(encoder: Any, ratio: float) -> None:
    """Move the weight w of the LayerNorm before the layers into the embeddings, and leave a constant in its place.

    With C the centring matrix, LN(e) = w * Ce / std(Ce) + b. Embeddings diag(w) C e give the same direction, but for
    the all-ones one, which no later LayerNorm reads; their own deviation std(w * Ce) takes the place of std(Ce), and
    the constant, the mean ratio of the two, makes up for it. Exact where w is constant.
    """
    norm, embeddings = encoder.pre_layrnorm, encoder.embeddings
    size = len(norm.weight)
    centring = torch.eye(size, device=norm.weight.device) - 1 / size
    _turn_embeddings(embeddings, centring @ torch.diag(norm.weight) @ centring)
    nn.init.constant_(norm.weight, ratio)


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
    """Apply a matrix [D, D] to everything that is summed into the embeddings."""
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
