"""The families a gene can come from: what lies outside the layers, and the stock classes of ancestor and descendants.

The encoder layers of all of them have the same sixteen parameters (`expansion.LAYER_AXES`). A family is one entry of
`FAMILIES`; what the rest of the package does for a family, it reads there.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import transformers

from .errors import LearngeneError

Axes = Mapping[str, tuple[str | None, ...]]

# Where every family keeps an encoder, and its token embedding.
ENCODERS = {"image": "vision_model", "text": "text_model"}


@dataclass(frozen=True)
class Family:
    """One family of image-text models.

    Attributes:
        name: `LearngeneConfig.family`, and the `model_type` of the whole model's config.
        title: what an error or a table calls it.
        outer: by modality, the parameters outside the layers under the family's own names, with their axes: "hidden"
            follows the encoder's width, "mlp" its MLP, "embed" the size of the embedding, and "qkv" is three times
            "hidden", one after another; None is an axis no width touches.
        whole: parameters of the whole model alone.
        configs: names of the stock configs: of the whole, of the image encoder, of the text encoder.
        descendants: name of the class of a descendant by modality, and whether it has a classifier.
        scaled_norms: LayerNorms outside the layers whose scale counts, as their output is read by no other norm: a
            slice scales them as it does the layers' (`expansion.slice_norm_scale`).
        embeds_at_width: whether the size of the embedding is the image encoder's width, so that a narrower descendant
            has a smaller embedding; False means that it is `projection_dim` at every width.
        bare: classes that are an encoder themselves: no "vision_model." or "text_model." stands before their names.
    """

    name: str
    title: str
    outer: Mapping[str, Axes]
    whole: tuple[str, ...]
    configs: tuple[str, str, str]
    descendants: Mapping[tuple[str, bool], str]
    scaled_norms: tuple[str, ...] = ()
    embeds_at_width: bool = False
    bare: tuple[str, ...] = ()

    @property
    def whole_class(self) -> Any:
        """The stock class of an ancestor of both modalities, and of a multimodal descendant."""
        return stock_class(self.descendants["multimodal", False])

    @property
    def config_class(self) -> Any:
        """The stock config of the whole model."""
        return stock_class(self.configs[0])

    @property
    def encoder_configs(self) -> dict[str, Any]:
        """The stock config class of each encoder, under the name of the field that holds it."""
        return {"vision_config": stock_class(self.configs[1]), "text_config": stock_class(self.configs[2])}

    def prefix_of(self, cls: Any) -> str:
        """What stands before the names of `outer` and is not there in this class of a descendant."""
        if cls.__name__ not in self.bare:
            return ""
        return "vision_model." if cls.__name__ == self.descendants["image", False] else "text_model."


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
            bare=("SiglipVisionModel", "SiglipTextModel"),
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
