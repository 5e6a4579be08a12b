"""Render what is committed from the studies' results: each page and its plots, the summary, and the page of all.

    python -m benchmarks

A test renders the pages again and compares.
"""

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.common.options import parse
from benchmarks.common.pages import fill, publish
from benchmarks.common.results import read, write
from benchmarks.common.targets import targets_table
from mmlg_hf.saving import write_text

FOLDER = Path(__file__).parent
SUMMARY = FOLDER / "results" / "summary.json"
STUDIES = ("family", "extraction", "clip_moe", "alignment", "pretrained", "events", "demo", "vit", "speed")


def reports() -> Iterator[tuple[str, Any]]:
    """Each study's report: `page` and `plots` from its folder of results, and `targets` where it has any."""
    for study in STUDIES:
        yield study, import_module(f"benchmarks.{study}.report")


def summary() -> list[dict[str, Any]]:
    """Each target of each study: what was asked, what came out, and whether that meets it."""
    return [
        {"study": study, **row}
        for study, report in reports()
        if hasattr(report, "targets")
        for row in report.targets(FOLDER / study / "results")
    ]


def page(rows: list[dict[str, Any]]) -> str:
    by_study = {study: [row for row in rows if row["study"] == study] for study in STUDIES}
    return fill(
        FOLDER,
        met={study: sum(row["met"] for row in found) for study, found in by_study.items()},
        count={study: len(found) for study, found in by_study.items()},
        targets={study: targets_table(found) for study, found in by_study.items() if found},
    )


def main() -> None:
    parse(__doc__)
    for study, report in reports():
        publish(FOLDER / study, report)
    rows = summary()
    write(SUMMARY, rows)
    write_text(FOLDER / "README.md", page(read(SUMMARY)))
    print(f"{sum(row['met'] for row in rows)} of {len(rows)} targets met: {SUMMARY}")


if __name__ == "__main__":
    main()
