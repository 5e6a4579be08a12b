"""Bringing an artifact into a folder exactly as it will be on the Hub."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from mmlg_hf.cards import save_model_card
from mmlg_hf.clip_moe import load_from_deltas
from mmlg_hf.descendants import from_learngene, load_learngene
from mmlg_hf.errors import LearngeneError
from mmlg_hf.saving import save_processor, write_json

from .manifest import SPACE, Artifact, Manifest
from .space import stage_space


def stage(artifact: Artifact, manifest: Manifest, folder: Path, namespace: str) -> Path:
    """Build an artifact with its card in `folder`, which must be empty or missing.

    Args:
        namespace: where it would be published: the card's snippets load it from there, and a descendant's
            `base_model` is the gene of that namespace.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if artifact.kind == SPACE:
        stage_space(artifact, manifest, folder, namespace)
        return folder
    if artifact.kind == "gene":
        _stage_gene(_source_folder(artifact, manifest), folder)
    elif artifact.kind == "descendant":
        _stage_descendant(artifact, manifest, folder, namespace)
    elif artifact.kind == "mixture" and isinstance(artifact.source, Mapping):
        _stage_mixture(artifact, manifest, folder, namespace)
    else:
        shutil.copytree(_source_folder(artifact, manifest), folder, dirs_exist_ok=True)
        if artifact.kind == "aligned-pair":
            _name_bases(folder / "config.json", manifest, namespace)
    save_model_card(
        folder,
        None if artifact.results is None else manifest.root / artifact.results,
        repo_id=f"{namespace}/{artifact.name}",
        kind=artifact.kind,
        row=artifact.row,
        license=artifact.license,
        data_license=artifact.data_license,
        base_model=_base_model(artifact, namespace),
        metadata=artifact.metadata,
    )
    return folder


def _source_folder(artifact: Artifact, manifest: Manifest) -> Path:
    folder = manifest.root / str(artifact.source)
    if not (folder / "config.json").is_file():
        raise LearngeneError(f"{artifact.name}: its source {folder} holds no model (no config.json)")
    return folder


def _base_model(artifact: Artifact, namespace: str) -> str | None:
    return f"{namespace}/{artifact.source['gene']}" if isinstance(artifact.source, Mapping) else None


def _stage_gene(source: Path, folder: Path) -> None:
    """Save a gene in its stored precision, with its processor and the code that loads it without the package."""
    load_learngene(source, dtype="auto").save_pretrained(folder, with_code=True)


def _stage_descendant(artifact: Artifact, manifest: Manifest, folder: Path, namespace: str) -> None:
    arguments = dict(artifact.source)  # type: ignore[arg-type]
    gene = manifest[arguments.pop("gene")]
    source = _source_folder(gene, manifest)
    # A new head is random: the same one each time, so that publishing again changes nothing.
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = from_learngene(source, **arguments)
    _name_gene(model.config, f"{namespace}/{gene.name}")
    model.save_pretrained(folder)


def _stage_mixture(artifact: Artifact, manifest: Manifest, folder: Path, namespace: str) -> None:
    """Rebuild a mixture from the gene and what its experts add to it; save it whole, with the code that loads it."""
    source: Mapping[str, Any] = artifact.source  # type: ignore[assignment]
    gene = manifest[source["gene"]]
    loaded: Any = load_learngene(_source_folder(gene, manifest))
    mixture = load_from_deltas(manifest.root / source["deltas"], loaded)
    _name_gene(mixture.config, f"{namespace}/{gene.name}")
    mixture.save_pretrained(folder, with_code=True)
    save_processor(loaded.processor, folder)


def _name_bases(path: Path, manifest: Manifest, namespace: str) -> None:
    """Let a pair name the genes that its encoders grew from as they are published: by namespace, at this version."""
    config = json.loads(path.read_text(encoding="utf-8"))
    published = {artifact.name: f"{namespace}/{artifact.name}" for artifact in manifest.artifacts}
    for modality in ("vision", "text"):
        base, encoder = config.get(f"{modality}_base") or {}, config[f"{modality}_config"]
        if base.get("grown") and base["name"] in published:
            base |= {"name": published[base["name"]], "revision": f"v{manifest.version}"}
            encoder["learngene"] = {**(encoder.get("learngene") or {}), "learngene": base["name"]}
            encoder.pop("_name_or_path", None)
    write_json(path, config)


def _name_gene(config: Any, name: str) -> None:
    """Let a config say that its model grew from the gene as it is published, not from a folder of this machine."""
    for part in {id(part): part for part in config_parts(config)}.values():
        part.learngene = {**(getattr(part, "learngene", None) or {}), "learngene": name}


def config_parts(config: Any) -> list[Any]:
    """A config and its sub-configs."""
    return [config, *(getattr(config, name) for name in getattr(config, "sub_configs", {}))]
