"""The page of the long runs: what docs/soak.json says, and what is seen there when something did not hold."""

import copy
import importlib.util
from pathlib import Path

import pytest

from benchmarks.common.results import read

ROOT = Path(__file__).resolve().parent.parent
SPEC = importlib.util.spec_from_file_location("soak_page", ROOT / "tests" / "soak" / "page.py")
soak = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(soak)


@pytest.fixture
def results():
    return read(ROOT / "docs" / "soak.json")


def test_the_page_is_what_its_results_say_and_everything_held(results):
    assert soak.page(results) == (ROOT / "docs" / "soak.md").read_text(encoding="utf-8")
    assert soak.held(results)
    assert sum(trial["kills"] for trial in results["trials"]) >= 50
    assert results["samples"][-1]["minute"] >= 30


@pytest.mark.parametrize(
    "change",
    [
        lambda found: found["trials"][3].update(half_written=["config.json: no JSON"]),
        lambda found: found["trials"][3].update(same_result=False),
        lambda found: found["tests"].update(file={"passed": 9, "failed": 1, "skipped": 0, "seconds": 1}),
        lambda found: [sample.update(megabytes=2 * sample["megabytes"]) for sample in found["samples"][-40:]],
        lambda found: [sample.update(files=sample["minute"]) for sample in found["samples"]],
    ],
)
def test_what_did_not_hold_is_seen(results, change):
    found = copy.deepcopy(results)
    change(found)
    assert not soak.held(found)
