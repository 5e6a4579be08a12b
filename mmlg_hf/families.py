"""The families a gene can come from: what lies outside the layers, and the stock classes of ancestor and descendants.

The encoder layers of all of them have the same sixteen parameters (`expansion.LAYER_AXES`). A family is one entry of
`FAMILIES`; what the rest of the package does for a family, it reads there.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import transformers

from .errors import LearngeneError

Axes = Mapping[str, tuple[str | None, ...]]

# Where every family keeps an encoder, and its token embedding.
ENCODERS = {"image": "vision_model", "text": "text_model"}


@dataclass(frozen=True)
class Family:
    """One family of models.

    Attributes:
        name: `LearngeneConfig.family`, and the `model_type` of the whole model's config.
        title: what an error or a table calls it.
        outer: by modality, the parameters outside the layers under the family's own names, with their axes: "hidden"
            follows the encoder's width, "mlp" its MLP, "embed" the size of the embedding, and "qkv" is three times
            "hidden", one after another; None is an axis no width touches.
        whole: parameters of the whole model alone.
        configs: names of the stock configs: of the whole, of the image encoder, and of the text encoder if there is
            one.
        descendants: name of the class of a descendant by modality, and whether it has a classifier.
        scaled_norms: LayerNorms outside the layers whose scale counts, as their output is read by no other norm: a
            slice scales them as it does the layers' (`expansion.slice_norm_scale`).
        embeds_at_width: whether the size of the embedding is the image encoder's width, so that a narrower descendant
            has a smaller embedding; False means that it is `projection_dim` at every width.
        prefixes: by class, what stands before its encoder's names in place of "vision_model." or "text_model."; ""
            before those of a class that is an encoder itself.
        without_head: outer parameters that a descendant with a classifier has not.
        layers: where an encoder keeps its layers.
        layer_names: parts of a layer that the family calls otherwise than `expansion.LAYER_AXES` does.
    """

    name: str
    title: str
    outer: Mapping[str, Axes]
    whole: tuple[str, ...]
    configs: tuple[str, ...]
    descendants: Mapping[tuple[str, bool], str]
    scaled_norms: tuple[str, ...] = ()
    embeds_at_width: bool = False
    prefixes: Mapping[str, str] = field(default_factory=dict)
    without_head: tuple[str, ...] = ()
    layers: str = "encoder.layers"
    layer_names: Mapping[str, str] = field(default_factory=dict)

    @property
    def image_only(self) -> bool:
        """Whether there is no text encoder in this family."""
        return len(self.configs) == 2

    @property
    def whole_class(self) -> Any:
        """The stock class of an ancestor of all modalities that there are, and of a descendant of them."""
        return stock_class(self.descendants["image" if self.image_only else "multimodal", False])

    @property
    def config_class(self) -> Any:
        """The stock config of the whole model."""
        return stock_class(self.configs[0])

    @property
    def encoder_configs(self) -> dict[str, Any]:
        """The stock config class of each encoder, under the name of the field that holds it."""
        fields = ("vision_config", "text_config")
        return {name: stock_class(config) for name, config in zip(fields, self.configs[1:], strict=False)}

    def name_in(self, cls: Any, name: str) -> str:
        """What a class of this family calls the parameter or module that a gene calls `name`."""
        prefix = self.prefixes.get(cls.__name__)
        encoder, _, rest = name.partition(".")
        return name if prefix is None or encoder not in ENCODERS.values() else prefix + rest

    def in_layer(self, name: str) -> str:
        """What the family calls a parameter of `expansion.LAYER_AXES`."""
        part, _, kind = name.rpartition(".")
        return f"{self.layer_names.get(part, part)}.{kind}"

    def layer_parameter(self, modality: str, layer: int, name: str) -> str:
        """What a gene calls a parameter of `expansion.LAYER_AXES` in one of an encoder's layers."""
        return f"{ENCODERS[modality]}.{self.layers}.{layer}.{self.in_layer(name)}"


_NORM: tuple[str, ...] = ("hidden",)
_CLIP_IMAGE: Axes = {
    "vision_model.embeddings.class_embedding": ("hidden",),
    "vision_model.embeddings.patch_embedding.weight": ("hidden", None, None, None),
    "vision_model.embeddings.position_embedding.weight": (None, "hidden"),
    "vision_model.pre_layrnorm.weight": _NORM,
    "vision_model.pre_layrnorm.bias": _NORM,
    "vision_model.post_layernorm.weight": _NORM,
    "vision_model.post_layernorm.bias": _NORM,
    "visual_projection.weight": (None, "hidden"),
    "classifier.weight": (None, "hidden"),
    "classifier.bias": (None,),
}
_CLIP_TEXT: Axes = {
    "text_model.embeddings.token_embedding.weight": (None, "hidden"),
    "text_model.embeddings.position_embedding.weight": (None, "hidden"),
    "text_model.final_layer_norm.weight": _NORM,
    "text_model.final_layer_norm.bias": _NORM,
    "text_projection.weight": (None, "hidden"),
}
_PROJECTIONS = ("visual_projection.weight", "text_projection.weight")
_SIGLIP_IMAGE: Axes = {
    "vision_model.embeddings.patch_embedding.weight": ("hidden", None, None, None),
    "vision_model.embeddings.patch_embedding.bias": ("hidden",),
    "vision_model.embeddings.position_embedding.weight": (None, "hidden"),
    "vision_model.post_layernorm.weight": _NORM,
    "vision_model.post_layernorm.bias": _NORM,
    "vision_model.head.probe": (None, None, "hidden"),
    "vision_model.head.attention.in_proj_weight": ("qkv", "hidden"),
    "vision_model.head.attention.in_proj_bias": ("qkv",),
    "vision_model.head.attention.out_proj.weight": ("hidden", "hidden"),
    "vision_model.head.attention.out_proj.bias": ("hidden",),
    "vision_model.head.layernorm.weight": _NORM,
    "vision_model.head.layernorm.bias": _NORM,
    "vision_model.head.mlp.fc1.weight": ("mlp", "hidden"),
    "vision_model.head.mlp.fc1.bias": ("mlp",),
    "vision_model.head.mlp.fc2.weight": ("hidden", "mlp"),
    "vision_model.head.mlp.fc2.bias": ("hidden",),
}
_SIGLIP_TEXT: Axes = {
    "text_model.embeddings.token_embedding.weight": (None, "hidden"),
    "text_model.embeddings.position_embedding.weight": (None, "hidden"),
    "text_model.final_layer_norm.weight": _NORM,
    "text_model.final_layer_norm.bias": _NORM,
    "text_model.head.weight": ("embed", "hidden"),
    "text_model.head.bias": ("embed",),
}
_VIT: Axes = {
    "vision_model.embeddings.cls_token": (None, None, "hidden"),
    "vision_model.embeddings.position_embeddings": (None, None, "hidden"),
    "vision_model.embeddings.patch_embeddings.projection.weight": ("hidden", None, None, None),
    "vision_model.embeddings.patch_embeddings.projection.bias": ("hidden",),
    "vision_model.layernorm.weight": _NORM,
    "vision_model.layernorm.bias": _NORM,
    "vision_model.pooler.dense.weight": (None, "hidden"),
    "vision_model.pooler.dense.bias": (None,),
    "classifier.weight": (None, "hidden"),
    "classifier.bias": (None,),
}

FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        Family(
            name="clip",
            title="CLIP",
            outer={"image": _CLIP_IMAGE, "text": _CLIP_TEXT},
            whole=("logit_scale",),
            configs=("CLIPConfig", "CLIPVisionConfig", "CLIPTextConfig"),
            descendants={
                ("multimodal", False): "CLIPModel",
                ("image", False): "CLIPVisionModelWithProjection",
                ("image", True): "CLIPForImageClassification",
                ("text", False): "CLIPTextModelWithProjection",
                ("text", True): "CLIPTextForSequenceClassification",
            },
            without_head=_PROJECTIONS,
        ),
        Family(
            name="metaclip_2",
            title="MetaCLIP 2",
            outer={"image": _CLIP_IMAGE, "text": _CLIP_TEXT},
            whole=("logit_scale",),
            configs=("MetaClip2Config", "MetaClip2VisionConfig", "MetaClip2TextConfig"),
            descendants={
                ("multimodal", False): "MetaClip2Model",
                ("image", False): "MetaClip2VisionModelWithProjection",
                ("image", True): "MetaClip2ForImageClassification",
                ("text", False): "MetaClip2TextModelWithProjection",
            },
            without_head=_PROJECTIONS,
        ),
        Family(
            name="siglip",
            title="SigLIP, and SigLIP 2 of a fixed resolution",
            outer={"image": _SIGLIP_IMAGE, "text": _SIGLIP_TEXT},
            whole=("logit_scale", "logit_bias"),
            configs=("SiglipConfig", "SiglipVisionConfig", "SiglipTextConfig"),
            descendants={
                ("multimodal", False): "SiglipModel",
                ("image", False): "SiglipVisionModel",
                ("image", True): "SiglipForImageClassification",
                ("text", False): "SiglipTextModel",
            },
            scaled_norms=(
                "vision_model.post_layernorm.weight",
                "vision_model.head.layernorm.weight",
                "text_model.final_layer_norm.weight",
            ),
            embeds_at_width=True,
            prefixes={"SiglipVisionModel": "", "SiglipTextModel": ""},
        ),
        Family(
            name="vit",
            title="ViT and DINOv2",
            outer={"image": _VIT},
            whole=(),
            configs=("ViTConfig", "ViTConfig"),
            descendants={("image", False): "ViTModel", ("image", True): "ViTForImageClassification"},
            scaled_norms=("vision_model.layernorm.weight",),
            prefixes={"ViTModel": "", "ViTForImageClassification": "vit."},
            without_head=("vision_model.pooler.dense.weight", "vision_model.pooler.dense.bias"),
            layers="layers",
            layer_names={
                "layer_norm1": "layernorm_before",
                "self_attn.q_proj": "attention.q_proj",
                "self_attn.k_proj": "attention.k_proj",
                "self_attn.v_proj": "attention.v_proj",
                "self_attn.out_proj": "attention.o_proj",
                "layer_norm2": "layernorm_after",
            },
        ),
    )
}

# Model types that look alike and are not taken, with the reason.
REFUSED: dict[str, str] = {
    "siglip2": "its NaFlex patches have no fixed resolution; SigLIP 2 of a fixed one is a SiglipModel",
    "dinov2_with_registers": "its registers are tokens that no stock ViT has",
    "chinese_clip": "its text encoder is a BERT, whose layers normalise after they add",
    "altclip": "its text encoder is an XLM-R, whose layers normalise after they add",
    "dinov3_vit": "its layers have rotary positions, which a gene's layers have not",
    "aimv2": "its layers have gated MLPs and RMSNorms, which a gene's layers have not",
}


def family_of(config: Any) -> Family | None:
    """The family of a model's config, the gene's own config among them; None where there is no such family."""
    name = getattr(config, "family", None) or getattr(config, "model_type", "")
    return FAMILIES.get(str(name))


def encoders_of(config: Any) -> dict[str, Any]:
    """The configs of the encoders by modality in the config of a whole model, which may be an encoder's itself."""
    parts = {"image": getattr(config, "vision_config", None), "text": getattr(config, "text_config", None)}
    found = {modality: part for modality, part in parts.items() if part is not None}
    return found or {"image": config}


def read_family(name: Any) -> Family:
    """The family of a name; a `LearngeneError` names those there are."""
    if not isinstance(name, str) or name not in FAMILIES:
        raise LearngeneError(f"family is {name!r}: it takes one of {', '.join(map(repr, FAMILIES))}")
    return FAMILIES[name]


def stock_class(name: str) -> Any:
    """A class of transformers by name."""
    return getattr(transformers, name)


def why_refused(config: Any) -> str | None:
    """Why no gene can come from a model with this config, where that is known."""
    if getattr(config, "use_swiglu_ffn", False):
        return "its layers have gated MLPs (SwiGLU, as in DINOv2 giant), which a gene's layers have not"
    if not getattr(getattr(config, "vision_config", None), "vision_use_head", True):
        return "without its pooling head it embeds no images"
    return REFUSED.get(getattr(config, "model_type", ""))
