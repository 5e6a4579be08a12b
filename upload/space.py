"""The Space: the page of `mmlg app` for one gene of the zoo, as a folder that the Hub runs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from mmlg_hf import __version__
from mmlg_hf.descendants import bundled_learngenes
from mmlg_hf.errors import LearngeneError
from mmlg_hf.saving import write_text

from .manifest import Artifact, Manifest

CONSTRAINTS = Path(__file__).resolve().parents[1] / "constraints.txt"
_REQUIRED = ("title", "emoji", "colorFrom", "colorTo", "sdk", "sdk_version", "app_file", "license", "models")
_LONGEST_DESCRIPTION = 60  # characters, by the Hub's rules

APP = '''"""Two sizes of {gene} side by side: the page of `mmlg app`, which mmlg_hf brings."""

from mmlg_hf.app import serve

serve("{loaded}"{revision})
'''
# The CPU build: a free Space has no GPU, and the default build is of several GB.
REQUIREMENTS = """--extra-index-url https://download.pytorch.org/whl/cpu
torch=={torch}
mmlg_hf[app]=={version}
"""
BODY = """
# {title}

One learngene, [{namespace}/{gene}](https://huggingface.co/{namespace}/{gene}), grows CLIP models of any depth and
width without training each. Move the sliders: a size is grown at once, and the page shows its parameters, megabytes
and milliseconds. Type labels or drop a picture to see what two sizes make of it, or search your own pictures by text
with both. The examples are drawn; pictures that you drop are deleted after some hours.

The same page runs offline: `pip install "mmlg_hf[app]"`, then `mmlg app {gene}`.
"""


def stage_space(artifact: Artifact, manifest: Manifest, folder: Path, namespace: str) -> None:
    """Write the Space's app.py, requirements.txt and README.md to `folder`."""
    gene = artifact.source["gene"]  # type: ignore[index]
    bundled = gene in bundled_learngenes()
    loaded = gene if bundled else f"{namespace}/{gene}"
    revision = "" if bundled else f', revision="v{manifest.version}"'
    title = f"Sizes of {gene}"
    metadata = {
        "title": title,
        "emoji": "🧬",
        "colorFrom": "green",
        "colorTo": "red",
        "sdk": "gradio",
        "sdk_version": pinned("gradio"),
        "python_version": "3.12",
        "app_file": "app.py",
        "license": artifact.license,
        "short_description": "Two sizes of one CLIP gene, side by side",
        "models": [f"{namespace}/{gene}"],
        "tags": ["mmlg", "clip", "learngene"],
        **artifact.metadata,
    }
    header = yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True)
    body = BODY.format(title=title, gene=gene, namespace=namespace)
    write_text(folder / "README.md", f"---\n{header}---\n{body}")
    write_text(folder / "app.py", APP.format(gene=gene, loaded=loaded, revision=revision))
    write_text(folder / "requirements.txt", REQUIREMENTS.format(torch=pinned("torch"), version=__version__))


def pinned(package: str) -> str:
    """The version of a package that this release was tested with."""
    match = re.search(rf"^{package}==(\S+)", CONSTRAINTS.read_text(encoding="utf-8"), re.MULTILINE)
    if match is None:
        raise LearngeneError(f"{CONSTRAINTS} has no version of {package}")
    return match[1]


def check_space(metadata: Mapping[str, Any], folder: Path) -> Iterable[str]:
    """What is wrong with a Space's folder beyond what is wrong with any."""
    for key in _REQUIRED:
        if not metadata.get(key):
            yield f"The metadata has no {key}"
    if metadata.get("sdk") != "gradio":
        yield f"The sdk is {metadata.get('sdk')!r}, and the page is of gradio"
    elif str(metadata.get("sdk_version")) != pinned("gradio"):
        yield f"The sdk_version is {metadata.get('sdk_version')}, and {pinned('gradio')} is tested"
    if len(str(metadata.get("short_description", ""))) > _LONGEST_DESCRIPTION:
        yield f"The short_description has more than {_LONGEST_DESCRIPTION} characters"
    program = folder / str(metadata.get("app_file"))
    if not program.is_file():
        yield f"There is no {program.name}, which the metadata names as app_file"
    else:
        try:
            compile(program.read_text(encoding="utf-8"), program.name, "exec")
        except SyntaxError as error:
            yield f"{program.name} is not Python: {error}"
    needed = folder / "requirements.txt"
    if not needed.is_file() or "mmlg_hf[app]" not in needed.read_text(encoding="utf-8"):
        yield "requirements.txt does not name mmlg_hf[app]"
