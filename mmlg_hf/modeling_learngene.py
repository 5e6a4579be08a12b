"""The gene as a working model: the auxiliary CLIP, SigLIP or ViT whose layers are weighted sums of its blocks."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers import (
    CLIPForImageClassification,
    CLIPModel,
    SiglipModel,
    ViTForImageClassification,
)
from transformers import initialization as init
from transformers.models.clip.modeling_clip import (
    CLIPPreTrainedModel,
)
from transformers.models.siglip.modeling_siglip import (
    SiglipPreTrainedModel,
)
from transformers.models.vit.modeling_vit import ViTPreTrainedModel
from transformers.utils import logging

from .configuration_learngene import LearngeneConfig
from .errors import LearngeneError
from .expansion import (
    LAYER_AXES,
    MATRIX_SIDES,
    TOKEN_EMBEDDING,
    TOKEN_PROJECTION,
    KeptLayers,
    expand_layers,
    interpolate_coefficients,
    join_table,
    mixing_coefficients,
    shares_slope,
    slice_norm_scale,
    sum_type,
    take_slice,
)
from .families import encoders_of, stock_class
from .gene_files import StrictLoadingMixin
from .growth import DescendantMixin
from .modeling_encoders import (
    LayerScales,
    LearngeneBlocks,
    LearngeneMetaClip2TextModel,
    LearngeneSiglipTextModel,
    LearngeneSiglipVisionModel,
    LearngeneTextModel,
    LearngeneVisionModel,
    LearngeneViTEncoder,
    MatrixScales,
    StackedParameters,
    encoder_sizes,
)

logger = logging.get_logger(__name__)

BLOCKS = {"image": "vision_blocks", "text": "text_blocks"}
COEFFICIENTS = {"image": "vision_coefficients", "text": "text_coefficients"}
SCALES = {"image": "vision_scales", "text": "text_scales"}


class LearngeneMixin(StrictLoadingMixin, DescendantMixin):
    """Blocks, their initialisation, and the expansion into layers: shared by both kinds of gene."""

    config: LearngeneConfig
    accepts_loss_kwargs = False  # losses are means over the batch: the Trainer divides them by accumulation steps
    processor = None  # saved along with the gene and its descendants when set
    named_parameters: Any  # these three are those of the stock class that this is mixed into
    named_buffers: Any
    forward: Any
    training: bool
    _kept_layers: KeptLayers

    def __new__(cls, config: Any = None, *args, **kwargs):
        other = cls if config is None else cls.gene_class(config)
        return super().__new__(cls) if other is cls else other(config, *args, **kwargs)

    def _build_blocks(self) -> None:
        config = self.config
        self._kept_layers = KeptLayers()
        multimodal, unimodal = config.num_multimodal_blocks, config.num_unimodal_blocks
        shared_slope = shares_slope(config.mixing, multimodal, unimodal)
        own_slope = bool(multimodal) and unimodal == 1 and not shared_slope
        lacking = [name for name in LAYER_AXES if name.startswith(tuple(f"{part}." for part in config.unshared))]
        shared = {name: 0 if name in lacking else multimodal for name in LAYER_AXES}
        self.multimodal_blocks = LearngeneBlocks(config.widest, shared, not shared_slope) if multimodal else None
        if multimodal and lacking:
            logger.warning_once(config.explain_unshared())
        for modality, encoder in config.encoder_configs.items():
            counts = {name: unimodal + multimodal * (name in lacking) for name in LAYER_AXES}
            blocks = LearngeneBlocks(encoder, counts, not own_slope) if any(counts.values()) else None
            setattr(self, BLOCKS[modality], blocks)
            if config.mixing == "learned":
                shape = (encoder.num_hidden_layers, len(LAYER_AXES), multimodal + unimodal)
                setattr(self, COEFFICIENTS[modality], nn.Parameter(torch.empty(shape)))
            if config.weight_scales:
                setattr(self, SCALES[modality], LayerScales(encoder))

    def _init_weights(self, module):
        stock: Any = super()
        if isinstance(module, StackedParameters):
            module.initialise(self.config.initializer_factor)
        elif isinstance(module, MatrixScales):
            module.initialise()
        elif module is self:
            stock._init_weights(module)
            for modality, encoder in self.config.encoder_configs.items():
                if self.config.mixing == "learned":
                    parameter = getattr(self, COEFFICIENTS[modality])
                    init.copy_(
                        parameter, self.fixed_coefficients(encoder.num_hidden_layers)[:, None].expand_as(parameter)
                    )
        elif any(parameter is not None for parameter in module._parameters.values()) or module._buffers:
            stock._init_weights(module)

    @classmethod
    def gene_class(cls, config: LearngeneConfig) -> Any:
        """The class of a gene with this config: this one, or where this stands for others the one that it asks for."""
        stands_for_all, others = GENES[config.kind]
        return others.get(config.family, cls) if cls is stands_for_all else cls

    def block_groups(self) -> dict[str, LearngeneBlocks]:
        """Return the stacks of blocks there are, by "multimodal", "image" and "text"."""
        groups = {"multimodal": self.multimodal_blocks}
        groups |= {modality: getattr(self, BLOCKS[modality]) for modality in self.config.encoder_configs}
        return {name: blocks for name, blocks in groups.items() if blocks is not None}

    def fixed_coefficients(self, depth: int) -> Tensor:
        """Return the coefficients of fixed mixing, from which "learned" starts: [depth, blocks]."""
        config = self.config
        return mixing_coefficients(config.mixing, config.num_multimodal_blocks, config.num_unimodal_blocks, depth)

    def coefficients(self, modality: str, depth: int | None = None) -> Tensor | dict[str, Tensor]:
        """Return the mixing coefficients of one encoder's layers.

        Args:
            modality: "image" or "text".
            depth: number of layers; None takes the gene's own.

        Returns:
            [depth, blocks], or with learned mixing one such matrix per layer parameter. Multimodal blocks come first.
        """
        depth = depth or self.config.encoder_configs[modality].num_hidden_layers
        if self.config.mixing != "learned":
            return self.fixed_coefficients(depth)
        own = getattr(self, COEFFICIENTS[modality])
        own = own.to(sum_type(own.dtype))  # between two layers half precision would round
        learned = interpolate_coefficients(own, depth)  # [depth, parameters, blocks]
        return dict(zip(LAYER_AXES, learned.unbind(1), strict=True))

    def layer_weights(self, modality: str, encoder_config=None) -> dict[str, Tensor]:
        """Expand the blocks into the layers of one encoder, differentiably.

        Args:
            modality: "image" or "text".
            encoder_config: the stock config of a smaller encoder; None takes the gene's own.

        Returns:
            for each parameter of CLIP's encoder layer a tensor [depth, ...].
        """
        config = encoder_config or self.config.encoder_configs[modality]
        return expand_layers(*self.layer_sources(modality, config))

    def expanded(self, *modalities: str) -> dict[str, dict[str, Tensor]]:
        """Return the layers of these encoders at the gene's own size, by modality, as `layer_weights` makes them.

        In evaluation mode and without gradients they are expanded once and kept, until a block changes.
        """
        sources = {name: self.layer_sources(name, self.config.encoder_configs[name]) for name in modalities}
        if not self.training and not torch.is_grad_enabled() and _can_be_kept(sources):
            return self._kept_layers.expand(sources)
        return {name: expand_layers(*arguments) for name, arguments in sources.items()}

    def train(self, mode: bool = True):
        """Set the mode as of any module; in training no layers are kept."""
        if mode:
            self._kept_layers.clear()
        stock: Any = super()
        return stock.train(mode)

    def layer_sources(self, modality: str, config) -> tuple[Any, ...]:
        """Return what the layers of one encoder are summed from: the arguments of `expand_layers`."""
        there = self.block_groups()
        multimodal, unimodal = (
            dict(there[group].named_parameters()) if group in there else {} for group in ("multimodal", modality)
        )
        coefficients = self.coefficients(modality, config.num_hidden_layers)
        scale = self._norm_scale(modality, config)
        return multimodal, unimodal, coefficients, encoder_sizes(config), scale, self.weight_scales(modality, config)

    def weight_scales(self, modality: str, encoder_config) -> dict[str, Tensor]:
        """Return the factors on the layers' matrices of an encoder, "LINEAR.rows" and ".columns" [depth, size].

        Empty where the config has no `weight_scales`.
        """
        if not self.config.weight_scales:
            return {}
        sizes, scales = encoder_sizes(encoder_config), {}
        for name, own in getattr(self, SCALES[modality]).named_parameters():
            linear, side = name.rsplit(".", 1)
            axis = LAYER_AXES[f"{linear}.weight"][MATRIX_SIDES.index(side)]
            own = take_slice(own, (axis,), sizes)
            scales[name] = interpolate_coefficients(own.to(sum_type(own.dtype)), encoder_config.num_hidden_layers)
        return scales

    def _norm_scale(self, modality: str, encoder_config) -> float:
        own_width = self.config.encoder_configs[modality].hidden_size
        scales = self.config.scales_norms(modality)
        return slice_norm_scale(encoder_config.hidden_size, own_width) if scales else 1.0

    def outer_weights(self, encoder_configs) -> dict[str, Any]:
        """Return what a descendant has outside its layers, under the gene's names: slices of the gene's weights.

        A factored token table is a pair of factors, as `join_table` takes them.
        """
        own, family = dict(self.named_parameters()), self.config.kin
        weights: dict[str, Any] = {}
        for modality, config in encoder_configs.items():
            sizes, scale = encoder_sizes(config), self._norm_scale(modality, config)
            for name, axes in family.outer[modality].items():
                if name == TOKEN_EMBEDDING and TOKEN_PROJECTION in own:
                    weights[name] = own[name], take_slice(own[TOKEN_PROJECTION], ("hidden", None), sizes)
                elif name in own:
                    weights[name] = take_slice(own[name], axes, sizes)
                    if scale != 1 and name in family.scaled_norms:
                        weights[name] = weights[name] * scale
        if len(encoder_configs) == 2:
            weights.update({name: own[name] for name in family.whole})
        return weights

    def descendant_sources(self, encoder_configs) -> tuple[dict[str, Any], dict[str, tuple[Any, ...]]]:
        """Return what a descendant is computed from: its `outer_weights`, and `layer_sources` by modality."""
        layers = {side: self.layer_sources(side, config) for side, config in encoder_configs.items()}
        return self.outer_weights(encoder_configs), layers

    def descendant_state_dict(self, encoder_configs) -> dict[str, Tensor]:
        """Compute every weight of a descendant from the gene, differentiably, under the gene's names.

        They are those of the family's whole class; see `families.Family.name_in` for other classes.

        Args:
            encoder_configs: the descendant's stock sub-configs by modality, "image", "text" or both.
        """
        weights = self.outer_weights(encoder_configs)
        if isinstance(weights.get(TOKEN_EMBEDDING), tuple):
            weights[TOKEN_EMBEDDING] = join_table(*weights[TOKEN_EMBEDDING])
        for modality, config in encoder_configs.items():
            for name, stacked in self.layer_weights(modality, config).items():
                for layer, weight in enumerate(stacked.unbind(0)):
                    weights[self.config.kin.layer_parameter(modality, layer, name)] = weight
        return weights

    def _run_as(self, cls, config, encoder_configs, args, kwargs):
        """Run the stock class of a descendant on weights expanded from the gene, without building the descendant."""
        weights = self.descendant_state_dict(encoder_configs)
        state = {self.config.kin.name_in(cls, name): weight for name, weight in weights.items()}
        state |= {name: buffer for name, buffer in self.named_buffers() if "position_ids" in name}
        return functional_call(self._skeleton(cls, config).train(self.training), state, args, kwargs)

    def _skeleton(self, cls, config):
        """Return the stock class without memory of its own, one for each size, to run weights through."""
        config._attn_implementation = self.config._attn_implementation
        key = (*(part.to_json_string() for part in encoders_of(config).values()), config._attn_implementation)
        cache = self.__dict__.setdefault("_skeletons", {})
        if key not in cache:
            with torch.device("meta"):
                cache[key] = cls(config)
        return cache[key]


def _can_be_kept(sources: dict[str, tuple[Any, ...]]) -> bool:
    """Whether blocks are plain tensors in memory whose values can be asked for: not traced, not over processes."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or torch._C._are_functorch_transforms_active():
        return False
    if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
        return False
    blocks = [block for groups in sources.values() for group in groups[:2] for block in group.values()]
    return all(type(block) in (Tensor, nn.Parameter) and not block.is_meta for block in blocks)


class LearngeneWholeMixin(LearngeneMixin):
    """A gene of both modalities: its features, and its forward as a descendant of another size."""

    def get_image_features(self, *args, **kwargs):
        """Embed images, as the stock model's: `pooler_output` is [batch, projection_dim]."""
        stock: Any = super()
        if "layer_weights" not in kwargs:  # within `forward` they are there
            kwargs["layer_weights"] = self.expanded("image")
        return stock.get_image_features(*args, **kwargs)

    def get_text_features(self, *args, **kwargs):
        """Embed texts, as the stock model's: `pooler_output` is [batch, projection_dim]."""
        stock: Any = super()
        if "layer_weights" not in kwargs:  # within `forward` they are there
            kwargs["layer_weights"] = self.expanded("text")
        return stock.get_text_features(*args, **kwargs)

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        return_loss: bool | None = None,
        interpolate_pos_encoding: bool = False,
        *,
        depth=None,
        width=None,
        **kwargs,
    ):
        """Run the auxiliary model, or the descendant of another size, without building it.

        Args:
            depth, width: size of the descendant to run as, see `descendant`; both None run the gene's own size. The
                other arguments are those of the stock model's `forward`.

        The smaller network shares the gene's weights and gradients reach them: this is what elastic extraction trains.
        """
        args = (input_ids, pixel_values, attention_mask, position_ids, return_loss, interpolate_pos_encoding)
        if depth is None and width is None:
            return super().forward(*args, layer_weights=self.expanded("image", "text"), **kwargs)
        config = self.config.descendant_config(depth, width)
        encoders = {"image": config.vision_config, "text": config.text_config}
        return self._run_as(self.config.kin.whole_class, config, encoders, args, kwargs)


class LearngeneModel(LearngeneWholeMixin, CLIPModel):
    """A learngene that is also the auxiliary CLIP it was trained as: takes and returns what `CLIPModel` does.

    Tensors: `multimodal_blocks.*`, `vision_blocks.*`, `text_blocks.*` ([blocks, ...] each) and, under CLIP's own
    names, everything that is no encoder layer. MM-LG, arXiv 2506.16673. With a config of another family it is that
    family's class, such as `LearngeneSiglipModel`.
    """

    config: LearngeneConfig
    base_model_prefix = "learngene"
    _no_split_modules = [*CLIPPreTrainedModel._no_split_modules, "ExpandedEncoderLayer"]

    def __init__(self, config: LearngeneConfig):
        if config.text_config is None:
            raise LearngeneError(
                "this is an image gene (its text_config is None): load it as LearngeneForImageClassification"
            )
        CLIPPreTrainedModel.__init__(self, config)
        vision, text = config.encoder_configs["image"], config.encoder_configs["text"]
        self.projection_dim = config.projection_dim
        self.text_embed_dim, self.vision_embed_dim = text.hidden_size, vision.hidden_size
        text_class = LearngeneMetaClip2TextModel if config.family == "metaclip_2" else LearngeneTextModel
        self.text_model = text_class._from_config(text, token_rank=config.token_embedding_rank)
        self.vision_model = LearngeneVisionModel._from_config(vision)
        self.visual_projection = nn.Linear(self.vision_embed_dim, self.projection_dim, bias=False)
        self.text_projection = nn.Linear(self.text_embed_dim, self.projection_dim, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(float(config.logit_scale_init_value)))
        self._build_blocks()
        self.post_init()


class LearngeneSiglipModel(LearngeneWholeMixin, SiglipModel):
    """A learngene of a SigLIP, and the auxiliary SigLIP it was trained as: takes and returns what `SiglipModel` does.

    Its embeddings are as large as its image encoder is wide, and those of a narrower descendant are their leading
    components. Tensors as in `LearngeneModel`, with SigLIP's own names outside the layers.
    """

    config: LearngeneConfig
    base_model_prefix = "learngene"
    _no_split_modules = [*SiglipPreTrainedModel._no_split_modules, "ExpandedEncoderLayer"]

    def __init__(self, config: LearngeneConfig):
        SiglipPreTrainedModel.__init__(self, config)
        vision, text = config.encoder_configs["image"], config.encoder_configs["text"]
        self.text_model = LearngeneSiglipTextModel._from_config(text, token_rank=config.token_embedding_rank)
        self.vision_model = LearngeneSiglipVisionModel._from_config(vision)
        self.logit_scale = nn.Parameter(torch.zeros(1))
        self.logit_bias = nn.Parameter(torch.zeros(1))
        self._build_blocks()
        self.post_init()


class LearngeneForImageClassification(LearngeneMixin, CLIPForImageClassification):
    """An image gene (TLEG, arXiv 2312.05614): takes and returns what `CLIPForImageClassification` does.

    Its layers are W_l = base + (l/L) * slope with `num_multimodal_blocks=0, num_unimodal_blocks=2, mixing="linear"`.
    The classifier is the one it was extracted with, and mean-pools patch tokens as a descendant does.
    """

    config: LearngeneConfig
    base_model_prefix = "learngene"
    auto_class = "AutoModelForImageClassification"
    _no_split_modules = [*CLIPPreTrainedModel._no_split_modules, "ExpandedEncoderLayer"]

    def __init__(self, config: LearngeneConfig):
        if config.text_config is not None:
            raise LearngeneError(
                "this gene has a text side: load it as LearngeneModel, and grow an image classifier from it with "
                'descendant(modality="image", num_labels=...)'
            )
        if config.kind == "features":
            raise LearngeneError("this image gene has no classifier: load it as LearngeneModel")
        if config.family == "siglip":
            raise LearngeneError(
                "an image gene of a SigLIP is not there yet: extract from the SiglipModel, and grow an image "
                'classifier from its gene with descendant(modality="image", num_labels=...)'
            )
        CLIPPreTrainedModel.__init__(self, config)
        self.num_labels = config.num_labels
        vision = config.encoder_configs["image"]
        self.vision_model = LearngeneVisionModel._from_config(vision)
        self.classifier = nn.Linear(vision.hidden_size, config.num_labels)
        self._build_blocks()
        self.post_init()

    def forward(
        self, pixel_values: Tensor | None = None, labels: Tensor | None = None, *, depth=None, width=None, **kwargs
    ):
        """Classify images with the auxiliary model, or as the descendant of another depth and width.

        pixel_values: [batch, channels, height, width]; labels: [batch]; logits: [batch, num_labels].
        """
        if depth is None and width is None:
            return super().forward(pixel_values, labels, layer_weights=self.expanded("image"), **kwargs)
        config = self.config.descendant_config(depth, width, "image")
        config.id2label, config.problem_type = self.config.id2label, self.config.problem_type
        encoders = {"image": config.vision_config}
        stock = stock_class(self.config.kin.descendants["image", True])
        return self._run_as(stock, config, encoders, (pixel_values, labels), kwargs)


class _ViTGene(LearngeneMixin):
    """What the image genes of ViT and DINOv2 have in common."""

    base_model_prefix = "learngene"
    _no_split_modules = ["ViTEmbeddings", "ExpandedEncoderLayer"]

    def _build_encoder(self, config: LearngeneConfig, pools: bool) -> None:
        encoder = config.encoder_configs["image"]
        self.vision_model = LearngeneViTEncoder._from_config(encoder, add_pooling_layer=pools)

    def _run_smaller(self, with_head: bool, depth, width, args, kwargs):
        config = self.config.descendant_config(depth, width, "image")
        config.id2label, config.problem_type = self.config.id2label, self.config.problem_type
        stock = stock_class(self.config.kin.descendants["image", with_head])
        return self._run_as(stock, config, {"image": config}, args, kwargs)


class LearngeneViTModel(_ViTGene, ViTPreTrainedModel):
    """An image gene of a ViT or a DINOv2 without a classifier: takes and returns what `ViTModel` does.

    Tensors: `vision_blocks.*` ([blocks, ...] each) and, under "vision_model.", `ViTModel`'s own names. Its pooler is
    linear: what it makes of the class token is the class token of the ancestor, also where the ancestor's channels
    were turned for the gene, or a narrower descendant has fewer of them.
    """

    config: LearngeneConfig

    def __init__(self, config: LearngeneConfig):
        ViTPreTrainedModel.__init__(self, config)
        self._build_encoder(config, pools=True)
        self._build_blocks()
        self.post_init()

    def forward(
        self,
        pixel_values: Tensor | None = None,
        interpolate_pos_encoding: bool | None = None,
        *,
        depth=None,
        width=None,
        **kwargs,
    ):
        """Embed images [batch, channels, height, width] with the auxiliary model, or as a descendant of another size.

        last_hidden_state: [batch, 1 + patches, width]; pooler_output: [batch, pooler_output_size].
        """
        kwargs["interpolate_pos_encoding"] = interpolate_pos_encoding
        if depth is None and width is None:
            return self.vision_model(pixel_values, layer_weights={"image": self.layer_weights("image")}, **kwargs)
        return self._run_smaller(False, depth, width, (pixel_values,), kwargs)

    def read_features(self, output: Any) -> tuple[Tensor, Tensor]:
        """Read the class token and the mean of the patches as the ancestor has them, [batch, pooler_output_size] each.

        Args:
            output: what `forward` gave, at any width.
        """
        dense, patches = self.vision_model.pooler.dense, output.last_hidden_state[:, 1:].mean(1)
        return output.pooler_output, nn.functional.linear(patches, dense.weight[:, : patches.shape[1]], dense.bias)


class LearngeneViTForImageClassification(_ViTGene, ViTForImageClassification):
    """An image gene of a ViT's classifier: takes and returns what `ViTForImageClassification` does."""

    config: LearngeneConfig
    auto_class = "AutoModelForImageClassification"
    vit = property(lambda self: self.vision_model)  # what the stock forward calls it

    def __init__(self, config: LearngeneConfig):
        ViTPreTrainedModel.__init__(self, config)
        self.num_labels = config.num_labels
        self._build_encoder(config, pools=False)
        self.classifier = nn.Linear(config.encoder_configs["image"].hidden_size, config.num_labels)
        self._build_blocks()
        self.post_init()

    def forward(
        self,
        pixel_values: Tensor | None = None,
        labels: Tensor | None = None,
        interpolate_pos_encoding: bool | None = None,
        *,
        depth=None,
        width=None,
        **kwargs,
    ):
        """Classify images with the auxiliary model, or as the descendant of another depth and width.

        pixel_values: [batch, channels, height, width]; labels: [batch]; logits: [batch, num_labels].
        """
        args = (pixel_values, labels, interpolate_pos_encoding)
        if depth is None and width is None:
            return super().forward(*args, layer_weights={"image": self.layer_weights("image")}, **kwargs)
        return self._run_smaller(True, depth, width, args, kwargs)


# The classes of genes by `LearngeneConfig.kind`: the one that stands for all of them, and those of single families.
GENES: dict[str, tuple[Any, dict[str, Any]]] = {
    "multimodal": (LearngeneModel, {"siglip": LearngeneSiglipModel}),
    "features": (LearngeneModel, {"vit": LearngeneViTModel}),
    "classifier": (LearngeneForImageClassification, {"vit": LearngeneViTForImageClassification}),
}


def class_of_gene(config: LearngeneConfig) -> Any:
    """The class of a gene with this config."""
    return GENES[config.kind][0].gene_class(config)


__all__ = [
    "LearngeneForImageClassification",
    "LearngeneModel",
    "LearngeneSiglipModel",
    "LearngeneViTForImageClassification",
    "LearngeneViTModel",
]
