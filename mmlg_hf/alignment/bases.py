"""The encoders that are aligned: loading them, recording where they came from, and knowing them again."""

import hashlib
import os
import re
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_MAPPING
from transformers.utils import cached_file, logging

from ..errors import LearngeneError

_INPUT_OF = {"vision": "pixel_values", "text": "input_ids"}
_SAMPLED_VALUES = 64


def load_encoder(
    source: str | os.PathLike | PreTrainedModel, modality: str, *, revision: str | None = None, **kwargs: Any
) -> PreTrainedModel:
    """Return the bare encoder of one modality, without head or projection.

    Args:
        source: a Hub id, a folder, or a model: an encoder, one with a head, or a model that holds one for each
            modality.
        modality: "vision" or "text".
        revision: branch, tag or commit of a Hub id; None takes main.
        kwargs: passed on to `from_pretrained`.

    Raises:
        LearngeneError: if it cannot be loaded, or is no encoder of that modality.
    """
    if isinstance(source, PreTrainedModel):
        encoder = _bare(source, modality)
    else:
        encoder = _load(os.fspath(source), modality, revision=revision, **kwargs)
    if encoder.main_input_name != _INPUT_OF[modality] or encoder.config.is_encoder_decoder:
        takes = "an encoder-decoder" if encoder.config.is_encoder_decoder else f"which takes {encoder.main_input_name}"
        raise LearngeneError(
            f"the {modality} encoder is a {type(encoder).__name__}, {takes}: give an encoder of {_INPUT_OF[modality]}"
        )
    if not hasattr(encoder.config, "hidden_size") and hasattr(encoder.config, "hidden_sizes"):
        encoder.config.hidden_size = encoder.config.hidden_sizes[-1]  # convolutional encoders give one for each stage
    return encoder


def _bare(model: PreTrainedModel, modality: str) -> PreTrainedModel:
    part = getattr(model, f"{modality}_model", None)
    return part if isinstance(part, PreTrainedModel) else model.base_model


def _load(name: str, modality: str, **kwargs: Any) -> PreTrainedModel:
    try:
        hub = {key: value for key, value in kwargs.items() if key != "dtype"}
        # Config and weights of one commit, whatever happens to the branch meanwhile.
        kwargs["revision"] = hub["revision"] = commit = _commit_of(name, **hub)
        config = AutoConfig.from_pretrained(name, **hub)
        if config.model_type == "learngene":
            raise LearngeneError(
                f"{name!r} is a learngene: grow the {modality} encoder from it with from_learngene("
                f"..., modality={'image' if modality == 'vision' else 'text'!r}) and give that"
            )
        # A repository that holds both modalities (CLIP, SigLIP) is read as the one asked for.
        config = getattr(config, f"{modality}_config", None) or config
        if type(config) not in MODEL_MAPPING:
            raise LearngeneError(f"{name!r} is a {config.model_type!r} model: transformers has no bare encoder of it")
        encoder = _bare(_load_complete(MODEL_MAPPING[type(config)], name, config, kwargs), modality)
        encoder.config._commit_hash = commit
        return encoder
    except (OSError, ValueError) as error:
        if isinstance(error, LearngeneError):
            raise
        at = f" at revision {kwargs['revision']}" if kwargs.get("revision") else ""
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise LearngeneError(f"cannot load the {modality} encoder {name!r}{at}: {reason}") from error


def _commit_of(name: str, revision: str | None = None, **hub: Any) -> str | None:
    """The commit that a branch or tag on the Hub stands for; None for a folder."""
    if os.path.isdir(name):
        return None
    path = str(cached_file(name, "config.json", revision=revision, **hub))
    commit = re.search(r"[\\/]snapshots[\\/]([0-9a-f]{40})[\\/]", path)
    return commit[1] if commit else revision


def _load_complete(cls: Any, name: str, config: Any, kwargs: dict[str, Any]) -> PreTrainedModel:
    """Load a bare encoder, dropping the repository's heads in silence and refusing weights that are not all there."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        encoder, report = cls.from_pretrained(name, config=config, output_loading_info=True, **kwargs)
    finally:
        logging.set_verbosity(verbosity)
    missing = sorted(report["missing_keys"])
    if missing and all(key.startswith("pooler.") for key in missing):
        encoder.pooler = None  # a random one would pass for a trained one
    elif missing:
        raise LearngeneError(
            f"{name!r} lacks weights of {cls.__name__} ({', '.join(missing[:5])}): it is damaged or another model"
        )
    return encoder


def record_base(
    source: str | os.PathLike | PreTrainedModel, encoder: PreTrainedModel, modality: str, **kwargs: Any
) -> dict[str, Any] | None:
    """Say where an encoder came from, so that it can be found and known again.

    A model in memory is compared with what its name stands for, since it may have been trained since.

    Args:
        source: what `load_encoder` was given.
        encoder: what it returned.
        modality: "vision" or "text".
        kwargs: passed on to `from_pretrained`.

    Returns:
        `name` (Hub id or folder), `revision` (commit; None for a folder), `fingerprint`, and for an encoder grown from
        a gene of that name `grown`, its depth and width. None for a model that cannot be had again by name.
    """
    found = {"fingerprint": fingerprint(encoder)}
    if not isinstance(source, PreTrainedModel):
        return {"name": os.fspath(source), "revision": getattr(encoder.config, "_commit_hash", None), **found}
    gene = getattr(source, "grown_from", None) or {}  # a descendant in memory has no name of its own
    name = gene.get("name") or source.config.name_or_path
    if not name or found["fingerprint"] is None:
        return None
    if gene.get("name"):
        size = {"depth": encoder.config.num_hidden_layers, "width": encoder.config.hidden_size}
        record = {**gene, "grown": size, **found}
    else:
        record = {"name": name, "revision": getattr(source.config, "_commit_hash", None), **found}
    try:
        again = load_base(record, modality, None, **kwargs)
    except LearngeneError:
        return None
    if record["revision"] is None:
        record["revision"] = getattr(again.config, "_commit_hash", None)
    return record if fingerprint(again) == record["fingerprint"] else None


def fingerprint(encoder: nn.Module) -> str | None:
    """Hash the names, shapes and some values of an encoder's parameters; alike in float32, float16 and bfloat16.

    Returns:
        16 hexadecimal digits, or None for an encoder on the meta device, which has no values.
    """
    digest = hashlib.sha256()
    for name, parameter in sorted(encoder.named_parameters()):
        if parameter.is_meta:
            return None
        values = parameter.detach().flatten()[:_SAMPLED_VALUES].cpu().to(torch.bfloat16)
        digest.update(f"{name} {tuple(parameter.shape)}".encode())
        digest.update(values.view(torch.int16).numpy().tobytes())
    return digest.hexdigest()[:16]


def load_base(record: dict[str, Any] | None, modality: str, replacement: Any, **kwargs: Any) -> PreTrainedModel:
    """Load the encoder that an aligned pair was saved without.

    Args:
        record: what `record_base` gave.
        replacement: where the encoder is now: a Hub id, a folder, or the model; None takes the recorded place.

    Raises:
        LearngeneError: if it is not there, or is another one.
    """
    name = (record or {}).get("name")
    try:
        if replacement is not None:
            return load_encoder(replacement, modality, **kwargs)
        if record is None:
            raise LearngeneError(f"no {modality} encoder is recorded")
        if record.get("grown"):
            return _bare(_grow(record, modality, **kwargs), modality)
        return load_encoder(record["name"], modality, revision=record.get("revision"), **kwargs)
    except LearngeneError as error:
        raise LearngeneError(
            f"the base {modality} encoder {name!r} of this aligned pair is missing: {error}. Say where it is with "
            f"from_pretrained(..., {modality}=...)"
        ) from error


def _grow(record: dict[str, Any], modality: str, **kwargs: Any) -> PreTrainedModel:
    from ..descendants import from_learngene

    # As pairs: one number would mean the gene's wider encoder, which may be the other one.
    settings: dict[str, Any] = {name: (size, size) for name, size in record["grown"].items()}
    known = ("token", "cache_dir", "local_files_only", "dtype")
    settings |= {name: value for name, value in kwargs.items() if name in known}
    return from_learngene(
        record["name"],
        modality="image" if modality == "vision" else "text",
        revision=record.get("revision"),
        **settings,
    )


def check_base(encoder: PreTrainedModel, record: dict[str, Any] | None, modality: str) -> None:
    """Raise a LearngeneError unless the encoder is the one that was recorded."""
    wanted, found = (record or {}).get("fingerprint"), fingerprint(encoder)
    if wanted and found and wanted != found:
        at = f" at {record['revision']}" if record and record.get("revision") else ""
        raise LearngeneError(
            f"this aligned pair was trained on another {modality} encoder: on {(record or {})['name']!r}{at} "
            f"(fingerprint {wanted}), and this {type(encoder).__name__} has fingerprint {found}. Give the one it was "
            f"trained on with from_pretrained(..., {modality}=...)"
        )
