"""The page of the long runs, its plot, and whether they held: all of it from docs/soak.json alone.

python tests/soak/page.py    renders docs/soak.md and docs/soak.png again
"""

import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT)]

from benchmarks.common.pages import panels, save, table, where  # noqa: E402
from benchmarks.common.results import read  # noqa: E402
from mmlg_hf.saving import write_text  # noqa: E402

DOCS = ROOT / "docs"
# Growth of the mean from the second to the last third of a run that counts as flat.
MEMORY, FILES = 0.03, 2.0

PAGE = """# What the long runs showed

The programs of `make soak` wrote this page from [soak.json](soak.json). What happens in each fault is in
[when something goes wrong](faults.md).

{where}

## Kills

Each job ran once undisturbed, then again and again and got SIGKILL at a moment drawn at random, now and then once more
while it went on. `publish` and `fetch` talk to a double of the Hub and are killed when a request has arrived, when it
has been answered, or after a piece of a file. Half-written counts the times that something under its final name could
not be read, another result the times that the same command, given again, did not end with every weight or file of the
undisturbed run, bit for bit.

{kills}

## Memory and open files

One extraction of a pico CLIP: {minutes:.0f} minutes, {steps:,} steps, a checkpoint every 100 of them.
From the second to the last third the mean of resident memory went from {memory[0]:.1f} to {memory[1]:.1f} MB
({grown:+.2%}), that of open files from {files[0]:.1f} to {files[1]:.1f}; {starts}.

![resident memory and open files by the minute](soak.png)

{tests}"""


def of_job(results: dict[str, Any]) -> dict[str, dict[str, int]]:
    """Trials, kills, and what went wrong in them, by job."""
    found: dict[str, dict[str, int]] = {}
    for trial in results["trials"]:
        counts = found.setdefault(trial["job"], {"trials": 0, "kills": 0, "half_written": 0, "other_result": 0})
        counts["trials"] += 1
        counts["kills"] += trial["kills"]
        counts["half_written"] += bool(trial["half_written"])
        counts["other_result"] += not trial["same_result"]
    return found


def thirds(results: dict[str, Any], name: str) -> tuple[float, float]:
    """The means of a figure over the second and the last third of the samples of the longest start."""
    starts = [sample["start"] for sample in results["samples"]]
    longest = max(set(starts), key=starts.count)
    values = [sample[name] for sample in results["samples"] if sample["start"] == longest]
    third = len(values) // 3
    return sum(values[third : 2 * third]) / third, sum(values[-third:]) / third


def held(results: dict[str, Any]) -> bool:
    """Whether nothing was half-written, every result was the same, all stayed flat, and every test passed."""
    bad = sum(counts["half_written"] + counts["other_result"] for counts in of_job(results).values())
    memory, files = thirds(results, "megabytes"), thirds(results, "files")
    failed = sum(counts["failed"] for counts in results["tests"].values())
    return not bad and not failed and memory[1] < memory[0] * (1 + MEMORY) and files[1] < files[0] + FILES


def page(results: dict[str, Any]) -> str:
    """The page in Markdown."""
    kills = of_job(results)
    kills["all"] = {name: sum(counts[name] for counts in kills.values()) for name in next(iter(kills.values()))}
    samples = results["samples"]
    memory, files, starts = thirds(results, "megabytes"), thirds(results, "files"), samples[-1]["start"]
    titles = ("trials", "kills", "half-written", "another result")
    return PAGE.format(
        where=where(results),
        kills=table(("job", *titles), ([job, *counts.values()] for job, counts in kills.items())),
        minutes=samples[-1]["minute"],
        steps=samples[-1]["steps"],
        memory=memory,
        grown=memory[1] / memory[0] - 1,
        files=files,
        starts="it ran in one piece" if starts == 1 else f"it was started {starts} times, and the longest is measured",
        tests=_tests(results["tests"]),
    )


def _tests(results: dict[str, Any]) -> str:
    if not results:
        return "The tests of faults were left out of this run.\n"
    rows = ([f"`{file}`", *counts.values()] for file, counts in results.items())
    return f"## The tests of faults\n\n{table(('file', 'passed', 'failed', 'skipped', 'seconds'), rows)}\n"


def plot(results: dict[str, Any], path: Path) -> None:
    """Draw memory and open files by the minute."""
    figure, drawn = panels(2, 9, 3.2)
    minutes = [sample["minute"] for sample in results["samples"]]
    for panel, name, title in zip(drawn, ("megabytes", "files"), ("resident memory, MB", "open files"), strict=True):
        values = [sample[name] for sample in results["samples"]]
        panel.plot(minutes, values, color="#00796b")
        panel.set_ylim(0, 1.25 * max(values))
        panel.set_xlabel("minute")
        panel.set_title(title)
    save(figure, path)


def render(results: dict[str, Any], folder: Path) -> None:
    """Write the page and its plot."""
    plot(results, folder / "soak.png")
    write_text(folder / "soak.md", page(results))


if __name__ == "__main__":
    render(read(DOCS / "soak.json"), DOCS)
