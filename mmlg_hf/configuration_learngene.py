"""What a gene is: the encoders of its auxiliary model, its blocks, and how they are mixed into layers."""

import math
from collections.abc import Callable
from functools import wraps
from typing import Any

from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassError
from transformers import CLIPTextConfig, CLIPVisionConfig, PreTrainedConfig

from .errors import LearngeneError, first_line
from .families import Family, read_family

MIXINGS = ("shared-slope", "linear", "chebyshev", "learned")
MODALITIES = ("multimodal", "image", "text")

Size = int | tuple[int, int] | list[int] | None

# Beyond these no model is meant, and building one would take all memory, or hours.
MAX_LAYERS = 1024
MAX_LABELS = 1_000_000
MAX_SIZE = 2**31 - 1

_SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "projection_dim")
_OWN_SIZES = {
    "vision_config": ("num_channels", "image_size", "patch_size"),
    "text_config": ("vocab_size", "max_position_embeddings"),
}
_STORED_DTYPES = ("float64", "float32", "float16", "bfloat16")


def _in_one_sentence(cls: Any) -> Any:
    """Let what a config's construction and validation raise be a `LearngeneError` of one sentence."""

    def speaking(method: Callable) -> Callable:
        @wraps(method)
        def call(self: Any, *args: Any, **kwargs: Any) -> None:
            try:
                method(self, *args, **kwargs)
            except LearngeneError:
                raise
            except (StrictDataclassError, ValueError, TypeError, AttributeError, KeyError, ArithmeticError) as error:
                if isinstance(error.__cause__, LearngeneError):
                    raise error.__cause__ from None
                cause = error.__cause__ if isinstance(error, StrictDataclassError) and error.__cause__ else error
                raise LearngeneError(f"this is no config of a gene: {first_line(cause)}") from error

        return call

    cls.__init__, cls.validate = speaking(cls.__init__), speaking(cls.validate)
    return cls


@_in_one_sentence
@strict
class LearngeneConfig(PreTrainedConfig):
    r"""Configuration of a [`LearngeneModel`] (MM-LG, arXiv 2506.16673).

    Args:
        vision_config (`CLIPVisionConfig` or `dict`): the image encoder of the auxiliary model, the gene's own size.
        text_config (`CLIPTextConfig` or `dict`, *optional*): the text encoder; None for an image gene (TLEG).
        projection_dim (`int`): size of the joint embedding; of a SigLIP it is the width of its image encoder.
        num_multimodal_blocks (`int`): blocks shared by both encoders. 0 gives each encoder its own gene (TLEG).
        num_unimodal_blocks (`int`): blocks of each encoder alone.
        mixing (`str`): "shared-slope" (one block each: V + (l/L) M), "linear" (1, l/L; at most two blocks a group; one
            each: M + (l/L) V), "chebyshev" (T_n(l/L)) or "learned" (one coefficient per layer, block and parameter,
            trained, and interpolated over l/L for another depth).
        weight_scales (`bool`): whether each layer has factors of its own on the rows and columns of its matrices,
            diag(r_l) W_l diag(c_l), trained, and interpolated over l/L for another depth (the diagonals of FINE,
            CVPR-26, in the blocks' own axes).
        token_embedding_rank (`int`, *optional*): the token embedding is stored as a product of [vocabulary, rank] and
            [rank, width] (ALBERT, arXiv 1909.11942); None stores it whole. Descendants have it whole.
        scale_norms (`bool` or `list[str]`): whether a slice of width w multiplies its LayerNorm weights by sqrt(W/w),
            as suits a gene whose leading channels hold most of the residual stream; a list names the encoders
            ("image", "text") that do.
        logit_scale_init_value (`float`): natural logarithm of the initial logit scale, as in CLIP.
        initializer_factor (`float`): scales all initialisation, as in CLIP.
        family (`str`): which models the ancestor and the descendants are, one of `families.FAMILIES`: "clip",
            "metaclip_2", "siglip" or "vit". The sub-configs are of the family's classes.
        id2label (`dict`, *optional*): the labels of an image gene; `{}` for one of a ViT without a classifier.
        ancestor (`dict`, *optional*): where the gene comes from: `id`, `revision` (commit), `class`, `parameters`.
        recipe (`dict`, *optional*): how it was made: data, steps, losses, seconds, hardware, versions.

    ```python
    >>> from mmlg_hf import LearngeneConfig, LearngeneModel
    >>> image = {"hidden_size": 192, "num_attention_heads": 6, "intermediate_size": 768}
    >>> text = {"hidden_size": 128, "num_attention_heads": 4, "intermediate_size": 512}
    >>> config = LearngeneConfig(vision_config=image, text_config=text, num_multimodal_blocks=1, mixing="linear")
    >>> gene = LearngeneModel(config)
    ```
    """

    model_type = "learngene"
    sub_configs = {"vision_config": CLIPVisionConfig, "text_config": CLIPTextConfig}
    has_no_defaults_at_init = True  # read by transformers 5.13, which builds a default config to save differences to

    vision_config: dict | PreTrainedConfig | None = None
    text_config: dict | PreTrainedConfig | None = None
    projection_dim: int = 512
    num_multimodal_blocks: int = 1
    num_unimodal_blocks: int = 1
    mixing: str = "linear"
    weight_scales: bool = False
    token_embedding_rank: int | None = None
    scale_norms: bool | list[str] = False
    logit_scale_init_value: float | int = 2.6592
    initializer_factor: float | int = 1.0
    family: str = "clip"
    ancestor: dict[str, Any] | None = None
    recipe: dict[str, Any] | None = None

    def __post_init__(self, **kwargs):
        if self.vision_config is None:
            self.vision_config = {}
        family = read_family(self.family)
        if family.image_only and self.text_config is not None:
            raise LearngeneError(f'there is a text_config, but family is "{family.name}", which reads no texts')
        check_size("projection_dim", self.projection_dim)
        _check_labels(kwargs)
        for name, kind in family.encoder_configs.items():
            given = getattr(self, name)
            if given is None:
                continue
            fields = given if isinstance(given, dict) else given.to_dict()
            _check_labels(fields, f"{name}.")
            _check_encoder(name, {**kind.__dict__, **fields})  # before stock code divides by what it holds
            decided = self._decided_fields(name, fields)
            if not isinstance(given, kind) or any(getattr(given, key) != value for key, value in decided.items()):
                setattr(self, name, kind(**{**fields, "model_type": kind.model_type, **decided}))
        super().__post_init__(**kwargs)

    def _decided_fields(self, name: str, fields: dict[str, Any]) -> dict[str, int]:
        """What the gene decides of an encoder's fields: mostly the one that says its embedding's size.

        A SigLIP's image encoder, whose own width it is, has none.

        Of the encoders the image encoder comes first, and its width becomes the `projection_dim` of a SigLIP.
        """
        if self.kin.image_only:
            return {"qkv_bias": True}  # the blocks have one, of zeros where the ancestor had none
        if not self.kin.embeds_at_width:
            return {"projection_dim": self.projection_dim}
        if name == "vision_config":
            if not fields.get("vision_use_head", True):
                raise LearngeneError("vision_use_head is False: without its head a SigLIP does not embed images")
            self.projection_dim = fields.get("hidden_size", self.kin.encoder_configs[name].hidden_size)
            return {}
        given = fields.get("projection_size")
        if given is not None and given != self.projection_dim:
            raise LearngeneError(
                f"projection_size of text_config is {given}: the text embedding of a SigLIP has the size of the image "
                f"encoder's width, {self.projection_dim}"
            )
        return {"projection_size": self.projection_dim}

    @property
    def kin(self) -> Family:
        """The entry of `families.FAMILIES` that this gene's `family` names."""
        return read_family(self.family)

    @property
    def kind(self) -> str:
        """What the auxiliary model is: "multimodal", of images alone a "classifier", or one that gives "features"."""
        if self.text_config is not None:
            return "multimodal"
        return "classifier" if self.num_labels else "features"

    @property
    def encoder_configs(self) -> dict[str, Any]:
        """The sub-configs by modality, "image" and, unless this is an image gene, "text"."""
        configs = {"image": self.vision_config, "text": self.text_config}
        return {modality: config for modality, config in configs.items() if config is not None}

    def scales_norms(self, modality: str) -> bool:
        """Whether slices of one encoder, "image" or "text", scale their LayerNorms: see `scale_norms`."""
        return self.scale_norms if isinstance(self.scale_norms, bool) else modality in self.scale_norms

    @property
    def head_size(self) -> int:
        """Size of one attention head of the image encoder, whose widths are multiples of it."""
        return self.vision_config.hidden_size // self.vision_config.num_attention_heads  # type: ignore[union-attr]

    @property
    def unshared(self) -> tuple[str, ...]:
        """What of a layer the multimodal blocks lack, since the encoders cannot share it: "self_attn", "mlp" or both.

        A head of one encoder is no head of the other where the sizes of heads differ, nor is a slice of one's MLP the
        other's where the ratios of MLP to width do. Each encoder then has as many blocks of its own in their place.
        """
        if self.text_config is None:
            return ()
        vision: Any = self.vision_config
        text: Any = self.text_config
        heads = [config.hidden_size // config.num_attention_heads for config in (vision, text)]
        alike = {
            "self_attn": heads[0] == heads[1],
            "mlp": vision.intermediate_size * text.hidden_size == text.intermediate_size * vision.hidden_size,
        }
        return tuple(part for part, shared in alike.items() if not shared)

    def explain_unshared(self) -> str | None:
        """Say in one sentence what the multimodal blocks lack and why; None where they lack nothing."""
        if not (self.num_multimodal_blocks and self.unshared):
            return None
        encoders = self.encoder_configs.values()
        heads = " and ".join(str(c.hidden_size // c.num_attention_heads) for c in encoders)
        ratios = " and ".join(f"{c.intermediate_size / c.hidden_size:g}" for c in encoders)
        reasons = {
            "self_attn": f"attention (heads of {heads} channels)",
            "mlp": f"MLP (ratios to the width of {ratios})",
        }
        apart = " and ".join(reasons[part] for part in self.unshared)
        return (
            f"the image and the text encoder cannot share their {apart}: "
            "each has blocks of its own there, and the multimodal blocks hold the rest"
        )

    @property
    def widest(self) -> Any:
        """The sub-config of the wider encoder, at whose width the multimodal blocks are stored."""
        return max(self.encoder_configs.values(), key=lambda config: config.hidden_size)

    def descendant_config(self, depth: Size = None, width: Size = None, modality: str = "multimodal") -> Any:
        """Return the stock config of a descendant.

        Args:
            depth: layers, one number or a (vision, text) pair; None keeps the gene's own. May exceed the gene's.
            width: `hidden_size`, one number or a (vision, text) pair; None keeps the gene's own. A multiple of the
                head size, at most the gene's width. One number sets the wider encoder, the other keeps the gene's
                ratio, rounded to its head size.
            modality: "multimodal", "image" or "text". The side left out keeps the gene's own size.

        Returns:
            the family's config, such as `CLIPConfig`, or `ViTConfig` for an image gene of a ViT. The embedding of a
            SigLIP is as large as its image encoder is wide: that of the descendant, or where the descendant has none
            that of the gene.

        Raises:
            LearngeneError: naming the value, and what is allowed.
        """
        self.check_modality(modality)
        wanted = {"image": ("image",), "text": ("text",)}.get(modality, tuple(self.encoder_configs))
        depths = _pair(depth, "depth")
        widths = self._widths(width, wanted)
        built: dict[str, Any] = {}
        for side, encoder in enumerate(("image", "text")):
            own = self.encoder_configs.get(encoder)
            if own is None:
                continue
            chosen = own.to_dict()
            if encoder in wanted:
                chosen |= {"num_hidden_layers": _check_depth(depths[side], own.num_hidden_layers)}
                chosen |= self._width_fields(own, widths[encoder], encoder)
            built["vision_config" if encoder == "image" else "text_config"] = chosen
        if self.kin.image_only:
            return self.kin.config_class(**built["vision_config"])
        if self.kin.embeds_at_width:
            if "text_config" in built:
                built["text_config"]["projection_size"] = built["vision_config"]["hidden_size"]
            return self.kin.config_class(**built)
        return self.kin.config_class(
            **built, projection_dim=self.projection_dim, logit_scale_init_value=float(self.logit_scale_init_value)
        )

    def check_modality(self, modality: str) -> None:
        """Raise a `LearngeneError` unless this gene can grow that modality."""
        if modality not in MODALITIES:
            raise LearngeneError(f"modality is {modality!r}: it takes one of {', '.join(map(repr, MODALITIES))}")
        if self.text_config is None and modality != "image":
            raise LearngeneError(
                f'modality is {modality!r}, but this is an image gene: it grows modality "image" only'
            )

    def _widths(self, width: Size, wanted: tuple[str, ...]) -> dict[str, int]:
        """Work out each wanted encoder's width from one number or a pair."""
        owns = {encoder: config.hidden_size for encoder, config in self.encoder_configs.items()}
        if isinstance(width, (tuple, list)):
            pair = _pair(width, "width")
            return {
                encoder: owns[encoder] if chosen is None else chosen
                for encoder, chosen in zip(("image", "text"), pair, strict=True)
                if encoder in wanted
            }
        if width is None:
            return {encoder: owns[encoder] for encoder in wanted}
        _check_whole("width", width)
        if len(wanted) == 1:
            return {wanted[0]: width}
        widest = max(owns, key=lambda encoder: owns[encoder])
        self._width_fields(self.encoder_configs[widest], width, widest)  # refuse the number given, not one derived
        chosen = {}
        for encoder, config in self.encoder_configs.items():
            head = config.hidden_size // config.num_attention_heads
            share = width * config.hidden_size / owns[widest]
            chosen[encoder] = max(head, round(share / head) * head)
        return chosen

    def _width_fields(self, own: Any, width: int, encoder: str) -> dict[str, int]:
        """Check one encoder's width and derive heads and MLP size from it."""
        _check_whole("width", width)
        head = own.hidden_size // own.num_attention_heads
        if width > own.hidden_size:
            raise LearngeneError(
                f"width {width} is above the {encoder} encoder's {own.hidden_size} in this gene: a slice cannot be "
                f"wider than its gene, so extract a gene from an ancestor of width {width} or more"
            )
        if width % head:
            below = max(head, width // head * head)
            near = sorted({below, min(below + head, own.hidden_size)})
            raise LearngeneError(
                f"width {width} is no multiple of the head size {head}: take {' or '.join(map(str, near))}"
            )
        return {
            "hidden_size": width,
            "num_attention_heads": width // head,
            "intermediate_size": own.intermediate_size * width // own.hidden_size,
        }

    def validate_architecture(self):
        """Raise a `LearngeneError` for a gene that cannot be; run at construction and at save."""
        for name in self.sub_configs:
            if getattr(self, name) is not None:
                _check_encoder(name, getattr(self, name).__dict__)
        for name in ("logit_scale_init_value", "initializer_factor"):
            _check_real(name, getattr(self, name))
        _check_stored("", self.__dict__)
        if self.mixing not in MIXINGS:
            raise LearngeneError(f"mixing is {self.mixing!r}: it takes one of {', '.join(map(repr, MIXINGS))}")
        for name in ("num_multimodal_blocks", "num_unimodal_blocks"):
            if getattr(self, name) < 0:
                raise LearngeneError(f"{name} is {getattr(self, name)}: it cannot be negative")
            check_size(name, max(getattr(self, name), 1), MAX_LAYERS)
            if self.mixing == "linear" and getattr(self, name) > 2:
                raise LearngeneError(
                    f'{name} is {getattr(self, name)}, but mixing "linear" has two basis functions (1, l/L): '
                    'use at most 2 blocks, or mixing "chebyshev" or "learned"'
                )
        if self.mixing == "shared-slope" and (self.num_multimodal_blocks, self.num_unimodal_blocks) != (1, 1):
            raise LearngeneError(
                f"num_multimodal_blocks is {self.num_multimodal_blocks} and num_unimodal_blocks "
                f'{self.num_unimodal_blocks}, but mixing "shared-slope" takes 1 and 1: use "linear", "chebyshev" or '
                '"learned"'
            )
        if self.num_multimodal_blocks + self.num_unimodal_blocks == 0:
            raise LearngeneError("num_multimodal_blocks and num_unimodal_blocks are both 0: a gene needs one block")
        if self.text_config is None and self.num_multimodal_blocks:
            raise LearngeneError(
                f"num_multimodal_blocks is {self.num_multimodal_blocks}, but there is no text_config to share blocks "
                "with: an image gene has num_multimodal_blocks=0"
            )
        if self.kind == "features" and not self.kin.image_only:
            raise LearngeneError(
                f"id2label is empty, but an image gene of {self.kin.title} is a classifier: give it labels"
            )
        if not isinstance(self.scale_norms, bool) and not set(self.scale_norms) <= {"image", "text"}:
            raise LearngeneError(f'scale_norms is {self.scale_norms}: it takes True, False, or of "image" and "text"')
        if self.token_embedding_rank is not None:
            self._check_rank(self.token_embedding_rank)

    def _check_rank(self, rank: int):
        if self.text_config is None:
            raise LearngeneError(f"token_embedding_rank is {rank}, but an image gene (text_config None) has no tokens")
        width = self.text_config.hidden_size  # type: ignore[union-attr]
        if not 0 < rank < width:
            raise LearngeneError(
                f"token_embedding_rank is {rank}: it takes 1 to {width - 1}, below the text encoder's width, or None "
                "for a token embedding that is stored whole"
            )


def _pair(value: Size, name: str) -> tuple[int | None, int | None]:
    """Read one number or a (vision, text) pair."""
    if isinstance(value, (tuple, list)):
        if len(value) != 2:
            raise LearngeneError(f"{name} is {value!r}: give one number or a (vision, text) pair")
        return value[0], value[1]
    return value, value


def _check_whole(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise LearngeneError(f"{name} is {value!r}: it takes a whole number of at least 1, or None for the gene's own")


def _check_depth(depth: int | None, own: int) -> int:
    if depth is None:
        return own
    _check_whole("depth", depth)
    if depth > MAX_LAYERS:
        raise LearngeneError(f"depth is {_shown(depth)}: it takes at most {MAX_LAYERS} layers")
    return depth


def check_size(name: str, value: Any, most: int = MAX_SIZE) -> None:
    """Raise a `LearngeneError` unless a config's value is a whole number from 1 to `most`."""
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise LearngeneError(f"{name} is {_shown(value)}: it takes a whole number from 1 to {most}")


def _check_real(name: str, value: Any, most: float = math.inf) -> None:
    real = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300
    if not (real and value <= most and (value >= 0 or name == "logit_scale_init_value")):
        at_most = f" of at most {most:g}" if most < math.inf else ""
        raise LearngeneError(f"{name} is {_shown(value)}: it takes a finite number{at_most}, not below 0")


def _check_encoder(name: str, fields: dict[str, Any]) -> None:
    """Raise a `LearngeneError` for a value that no encoder of a gene can have; `fields` are those of a sub-config."""
    for field in (field for field in (*_SIZES, *_OWN_SIZES[name]) if field in fields):
        check_size(f"{field} of {name}", fields[field], MAX_LAYERS if field == "num_hidden_layers" else MAX_SIZE)
    _check_stored(f" of {name}", fields)
    width, heads = fields["hidden_size"], fields["num_attention_heads"]
    if width % heads:
        raise LearngeneError(
            f"hidden_size of {name} is {width} and num_attention_heads {heads}: the former must be a multiple of it"
        )
    if name == "vision_config" and fields["patch_size"] > fields["image_size"]:
        raise LearngeneError(f"patch_size is {fields['patch_size']}, above the image_size {fields['image_size']}")
    for field in (field for field in ("layer_norm_eps", "initializer_range", "initializer_factor") if field in fields):
        _check_real(f"{field} of {name}", fields[field])
    for field in ("attention_dropout", "attention_probs_dropout_prob", "hidden_dropout_prob"):
        if field in fields:
            _check_real(f"{field} of {name}", fields[field], most=1)
    if fields.get("pooler_output_size") is not None:
        check_size(f"pooler_output_size of {name}", fields["pooler_output_size"])
    if not isinstance(fields["hidden_act"], str):
        raise LearngeneError(f"hidden_act of {name} is {_shown(fields['hidden_act'])}: it takes an activation's name")
    eos = fields.get("eos_token_id", 0)
    if name == "text_config" and (isinstance(eos, bool) or not isinstance(eos, int) or not 0 <= eos <= MAX_SIZE):
        raise LearngeneError(f"eos_token_id of {name} is {_shown(eos)}: it takes the id of the token that ends a text")


def _check_stored(of: str, fields: dict[str, Any]) -> None:
    """Raise a `LearngeneError` for a type of weights that a gene is not stored in, or for quantised ones."""
    for name in ("dtype", "torch_dtype"):
        given = fields.get(name)
        if given is not None and str(given).removeprefix("torch.") not in _STORED_DTYPES:
            raise LearngeneError(f"{name}{of} is {_shown(given)}: it takes one of {', '.join(_STORED_DTYPES)}")
    if fields.get("quantization_config") is not None:
        raise LearngeneError(f"there is a quantization_config{of}: a gene is stored as it is, not quantised")


def _check_labels(fields: dict[str, Any], prefix: str = "") -> None:
    """Refuse a number of labels before transformers names each of them."""
    if fields.get("num_labels") is not None:
        check_size(f"{prefix}num_labels", fields["num_labels"], MAX_LABELS)


def _shown(value: Any) -> str:
    """A value as an error shows it, short."""
    try:
        text = repr(value)
    except ValueError:  # an integer of more digits than Python prints
        return "an integer of thousands of digits"
    return text if len(text) <= 60 else f"{text[:50]}..."


__all__ = ["LearngeneConfig"]
