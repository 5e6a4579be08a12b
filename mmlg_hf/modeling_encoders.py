"""What a gene's model is made of: blocks, layers that take their weights with each call, and encoders of those."""

from copy import copy

import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers import CLIPTextModel, CLIPVisionModel, SiglipTextModel, SiglipVisionModel, ViTModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.clip.modeling_clip import (
    CLIPEncoder,
    CLIPEncoderLayer,
    CLIPPreTrainedModel,
    CLIPTextEmbeddings,
    CLIPVisionEmbeddings,
)
from transformers.models.metaclip_2.modeling_metaclip_2 import MetaClip2TextModel
from transformers.models.siglip.modeling_siglip import (
    SiglipEncoderLayer,
    SiglipMultiheadAttentionPoolingHead,
    SiglipPreTrainedModel,
    SiglipTextEmbeddings,
    SiglipVisionEmbeddings,
)
from transformers.models.vit.modeling_vit import ViTEmbeddings, ViTLayer, ViTPooler, ViTPreTrainedModel

from .expansion import LAYER_AXES
from .families import FAMILIES


def encoder_sizes(config) -> dict[str, int]:
    """Sizes of the axes named in `expansion.LAYER_AXES` and `families.Family.outer` for one encoder's config."""
    sizes = {"hidden": config.hidden_size, "mlp": config.intermediate_size}
    embed = getattr(config, "projection_size", None)
    return sizes if embed is None else {**sizes, "embed": embed}


class StackedParameters(nn.Module):
    """Weight and bias of one linear or LayerNorm module, stacked over blocks, each [num_blocks, ...]."""

    def __init__(self, weight_shape: tuple[int, ...], bias_shape: tuple[int, ...], starts_constant: bool):
        super().__init__()
        self.is_norm = len(weight_shape) == 2
        self.starts_constant = starts_constant
        self.weight = nn.Parameter(torch.empty(weight_shape))
        self.bias = nn.Parameter(torch.empty(bias_shape))

    def initialise(self, factor: float) -> None:
        """Initialise as TLEG does: weights trunc-normal 0.02; LayerNorm 1 in the constant block, 0 in the others."""
        if self.is_norm:
            ones = torch.zeros_like(self.weight)
            ones[: int(self.starts_constant)] = 1
            init.copy_(self.weight, ones)
        else:
            init.trunc_normal_(self.weight, std=0.02 * factor)
        init.zeros_(self.bias)


class LearngeneBlocks(nn.Module):
    """A stack of blocks: the parameters of CLIP's encoder layer under their own names, each [blocks, ...].

    Args:
        config: of the encoder whose sizes they have.
        counts: how many blocks there are of each parameter; those of which there are none are left out.
        starts_constant: whether the first block's mixing coefficient is 1 in every layer.
    """

    def __init__(self, config, counts: dict[str, int], starts_constant: bool):
        super().__init__()
        sizes = encoder_sizes(config)
        shapes = {
            name: (counts[name], *(sizes[axis] for axis in axes if axis is not None))
            for name, axes in LAYER_AXES.items()
            if counts[name]
        }
        for owner in dict.fromkeys(name.rsplit(".", 1)[0] for name in shapes):
            stacked = StackedParameters(shapes[f"{owner}.weight"], shapes[f"{owner}.bias"], starts_constant)
            _add(self, owner, stacked)


def _add(root: nn.Module, name: str, module: nn.Module) -> None:
    """Add a module under a name with dots, and what there has to be above it."""
    *path, leaf = name.split(".")
    for part in path:
        if not hasattr(root, part):
            root.add_module(part, nn.Module())
        root = getattr(root, part)
    root.add_module(leaf, module)


class MatrixScales(nn.Module):
    """Factors on the rows [layers, out] and the columns [layers, in] of one linear module's matrix in each layer."""

    def __init__(self, depth: int, rows: int, columns: int):
        super().__init__()
        self.rows = nn.Parameter(torch.empty(depth, rows))
        self.columns = nn.Parameter(torch.empty(depth, columns))

    def initialise(self) -> None:
        """Start at 1, where the layers are what the blocks give."""
        init.ones_(self.rows)
        init.ones_(self.columns)


class LayerScales(nn.Module):
    """`MatrixScales` of every matrix of one encoder's layers, under the linear modules' names."""

    def __init__(self, config):
        super().__init__()
        sizes = encoder_sizes(config)
        for name, axes in LAYER_AXES.items():
            if len(axes) == 2:
                scales = MatrixScales(config.num_hidden_layers, *(sizes[axis] for axis in axes if axis is not None))
                _add(self, name.removesuffix(".weight"), scales)


def _weightless(layer: type[nn.Module], names: tuple[str, ...]) -> type[nn.Module]:
    """Make of a stock encoder layer one with every parameter None: the weights come with each call."""

    class Weightless(layer):  # type: ignore[valid-type]
        # Checkpointed inside the functional call, it would be replayed after the weights are gone: the layer around
        # it does the checkpointing.
        gradient_checkpointing = property(lambda self: False, lambda self, value: None)

        def __init__(self, config):
            with torch.device("meta"):
                super().__init__(config)
            for name in names:
                owner, leaf = name.rsplit(".", 1)
                setattr(self.get_submodule(owner), leaf, None)

    Weightless.__name__ = Weightless.__qualname__ = f"Weightless{layer.__name__}"  # by which a pickle finds it
    return Weightless


# By family, what the parameters of `LAYER_AXES` are called in its layers, and the layer.
_LAYER_NAMES = {kind: tuple(map(FAMILIES[kind].in_layer, LAYER_AXES)) for kind in ("clip", "siglip", "vit")}
WeightlessCLIPEncoderLayer = _weightless(CLIPEncoderLayer, _LAYER_NAMES["clip"])
WeightlessSiglipEncoderLayer = _weightless(SiglipEncoderLayer, _LAYER_NAMES["siglip"])
WeightlessViTLayer = _weightless(ViTLayer, _LAYER_NAMES["vit"])
_WEIGHTLESS = {
    "clip": WeightlessCLIPEncoderLayer,
    "siglip": WeightlessSiglipEncoderLayer,
    "vit": WeightlessViTLayer,
}


class ExpandedEncoderLayer(GradientCheckpointingLayer):
    """A layer of an encoder, run by the stock layer on weights that come with each call."""

    def __init__(self, config):
        super().__init__()
        kind = next((kind for kind in ("siglip", "vit") if config.model_type.startswith(kind)), "clip")
        self.names, self.layer = _LAYER_NAMES[kind], _WEIGHTLESS[kind](config)

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None, *weights: Tensor, **kwargs):
        """Run on weights in the order of `LAYER_AXES`. hidden_states: [batch, tokens, hidden_size]."""
        named = dict(zip(self.names, weights, strict=True))
        return functional_call(self.layer, named, (hidden_states, attention_mask), kwargs)


def _replica(module: nn.Module) -> nn.Module:
    """A module of its own that holds what a weightless one does, in a part of the time that making it anew takes."""
    other = copy(module)
    for name, held in module.__dict__.items():
        if isinstance(held, (dict, set)):
            other.__dict__[name] = held.copy()
    for name, child in module._modules.items():
        if child is not None:
            other._modules[name] = _replica(child)
    return other


def weights_by_layer(stacks: dict[str, Tensor]) -> list[tuple[Tensor, ...]]:
    """Take stacks of weights [depth, ...] apart, for each layer those of `LAYER_AXES` in order.

    All at once: the gradient of a stack is then put together once, where one taken by its number has a whole stack of
    zeros for each layer.
    """
    return list(zip(*(stacks[name].unbind(0) for name in LAYER_AXES), strict=True))


class ExpandedEncoder(CLIPEncoder):
    """A stock encoder over expanded layers; `layer_weights`, by modality, reach it as a keyword argument."""

    def __init__(self, config, modality: str):
        nn.Module.__init__(self)
        self.config, self.modality = config, modality
        first = ExpandedEncoderLayer(config)
        others = [_replica(first) for _ in range(config.num_hidden_layers - 1)]
        self.layers = nn.ModuleList([first, *others])
        self.gradient_checkpointing = False

    def forward(
        self,
        inputs_embeds: Tensor,
        attention_mask: Tensor | None = None,
        *,
        layer_weights: dict[str, dict[str, Tensor]],
        **kwargs,
    ):
        """Run the layers on `layer_weights[modality]`, [depth, ...] by layer parameter, as a stock encoder does."""
        hidden_states = inputs_embeds
        by_layer = weights_by_layer(layer_weights[self.modality])
        for layer, weights in zip(self.layers, by_layer, strict=True):
            # Positional, as reentrant checkpointing wants everything that takes a gradient.
            hidden_states = layer(hidden_states, attention_mask, *weights, **kwargs)
        return BaseModelOutput(last_hidden_state=hidden_states)


class LearngeneVisionModel(CLIPVisionModel):
    """CLIP's image encoder whose layers hold no weights."""

    def __init__(self, config):
        CLIPPreTrainedModel.__init__(self, config)
        self.embeddings = CLIPVisionEmbeddings(config)
        self.pre_layrnorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.encoder = ExpandedEncoder(config, "image")
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()


class _FactoredTokens:
    """Text embeddings with a token embedding of a lower rank, projected to the width (ALBERT)."""

    def __init__(self, config, rank: int):
        super().__init__(config)  # type: ignore[call-arg]
        self.token_embedding = nn.Embedding(config.vocab_size, rank)
        self.token_projection = nn.Linear(rank, config.hidden_size, bias=False)

    def forward(self, input_ids=None, position_ids=None, inputs_embeds=None) -> Tensor:
        """Embed tokens [batch, tokens] as [batch, tokens, hidden_size], as the stock embeddings do."""
        if inputs_embeds is None:
            inputs_embeds = self.token_projection(self.token_embedding(input_ids))
        return super().forward(input_ids, position_ids, inputs_embeds)


class FactoredTextEmbeddings(_FactoredTokens, CLIPTextEmbeddings):
    """CLIP's text embeddings with a factored token embedding."""


class FactoredSiglipTextEmbeddings(_FactoredTokens, SiglipTextEmbeddings):
    """SigLIP's text embeddings with a factored token embedding."""


class _InitialisesFactors:
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, _FactoredTokens):  # so that the product has the spread of a whole table
            init.normal_(module.token_projection.weight, std=module.token_projection.in_features**-0.5)


class LearngeneTextModel(_InitialisesFactors, CLIPTextModel):
    """CLIP's text encoder whose layers hold no weights; `token_rank` None stores the token embedding whole."""

    def __init__(self, config, token_rank: int | None = None):
        CLIPPreTrainedModel.__init__(self, config)
        self.embeddings = FactoredTextEmbeddings(config, token_rank) if token_rank else CLIPTextEmbeddings(config)
        self.encoder = ExpandedEncoder(config, "text")
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.eos_token_id = config.eos_token_id
        self.post_init()


class LearngeneMetaClip2TextModel(LearngeneTextModel):
    """MetaCLIP 2's: the first end token's state is read, also where its id is 2, CLIP's sign for another rule."""

    forward = MetaClip2TextModel.forward


class LearngeneSiglipVisionModel(SiglipVisionModel):
    """SigLIP's image encoder whose layers hold no weights, with its attention-pooling head."""

    def __init__(self, config):
        SiglipPreTrainedModel.__init__(self, config)
        self.embeddings = SiglipVisionEmbeddings(config)
        self.encoder = ExpandedEncoder(config, "image")
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.use_head = True
        self.head = SiglipMultiheadAttentionPoolingHead(config)
        self.post_init()


class LearngeneSiglipTextModel(_InitialisesFactors, SiglipTextModel):
    """SigLIP's text encoder whose layers hold no weights; `token_rank` None stores the token embedding whole."""

    def __init__(self, config, token_rank: int | None = None):
        SiglipPreTrainedModel.__init__(self, config)
        factored = FactoredSiglipTextEmbeddings
        self.embeddings = factored(config, token_rank) if token_rank else SiglipTextEmbeddings(config)
        self.encoder = ExpandedEncoder(config, "text")
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.head = nn.Linear(config.hidden_size, config.projection_size)
        self.post_init()


class _NumberedLayer(nn.Module):
    """A layer that finds its own weights among those of all layers."""

    def __init__(self, config, number: int):
        super().__init__()
        self.number, self.expanded = number, ExpandedEncoderLayer(config)

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None, *, by_layer, **kwargs):
        return self.expanded(hidden_states, attention_mask, *by_layer[self.number], **kwargs)


class LearngeneViTEncoder(ViTModel):
    """A ViT whose layers hold no weights; `layer_weights`, by modality, reach them as a keyword argument."""

    def __init__(self, config, add_pooling_layer: bool = True):
        ViTPreTrainedModel.__init__(self, config)
        self.embeddings = ViTEmbeddings(config)
        self.layers = nn.ModuleList([_NumberedLayer(config, number) for number in range(config.num_hidden_layers)])
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.pooler = ViTPooler(config) if add_pooling_layer else None
        self.post_init()

    def forward(self, *args, layer_weights: dict[str, dict[str, Tensor]], **kwargs):
        """Run the layers on `layer_weights["image"]`, [depth, ...] by layer parameter; the rest is `ViTModel`'s."""
        return super().forward(*args, by_layer=weights_by_layer(layer_weights["image"]), **kwargs)
