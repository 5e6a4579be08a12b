"""Bringing an artifact into a folder exactly as it will be on the Hub."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmlg_hf.cards import save_model_card
from mmlg_hf.errors import LearngeneError

from .manifest import Artifact, Manifest

# Written by us, or not part of an artifact: everything else beside a model (tokenizer, processor) goes with it.
NOT_COPIED = ("README.md", "results.json", "results.png", "config.json", ".gitattributes")
IGNORED_SUFFIXES = (".safetensors", ".index.json", ".py", ".pyc")


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
    """Save a gene with the code that loads it where the package is missing, and its processor as it is."""
    model_class: Any = gene_class(source)
    config_class = model_class.config_class
    # Registered for the time of this save only: otherwise every later save of a gene would bring code along.
    config_class.register_for_auto_class()
    model_class.register_for_auto_class(auto_class_of(source))
    try:
        model_class.from_pretrained(source).save_pretrained(folder)
    finally:
        config_class._auto_class = model_class._auto_class = None
    copy_companions(source, folder)


def _stage_descendant(artifact: Artifact, manifest: Manifest, folder: Path, namespace: str) -> None:
    arguments = dict(artifact.source)  # type: ignore[arg-type]
    gene = manifest[arguments.pop("gene")]
    source = _source_folder(gene, manifest)
    model = gene_class(source).from_pretrained(source).descendant(**arguments)
    for config in {id(part): part for part in config_parts(model.config)}.values():
        config.learngene = {**config.learngene, "learngene": f"{namespace}/{gene.name}"}
    model.save_pretrained(folder)
    copy_companions(source, folder)


def config_parts(config: Any) -> list[Any]:
    """A config and its sub-configs."""
    return [config, *(getattr(config, name) for name in getattr(config, "sub_configs", {}))]


def gene_class(folder: Path) -> Any:
    """The class of the gene in a folder."""
    import mmlg_hf

    return getattr(mmlg_hf, "LearngeneForImageClassification" if _is_image_gene(folder) else "LearngeneModel")


def auto_class_of(folder: Path) -> str:
    """The auto class through which the gene in a folder is loaded."""
    return "AutoModelForImageClassification" if _is_image_gene(folder) else "AutoModel"


def _is_image_gene(folder: Path) -> bool:
    return json.loads((folder / "config.json").read_text(encoding="utf-8")).get("text_config") is None


def copy_companions(source: Path, folder: Path) -> None:
    """Copy what lies beside a model and is neither weights, config, code nor card."""
    for path in sorted(source.iterdir()):
        if path.is_file() and path.name not in NOT_COPIED and not path.name.endswith(IGNORED_SUFFIXES):
            shutil.copyfile(path, folder / path.name)
