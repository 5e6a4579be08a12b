"""Saving an aligned pair without its frozen weights, and putting it together again."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.utils.hub import cached_file

from ..checkpoints import read_tensors
from ..errors import LearngeneError, first_line
from ..hub import upload_folder_of
from ..saving import save_processor
from .encoders import check_base, load_base

if TYPE_CHECKING:
    from .configuration import DualEncoderConfig
    from .dual_encoder import DualEncoderModel

_WEIGHTS, _WEIGHTS_INDEX = "model.safetensors", "model.safetensors.index.json"


def read_weights(name: str | os.PathLike, **hub: Any) -> dict[str, Tensor]:
    """Read the saved tensors of a folder or of a Hub repository, in one file or in several.

    Raises:
        LearngeneError: if there is no such file, or it is damaged.
    """
    name = os.fspath(name)
    try:
        files = [str(cached_file(name, _WEIGHTS, **hub))]
    except (OSError, ValueError) as error:
        files = _shards(name, hub)
        if not files:
            raise LearngeneError(f"cannot read {_WEIGHTS} of {name!r}: {first_line(error)}") from error
    weights: dict[str, Tensor] = {}
    for file in files:
        weights |= read_tensors(file, f"{Path(file).name} of {name!r}")
    return weights


def _shards(name: str, hub: dict[str, Any]) -> list[str]:
    """The files of weights that were saved in several; none where there is no index."""
    try:
        index = Path(str(cached_file(name, _WEIGHTS_INDEX, **hub)))
        shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        return [str(cached_file(name, shard, **hub)) for shard in shards]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []


def complete_weights(
    cls: "type[DualEncoderModel]",
    config: "DualEncoderConfig",
    saved: dict[str, Tensor],
    vision: Any,
    text: Any,
    hub: dict[str, Any],
) -> dict[str, Tensor]:
    """Add to the saved tensors what the frozen encoders hold.

    Raises:
        LearngeneError: if an encoder is missing or another one, or if the tensors do not fit the config.
    """
    try:
        with torch.device("meta"):
            expected = {name: value.shape for name, value in cls(config).state_dict().items()}
    except LearngeneError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError, ArithmeticError) as error:
        raise LearngeneError(f"no aligned pair can be made from its config: {first_line(error)}") from error
    weights = dict(saved)
    # The pair's own revision is none of the encoders'.
    hub = {key: value for key, value in hub.items() if key not in ("revision", "subfolder")}
    for modality, replacement in (("vision", vision), ("text", text)):
        prefix = f"{modality}_model."
        missing = [name for name in expected if name.startswith(prefix) and name not in saved]
        if not missing:
            continue
        record = getattr(config, f"{modality}_base")
        encoder, gene = load_base(record, modality, replacement, **hub)
        base = encoder.state_dict()
        # Wrapped modules keep their weights one level deeper than the encoder alone does.
        found: dict[str, Any] = {
            name: base.get(name.removeprefix(prefix).replace(".base_layer.", ".")) for name in missing
        }
        strange = [name for name in missing if found[name] is None or found[name].shape != expected[name]]
        if strange:
            raise LearngeneError(
                f"this aligned pair belongs to another {modality} encoder than {type(encoder).__name__} "
                f"{encoder.config.name_or_path!r}: {_listed(strange)} missing there or of another shape. Give the one "
                f"it was trained on with from_pretrained(..., {modality}=...)"
            )
        check_base(encoder, gene, record, modality)
        weights |= found
    _check_fit(weights, expected)
    return weights


def _check_fit(weights: dict[str, Tensor], expected: dict[str, torch.Size]) -> None:
    faults = {
        "missing": [name for name in expected if name not in weights],
        "unexpected": [name for name in weights if name not in expected],
        "of another shape": [name for name in expected if name in weights and weights[name].shape != expected[name]],
    }
    told = [f"{_listed(names)} {fault}" for fault, names in faults.items() if names]
    if told:
        raise LearngeneError(f"the weights do not fit the config: {'; '.join(told)}")


def _listed(names: list[str]) -> str:
    shown = ", ".join(sorted(names)[:5])
    return (
        f"{shown} and {len(names) - 5} more are" if len(names) > 5 else f"{shown} {'is' if len(names) == 1 else 'are'}"
    )


def write_card(folder: str | os.PathLike, config: "DualEncoderConfig", **settings: Any) -> None:
    """Write the card of a saved pair into its folder, with the encoders' Hub ids as base models.

    Args:
        settings: as for `mmlg_hf.cards.save_model_card`.
    """
    from ..cards.cards import HUB_ID, save_model_card

    names = [base["name"] for base in (config.vision_base, config.text_base) if base]
    bases = [name for name in names if HUB_ID.fullmatch(name) and not os.path.isdir(name)]
    metadata: dict[str, Any] = {"pipeline_tag": "zero-shot-image-classification"}
    if bases:
        relation = "finetune" if config.recipe in ("full", "lit") else "adapter"
        metadata |= {"base_model": bases, "base_model_relation": relation}
    metadata |= settings.pop("metadata", None) or {}
    save_model_card(folder, kind="aligned-pair", metadata=metadata, **settings)


def push(
    model: "DualEncoderModel",
    repo_id: str,
    processor: Any,
    card: dict[str, Any],
    trained_only: bool | None,
    settings: dict[str, Any],
) -> str:
    """Upload the model, its processor and its card in one commit; see `DualEncoderModel.push_to_hub`."""

    def write(folder: Path) -> None:
        model.save_pretrained(folder, trained_only=trained_only)
        if processor is not None:
            save_processor(processor, folder)
        write_card(folder, model.config, repo_id=repo_id, **card)

    return str(upload_folder_of(repo_id, write, **settings))
