"""The zoo's manifest: which artifacts there are, what each is made from, and what its card needs."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from mmlg_hf.cards import KINDS
from mmlg_hf.errors import LearngeneError

SPACE = "space"
MANIFEST = Path(__file__).with_name("zoo.yaml")
NAME = re.compile(r"(?!.*\.\.)[A-Za-z0-9][A-Za-z0-9._-]{0,94}[A-Za-z0-9]")


def check_name(name: str, what: str) -> str:
    """Return a repository or organisation name if the Hub takes it as one."""
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise LearngeneError(
            f"{what} is {name!r}: it takes 2 to 96 letters, digits, '-', '_' and single '.', "
            "with a letter or digit at both ends"
        )
    return name


@dataclass(frozen=True)
class Artifact:
    """One entry of the manifest.

    Args:
        name: the repository's name in its namespace.
        kind: one of `mmlg_hf.cards.cards.KINDS`, which chooses the card template, or "space".
        source: a folder relative to the manifest's `root`, or for a descendant a mapping with `gene` (the name of an
            artifact) and the arguments of `from_learngene`. A mixture is either: a folder with the model, or a mapping
            with `gene` and `deltas`, a folder of `mmlg_hf.clip_moe.save_as_deltas`, relative to `root`. A Space's
            is a mapping with `gene` alone.
        license: Hub identifier of the licence of the weights.
        data_license: licence of the data, in words.
        results: JSON file with the measured results, relative to `root`; None for an artifact without.
        row: this artifact's row in the results; None where it has none.
        metadata: further metadata of the card.
    """

    name: str
    kind: str
    source: str | Mapping[str, Any]
    license: str
    data_license: str
    results: str | None = None
    row: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_name(self.name, "an artifact's name")
        if self.kind not in (*KINDS, SPACE):
            raise LearngeneError(f"{self.name}: kind is {self.kind!r}; it takes one of {', '.join((*KINDS, SPACE))}")
        if self.kind == SPACE and (not isinstance(self.source, Mapping) or set(self.source) != {"gene"}):
            raise LearngeneError(f"{self.name}: a Space's source is a mapping that names its gene, and nothing more")
        if self.kind == "descendant" and not (isinstance(self.source, Mapping) and self.source.get("gene")):
            raise LearngeneError(f"{self.name}: a descendant's source is a mapping that names its gene")
        if self.kind == "mixture" and isinstance(self.source, Mapping):
            if set(self.source) != {"gene", "deltas"}:
                raise LearngeneError(f"{self.name}: a mixture's source is a folder, or names its gene and its deltas")
        elif self.kind not in ("descendant", SPACE) and not isinstance(self.source, str):
            raise LearngeneError(f"{self.name}: the source of a {self.kind} is a folder")

    @property
    def repo_type(self) -> str:
        """What the Hub calls its repository."""
        return "space" if self.kind == SPACE else "model"


@dataclass(frozen=True)
class Manifest:
    """The zoo: `version` becomes the tag, `namespace` is what the rendered cards name, `root` holds the sources."""

    version: str
    namespace: str
    root: Path
    artifacts: tuple[Artifact, ...]

    def __getitem__(self, name: str) -> Artifact:
        for artifact in self.artifacts:
            if artifact.name == name:
                return artifact
        raise LearngeneError(f"The zoo has no {name!r}; it has {', '.join(a.name for a in self.artifacts)}")

    def select(self, names: Iterable[str] | None) -> list[Artifact]:
        """The artifacts of these names, all of them for none, in the manifest's order: a gene before what it grows."""
        wanted = [self[name] for name in names or [artifact.name for artifact in self.artifacts]]
        return [artifact for artifact in self.artifacts if artifact in wanted]


def read_manifest(path: str | os.PathLike = MANIFEST) -> Manifest:
    """Read and check a manifest.

    Raises:
        LearngeneError: the file is missing or no YAML, or an entry has an unknown, missing or impossible value.
    """
    path = Path(path)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise LearngeneError(f"There is no manifest {path}") from None
    except yaml.YAMLError as error:
        raise LearngeneError(f"{path} is not YAML: {error}") from None
    fields = {"version", "namespace", "artifacts"}
    if (
        not isinstance(content, dict)
        or set(content) - {"root"} != fields
        or not isinstance(content["artifacts"], list)
    ):
        raise LearngeneError(f"{path} needs the keys {', '.join(sorted(fields))}, and may have root")
    artifacts = tuple(_artifact(entry, path) for entry in content["artifacts"])
    root = (path.parent / content.get("root", ".")).resolve()
    namespace = check_name(content["namespace"], "namespace")
    manifest = Manifest(str(content["version"]), namespace, root, artifacts)
    names = [artifact.name for artifact in artifacts]
    for artifact in artifacts:
        if names.count(artifact.name) > 1:
            raise LearngeneError(f"{path} names {artifact.name!r} more than once")
        if isinstance(artifact.source, Mapping) and manifest[artifact.source["gene"]].kind != "gene":
            raise LearngeneError(f"{artifact.name}: {artifact.source['gene']!r} is not a gene")
    return manifest


def _artifact(entry: Any, path: Path) -> Artifact:
    known = [f.name for f in dataclasses.fields(Artifact)]
    required = [f.name for f in dataclasses.fields(Artifact)[:5]]
    name = entry.get("name") if isinstance(entry, dict) else entry
    missing = [key for key in required if not isinstance(entry, dict) or entry.get(key) is None]
    unknown = [key for key in entry if key not in known] if isinstance(entry, dict) else []
    if missing or unknown:
        raise LearngeneError(
            f"{path}: artifact {name!r} lacks {missing or 'nothing'} and has unknown keys {unknown or 'none'}; "
            f"known: {', '.join(known)}"
        )
    return Artifact(**entry)
