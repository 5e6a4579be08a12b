"""open_clip checkpoints as stock CLIP models: plain ViT text and image encoders, which is what CLIPs mostly are.

A folder or Hub repository of open_clip holds `open_clip_config.json` and `open_clip_model.safetensors` (or
`open_clip_pytorch_model.safetensors`). transformers has no conversion for them. Names and shapes are those of
`open_clip.CLIP`, where query, key and value are one matrix and projections are stored the other way round.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer
from transformers.utils.hub import extract_commit_hash

from ..errors import LearngeneError, first_line
from ..hub import explain_hub_errors

CONFIG = "open_clip_config.json"
WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "model.safetensors")

# What a config may hold beside what is read below, and with which values the architecture is still a plain CLIP.
_HARMLESS: dict[str, dict[str, Any]] = {
    "vision": {"head_width": 64, "patch_dropout": 0.0, "input_patchnorm": False, "attentional_pool": False,
               "global_average_pool": False, "ls_init_value": None, "no_ln_pre": False, "pos_embed_type": "learnable",
               "final_ln_after_pool": False, "pool_type": "tok", "output_tokens": False, "act_kwargs": None,
               "norm_kwargs": None, "block_type": None, "qk_norm": False, "scaled_cosine_attn": False,
               "scale_heads": False, "scale_attn_inner": False, "scale_attn": False, "scale_fc": False},
    "text": {"ls_init_value": None, "embed_cls": False, "pad_id": 0, "no_causal_mask": False, "proj_bias": False,
             "pool_type": "argmax", "proj_type": "linear", "final_ln_after_pool": False, "output_tokens": False,
             "act_kwargs": None, "norm_kwargs": None, "hf_tokenizer_name": None, "tokenizer_kwargs": None,
             "text_mask": "first", "eos_id": None, "use_pad_mask": False, "correct_cls_mask": False,
             "block_type": None, "qk_norm": False, "scaled_cosine_attn": False, "scale_heads": False,
             "scale_attn_inner": False, "scale_attn": False, "scale_fc": False},
}  # fmt: skip
_READ = {
    "vision": {"image_size", "layers", "width", "patch_size", "head_width", "mlp_ratio"},
    "text": {"context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio"},
}
_LAYER_NAMES = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}


def is_open_clip(name: str | os.PathLike, **hub: Any) -> bool:
    """Whether a folder or Hub repository holds an open_clip model and no transformers model."""
    return _find(name, (CONFIG,), **hub) is not None and _find(name, ("config.json",), **hub) is None


def load_open_clip(name: str | os.PathLike, **hub: Any) -> CLIPModel:
    """Load an open_clip model as a stock `CLIPModel` in float32 and evaluation mode.

    Args:
        name: a folder, or a Hub id, with or without open_clip's "hf-hub:".
        hub: `revision`, `token`, `cache_dir`, `local_files_only`.

    Raises:
        LearngeneError: the architecture is another (naming what differs), or tensors are missing, unexpected, of
            another shape, or damaged.
    """
    folder, weights = _files(name, **hub)
    config = clip_config(_read_config(folder), os.fspath(name))
    try:
        tensors = load_file(weights)
    except (SafetensorError, OSError) as error:
        raise LearngeneError(f"the weights of {os.fspath(name)!r} are damaged: {first_line(error)}") from error
    state = convert_state(tensors, config)
    model = CLIPModel(config)
    _check(state, model.state_dict(), os.fspath(name))
    model.load_state_dict({key: tensor.float() for key, tensor in state.items()})
    model.config._name_or_path = model.name_or_path = _plain_name(name)
    model.config._commit_hash = extract_commit_hash(str(weights), None)
    return model.eval()


def load_open_clip_processor(name: str | os.PathLike, **hub: Any) -> CLIPProcessor:
    """Make the processor of an open_clip model from its config and the tokenizer stored beside it.

    Raises:
        LearngeneError: if there is no tokenizer beside it.
    """
    folder, _ = _files(name, **hub)
    config = _read_config(folder)
    settings, size = config.get("preprocess_cfg") or {}, config["model_cfg"]["vision_cfg"]["image_size"]
    squash = settings.get("resize_mode") == "squash"
    square = {"height": size, "width": size}
    image_processor = CLIPImageProcessor(
        size=square if squash else {"shortest_edge": size},
        do_center_crop=not squash,
        crop_size=square,
        resample=2 if settings.get("interpolation") == "bilinear" else 3,
        **{f"image_{name}": settings[name] for name in ("mean", "std") if name in settings},
    )
    limit = config["model_cfg"]["text_cfg"]["context_length"]
    try:
        tokenizer = CLIPTokenizer.from_pretrained(_plain_name(name), **hub)
    except (OSError, ValueError, TypeError) as error:
        raise LearngeneError(
            f"the open_clip model {os.fspath(name)!r} has no tokenizer stored with it ({first_line(error)}): pass "
            "processor=, with CLIP's own tokenizer"
        ) from error
    tokenizer.model_max_length = limit
    return CLIPProcessor(image_processor, tokenizer)


def clip_config(config: Mapping[str, Any], name: str) -> CLIPConfig:
    """Read a stock config off open_clip's, refusing every architecture but the plain one by name."""
    cfg = config["model_cfg"]
    for key in ("multimodal_cfg", "hf_model_name"):
        if cfg.get(key):
            raise LearngeneError(f"{name!r} has a {key}: {_PLAIN}")
    parts = {side: dict(cfg.get(f"{side}_cfg") or {}) for side in ("vision", "text")}
    for side, part in parts.items():
        kind = part.get("timm_model_name") or part.get("hf_model_name")
        if kind:
            raise LearngeneError(f"{name!r} has the {side} encoder {kind!r}: {_PLAIN}")
        if isinstance(part.get("layers"), list):
            raise LearngeneError(f"{name!r} has a ResNet for its image encoder (layers {part['layers']}): {_PLAIN}")
        for key, value in part.items():
            if key not in _READ[side] and value != _HARMLESS[side].get(key, value is None):
                raise LearngeneError(f"{name!r} sets {side}_cfg.{key} to {value!r}: {_PLAIN}")
    vision, text = parts["vision"], parts["text"]
    if not isinstance(vision["image_size"], int):
        raise LearngeneError(f"{name!r} takes pictures of {vision['image_size']}: only square ones convert")
    common = {"hidden_act": "quick_gelu" if cfg.get("quick_gelu") else "gelu", "projection_dim": cfg["embed_dim"]}
    return CLIPConfig(
        projection_dim=cfg["embed_dim"],
        vision_config={
            **common,
            "hidden_size": vision["width"],
            "num_hidden_layers": vision["layers"],
            "num_attention_heads": vision["width"] // vision.get("head_width", 64),
            "intermediate_size": int(vision["width"] * vision.get("mlp_ratio", 4.0)),
            "image_size": vision["image_size"],
            "patch_size": vision["patch_size"],
        },
        text_config={
            **common,
            "hidden_size": text["width"],
            "num_hidden_layers": text["layers"],
            "num_attention_heads": text["heads"],
            "intermediate_size": int(text["width"] * text.get("mlp_ratio", 4.0)),
            "max_position_embeddings": text["context_length"],
            "vocab_size": text["vocab_size"],
            # open_clip reads the state at the largest token, which is what 2 says to transformers.
            "eos_token_id": 2,
            "bos_token_id": text["vocab_size"] - 2,
            "pad_token_id": 0,
        },
    )


_PLAIN = "only plain CLIPs convert (ViT image encoder with class token, causal text encoder read at its end token)"


def convert_state(tensors: Mapping[str, Tensor], config: CLIPConfig) -> dict[str, Tensor]:
    """Rename open_clip's tensors to transformers' and split the fused attention input; unknown names stay."""
    # Models with "custom_text" keep the text side under a prefix of its own.
    plain = {name.removeprefix("text."): tensor for name, tensor in tensors.items()}
    state: dict[str, Tensor] = {}
    for name, tensor in plain.items():
        side, rest = ("vision_model", name[7:]) if name.startswith("visual.") else ("text_model", name)
        if rest.startswith("transformer.resblocks."):
            layer, _, parameter = rest.removeprefix("transformer.resblocks.").partition(".")
            state |= _convert_layer(f"{side}.encoder.layers.{layer}.", parameter, tensor)
        elif rest in _OUTER[side]:
            new, transposed = _OUTER[side][rest]
            state[new] = tensor.T if transposed else tensor
        elif rest != "attn_mask":
            state[name] = tensor
    return {name: tensor.contiguous() for name, tensor in state.items()}


_OUTER = {
    "vision_model": {
        "class_embedding": ("vision_model.embeddings.class_embedding", False),
        "positional_embedding": ("vision_model.embeddings.position_embedding.weight", False),
        "conv1.weight": ("vision_model.embeddings.patch_embedding.weight", False),
        "ln_pre.weight": ("vision_model.pre_layrnorm.weight", False),
        "ln_pre.bias": ("vision_model.pre_layrnorm.bias", False),
        "ln_post.weight": ("vision_model.post_layernorm.weight", False),
        "ln_post.bias": ("vision_model.post_layernorm.bias", False),
        "proj": ("visual_projection.weight", True),
    },
    "text_model": {
        "token_embedding.weight": ("text_model.embeddings.token_embedding.weight", False),
        "positional_embedding": ("text_model.embeddings.position_embedding.weight", False),
        "ln_final.weight": ("text_model.final_layer_norm.weight", False),
        "ln_final.bias": ("text_model.final_layer_norm.bias", False),
        "text_projection": ("text_projection.weight", True),
        "logit_scale": ("logit_scale", False),
    },
}


def _convert_layer(prefix: str, parameter: str, tensor: Tensor) -> dict[str, Tensor]:
    if parameter.startswith("attn.in_proj_"):
        kind = parameter.removeprefix("attn.in_proj_")
        return {
            f"{prefix}self_attn.{name}_proj.{kind}": part for name, part in zip("qkv", tensor.chunk(3), strict=True)
        }
    owner, _, kind = parameter.rpartition(".")
    return {f"{prefix}{_LAYER_NAMES.get(owner, owner)}.{kind}": tensor}


def _check(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], name: str) -> None:
    faults = [f"missing {key}" for key in wanted if key not in state]
    faults += [f"unexpected {key}" for key in state if key not in wanted]
    faults += [
        f"{key} is {list(state[key].shape)} in place of {list(tensor.shape)}"
        for key, tensor in wanted.items()
        if key in state and state[key].shape != tensor.shape
    ]
    faults += [f"{key} holds NaN or infinity" for key, tensor in state.items() if not torch.isfinite(tensor).all()]
    if faults:
        more = f" and {len(faults) - 5} more" if len(faults) > 5 else ""
        raise LearngeneError(f"the tensors of {name!r} do not fit its {CONFIG}: {'; '.join(faults[:5])}{more}")


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        cfg = config["model_cfg"]
        _ = cfg["embed_dim"], cfg["vision_cfg"]["width"], cfg["text_cfg"]
        return config
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LearngeneError(f"the {CONFIG} of {str(folder)!r} cannot be read: {first_line(error)}") from error


def _files(name: str | os.PathLike, **hub: Any) -> tuple[Path, Path]:
    """The folder with the config, and the weights' file."""
    config, weights = _find(name, (CONFIG,), **hub), _find(name, WEIGHTS, **hub)
    if config is None:
        raise LearngeneError(f"{os.fspath(name)!r} has no {CONFIG}")
    if weights is None:
        raise LearngeneError(
            f"{os.fspath(name)!r} has no weights as safetensors ({' or '.join(WEIGHTS[:2])}): pickled ones are not "
            "read"
        )
    return config.parent, weights


def _plain_name(name: str | os.PathLike) -> str:
    return os.fspath(name).removeprefix("hf-hub:")


def _find(name: str | os.PathLike, files: tuple[str, ...], **hub: Any) -> Path | None:
    """The first of the files that a folder or a Hub repository has."""
    name = _plain_name(name)
    if os.path.isdir(name):
        return next((path for file in files if (path := Path(name, file)).is_file()), None)
    with explain_hub_errors(name, hub.get("revision")):
        for file in files:
            try:
                return Path(hf_hub_download(name, file, **hub))
            except EntryNotFoundError:
                continue
    return None
