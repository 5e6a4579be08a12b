"""The card of exported files: where they come from, what they take and cost, with metadata that the Hub reads."""

import os
from pathlib import Path
from typing import Any

import yaml

from ..cards.cards import HUB_ID
from ..saving import write_text
from .sources import Source

_PIPELINES = {
    "whole": "zero-shot-image-classification",
    "image": "image-feature-extraction",
    "text": "feature-extraction",
    "image-classifier": "image-classification",
    "text-classifier": "text-classification",
}
_TAKEN_OVER = ("license", "license_name", "license_link", "language", "datasets")


def write_card(folder: Path, record: dict[str, Any], source: Source) -> None:
    """Write README.md beside the files that `record` describes."""
    header = yaml.safe_dump(_metadata(record, source), sort_keys=False, allow_unicode=True)
    about = record["source"]
    lines = [
        f"# {source.title}, for {record['format']}",
        "",
        f"A {about['class']} of {about['parameters']:,} parameters ({source.title}) as files that run without it. "
        "`export.json` says what they take and give, and how pictures are made ready.",
        "",
        *table_lines(record),
        "",
        f"Milliseconds are for one input, the median on {record['machine']}. Each file was run on fixed and on random "
        "inputs against the model it comes from; the greatest difference of an output is given.",
        "",
        f"Made with {', '.join(f'{name} {version}' for name, version in record['versions'].items())}.",
    ]
    write_text(folder / "README.md", f"---\n{header}---\n\n" + "\n".join(lines) + "\n")


def table_lines(record: dict[str, Any]) -> list[str]:
    """The table of files in Markdown."""
    titles = ["file", "weights", "MB", "ms", "ms in torch", "greatest difference", "least cosine", "agrees"]
    rows = [titles, ["---", "---", *["---:"] * 5, "---"], *table_rows(record)]
    return ["| " + " | ".join(row) + " |" for row in rows]


def table_rows(record: dict[str, Any]) -> list[list[str]]:
    """The table's cells: one row a file."""
    return [
        [
            file["file"],
            file["weights"],
            f"{file['megabytes']:.2f}",
            f"{file['milliseconds']:.2f}",
            f"{file['milliseconds_torch']:.2f}",
            f"{file['greatest_difference']:.1e}",
            f"{file['least_cosine']:.6f}",
            "yes" if file["verified"] else "NO",
        ]
        for file in record["files"]
    ]


def _metadata(record: dict[str, Any], source: Source) -> dict[str, Any]:
    """The card's header: licence, languages and data of the source's own card, and what the files are."""
    given = _header_of(source.name)
    kinds = {file["part"] for file in record["files"]}
    pipeline = _PIPELINES["whole" if kinds == {"image", "text"} else min(kinds)]
    header: dict[str, Any] = {key: given[key] for key in _TAKEN_OVER if key in given}
    header |= {"library_name": record["library"], "pipeline_tag": pipeline}
    learngene = (record["source"].get("learngene") or {}).get("id")
    bases = [name for name in (source.name, learngene) if isinstance(name, str) and HUB_ID.fullmatch(name)]
    bases = [name for name in bases if not os.path.isdir(name)]
    if bases:
        header["base_model"] = bases[0]
    return header | {"tags": ["mmlg", "clip", record["format"], *(["int8"] if _has_int8(record) else [])]}


def _has_int8(record: dict[str, Any]) -> bool:
    return any(file["weights"] == "int8" for file in record["files"])


def _header_of(name: str) -> dict[str, Any]:
    """The metadata of the card in a folder; nothing where there is none that can be read."""
    path = Path(name, "README.md")
    if not path.is_file():
        return {}
    _, *rest = path.read_text(encoding="utf-8", errors="replace").split("---\n", 2)
    try:
        header = yaml.safe_load(rest[0]) if len(rest) == 2 else None
    except yaml.YAMLError:
        return {}
    return header if isinstance(header, dict) else {}
