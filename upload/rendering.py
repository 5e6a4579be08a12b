"""The cards kept in the repository, one folder for each artifact, and the page that lists them all."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmlg_hf.cards.cards import stored_parameters
from mmlg_hf.cards.results import PLOT_FILE, RESULTS_FILE, figure_title, format_figure

from .manifest import SPACE, Artifact, Manifest
from .staging import stage

CARDS = Path(__file__).resolve().parents[1] / "model_cards"
PAGE = "README.md"
# The plot depends on matplotlib's version, so that only the files it is drawn from are compared.
NOT_COMPARED = (PLOT_FILE,)


def render_all(manifest: Manifest, folder: Path) -> list[str]:
    """Write the card of every model, with the files it shows, and the list of all to `folder`; return the paths."""
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        for artifact in manifest.artifacts:
            if artifact.kind == SPACE:  # its page is the Space itself
                continue
            staged = stage(artifact, manifest, Path(temporary) / artifact.name, manifest.namespace)
            target = folder / artifact.name
            shutil.rmtree(target, ignore_errors=True)
            target.mkdir(parents=True)
            for name in ("README.md", RESULTS_FILE, PLOT_FILE):
                if (staged / name).is_file():
                    shutil.copyfile(staged / name, target / name)
            if (staged / ".eval_results").is_dir():
                shutil.copytree(staged / ".eval_results", target / ".eval_results")
            rows.append(_row(artifact, manifest, staged))
    (folder / PAGE).write_text(_page(manifest, rows), encoding="utf-8")
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def out_of_date(manifest: Manifest, folder: Path) -> list[str]:
    """The files in `folder` that are not what the manifest, the templates and the results give now."""
    with tempfile.TemporaryDirectory() as temporary:
        fresh = Path(temporary)
        render_all(manifest, fresh)
        names = {
            path.relative_to(root).as_posix() for root in (fresh, folder) for path in root.rglob("*") if path.is_file()
        }
        return [name for name in sorted(names) if not _same(fresh / name, folder / name)]


def _same(path: Path, other: Path) -> bool:
    if not (path.is_file() and other.is_file()):
        return False
    return path.name in NOT_COMPARED or path.read_bytes() == other.read_bytes()


def _row(artifact: Artifact, manifest: Manifest, staged: Path) -> dict[str, Any]:
    measured: Mapping[str, Any] = {}
    if (staged / RESULTS_FILE).is_file() and artifact.row is not None:
        models = json.loads((staged / RESULTS_FILE).read_text(encoding="utf-8"))["models"]
        measured = next(row for row in models if row["name"] == artifact.row).get("figures", {})
    weights = sum(path.stat().st_size for path in staged.glob("*.safetensors"))
    return {
        "name": artifact.name,
        "kind": artifact.kind,
        "parameters": f"{stored_parameters(staged) / 1e6:.2f} M",
        "megabytes": f"{weights / 1e6:.1f}",
        "figures": measured,
        "link": f"https://huggingface.co/{manifest.namespace}/{artifact.name}",
    }


def _page(manifest: Manifest, rows: list[dict[str, Any]]) -> str:
    names = list(dict.fromkeys(name for row in rows for name in row["figures"]))
    header = ["Name", "Kind", "Parameters", "MB", *map(figure_title, names), "On the Hub"]
    lines = [header, ["---", "---", "---:", "---:", *["---:"] * len(names), "---"]]
    for row in rows:
        figures = [format_figure(name, row["figures"][name]) if name in row["figures"] else "" for name in names]
        card, link = f"[{row['name']}]({row['name']}/README.md)", f"[{manifest.namespace}]({row['link']})"
        lines.append([card, row["kind"], row["parameters"], row["megabytes"], *figures, link])
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    spaces = [artifact.name for artifact in manifest.artifacts if artifact.kind == SPACE]
    links = [f"[{name}](https://huggingface.co/spaces/{manifest.namespace}/{name})" for name in spaces]
    shown = f"Try sizes in the browser: {', '.join(links)}.\n\n" if links else ""
    return (
        f"# The zoo, version {manifest.version}\n\n"
        f"{table}\n\n"
        f"{shown}"
        "Data set, split and spread of the figures are on each card.\n\n"
        f"These cards name the namespace `{manifest.namespace}`; `python -m upload publish --namespace ORG` renders\n"
        "them for the one that it publishes to. Made by `python -m upload render` from `upload/zoo.yaml`, the\n"
        "templates in `mmlg_hf/cards/templates/` and the measured results: change those, not these files.\n"
    )
