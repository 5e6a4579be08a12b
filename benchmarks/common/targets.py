"""Targets, asked and measured: a study's rows of the summary, and their table."""

from collections.abc import Mapping
from typing import Any

from benchmarks.common.pages import spread, table


def target(asked: str, measured: Any, met: bool, note: str | None = None, **more: Any) -> dict[str, Any]:
    """A row of the summary.

    Args:
        measured: values by seed, or a mapping of what was measured.
        more: said beside the spread.
    """
    if not isinstance(measured, Mapping):
        found = spread(measured)
        std = round(found["std"], 2) if found["seeds"] > 1 else None
        measured = {"mean": round(found["mean"], 2), "std": std, "seeds": found["seeds"]} | more
    return {"target": asked, "measured": dict(measured), "met": bool(met), "note": note}


def targets_table(rows: list[dict[str, Any]]) -> str:
    cells = []
    for row in rows:
        note = f"; {row['note']}" if row["note"] else ""
        cells.append([row["target"], _told(row["measured"]) + note, "yes" if row["met"] else "**no**"])
    return table(["target", "measured", "met"], cells)


def _told(measured: Mapping[str, Any]) -> str:
    if "std" not in measured:
        return ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in measured.items())
    deviation = f" ± {measured['std']}" if measured["seeds"] > 1 else " (one seed)"
    return f"{measured['mean']}{deviation}" + (f", {measured['best']}" if "best" in measured else "")
