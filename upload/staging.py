"""Bringing an artifact into a folder exactly as it will be on the Hub."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from mmlg_hf.cards import save_model_card
from mmlg_hf.descendants import from_learngene, load_learngene
from mmlg_hf.errors import LearngeneError

from .manifest import Artifact, Manifest


def stage(artifact: Artifact, manifest: Manifest, folder: Path, namespace: str) -> Path:
    """Build an artifact with its card in `folder`, which must be empty or missing.

    Args:
        namespace: where it would be published: the card's snippets load it from there, and a descendant's
            `base_model` is the gene of that namespace.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if artifact.kind == "gene":
        _stage_gene(_source_folder(artifact, manifest), folder)
    elif artifact.kind == "descendant":
        _stage_descendant(artifact, manifest, folder, namespace)
    else:
        shutil.copytree(_source_folder(artifact, manifest), folder, dirs_exist_ok=True)
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
    load_learngene(source, dtype="auto").save_pretrained(folder, with_code=True)  # type: ignore[operator]


def _stage_descendant(artifact: Artifact, manifest: Manifest, folder: Path, namespace: str) -> None:
    arguments = dict(artifact.source)  # type: ignore[arg-type]
    gene = manifest[arguments.pop("gene")]
    source = _source_folder(gene, manifest)
    # A new head is random: the same one each time, so that publishing again changes nothing.
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = from_learngene(source, **arguments)
    for config in {id(part): part for part in config_parts(model.config)}.values():
        config.learngene = {**config.learngene, "learngene": f"{namespace}/{gene.name}"}
    model.save_pretrained(folder)


def config_parts(config: Any) -> list[Any]:
    """A config and its sub-configs."""
    return [config, *(getattr(config, name) for name in getattr(config, "sub_configs", {}))]
