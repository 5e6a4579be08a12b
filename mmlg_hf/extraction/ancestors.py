"""The ancestor: loading it, reading off the gene it gives, and its outputs over a data set."""

import copy
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    AutoConfig,
    AutoProcessor,
    CLIPForImageClassification,
    CLIPModel,
    Dinov2ForImageClassification,
    Dinov2Model,
    MetaClip2ForImageClassification,
    MetaClip2Model,
    PreTrainedModel,
    SiglipModel,
    ViTForImageClassification,
    ViTModel,
)

from ..checkpoints import AutoImageProcessor, check_finite, load_config, load_model
from ..configuration_learngene import LearngeneConfig
from ..errors import LearngeneError, first_line
from ..expansion import TOKEN_EMBEDDING, TOKEN_PROJECTION, factor_table, take_slice
from ..families import encoders_of, family_of, why_refused
from ..modeling_encoders import encoder_sizes
from ..modeling_learngene import LearngeneMixin
from .open_clip import is_open_clip, load_open_clip, load_open_clip_processor

# What is distilled of an ancestor; the columns that carry it beside the data.
EMBEDDING_COLUMNS = ("ancestor_image_embeds", "ancestor_text_embeds")
FEATURE_COLUMNS = ("ancestor_class_token", "ancestor_mean_patch")
LOGITS_COLUMN = "ancestor_logits"

# The classes that can be loaded, by name; the first of a model type is what a config without a class means.
ANCESTORS: dict[str, type[PreTrainedModel]] = {
    cls.__name__: cls
    for cls in (
        *(CLIPModel, MetaClip2Model, SiglipModel, ViTModel, Dinov2Model),
        *(CLIPForImageClassification, MetaClip2ForImageClassification),
        *(ViTForImageClassification, Dinov2ForImageClassification),
    )
}
# What a bare ViT holds beside what its features are read from.
_NO_FEATURES = ("pooler.", "embeddings.mask_token")


def load_ancestor(ancestor: str | os.PathLike | PreTrainedModel, revision: str | None = None) -> PreTrainedModel:
    """Load the model to extract from, frozen, in evaluation mode and in float32, as a stock class.

    Args:
        ancestor: a Hub id, a folder or a model of one of the classes of `ANCESTORS`, or the folder or Hub id (with or
            without "hf-hub:") of an open_clip model, which becomes a `CLIPModel`. A model in memory is copied,
            whatever its dtype, its device and what holds it (DistributedDataParallel, `torch.compile`, offloading).
            A `ViTModel` comes without its pooler.
        revision: branch, tag or commit on the Hub; None takes main. The commit is recorded.

    Raises:
        LearngeneError: if it is none of these, lacks a tensor, or holds NaN or infinity.
    """
    if isinstance(ancestor, (str, os.PathLike)):
        model = _load_stored(os.fspath(ancestor), revision)
    else:
        model = _copy_in_memory(ancestor)
    return model.eval().requires_grad_(False)


def load_ancestor_processor(ancestor: PreTrainedModel) -> Any:
    """Load the processor stored with an ancestor, open_clip's too: of images alone for one without a text side.

    Raises:
        LearngeneError: if the ancestor was loaded from nowhere, or has none.
    """
    name, commit = ancestor.name_or_path, getattr(ancestor.config, "_commit_hash", None)
    if not name:
        raise LearngeneError("the ancestor is a model in memory that was loaded from nowhere: pass processor=")
    if _is_open_clip(name, commit):
        return load_open_clip_processor(name, revision=commit)
    auto: Any = AutoProcessor if reads_texts(ancestor) else AutoImageProcessor
    try:
        return auto.from_pretrained(name, revision=commit)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError) as error:
        raise LearngeneError(
            f"the ancestor {name!r} has no processor stored with it ({first_line(error)}): pass processor="
        ) from error


def _load_stored(name: str, revision: str | None) -> PreTrainedModel:
    plain = name.removeprefix("hf-hub:")
    # Of a Hub id transformers' own files are asked for first, so that what is wrong with it is said in their words.
    if (plain != name or os.path.isdir(plain)) and _is_open_clip(plain, revision):
        return load_open_clip(plain, revision=revision)
    try:
        config = load_config(AutoConfig, plain, "the ancestor", revision=revision)
    except LearngeneError:
        if not _is_open_clip(plain, revision):
            raise
        return load_open_clip(plain, revision=revision)
    kind = config.model_type
    of_type = (cls.__name__ for cls in ANCESTORS.values() if getattr(cls.config_class, "model_type", None) == kind)
    architecture = (config.architectures or [next(of_type, kind)])[0]
    if architecture not in ANCESTORS or why_refused(config):
        _refuse(f"{name!r} is a {architecture} (model type {kind!r})", config)
    # Pinned to the commit that was looked at, whatever happens to the branch meanwhile.
    commit = getattr(config, "_commit_hash", None) or revision
    cls, options = ANCESTORS[architecture], _options(ANCESTORS[architecture])
    return load_model(cls, plain, "the ancestor", revision=commit, dtype=torch.float32, **options)


def _refuse(told: str, config: Any) -> NoReturn:
    reason = why_refused(config)
    raise LearngeneError(
        f"the ancestor {told}, which no gene comes from{f': {reason}' if reason else ''}. Give a "
        f"{_listed(ANCESTORS)}, or an open_clip model"
    )


def _is_open_clip(name: str, revision: str | None) -> bool:
    try:
        return is_open_clip(name, revision=revision)
    except LearngeneError:
        return False  # no such repository: whoever loads from it says so


def _options(cls: type) -> dict[str, Any]:
    return {"add_pooling_layer": False} if cls is ViTModel else {}


def _listed(names: Iterable[str]) -> str:
    *most, last = names
    return f"{', '.join(most)} or {last}"


def _copy_in_memory(ancestor: Any) -> PreTrainedModel:
    """Build the stock class anew on the CPU: freezing and trimming must not reach the caller's model."""
    held = _unwrapped(ancestor)
    stock = next((cls for cls in ANCESTORS.values() if isinstance(held, cls)), None)
    config = getattr(held, "config", None)
    if stock is None or isinstance(held, LearngeneMixin) or why_refused(config):
        _refuse(f"is a {type(held).__name__}", config)
    with torch.random.fork_rng(devices=[]):  # the new model's own random start is written over
        # Attention in float32 and on any device, whatever kernel the caller's takes.
        model = stock._from_config(
            copy.deepcopy(config), dtype=torch.float32, attn_implementation="sdpa", **_options(stock)
        )
    state = _own_parameters(held)
    if stock is ViTModel:
        state = {key: value for key, value in state.items() if not key.startswith(_NO_FEATURES)}
    try:
        model.load_state_dict(state)
    except (RuntimeError, NotImplementedError) as error:
        raise LearngeneError(
            f"the ancestor's tensors are not those of a {stock.__name__} ({first_line(error)}): give the stock model, "
            "without adapters and not quantized"
        ) from error
    check_finite(model, "the ancestor")
    return model


def _unwrapped(model: Any) -> Any:
    """What DistributedDataParallel, DataParallel or `torch.compile` is around."""
    while isinstance(model, nn.Module):
        inner = getattr(model, "_orig_mod", None) or getattr(model, "module", None)
        if inner is None:
            break
        model = inner
    return model


def _own_parameters(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter, in float32 on the CPU, those that accelerate keeps elsewhere too."""
    state = {}
    for path, module in model.named_modules():
        hook = getattr(module, "_hf_hook", None)
        kept = [one.weights_map for one in getattr(hook, "hooks", [hook]) if getattr(one, "weights_map", None)]
        for name, parameter in module.named_parameters(recurse=False):
            value = kept[0][name] if parameter.is_meta and kept else parameter.detach()
            state[f"{path}.{name}" if path else name] = value.to("cpu", torch.float32)
    return state


def is_classifier(ancestor: PreTrainedModel) -> bool:
    """Say whether the ancestor is an image classifier, which gives an image gene by its logits (TLEG)."""
    return hasattr(ancestor, "classifier")


def reads_texts(ancestor: PreTrainedModel) -> bool:
    """Say whether the ancestor has a text side; without one its gene is an image gene."""
    return hasattr(ancestor, "text_model")


def output_columns(ancestor: PreTrainedModel) -> tuple[str, ...]:
    """The names of what is distilled of an ancestor."""
    if is_classifier(ancestor):
        return (LOGITS_COLUMN,)
    return EMBEDDING_COLUMNS if reads_texts(ancestor) else FEATURE_COLUMNS


def describe_ancestor(ancestor: PreTrainedModel, parameters: int) -> dict[str, Any]:
    """Return what a gene records of its ancestor."""
    return {
        "id": public_name(ancestor.name_or_path) if ancestor.name_or_path else None,
        "revision": getattr(ancestor.config, "_commit_hash", None),
        "class": type(ancestor).__name__,
        "parameters": parameters,
    }


def public_name(name: str | os.PathLike) -> str:
    """Return a Hub id whole, and of a local path its last part alone: the rest says nothing to others."""
    path = Path(os.fspath(name))
    local = path.exists() or path.is_absolute() or path.parts[:1] in (("~",), ("..",))
    return path.expanduser().resolve().name if local else os.fspath(name)


def gene_config(
    ancestor: PreTrainedModel,
    *,
    num_multimodal_blocks: int,
    num_unimodal_blocks: int,
    mixing: str,
    weight_scales: bool = False,
    depth: Any = None,
    width: Any = None,
    token_embedding_rank: int | None = None,
) -> LearngeneConfig:
    """Return the config of a gene whose auxiliary model has the ancestor's shape, or the size given.

    Args:
        token_embedding_rank: None, or the text encoder's width or more, stores the token embedding whole.
    """
    config = ancestor.config
    family: Any = family_of(config)
    shared: dict[str, Any] = {"num_unimodal_blocks": num_unimodal_blocks, "mixing": mixing, "family": family.name}
    shared |= {"weight_scales": weight_scales}
    if reads_texts(ancestor):
        shared |= {"text_config": config.text_config.to_dict(), "vision_config": config.vision_config.to_dict()}
        shared |= {"num_multimodal_blocks": num_multimodal_blocks}
        if not family.embeds_at_width:
            shared["projection_dim"] = config.projection_dim
    else:
        if num_multimodal_blocks:
            raise LearngeneError(
                f"num_multimodal_blocks is {num_multimodal_blocks}, but a {type(ancestor).__name__} has no text side "
                "to share blocks with: set num_multimodal_blocks=0 (TLEG: num_unimodal_blocks=2)"
            )
        shared |= {"vision_config": encoders_of(config)["image"].to_dict(), "num_multimodal_blocks": 0}
        labelled = is_classifier(ancestor)
        shared |= {name: getattr(config, name) if labelled else {} for name in ("id2label", "label2id")}
    if depth is not None or width is not None:
        modality = "multimodal" if reads_texts(ancestor) else "image"
        smaller = encoders_of(LearngeneConfig(**shared).descendant_config(depth, width, modality))
        shared["vision_config"] = smaller["image"].to_dict()
        if "text_config" in shared:
            shared["text_config"] = smaller["text"].to_dict()
    if token_embedding_rank is not None and "text_config" in shared:
        width = shared["text_config"]["hidden_size"]
        shared["token_embedding_rank"] = token_embedding_rank if token_embedding_rank < width else None
    return LearngeneConfig(**shared)


@torch.no_grad()
def copy_outer_weights(gene: Any, ancestor: PreTrainedModel) -> None:
    """Start everything that is no encoder layer from the ancestor's: leading slices where the gene is narrower."""
    own, theirs, kin = dict(gene.named_parameters()), dict(ancestor.named_parameters()), gene.config.kin
    for modality, config in gene.config.encoder_configs.items():
        for name, axes in kin.outer[modality].items():
            their_name = kin.name_in(type(ancestor), name)
            if name in own and their_name in theirs:
                weight = take_slice(theirs[their_name], axes, encoder_sizes(config))
                if name == TOKEN_EMBEDDING and TOKEN_PROJECTION in own:
                    weight, projection = factor_table(weight, own[name].shape[1])
                    own[TOKEN_PROJECTION].copy_(projection)
                own[name].copy_(weight)
    for name in kin.whole:
        if name in own and name in theirs:
            own[name].copy_(theirs[name])


@torch.no_grad()
def ancestor_outputs(ancestor: Any, inputs: dict[str, Any]) -> dict[str, Tensor]:
    """Return what the ancestor says of a batch, by `output_columns`.

    Logits [B, labels] of a classifier; of others normalised rows [B, D]: the embeddings of both sides, or of a ViT
    the class token and the mean of the patches.
    """
    pixels = inputs["pixel_values"].to(ancestor.dtype)
    if is_classifier(ancestor):
        return {LOGITS_COLUMN: ancestor(pixel_values=pixels).logits.float()}
    if not reads_texts(ancestor):
        tokens = ancestor(pixel_values=pixels).last_hidden_state.float()  # [B, 1 + patches, D]
        features = (tokens[:, 0], tokens[:, 1:].mean(1))
        return {name: F.normalize(f, dim=-1) for name, f in zip(FEATURE_COLUMNS, features, strict=True)}
    text = {name: inputs[name] for name in ("input_ids", "attention_mask") if name in inputs}
    embeds = (
        ancestor.get_image_features(pixel_values=pixels).pooler_output,
        ancestor.get_text_features(**text).pooler_output,
    )
    return {name: F.normalize(e.float(), dim=-1) for name, e in zip(EMBEDDING_COLUMNS, embeds, strict=True)}
