"""Turning an ancestor's residual stream so that its leading channels carry most of what passes through it.

Every layer of an encoder reads and writes the same residual stream, through a LayerNorm on the way in. A LayerNorm
without weight and bias commutes with every rotation that keeps the all-ones vector in place, so that the stream's
channels can be mixed at will as long as all that reads and writes them is turned along (SliceGPT, arXiv 2401.15024,
which does the same for RMSNorm). Turned to its principal components, the leading channels hold nearly all of the
stream, and a leading slice, which is how a gene grows narrow descendants, keeps nearly all of the encoder.

What reads and what writes a stream is data, one entry a family (`_STREAMS`). Where a family's embedding is as wide as
its image encoder (SigLIP), so that a narrow descendant has a part of the embedding alone, the embedding is turned too.
"""

from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.utils import logging

from ..errors import LearngeneError
from .pre_norm import fold_pre_norm

logger = logging.get_logger(__name__)

# A turned encoder must keep this much of its embeddings; only the norm before an image encoder's layers loses any.
LEAST_COSINE = 0.99
# Rows enough to tell: their mean cosine is known to a thousandth long before the stream's moments are.
COMPARED_ROWS = 64


@dataclass(frozen=True)
class _Stream:
    """One encoder's residual stream: what is summed into it, and who reads and writes it, by the modules' names.

    Args:
        embeddings: their parameters are all of the stream's size, and summed.
        layers: the list of layers.
        reads: of a layer, each LayerNorm and the modules that read what it makes.
        writes: of a layer, what adds to the stream.
        final: the LayerNorm after the layers.
        readers: what reads it, as far as it is there.
        pre_norm: the LayerNorm before the layers, None without.
        output: what the embedding is in the output of a model of images alone; None of one that embeds both sides.
    """

    embeddings: str
    layers: str
    reads: Mapping[str, tuple[str, ...]]
    writes: tuple[str, ...]
    final: str
    readers: tuple[str, ...]
    pre_norm: str | None
    output: str | None = None


_CLIP_LAYER: dict[str, Any] = {
    "reads": {
        "layer_norm1": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "layer_norm2": ("mlp.fc1",),
    },
    "writes": ("self_attn.out_proj", "mlp.fc2"),
}
_VIT_LAYER: dict[str, Any] = {
    "reads": {
        "layernorm_before": ("attention.q_proj", "attention.k_proj", "attention.v_proj"),
        "layernorm_after": ("mlp.fc1",),
    },
    "writes": ("attention.o_proj", "mlp.fc2"),
}


def _clip_like(vision_reader: str, text_reader: str, pre_norm: str | None) -> dict[str, _Stream]:
    vision, text = "vision_model.", "text_model."
    return {
        "image": _Stream(
            embeddings=vision + "embeddings", layers=vision + "encoder.layers", **_CLIP_LAYER,
            final=vision + "post_layernorm", readers=(vision_reader,), pre_norm=pre_norm,
        ),
        "text": _Stream(
            embeddings=text + "embeddings", layers=text + "encoder.layers", **_CLIP_LAYER,
            final=text + "final_layer_norm", readers=(text_reader,), pre_norm=None,
        ),
    }  # fmt: skip


def _vit(prefix: str, readers: tuple[str, ...], output: str) -> dict[str, _Stream]:
    return {
        "image": _Stream(
            embeddings=prefix + "embeddings", layers=prefix + "layers", **_VIT_LAYER,
            final=prefix + "layernorm", readers=readers, pre_norm=None, output=output,
        )
    }  # fmt: skip


_CLIP = _clip_like("visual_projection", "text_projection", "vision_model.pre_layrnorm")
_STREAMS: dict[str, dict[str, _Stream]] = {
    "CLIPModel": _CLIP,
    "MetaClip2Model": _CLIP,
    # The pooling head's attention reads keys and values; its queries come from a probe of its own.
    "SiglipModel": _clip_like("vision_model.head.attention", "text_model.head", None),
    "ViTModel": _vit("", ("pooler.dense",), "last_hidden_state"),
    "ViTForImageClassification": _vit("vit.", ("classifier",), "logits"),
}


# The classes of ancestors that can be turned.
TURNED = tuple(_STREAMS)


@dataclass(frozen=True)
class _Embedding:
    """What writes into the embedding of both modalities, and what reads it again before it is given out."""

    writes: tuple[str, ...]
    reads: Mapping[str, tuple[str, ...]]


_EMBEDDINGS = {
    "SiglipModel": _Embedding(
        writes=("vision_model.head.attention.out_proj", "vision_model.head.mlp.fc2", "text_model.head"),
        reads={"vision_model.head.layernorm": ("vision_model.head.mlp.fc1",)},
    )
}


class _Found:
    """What a pass over the batches tells of one stream."""

    def __init__(self) -> None:
        self.moment: Any = 0  # the mean outer product [D, D] of what its LayerNorms read, but for a factor
        self.embeddings: list[Tensor] = []  # of each batch, [B, D]

    def read(self, rows: Tensor, weight: float) -> None:
        rows = F.layer_norm(rows.float(), rows.shape[-1:])  # [N, D]
        self.moment = self.moment + weight * (rows.T @ rows).cpu().double() / len(rows)


@torch.no_grad()
def rotate_channels(
    ancestor: Any, batches: Sequence[Mapping[str, Tensor]], least_cosine: float = LEAST_COSINE
) -> tuple[Any, dict[str, float]]:
    """Return a copy of an ancestor whose channels are the principal components of what its LayerNorms read.

    The copy computes what the ancestor does, but for the LayerNorm before a CLIP's image layers: its weight acts on
    the stream itself, and a turned elementwise product is none. The weight moves into the embeddings, so that the
    direction of each token is exact and its length, where the weight varies, near (see `fold_pre_norm`).

    A `SiglipModel`'s embeddings, of both sides, are turned to their principal components too, by one rotation: their
    products, and so all logits, stay. A `ViTModel` gives out what its last LayerNorm makes, whose weight and bias then
    have nowhere to go: the turned features f' are without them, f = weight * (Q' f') + bias, Q' turning back.

    Args:
        ancestor: `CLIPModel`, `MetaClip2Model`, `SiglipModel`, `ViTModel` or `ViTForImageClassification`; left as it
            is.
        batches: `pixel_values` [B, 3, H, W] and, with a text side, `input_ids` [B, T], and `attention_mask` [B, T]
            where the model takes one, to read the stream from; read once, a CLIP's pictures twice, and those compared
            once more. Nothing of them is kept but sums and embeddings.
        least_cosine: an encoder whose turned embeddings fall below this is left as it is.

    Returns:
        the copy, and for each modality that was turned how near its embeddings are to the ancestor's: the mean cosine,
        both sides' means taken out, over the first batches that hold `COMPARED_ROWS`.

    Raises:
        LearngeneError: if it is no model of these classes.
    """
    family = type(ancestor).__name__
    if family not in _STREAMS:
        raise LearngeneError(f"a {family} cannot be turned: give one of {', '.join(TURNED)}")
    model = deepcopy(ancestor).eval()
    streams = _STREAMS[family]
    found = _read_streams(model, streams, batches)
    readouts = {modality: _turn_stream(model, s, found[modality], batches) for modality, s in streams.items()}
    kept = _compare(model, streams, found, readouts, batches)
    for modality, cosine in list(kept.items()):
        logger.info(f"the turned {modality} encoder keeps a cosine of {cosine:.4f} to the ancestor's")
        if not cosine >= least_cosine:
            logger.warning(
                f"the {modality} encoder is not turned: turned it would keep a cosine of {kept.pop(modality):.4f} to "
                f"the ancestor's, and {least_cosine} is asked"
            )
            _restore(model, ancestor, streams[modality])
    if family in _EMBEDDINGS:
        _turn_embedding_space(model, _EMBEDDINGS[family], _embedding_moment(found))
    return model, kept


def _compare(
    turned: Any,
    streams: Mapping[str, _Stream],
    found: Mapping[str, _Found],
    readouts: Mapping[str, nn.Module | None],
    batches: Iterable[Mapping[str, Tensor]],
) -> dict[str, float]:
    """Return the mean centred cosine of the turned model's embeddings and the ancestor's, by modality.

    Taken over the first batches, as many as hold `COMPARED_ROWS`.
    """
    ours: dict[str, list[Tensor]] = {modality: [] for modality in streams}
    compared = 0
    for batch in batches:
        for modality, rows in ours.items():
            embeddings, readout = _embed(turned, modality, streams[modality], batch), readouts[modality]
            rows.append((embeddings if readout is None else readout(embeddings)).cpu())
        compared += len(batch["pixel_values"])
        if compared >= COMPARED_ROWS:
            break
    cosines = {}
    for modality, rows in ours.items():
        before, after = torch.cat(found[modality].embeddings[: len(rows)]), torch.cat(rows)
        centred = (before - before.mean(0), after - after.mean(0)) if len(before) > 1 else (before, after)
        cosines[modality] = F.cosine_similarity(*centred).mean().item()
    return cosines


def _embed(model: Any, modality: str, stream: _Stream, batch: Mapping[str, Tensor]) -> Tensor:
    """One side's embeddings [B, D] of a batch; of features one for each token the class token's."""
    inputs = _inputs(model, batch)
    if stream.output is not None:
        rows = getattr(model(**inputs), stream.output).float()
        return rows[:, 0] if rows.dim() == 3 else rows
    pixels = inputs.pop("pixel_values")
    output = model.get_image_features(pixels) if modality == "image" else model.get_text_features(**inputs)
    return F.normalize(output.pooler_output.float(), dim=-1)


def _inputs(model: Any, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    wanted = ("pixel_values", "input_ids", "attention_mask") if hasattr(model, "text_model") else ("pixel_values",)
    return {name: batch[name].to(model.device) for name in wanted if name in batch}


def principal_rotation(moment: Tensor) -> Tensor:
    """Return the rotation onto principal components, strongest first, that keeps the all-ones vector in place.

    Args:
        moment: [D, D], mean outer product of vectors; what lies along the all-ones vector does not count.

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


def _read_streams(
    model: Any, streams: Mapping[str, _Stream], batches: Iterable[Mapping[str, Tensor]]
) -> dict[str, _Found]:
    """Read each stream in one pass over the batches, and what the model makes of them.

    Each layer's two LayerNorms count once, and the final one, which all of the output passes, as often as the layers.
    """
    found = {modality: _Found() for modality in streams}
    mask: Tensor | None = None
    handles = []

    def reader(modality: str, weight: float):
        def read(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            masked = modality == "text" and mask is not None and inputs[0].dim() == 3
            found[modality].read(inputs[0][mask] if masked else inputs[0].flatten(0, -2), weight)

        return read

    for modality, stream in streams.items():
        layers = model.get_submodule(stream.layers)
        for norm in (layer.get_submodule(name) for layer in layers for name in stream.reads):
            handles.append(norm.register_forward_pre_hook(reader(modality, 1.0)))
        final = model.get_submodule(stream.final)
        handles.append(final.register_forward_pre_hook(reader(modality, 2.0 * len(layers))))
    try:
        for batch in batches:
            mask = batch["attention_mask"].to(model.device).bool() if "attention_mask" in batch else None
            for modality, stream in streams.items():
                found[modality].embeddings.append(_embed(model, modality, stream, batch).cpu())
    finally:
        for handle in handles:
            handle.remove()
    return found


def _turn_stream(
    model: Any, stream: _Stream, found: _Found, batches: Iterable[Mapping[str, Tensor]]
) -> nn.Module | None:
    """Turn all that reads and writes one stream, in place; where features are the output, return their way back."""
    embeddings = model.get_submodule(stream.embeddings)
    rotation = principal_rotation(found.moment).to(next(embeddings.parameters()).device)
    written = rotation
    if stream.pre_norm is not None:
        pixels = (batch["pixel_values"] for batch in batches)
        written = fold_pre_norm(model.get_submodule(stream.pre_norm), embeddings, pixels, rotation)
    _turn_embeddings(embeddings, written)
    for layer in model.get_submodule(stream.layers):
        for name, names in stream.reads.items():
            _turn_reads(layer.get_submodule(name), [layer.get_submodule(reader) for reader in names], rotation)
        for name in stream.writes:
            _turn_writes(layer.get_submodule(name), rotation)
    # A ViT may come without its pooler.
    there = [name for name in stream.readers if getattr(model, name.partition(".")[0]) is not None]
    readers = [model.get_submodule(name) for name in there]
    readout = None
    if stream.output == "last_hidden_state" or not any(_reading(reader) for reader in readers):
        readout = nn.Linear(len(rotation), len(rotation), device=rotation.device)
        nn.init.eye_(readout.weight)
        nn.init.zeros_(readout.bias)
    _turn_reads(model.get_submodule(stream.final), [*readers, *([readout] if readout else [])], rotation)
    return readout


def _restore(model: Any, ancestor: Any, stream: _Stream) -> None:
    for name in (stream.embeddings, stream.layers, stream.final, *stream.readers, stream.pre_norm):
        if name and getattr(model, name.partition(".")[0]) is not None:
            model.get_submodule(name).load_state_dict(ancestor.get_submodule(name).state_dict())


def _turn_embeddings(embeddings: Any, rotation: Tensor) -> None:
    """Apply a matrix [D, D] to everything that is summed into the embeddings."""
    for weight in embeddings.parameters():
        if weight.dim() == 4:  # patches: channels first
            weight.copy_((rotation @ weight.flatten(1)).view_as(weight))
        else:
            weight.copy_(weight @ rotation.T)


def _turn_writes(linear: Any, rotation: Tensor) -> None:
    linear.weight.copy_(rotation @ linear.weight)
    if linear.bias is not None:
        linear.bias.copy_(rotation @ linear.bias)


def _turn_reads(norm: Any, modules: Sequence[nn.Module], rotation: Tensor) -> None:
    """Move a LayerNorm's weight and bias into what reads it, and turn that; the norm keeps what cannot move.

    Where one of them has no bias, which could take up the norm's, the norm's own is turned.
    """
    read = [pair for pair in map(_reading, modules) if pair is not None]
    biases = [bias for _, bias in read if bias is not None]
    if len(biases) == len(read):
        for (weight, _), bias in zip(read, biases, strict=True):
            bias.add_(weight @ norm.bias)
            weight.copy_((weight * norm.weight) @ rotation.T)
        nn.init.zeros_(norm.bias)
    else:
        # Of a channel that the norm shuts off the bias alone passes; it must not grow so large that float32 drowns the
        # other channels: at most 4000 times leaves both errors, of the scale and of rounding, near 1 / 4000 of it.
        least = norm.bias.abs() / 4000
        scale = torch.where(norm.weight.abs() >= least, norm.weight, torch.where(norm.weight < 0, -least, least))
        for weight, _ in read:
            weight.copy_((weight * scale) @ rotation.T)
        norm.bias.copy_(rotation @ torch.where(scale == 0, 0, norm.bias / scale))
    nn.init.ones_(norm.weight)


def _reading(module: nn.Module) -> tuple[Tensor, Tensor | None] | None:
    """The weight [out, D] and the bias by which a module reads a stream; None for one that passes it on."""
    if isinstance(module, nn.MultiheadAttention):  # its queries read something else
        size = module.embed_dim
        return module.in_proj_weight[size:], module.in_proj_bias[size:]
    return (module.weight, module.bias) if isinstance(module, nn.Linear) else None


def _embedding_moment(found: Mapping[str, _Found]) -> Tensor:
    """Return the sum of outer products [D, D] of the normalised embeddings, both sides counting the same."""
    rows = torch.cat([batch for side in found.values() for batch in side.embeddings])
    return rows.double().T @ rows.double()


def _turn_embedding_space(model: Any, space: _Embedding, moment: Tensor) -> None:
    rotation = principal_rotation(moment).to(model.device)
    for name, readers in space.reads.items():
        _turn_reads(model.get_submodule(name), [model.get_submodule(reader) for reader in readers], rotation)
    for name in space.writes:
        _turn_writes(model.get_submodule(name), rotation)
