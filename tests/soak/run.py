"""`make soak`: kills, one long extraction and the tests of faults, their results in docs/soak.json and docs/soak.md.

    python tests/soak/run.py [--kills 64] [--minutes 30] [--no-tests] [--work DIR] [--output docs]

Stopped, it goes on where it was: trials are in DIR/kills.jsonl, samples of the extraction in DIR/memory.jsonl, and
both must be of one commit. Exit code 0 means that nothing was half-written, every result was the undisturbed one,
memory and open files stayed flat, and every test passed; then DIR is removed.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from xml.etree import ElementTree

from kills import JOBS, ROOT, kill  # first: it says where the others are found
from memory import watch
from page import held, render

from benchmarks.common.results import environment, write

TESTS = ("tests/test_faults.py", "tests/hub/test_hub_faults.py", "tests/hub/test_hub_publish.py")


def test_faults() -> dict[str, dict[str, float]]:
    """Run the tests of faults, slow ones too, and return how many passed, by file."""
    found = {}
    for file in TESTS:
        with tempfile.TemporaryDirectory() as folder:
            report = Path(folder, "report.xml")
            command = [sys.executable, "-m", "pytest", "-m", "", "-n", "0", "--tb=short", f"--junitxml={report}", file]
            subprocess.run(command, cwd=ROOT, stdout=sys.stderr, check=False)
            (suite,) = ElementTree.parse(report).getroot().iter("testsuite")
        ran, skipped = int(suite.attrib["tests"]), int(suite.attrib["skipped"])
        failed = int(suite.attrib["failures"]) + int(suite.attrib["errors"])
        counts = {"passed": ran - failed - skipped, "failed": failed, "skipped": skipped}
        found[file] = counts | {"seconds": round(float(suite.attrib["time"]))}
    return found


def begin(work: Path) -> None:
    """Remember the commit; refuse to go on with records of another one."""
    commit, file = environment()["commit"] or "unknown", work / "commit.txt"
    work.mkdir(parents=True, exist_ok=True)
    if file.exists() and file.read_text() != commit:
        raise SystemExit(f"{work} holds records of commit {file.read_text()[:7]}: remove it to begin anew")
    file.write_text(commit)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=64, help="in all, over the jobs in turn")
    parser.add_argument("--minutes", type=float, default=30.0, help="of the long extraction")
    parser.add_argument("--no-tests", action="store_true", help="leave out the tests of faults, which CI runs too")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "soak")
    parser.add_argument("--output", type=Path, default=ROOT / "docs", help="folder of soak.json, soak.md and soak.png")
    options = parser.parse_args()
    os.chdir(ROOT)  # so that the commit is of this repository
    work = options.work.resolve()
    begin(work)
    trials = kill(options.kills, list(JOBS), work, seed=0)
    results = {**environment(), "trials": trials, "samples": watch(options.minutes, work)}
    results["tests"] = {} if options.no_tests else test_faults()
    write(options.output / "soak.json", results)
    render(results, options.output)
    if not held(results):
        raise SystemExit(f"something did not hold: see {options.output / 'soak.md'}, and the records in {work}")
    shutil.rmtree(work)


if __name__ == "__main__":
    main()
