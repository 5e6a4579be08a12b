"""What a gene can grow: parameters, megabytes and FLOPs of each descendant, worked out without computing a weight."""

from collections.abc import Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from .configuration_learngene import MODALITIES, LearngeneConfig, Size
from .errors import LearngeneError
from .expansion import TOKEN_EMBEDDING, TOKEN_PROJECTION
from .families import FAMILIES, encoders_of, family_of
from .growth import config_of, descendant_class

# The shares of the gene's own depth and width that are shown when none are asked for.
SHARES = (1 / 3, 2 / 3, 1.0)
_TOKEN_TABLES = tuple(name.removeprefix("text_model.") for name in (TOKEN_EMBEDDING, TOKEN_PROJECTION))


@dataclass(frozen=True)
class ModelSize:
    """The size of one model.

    Attributes:
        modality: "multimodal", "image" or "text".
        depth: layers, `(vision, text)` for a multimodal model.
        width: `hidden_size`, `(vision, text)` for a multimodal model.
        parameters: their number.
        megabytes: millions of bytes of the weights in float32, as a descendant is saved.
        gflops_image: 1e9 floating point operations of embedding (or classifying) one image, a multiply-add counted as
            two; matrix products and convolutions alone. None for a text model.
        gflops_text: likewise for one text of the greatest length. None for an image model.
        share: `parameters` over those of the gene's whole ancestor; None where the gene does not say how many it has.
        vocabulary: those of `parameters` that are the token embedding; 0 of an image model.
    """

    modality: str
    depth: int | tuple[int, int]
    width: int | tuple[int, int]
    parameters: int
    megabytes: float
    gflops_image: float | None
    gflops_text: float | None
    share: float | None = None
    vocabulary: int = 0


def measure_size(
    config: Any, modality: str = "multimodal", *, num_labels: int | None = None, ancestor: int | None = None
) -> ModelSize:
    """Measure the stock model of a config: parameters are counted, and FLOPs traced, on tensors without memory.

    Args:
        config: of a `CLIPModel` or another family's whole model, e.g. an ancestor's own or
            `LearngeneConfig.descendant_config(...)`.
        modality: "multimodal", "image" or "text": the model to measure.
        num_labels: with "image" or "text", classes of a model with a head; None measures the model without one.
        ancestor: parameters of the ancestor, for the share; None leaves it out.

    Raises:
        LearngeneError: for an unknown modality, or one that the model has not.
    """
    if modality not in MODALITIES:
        raise LearngeneError(f"modality is {modality!r}: it takes one of {', '.join(map(repr, MODALITIES))}")
    encoders = encoders_of(config)
    if modality != "image" and "text" not in encoders:
        raise LearngeneError(f"modality is {modality!r}, but a {type(config).__name__} describes no text encoder")
    model = _memoryless(config, modality, num_labels)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    parts = [part for side, part in encoders.items() if modality in (side, "multimodal")]
    depths, widths = (tuple(getattr(part, name) for part in parts) for name in ("num_hidden_layers", "hidden_size"))
    return ModelSize(
        modality,
        depths if len(parts) == 2 else depths[0],
        widths if len(parts) == 2 else widths[0],
        parameters,
        4 * parameters / 1e6,
        None if modality == "text" else _gflops(model, "get_image_features", _pixels(encoders["image"])),
        None if modality == "image" else _gflops(model, "get_text_features", _tokens(encoders["text"])),
        parameters / ancestor if ancestor else None,
        vocabulary_parameters(model),
    )


def vocabulary_parameters(model: nn.Module) -> int:
    """Count the parameters of a model's token embedding: one table, or the two factors that a gene may store."""
    return sum(parameter.numel() for name, parameter in model.named_parameters() if name.endswith(_TOKEN_TABLES))


def _memoryless(config: Any, modality: str, num_labels: int | None) -> nn.Module:
    """Build the stock model without memory for its weights."""
    config = deepcopy(config)  # building a model writes to its config
    with_head = num_labels is not None and modality != "multimodal"
    cls = descendant_class(family_of(config) or FAMILIES["clip"], modality, with_head)
    part = config_of(cls, config)
    if with_head:
        part.num_labels = num_labels
    with torch.device("meta"):
        # Eager attention is plain matrix products, which are counted alike on every machine.
        return cls._from_config(part, attn_implementation="eager").eval()


def _pixels(encoder: Any) -> torch.Tensor:
    return torch.empty(1, encoder.num_channels, encoder.image_size, encoder.image_size, device="meta")


def _tokens(encoder: Any) -> torch.Tensor:
    return torch.zeros(1, encoder.max_position_embeddings, dtype=torch.long, device="meta")


def _gflops(model: Any, method: str, inputs: torch.Tensor) -> float:
    """Of a whole model's method, or of the forward of a model of one modality, which has no such method."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        getattr(model, method, model)(inputs)
    return counter.get_total_flops() / 1e9


def descendant_sizes(
    config: LearngeneConfig,
    depths: Sequence[Size] | None = None,
    widths: Sequence[Size] | None = None,
    modalities: Sequence[str] | None = None,
    *,
    num_labels: int | None = None,
) -> list[ModelSize]:
    """Measure what a gene of this config grows, smallest first within each modality.

    Args:
        depths: as `from_learngene` takes them; None takes a third, two thirds and all of the gene's own layers.
        widths: likewise; None takes a third, two thirds and all of the gene's own width, by whole heads.
        modalities: None takes all that the gene can grow.
        num_labels: classes of the image models; None gives them no head, and an image gene's its own.

    Raises:
        LearngeneError: for a size or modality that the gene cannot grow.
    """
    if modalities is None:
        modalities = MODALITIES if config.text_config is not None else ("image",)
    if config.text_config is None and num_labels is None:
        num_labels = config.num_labels or None
    ancestor = (config.ancestor or {}).get("parameters")
    sizes = []
    for modality in modalities:
        config.check_modality(modality)
        own = config.encoder_configs["text"] if modality == "text" else config.encoder_configs["image"]
        reference = config.widest if modality == "multimodal" else own
        head = reference.hidden_size // reference.num_attention_heads
        for depth in depths or _default_depths(config, modality):
            for width in widths or [head * heads for heads in _shares_of(reference.hidden_size // head)]:
                grown = config.descendant_config(depth, width, modality)
                labels = num_labels if modality == "image" else None
                sizes.append(measure_size(grown, modality, num_labels=labels, ancestor=ancestor))
    return sizes


def _default_depths(config: LearngeneConfig, modality: str) -> list[Size]:
    wanted = config.encoder_configs.values() if modality == "multimodal" else [config.encoder_configs[modality]]
    shares = [_shares_of(encoder.num_hidden_layers) for encoder in wanted]
    longest = max(map(len, shares))
    padded = [[*[share[0]] * (longest - len(share)), *share] for share in shares]
    return [depth if len(depth) == 2 else depth[0] for depth in zip(*padded, strict=True)]


def _shares_of(whole: int) -> list[int]:
    return sorted({max(1, round(share * whole)) for share in SHARES})


def learngene_parameters(config: LearngeneConfig) -> int:
    """Count the parameters that a gene of this config stores."""
    from .modeling_learngene import class_of_gene

    with torch.device("meta"):
        return sum(parameter.numel() for parameter in class_of_gene(config)(config).parameters())


def format_size(value: int | Iterable[int]) -> str:
    """A depth or width as the command line shows and takes it, "6" or "6,4"."""
    return str(value) if isinstance(value, int) else ",".join(map(str, value))
