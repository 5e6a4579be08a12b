"""Joining an image encoder and a text encoder into one model: `align`, and the processor that goes with it."""

import os
from math import log
from typing import Any

import torch
from transformers import (
    AutoTokenizer,
    PreTrainedModel,
    VisionTextDualEncoderProcessor,
)

from ..checkpoints import AutoImageProcessor
from ..data.texts import check_tokenizer, pads_to_one_length
from ..errors import LearngeneError, first_line
from ..training.modes import evaluating
from .configuration import MAX_LOGIT_SCALE, MIN_LOGIT_SCALE, DualEncoderConfig
from .dual_encoder import DualEncoderModel
from .encoders import choose_dtype, load_encoder, record_base
from .layers import cut_layers
from .pooling import check_pooling, default_pooling
from .recipes import parts_of


def align(
    vision: str | os.PathLike | PreTrainedModel,
    text: str | os.PathLike | PreTrainedModel,
    recipe: str = "lilt",
    *,
    vision_pooling: str | None = None,
    text_pooling: str | None = None,
    vision_layers: int | None = None,
    text_layers: int | None = None,
    projection_dim: int = 256,
    projection_head: str = "linear",
    head_expansion: int | None = None,
    structure_weight: float = 0.0,
    temperature: float = 0.07,
    adapter_reduction: int = 4,
    lora_rank: int | None = None,
    vision_revision: str | None = None,
    text_revision: str | None = None,
    dtype: torch.dtype | str | None = torch.float32,
    **kwargs: Any,
) -> DualEncoderModel:
    """Join an image encoder and a text encoder, ready to be aligned by contrastive training (LilT, arXiv 2303.11866).

    The result takes and returns what `VisionTextDualEncoderModel` does. Train it with `mmlg_hf.ContrastiveTrainer` and
    the processor of `processor_of_pair`.

    Args:
        vision: a Hub id, a folder or a model: a CLIP vision descendant, ViT, DeiT, DINOv2, Swin, SigLIP, ... A model
            is taken over without its head, not copied.
        text: the same: a CLIP text descendant, BERT, MiniLM, XLM-R, DistilBERT, ...
        recipe: what trains beside the new projections and the temperature: "full" (all), "lit" (the text encoder),
            "projections" (nothing), "layernorm", "bitfit", "adapters", "lilt" (adapters and LayerNorms), "lora", or
            several of layernorm, bitfit, adapters, lora joined by "+".
        vision_pooling: "class" (the class token), "mean" (over patches) or "pooler" (the encoder's own). None takes
            what the encoder was trained for.
        text_pooling: "class", "mean" (over tokens), "end" (the last token) or "pooler". None takes "end" for encoders
            that read from left to right and "class" for others; sentence encoders such as MiniLM want "mean".
        vision_layers: how many of the image encoder's layers are kept, from the first; None keeps all. `choose_layers`
            finds those of two encoders that are most alike; what lies above is neither computed nor saved.
        text_layers: the same of the text encoder.
        projection_dim: size of the shared space.
        projection_head: "linear", "mlp" or "glu" (SAIL's gated head, arXiv 2412.04616), see `HEADS`.
        head_expansion: the inner layer of an MLP or a GLU has this many times the state's width; None takes 4 and 8.
        structure_weight: of STRUCTURE's regulariser (arXiv 2506.16895), which keeps the encoders' neighbourhoods in
            the shared space: for few pairs. 0 leaves it out; the paper has 10.
        temperature: the start of the learnt temperature, which training keeps within [0.001, 0.5].
        adapter_reduction: layer-wise adapters' bottleneck is the width divided by this.
        lora_rank: rank of LoRA's updates; None takes 1/24 of each encoder's width.
        vision_revision: branch, tag or commit of `vision` on the Hub; None takes main.
        text_revision: the same of `text`.
        dtype: data type of the whole pair, torch's or its name. "auto" keeps the encoders' own, which must be one;
            None is float32.
        kwargs: `token`, `cache_dir`, `local_files_only`, ... for encoders loaded by name.

    Returns:
        the pair in training mode, on the accelerator that an encoder is on, else on the CPU.

    Raises:
        LearngeneError: if an encoder cannot be loaded, is of the other modality or gives no state to pool, or if a
            recipe, a pooling, a number or a data type is none.
    """
    parts_of(recipe)
    wanted = choose_dtype(torch.float32 if dtype is None else dtype)
    if not 0.001 <= temperature <= 0.5:
        raise LearngeneError(f"temperature is {temperature}: it takes 0.001 to 0.5, which training keeps it within")
    settings: dict[str, Any] = {}
    encoders: dict[str, PreTrainedModel] = {}
    given = {
        "vision": (vision, vision_pooling, vision_revision, vision_layers),
        "text": (text, text_pooling, text_revision, text_layers),
    }
    for modality, (source, pooling, revision, kept) in given.items():
        encoder = load_encoder(source, modality, revision=revision, dtype=wanted or "auto", **kwargs)
        settings[f"{modality}_pooling"] = check_pooling(modality, pooling or default_pooling(modality, encoder.config))
        settings[f"{modality}_base"] = record_base(source, encoder, modality, **kwargs)
        encoders[modality] = cut_layers(encoder, kept, modality)
    if not isinstance(text, PreTrainedModel) and pads_to_one_length(encoders["text"].config):
        _take_padding(encoders["text"].config, text, text_revision, kwargs)
    device, dtype = _one_device(encoders), wanted or _one_dtype(encoders)
    config = DualEncoderConfig.from_vision_text_configs(
        encoders["vision"].config,
        encoders["text"].config,
        projection_dim=projection_dim,
        logit_scale_init_value=min(max(log(1 / temperature), MIN_LOGIT_SCALE), MAX_LOGIT_SCALE),
        recipe=recipe,
        projection_head=projection_head,
        head_expansion=head_expansion,
        structure_weight=structure_weight,
        adapter_reduction=adapter_reduction,
        lora_rank=lora_rank,
        **settings,
    )
    model: Any = DualEncoderModel(config, encoders["vision"], encoders["text"])
    try:
        model.to(device=device, dtype=dtype)
    except (ValueError, RuntimeError, NotImplementedError) as error:
        raise LearngeneError(f"the encoders cannot be brought to {dtype} on {device}: {first_line(error)}") from error
    _check_encoders(model)
    return model.train()


def _one_dtype(encoders: dict[str, PreTrainedModel]) -> torch.dtype:
    own = {modality: str(encoder.dtype).removeprefix("torch.") for modality, encoder in encoders.items()}
    if len(set(own.values())) > 1:
        raise LearngeneError(
            f'dtype is "auto", and the vision encoder is in {own["vision"]}, the text encoder in {own["text"]}: name '
            "the one that the pair shall have"
        )
    return encoders["vision"].dtype


def _one_device(encoders: dict[str, PreTrainedModel]) -> torch.device:
    """The accelerator that one encoder or both are on, else the device of both."""
    devices = {modality: {value.device for value in encoder.parameters()} for modality, encoder in encoders.items()}
    together = set().union(*devices.values())
    accelerators = together - {torch.device("cpu")}
    if len(accelerators) > 1 or (len(together) > 1 and torch.device("meta") in together):
        told = ", the ".join(f"{modality} encoder on {_listed(found)}" for modality, found in devices.items())
        raise LearngeneError(f"the {told}: load both on one device")
    return next(iter(accelerators or together))


def _listed(devices: set[torch.device]) -> str:
    return " and ".join(sorted(map(str, devices)))


def _take_padding(config: Any, source: str | os.PathLike, revision: str | None, kwargs: dict[str, Any]) -> None:
    """Take the padding token from the tokenizer beside an encoder that reads it: its config may hold another's."""
    hub = {name: value for name, value in kwargs.items() if name in ("token", "cache_dir", "local_files_only")}
    try:
        padding = AutoTokenizer.from_pretrained(source, revision=revision, **hub).pad_token_id
    except (OSError, ValueError):
        return  # processor_of_pair takes it from the tokenizer that it is given
    config.pad_token_id = config.pad_token_id if padding is None else padding


def _check_encoders(model: DualEncoderModel) -> None:
    """Embed a blank image and a blank text, so that an encoder that cannot be pooled is met here."""
    if model.logit_scale.is_meta:
        return
    tokens = torch.zeros(1, 2, dtype=torch.long, device=model.device)
    probes = {
        "vision": lambda: model.get_image_features(_blank_image(model)),
        "text": lambda: model.get_text_features(tokens),
    }
    for modality, probe in probes.items():
        encoder = getattr(model, f"{modality}_model")
        try:
            with torch.no_grad(), evaluating(model):
                probe()
        except LearngeneError:
            raise
        except (ValueError, TypeError, RuntimeError, AttributeError, IndexError) as error:
            pooling = getattr(model.config, f"{modality}_pooling")
            raise LearngeneError(
                f"the {modality} encoder {type(encoder).__name__} gives no usable state with "
                f"{modality}_pooling={pooling!r} ({first_line(error)}): choose another pooling or another encoder"
            ) from error


def _blank_image(model: DualEncoderModel) -> torch.Tensor:
    config = model.config.vision_config
    size = getattr(config, "image_size", None) or 224
    height, width = size if isinstance(size, (list, tuple)) else (size, size)
    return torch.zeros(1, getattr(config, "num_channels", 3), height, width, device=model.device, dtype=model.dtype)


def processor_of_pair(
    model: DualEncoderModel, *, image_processor: Any = None, tokenizer: Any = None, **kwargs: Any
) -> VisionTextDualEncoderProcessor:
    """Return the processor for an aligned pair: its image encoder's image processor and its text encoder's tokenizer.

    Args:
        model: from `align` or loaded.
        image_processor: an image processor, or where to load one; None takes the image encoder's recorded place.
        tokenizer: a tokenizer, or where to load one; None takes the text encoder's recorded place.
        kwargs: `token`, `cache_dir`, `local_files_only`, ...

    A SigLIP text encoder, which reads padding, learns from the tokenizer what the model is to pad with.

    Raises:
        LearngeneError: if one cannot be found, the images it makes are not of the size that the encoder takes, or the
            tokenizer is not the text encoder's.
    """
    image_processor = _load_part(
        AutoImageProcessor, image_processor, "image_processor", model.config.vision_base, kwargs
    )
    tokenizer = _load_part(AutoTokenizer, tokenizer, "tokenizer", model.config.text_base, kwargs)
    _check_image_processor(model, image_processor)
    text_config: Any = model.config.text_config
    check_tokenizer(tokenizer, text_config)
    if pads_to_one_length(text_config) and tokenizer.pad_token_id is not None:
        text_config.pad_token_id = tokenizer.pad_token_id  # the pair pads shorter texts with it
    return VisionTextDualEncoderProcessor(image_processor, tokenizer)


def _load_part(auto: Any, given: Any, name: str, base: dict[str, Any] | None, kwargs: dict[str, Any]) -> Any:
    if given is not None and not isinstance(given, (str, os.PathLike)):
        return given
    if given is None and base is None:
        raise LearngeneError(f"the encoder was made in memory, so no {name} is known for it: pass {name}=...")
    if given is None and (base or {}).get("grown"):
        return _of_gene(name, base or {}, kwargs)
    source = (base or {})["name"] if given is None else os.fspath(given)
    revision = (base or {}).get("revision") if given is None else None
    try:
        return auto.from_pretrained(source, revision=revision, **kwargs)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        reason = first_line(error)
        raise LearngeneError(f"no {name} can be loaded from {source!r} ({reason}): pass {name}=...") from error


def _of_gene(name: str, base: dict[str, Any], kwargs: dict[str, Any]) -> Any:
    """The image processor or the tokenizer that is stored with a gene."""
    from ..genes import load_processor

    revision = {"revision": base["revision"]} if base.get("revision") else {}
    processor = load_processor(base["name"], **revision, **kwargs)
    return getattr(processor, name, processor)


def _check_image_processor(model: DualEncoderModel, image_processor: Any) -> None:
    from PIL import Image

    pixels = image_processor(images=[Image.new("RGB", (64, 64))], return_tensors="pt")["pixel_values"]
    try:
        with torch.no_grad(), evaluating(model):
            model.get_image_features(pixels.to(model.device, model.dtype))
    except (ValueError, RuntimeError) as error:
        wanted = getattr(model.config.vision_config, "image_size", None)
        raise LearngeneError(
            f"the image processor makes images of {list(pixels.shape[1:])}, which the image encoder does not take: "
            f"its image_size is {wanted}. Set the processor's size, or pass the encoder's own"
        ) from error


load_processor = processor_of_pair  # its first name, which `mmlg_hf.load_processor` has for genes' processors
