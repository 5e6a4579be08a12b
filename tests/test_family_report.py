"""The family's page, targets and plots with controls that were measured in all parts, in one, or not at all."""

import shutil

import pytest

from benchmarks import __main__ as benchmarks
from benchmarks.common.results import read, write
from benchmarks.family import report
from benchmarks.family.arrays import Family
from benchmarks.family.starts import CLIP_MAP, CONTROLS, FRONT, STUDENTS

COMMITTED = benchmarks.FOLDER / "family" / "results"
TRAINED = {"seconds": 300.0, "parameters": 15_000_000, "batch_size": 16, "sizes": 12}


@pytest.fixture
def folder(tmp_path):
    for path in COMMITTED.glob("*.json"):
        shutil.copy(path, tmp_path)
    return tmp_path


def with_controls(folder, parts):
    """Results in which the controls are as good as turned inheritance is, in some parts of the study."""
    found = read(folder / "family.json")
    runs = {key: run for key, run in found["runs"].items() if key.split("/")[1] not in CONTROLS}
    for key, run in list(runs.items()):
        part, method, *rest = key.split("/")
        if method == "rotated inheritance" and part in parts:
            runs |= {"/".join([part, name, *rest]): run for name in CONTROLS}
    found["runs"] = runs
    found["genes"][f"controls-0/{CLIP_MAP}"] = TRAINED | {"steps": 80, "teraflops": 6.0}
    found["genes"][f"controls-0/{STUDENTS}"] = TRAINED | {"steps": 924, "teraflops": 47.4}
    write(folder / "family.json", found)
    return report.page(folder)


def cells(page, start):
    return [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith(f"| {start} |")]


@pytest.mark.parametrize(("parts", "tables"), [(["family"], 3), (["family", "curves", "digits", "titles"], 5)])
def test_controls_are_in_the_tables_of_what_they_were_measured_in(folder, parts, tables):
    page = with_controls(folder, parts)
    assert len(cells(page, FRONT)) == tables
    assert cells(page, FRONT)[0][2:] == cells(page, "rotated inheritance")[0][2:]
    assert cells(page, STUDENTS)[0][1] == "30.0"  # all that is trained has to be kept
    priced = ["80", "924"] if "curves" in parts else []
    assert [row[1] for name in (CLIP_MAP, STUDENTS) for row in cells(page, name) if row[1] in ("80", "924")] == priced


def test_every_control_has_a_target_of_each_figure(folder):
    with_controls(folder, ["family"])
    asked = [row["target"] for row in report.targets(folder)]
    for name in CONTROLS:
        assert [row for row in asked if row.endswith(f"of MM-LG, bundled ahead of {name}")] == [
            f"2. fine-tuned: zero-shot of MM-LG, bundled ahead of {name}",
            f"2. fine-tuned: R@1 of MM-LG, bundled ahead of {name}",
        ]


def test_every_start_has_a_line_of_its_own(folder):
    with_controls(folder, ["family", "curves"])
    family = Family(read(folder / "family.json"))
    lines = {(style["color"], style.get("linestyle")) for style in report.styles(family.methods).values()}
    assert len(lines) == len(family.methods)
    figure = report.plot_curves(family)
    assert [line.get_text() for line in figure.legends[0].get_texts()] == family.curve_methods


def test_probes_are_a_table_for_each_task_layer_by_layer(folder):
    found = read(folder / "family.json")
    found["runs"] = {key: run for key, run in found["runs"].items() if not key.startswith("probes/")}
    found["runs"]["probes/ancestor/6x192/digits"] = {"patches": [0.5, 0.75], "class token": [0.1, 0.8]}
    found["runs"]["probes/MM-LG, bundled/3x96/digits"] = {"patches": [0.25], "class token": [0.2]}
    write(folder / "family.json", found)
    page = report.page(folder)
    assert "| digits | 0 | 1 |\n" in page
    assert cells(page, "ancestor, 6 x 192")[-1][1:] == ["50.0 / 10.0", "75.0 / 80.0"]
    assert "| MM-LG, bundled, 3 x 96 | 25.0 / 20.0 |  |\n" in page


def test_probed_heads_are_a_table_for_each_task_beside_random_ones(folder):
    found = read(folder / "family.json")
    found["runs"] = {key: run for key, run in found["runs"].items() if "-probed/" not in key}
    write(folder / "family.json", found)
    without = report.page(folder)
    assert "head probed first" not in without
    random = cells(without, "scratch")[-1][2]  # digits
    for size, top1 in (("2x64", 0.5), ("3x96", 0.7)):
        for seed in (0, 1):
            probe = {"top1": top1 - 0.2 + 0.1 * seed, "mean_per_class": 0.0}
            found["runs"][f"digits-probed/scratch/{size}/{seed}"] = {
                "probe": probe,
                "top1": top1,
                "mean_per_class": 0.0,
            }
        found["runs"][f"tuning-digits-probed/scratch/{size}/0.001"] = {"probe": {"top1": 1.0}, "top1": 1.0}
    write(folder / "family.json", found)
    page = report.page(folder)
    steps = found["settings"]["encoder_steps"]
    after = f"after {steps} steps"
    assert f"| digits, image-only | random head, {after} | head probed first: before any step | {after} |\n" in page
    assert "| clothes, image-only | random head" not in page
    assert cells(page, "scratch")[-1][1:] == [random, "45.0 ± 7.1", "60.0 ± 0.0"]
    added = page.index("The same with the head probed first")
    assert page[:added] + page[page.index("## What imitating embeddings loses") :] == without
