"""The encoders that are aligned: loading them, recording where they came from, and knowing them again."""

import os
from collections.abc import Iterator
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_MAPPING
from transformers.utils import cached_file
from transformers.utils.hub import extract_commit_hash

from ..checkpoints import check_finite, check_place, load_config, load_model
from ..data.identity import fingerprint_gene, fingerprint_weights
from ..errors import LearngeneError, first_line

_INPUT_OF = {"vision": "pixel_values", "text": "input_ids"}


def load_encoder(
    source: str | os.PathLike | PreTrainedModel, modality: str, *, revision: str | None = None, **kwargs: Any
) -> PreTrainedModel:
    """Return the bare encoder of one modality, without head or projection.

    Args:
        source: a Hub id, a folder, or a model: an encoder, one with a head, or a model that holds one for each
            modality.
        modality: "vision" or "text".
        revision: branch, tag or commit of a Hub id; None takes main.
        kwargs: passed on to `from_pretrained`; a model stays as it is.

    Raises:
        LearngeneError: if it cannot be loaded, is damaged, or is no encoder of that modality.
    """
    if isinstance(source, PreTrainedModel):
        encoder = _bare(source, modality)
        check_finite(encoder, f"the {modality} encoder")
    elif isinstance(source, (str, os.PathLike)):
        encoder = _load(os.fspath(source), modality, revision=revision, **kwargs)
    else:
        raise LearngeneError(
            f"the {modality} encoder is a {type(source).__name__}: give a Hub id, a folder or a transformers model, "
            "without what wraps it (peft, DistributedDataParallel)"
        )
    if encoder.main_input_name != _INPUT_OF[modality] or encoder.config.is_encoder_decoder:
        takes = "an encoder-decoder" if encoder.config.is_encoder_decoder else f"which takes {encoder.main_input_name}"
        raise LearngeneError(
            f"the {modality} encoder is a {type(encoder).__name__}, {takes}: give an encoder of {_INPUT_OF[modality]}"
        )
    if not hasattr(encoder.config, "hidden_size") and hasattr(encoder.config, "hidden_sizes"):
        encoder.config.hidden_size = encoder.config.hidden_sizes[-1]  # convolutional encoders give one for each stage
    return encoder


def choose_dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """Read a data type given as torch's or by name, such as "bfloat16"; None and "auto" give None.

    Raises:
        LearngeneError: if there is none of that name, or it is no floating-point type.
    """
    if dtype is None or dtype == "auto":
        return None
    found = getattr(torch, dtype.removeprefix("torch."), None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or not found.is_floating_point or found.itemsize < 2:
        raise LearngeneError(f'dtype is {dtype!r}: it takes float32, float16, bfloat16 or float64, or "auto"')
    return found


def _bare(model: PreTrainedModel, modality: str) -> Any:
    part = getattr(model, f"{modality}_model", None)
    return part if isinstance(part, PreTrainedModel) else model.base_model


def _load(name: str, modality: str, **kwargs: Any) -> PreTrainedModel:
    what = f"the {modality} encoder"
    hub = {key: value for key, value in kwargs.items() if key not in ("dtype", "device_map")}
    # Config and weights of one commit, whatever happens to the branch meanwhile.
    kwargs["revision"] = hub["revision"] = commit = _commit_of(name, what, **hub)
    config = load_config(AutoConfig, name, what, **hub)
    if config.model_type == "learngene":
        raise LearngeneError(
            f"{name!r} is a learngene: grow the {modality} encoder from it with from_learngene("
            f"..., modality={'image' if modality == 'vision' else 'text'!r}) and give that"
        )
    # A repository that holds both modalities (CLIP, SigLIP) is read as the one asked for.
    config = getattr(config, f"{modality}_config", None) or config
    cls = encoder_class(config)
    if cls is None:
        raise LearngeneError(f"{name!r} is a {config.model_type!r} model: transformers has no bare encoder of it")
    lacks_pooler: list[str] = []

    def may_lack(key: str) -> bool:
        if key.startswith("pooler."):
            lacks_pooler.append(key)
        return key.startswith("pooler.")

    model = load_model(cls, name, what, may_lack=may_lack, config=config, **kwargs)
    if lacks_pooler:
        model.pooler = None  # a random one would pass for a trained one
    encoder = _bare(model, modality)
    encoder.config._commit_hash = commit
    return encoder


def encoder_class(config: Any) -> Any:
    """Return transformers' class of the bare encoder with a config, None if it has none."""
    if type(config) in MODEL_MAPPING:
        return MODEL_MAPPING[type(config)]
    # SigLIP's text encoder is none of AutoModel's.
    return getattr(transformers, type(config).__name__.removesuffix("Config") + "Model", None)


def _commit_of(name: str, what: str, revision: str | None = None, **hub: Any) -> str | None:
    """The commit that a branch or tag on the Hub stands for; None for a folder."""
    if os.path.isdir(name):
        return None
    check_place(name, what)
    try:
        path = str(cached_file(name, "config.json", revision=revision, **hub))
    except (OSError, ValueError) as error:
        at = f" at revision {revision}" if revision else ""
        raise LearngeneError(f"cannot load {what} {name!r}{at}: {first_line(error)}") from error
    return extract_commit_hash(path, None) or revision


def record_base(
    source: str | os.PathLike | PreTrainedModel, encoder: PreTrainedModel, modality: str, **kwargs: Any
) -> dict[str, Any] | None:
    """Say where an encoder came from, so that it can be found and known again.

    A model in memory is compared with what its name stands for, value by value, since it may have been trained since.

    Args:
        source: what `load_encoder` was given.
        encoder: what it returned.
        modality: "vision" or "text".
        kwargs: passed on to `from_pretrained`.

    Returns:
        `name` (Hub id or folder), `revision` (commit; None for a folder), `fingerprint` of the weights in `dtype`, and
        for an encoder grown from a gene of that name `grown`, its depth and width, and `gene`, the gene's fingerprint.
        None for a model that cannot be had again by name.
    """
    found = {"fingerprint": _fingerprint(encoder, encoder.dtype), "dtype": str(encoder.dtype).removeprefix("torch.")}
    if not isinstance(source, PreTrainedModel):
        return {"name": os.fspath(source), "revision": getattr(encoder.config, "_commit_hash", None), **found}
    if found["fingerprint"] is None:
        return None
    for place in _places(source, encoder):
        try:
            again, gene = _load_recorded({**place, **found}, modality, **kwargs)
        except LearngeneError:
            continue
        if fingerprint_weights(again) == fingerprint_weights(encoder):
            if place["revision"] is None:
                place["revision"] = getattr(again.config, "_commit_hash", None)
            return {**place, **found, **({"gene": gene} if gene else {})}
    return None


def _places(source: PreTrainedModel, encoder: PreTrainedModel) -> Iterator[dict[str, Any]]:
    """Where an encoder in memory may have come from: the place it was loaded from, the gene that it grew from."""
    name, gene = source.config.name_or_path, getattr(source, "grown_from", None) or {}
    if name:
        yield {"name": name, "revision": getattr(source.config, "_commit_hash", None)}
    if gene.get("name"):  # a descendant in memory has no name of its own
        size = {"depth": encoder.config.num_hidden_layers, "width": encoder.config.hidden_size}
        yield {"name": gene["name"], "revision": gene.get("revision"), "grown": size}


def _fingerprint(encoder: nn.Module, dtype: torch.dtype) -> str | None:
    """Hash all weights as they are in `dtype`; None for an encoder on the meta device, which has no values."""
    if any(parameter.is_meta for parameter in encoder.parameters()):
        return None
    return fingerprint_weights(encoder, dtype)


def load_base(
    record: dict[str, Any] | None, modality: str, replacement: Any, **kwargs: Any
) -> tuple[PreTrainedModel, str | None]:
    """Load the encoder that an aligned pair was saved without, in the data type that it was recorded in.

    Args:
        record: what `record_base` gave.
        replacement: where the encoder is now: a Hub id, a folder, or the model, or the gene that it grew from; None
            takes the recorded place.

    Returns:
        the encoder, and the fingerprint of the gene that it was grown from now, None if it was not.

    Raises:
        LearngeneError: if it is not there.
    """
    name = (record or {}).get("name")
    try:
        if replacement is None and not isinstance(name, str):
            raise LearngeneError(f"no {modality} encoder is recorded")
        return _load_recorded(record or {}, modality, replacement, **kwargs)
    except LearngeneError as error:
        raise LearngeneError(
            f"the base {modality} encoder {name!r} of this aligned pair is missing: {error}. Say where it is with "
            f"from_pretrained(..., {modality}=...)"
        ) from error


def _load_recorded(
    record: dict[str, Any], modality: str, replacement: Any = None, **kwargs: Any
) -> tuple[PreTrainedModel, str | None]:
    """Load the encoder of a record, from another place if one is given; with the fingerprint of the gene, if any."""
    dtype = getattr(torch, str(record.get("dtype") or "float32"), None)
    if not isinstance(dtype, torch.dtype):
        raise LearngeneError(f"its dtype is recorded as {record['dtype']!r}, which is none")
    if record.get("grown") and (replacement is None or _is_gene(replacement)):
        return _grow(record, modality, replacement, dtype, **kwargs)
    if replacement is not None:
        return load_encoder(replacement, modality, dtype=dtype, **kwargs), None
    return load_encoder(record["name"], modality, revision=record.get("revision"), dtype=dtype, **kwargs), None


def _is_gene(source: Any) -> bool:
    from ..descendants import locate_learngene
    from ..modeling_learngene import LearngeneMixin

    if not isinstance(source, (str, os.PathLike)):
        return isinstance(source, LearngeneMixin)
    return load_config(AutoConfig, locate_learngene(source), "the encoder").model_type == "learngene"


def _grow(
    record: dict[str, Any], modality: str, replacement: Any, dtype: torch.dtype, **kwargs: Any
) -> tuple[PreTrainedModel, str]:
    from ..genes import bundled_learngenes, load_learngene

    known = ("token", "cache_dir", "local_files_only")
    hub = {name: value for name, value in kwargs.items() if name in known}
    if replacement is None and record.get("revision"):
        hub["revision"] = record["revision"]
    wanted = "image" if modality == "vision" else "text"
    gene: Any = None
    try:
        gene = load_learngene(record["name"] if replacement is None else replacement, modality=wanted, **hub)
    except LearngeneError:
        # A gene of the zoo comes with this package too, under its bare name; `check_base` sees that it is the same.
        bare = record["name"].rpartition("/")[2]
        if replacement is not None or os.path.exists(record["name"]) or bare not in bundled_learngenes():
            raise
        gene = load_learngene(bare, modality=wanted)
    # As pairs: one number would mean the gene's wider encoder, which may be the other one.
    depth, width = ((record["grown"].get(name),) * 2 for name in ("depth", "width"))
    return _bare(gene.descendant(depth, width, wanted, dtype=dtype), modality), fingerprint_gene(gene, wanted)


def check_base(encoder: PreTrainedModel, gene: str | None, record: dict[str, Any] | None, modality: str) -> None:
    """Raise a LearngeneError unless the encoder is the one that was recorded, value by value.

    One grown from the recorded gene is known by the gene: its own sums may differ in the last digit elsewhere.

    Args:
        encoder, gene: what `load_base` gave.
        record: what `record_base` gave.
    """
    record = record or {}
    dtype = getattr(torch, str(record.get("dtype") or "float32"))
    kind = f"a {type(encoder).__name__}"
    wanted, found = record.get("fingerprint"), _fingerprint(encoder, dtype)
    if gene and record.get("gene"):
        kind, wanted, found = "the gene", record["gene"], gene
    if wanted and found and wanted != found:
        at = f" at {record['revision']}" if record.get("revision") else ""
        raise LearngeneError(
            f"this aligned pair was trained on another {modality} encoder: on {record['name']!r}{at} (fingerprint "
            f"{wanted}, {str(dtype).removeprefix('torch.')}), and this is {kind} with fingerprint {found} "
            f"({str(encoder.dtype).removeprefix('torch.')}). Give the one it was trained on with "
            f"from_pretrained(..., {modality}=...)"
        )
