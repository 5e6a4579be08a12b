"""Ancestors of image genes as stock ViTs: DINOv2's formula under other names, whose layer scale is folded."""

from typing import Any

import torch
from torch import Tensor
from transformers import Dinov2ForImageClassification, Dinov2Model, ViTConfig, ViTForImageClassification, ViTModel
from transformers.models.vit.modeling_vit import ViTPooler

from ..errors import LearngeneError

_SAME_FIELDS = (
    "hidden_size", "num_hidden_layers", "num_attention_heads", "hidden_act", "hidden_dropout_prob",
    "attention_probs_dropout_prob", "initializer_range", "layer_norm_eps", "patch_size", "num_channels", "qkv_bias",
)  # fmt: skip
# The parts of a layer, by their names in DINOv2 and in ViT; those of attention as transformers up to 5.17 has them.
_LAYER_NAMES = {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    **{f"attention.attention.{name}": f"attention.{name[0]}_proj" for name in ("query", "key", "value")},
    "attention.output.dense": "attention.o_proj",
}
# What each layer scale multiplies, and so is folded into.
_SCALED = {"attention.o_proj": "layer_scale1", "mlp.fc2": "layer_scale2"}


@torch.no_grad()
def stock_vit(ancestor: Any, image_size: int | None = None) -> Any:
    """Return the stock ViT that a gene is made from, for any ancestor; those of other families as they are.

    A model without a classifier gets a pooler that gives out the class token. All that reads the last LayerNorm is
    then a linear map, into which the way back goes when the channels are turned, and of which a narrower descendant
    has the columns that it needs.

    A Dinov2ForImageClassification reads the mean of the patches beside the class token, which no stock classifier of
    ViTs does: the one returned has its part for the class token, and can only learn the rest.

    Args:
        ancestor: of one of the classes of `ancestors.ANCESTORS`; a `ViTModel` is changed in place.
        image_size: of a DINOv2, as `vit_of_dinov2` takes it.
    """
    if isinstance(ancestor, Dinov2ForImageClassification):
        features, labels = vit_of_dinov2(ancestor.dinov2, image_size), ancestor.config
        head: Any = ancestor.classifier
        config = ViTConfig(**features.config.to_dict() | {"id2label": labels.id2label, "label2id": labels.label2id})
        with torch.device("meta"):
            classifier = ViTForImageClassification(config)
        state = {f"vit.{name}": tensor for name, tensor in features.state_dict().items()}
        state["classifier.weight"] = head.weight[:, : config.hidden_size].clone()
        state["classifier.bias"] = head.bias.clone()
        classifier.load_state_dict(state, assign=True)
        return classifier.requires_grad_(False).eval()
    if isinstance(ancestor, Dinov2Model):
        ancestor = vit_of_dinov2(ancestor, image_size)
    if isinstance(ancestor, ViTModel):
        size = ancestor.config.hidden_size
        ancestor.config.pooler_act, ancestor.config.pooler_output_size = "linear", size
        ancestor.pooler = ViTPooler(ancestor.config).to(ancestor.device)
        ancestor.pooler.dense.weight.copy_(torch.eye(size))
        ancestor.pooler.dense.bias.zero_()
        ancestor.requires_grad_(False)
    return ancestor


@torch.no_grad()
def vit_of_dinov2(model: Any, image_size: int | None = None) -> ViTModel:
    """Return the stock `ViTModel`, without a pooler, that has the features of a DINOv2, of all tokens.

    Layer scale is one factor for each channel of what attention and MLP add to the stream, which `o_proj` and `fc2`
    take up. The token for masked patches, which only pretraining uses, is dropped.

    Args:
        model: a `Dinov2Model`, left as it is.
        image_size: pictures of so many pixels a side, a multiple of the patch size; the positions are then the ones
            that DINOv2 interpolates for them, stored. None keeps the config's size (518 for the public models). A
            `ViTModel` takes its own size alone, unless it is asked to interpolate.

    Raises:
        LearngeneError: for another model (a classifier, one with registers), for a gated MLP (SwiGLU, in DINOv2
            giant), and for a size that is no multiple of the patches'.
    """
    _check(model)
    config, size = model.config, image_size if image_size is not None else model.config.image_size
    patch = config.patch_size
    if image_size is not None and (not isinstance(patch, int) or image_size < patch or image_size % patch):
        raise LearngeneError(f"image_size is {image_size}: give a multiple of the patch size, {patch}")
    fields = {name: getattr(config, name) for name in _SAME_FIELDS}
    vit_config = ViTConfig(**fields, image_size=size, intermediate_size=int(config.hidden_size * config.mlp_ratio))
    with torch.device("meta"):
        vit = ViTModel(vit_config, add_pooling_layer=False)
    vit.load_state_dict(_convert(model.state_dict(), _positions(model, image_size)), assign=True)
    vit.config._name_or_path = vit.name_or_path = model.name_or_path
    return vit.train(model.training)


def _check(model: Any) -> None:
    kind = type(model).__name__
    if isinstance(model, Dinov2ForImageClassification):
        raise LearngeneError(
            "a Dinov2ForImageClassification reads the mean of the patches beside the class token, which no stock ViT "
            "classifier does: give its backbone (model.dinov2), and train a new head"
        )
    if not isinstance(model, Dinov2Model):
        registers = ": its registers are tokens that a ViT has not" if "WithRegisters" in kind else ""
        raise LearngeneError(f"a {kind} is no Dinov2Model{registers}")
    if model.config.use_swiglu_ffn:
        raise LearngeneError("this Dinov2Model has a gated MLP (SwiGLU), as DINOv2 giant has, which no ViT has")


def _positions(model: Any, image_size: int | None) -> Tensor:
    """The position embeddings [1, 1 + patches, D] for pictures of a size."""
    embeddings = model.embeddings
    if image_size is None:
        return embeddings.position_embeddings
    patches = (image_size // model.config.patch_size) ** 2
    tokens = embeddings.position_embeddings.new_empty(1, 1 + patches, model.config.hidden_size)
    return embeddings.interpolate_pos_encoding(tokens, image_size, image_size)


def _convert(state: dict[str, Tensor], positions: Tensor) -> dict[str, Tensor]:
    """Rename DINOv2's tensors and fold the layer scales."""
    converted = {}
    for name, tensor in state.items():
        if name.startswith("encoder.layer."):
            number, _, rest = name.removeprefix("encoder.layer.").partition(".")
            part, _, kind = rest.rpartition(".")
            part = _LAYER_NAMES.get(part, part)
            if part in _SCALED:
                scale = state[f"encoder.layer.{number}.{_SCALED[part]}.lambda1"]
                tensor = scale[:, None] * tensor if kind == "weight" else scale * tensor
            if not part.startswith("layer_scale"):
                converted[f"layers.{number}.{part}.{kind}"] = tensor.clone()
        elif name == "embeddings.position_embeddings":
            converted[name] = positions.clone()
        elif name != "embeddings.mask_token":
            converted[name] = tensor.clone()
    return converted
