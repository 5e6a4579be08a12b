"""The starts that the family study compares, by their published rules; and every page against its results."""

import importlib
import json
import runpy
import sys
from pathlib import Path

import pytest
import torch
from pico import pico_clip
from pico_starts import inputs, pico_sources, weight
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import __main__ as benchmarks
from benchmarks.common.options import read_settings, settings_of
from benchmarks.common.pages import grid, told
from benchmarks.common.results import Results, Runs, compact, read, write
from benchmarks.common.targets import target
from benchmarks.family.arrays import Family
from benchmarks.family.cost import muon_gflops
from benchmarks.family.starts import STARTS, StageWiseModel
from mmlg_hf import LearngeneModel
from mmlg_hf.extraction.ancestors import gene_config


@pytest.fixture(scope="module")
def sources():
    return pico_sources()


def test_weight_selection_takes_the_first_layers_and_evenly_spaced_indices(sources):
    small = STARTS["weight selection"](sources, 2, 16, 0)
    rows, columns = torch.linspace(0, 127, 64).round().long(), torch.linspace(0, 31, 16).round().long()
    for layer in range(2):
        torch.testing.assert_close(weight(small, layer), weight(sources.ancestor, layer)[rows][:, columns])
    torch.testing.assert_close(small.logit_scale, sources.ancestor.logit_scale)


def test_inheritance_takes_every_second_layer_and_leading_slices(sources):
    small = STARTS["TinyCLIP inheritance"](sources, 2, 16, 0)
    for layer in range(2):
        torch.testing.assert_close(weight(small, layer), weight(sources.ancestor, 2 * layer)[:64, :16])


def test_inheriting_everything_gives_the_ancestor_turned_or_not(sources):
    with torch.no_grad():
        wanted = sources.ancestor(**inputs())
        for name in ("weight selection", "TinyCLIP inheritance", "rotated inheritance"):
            found = STARTS[name](sources, 4, 32, 0).eval()(**inputs())
            torch.testing.assert_close(found.image_embeds, wanted.image_embeds, rtol=0, atol=1e-4)
            torch.testing.assert_close(found.text_embeds, wanted.text_embeds, rtol=0, atol=1e-4)


def test_scratch_depends_on_the_seed_alone(sources):
    first, again, other = (STARTS["scratch"](sources, 2, 16, seed) for seed in (0, 0, 1))
    assert torch.equal(weight(first, 0), weight(again, 0))
    assert not torch.equal(weight(first, 0), weight(other, 0))


@pytest.mark.parametrize(
    ("depth", "stages"), [(6, [0, 0, 1, 1, 2, 2]), (3, [0, 1, 2]), (4, [0, 0, 1, 2]), (2, [0, 1])]
)
def test_layers_of_one_stage_share_a_block(sources, depth, stages):
    config = gene_config(sources.ancestor, num_multimodal_blocks=0, num_unimodal_blocks=3, mixing="chebyshev")
    gene = StageWiseModel(config)
    with torch.no_grad():
        for parameter in gene.parameters():
            parameter.normal_()
    model = gene.descendant(depth=depth)
    block = dict(gene.vision_blocks.named_parameters())
    for layer, stage in enumerate(stages):
        torch.testing.assert_close(weight(model, layer), block["mlp.fc1.weight"][stage])


PROGRAMS = [*benchmarks.STUDIES, "make.ancestor", "make.gene", "make.pair", "make.mixture"]


@pytest.mark.parametrize("study", benchmarks.STUDIES)
def test_the_page_of_a_study_is_what_its_results_say(study):
    report, folder = importlib.import_module(f"benchmarks.{study}.report"), benchmarks.FOLDER / study
    text = (folder / "README.md").read_text()
    assert report.page(folder / "results") == text
    assert (
        text.index("**Asked.**") < text.index("**Came out.**") < text.index("](results/") < text.index("Measured on:")
    )


@pytest.mark.parametrize("study", benchmarks.STUDIES)
def test_every_picture_is_drawn_from_the_results_and_shown_on_the_page(study):
    report, folder = importlib.import_module(f"benchmarks.{study}.report"), benchmarks.FOLDER / study
    pictures = {path.name for path in (folder / "results").glob("*.png")}
    assert pictures >= {f"{name}.png" for name in report.plots(folder / "results")}
    for name in pictures:
        assert (folder / "results" / name).stat().st_size > 10_000
        assert f"](results/{name})" in (folder / "README.md").read_text()


def test_the_summary_and_the_page_of_all_are_what_the_studies_say():
    rows = benchmarks.summary()
    assert json.loads(json.dumps(rows)) == read(benchmarks.SUMMARY)
    assert benchmarks.page(rows) == (benchmarks.FOLDER / "README.md").read_text()


@pytest.mark.parametrize("path", sorted(benchmarks.FOLDER.glob("*/results/*.json")), ids=lambda path: path.stem)
def test_results_are_kept_with_a_line_for_each_run_and_say_where_they_were_measured(path):
    found = read(path)
    assert path.read_text() == compact(found)
    assert {"commit", "python", "torch"} <= set(found)
    lines = path.read_text().splitlines()
    assert all(any(line.startswith(f"{json.dumps(key)}: ") for line in lines) for key in found.get("runs", {}))


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
@pytest.mark.parametrize("program", ["", *PROGRAMS])
def test_every_program_says_what_it_does(program, monkeypatch, capsys):
    """In this process, as `python -m` runs it: a process of its own would spend ten seconds on its imports."""
    monkeypatch.setattr(sys, "argv", ["program", "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(f"benchmarks.{program}".rstrip("."), run_name="__main__")
    assert ended.value.code in (0, None)
    assert "usage:" in capsys.readouterr().out


def test_a_run_is_made_once_and_other_settings_are_refused(tmp_path):
    path, made = tmp_path / "results" / "study.json", []

    def make(value):
        made.append(value)
        return {"figure": value}

    for _ in range(2):
        results = Results(path, {"steps": 3, "sizes": [(2, 16)]})
        results.save(seeds=[0, 1])
        assert [results.run(f"arm/{seed}", make, 0.5 + seed) for seed in (0, 1)] == [{"figure": 0.5}, {"figure": 1.5}]
    assert made == [0.5, 1.5]
    found = read(path)
    assert next(iter(found)) == "settings"
    assert list(found)[-1] == "runs"
    assert found["seeds"] == [0, 1]
    assert found["torch"] == torch.__version__
    with pytest.raises(SystemExit, match="other settings"):
        Results(path, {"steps": 4, "sizes": [(2, 16)]})


def test_going_on_without_a_new_run_leaves_where_it_was_measured(tmp_path):
    path = tmp_path / "study.json"
    path.write_text(compact({"settings": {}, "commit": "abc", "runs": {"arm/0": {"figure": 1}}}))
    results = Results(path, {})
    results.run("arm/0", dict)
    results.save(seeds=[0])
    assert read(path)["commit"] == "abc"


def test_runs_are_found_by_the_parts_of_their_keys():
    runs = {"run/a/10/0": {"f": {"x": 0.25}}, "run/a/10/1": {"f": {"x": 0.75}}, "run/b/10/0": {"f": {"x": 1.0}}}
    found = Runs({"settings": {}, "runs": runs})
    assert found.names("run") == ["a", "b"]
    assert found.values("f/x", "run", "a", 10).tolist() == [25.0, 75.0]
    assert told(found.values("f/x", "run", "a")) == "50.0 ± 35.4"
    assert told(found.values("f/x", "run", "b")) == "100.0"
    assert told(found.values("f/x", "run", "c")) == ""


def test_a_table_has_a_cell_for_each_row_and_column():
    assert grid("n", [1, 2], [3, 4], lambda row, column: row * column) == (
        "| n | 3 | 4 |\n|---|---:|---:|\n| 1 | 3 | 4 |\n| 2 | 6 | 8 |"
    )


def test_a_target_says_its_spread_and_one_seed_has_none():
    assert target("ahead", [1.0, 2.0], True)["measured"] == {"mean": 1.5, "std": 0.71, "seeds": 2}
    assert target("ahead", [1.0], False)["measured"] == {"mean": 1.0, "std": None, "seeds": 1}


@pytest.mark.parametrize(
    ("study", "results", "left_out"),
    [
        ("alignment", "alignment", ()),
        ("pretrained", "pretrained", ("vision", "text", "arms", "recipes", "parts")),
        ("clip_moe", "clip_moe", ("data", "clothing", "seeds", "ancestor", "arms")),
        ("extraction", "choices", ("data", "ancestor", "only", "seeds")),
    ],
)
def test_committed_results_can_be_gone_on_with(study, results, left_out, monkeypatch):
    """Their settings are named as the program names them today."""
    program = importlib.import_module(f"benchmarks.{study}.__main__")
    monkeypatch.setattr(sys, "argv", [study])
    aligns = study in ("alignment", "pretrained")
    names = ("data", "tokenizer", "seeds", "quick") if aligns else ("data", "quick")
    names = ("data", "seeds") if study == "extraction" else names
    options = program.parse(None, *names, settings=program.SETTINGS)
    more = set(program.SETTINGS["experts"]) if study == "clip_moe" else set()
    committed = read(benchmarks.FOLDER / study / "results" / f"{results}.json")["settings"]
    assert set(settings_of(options, *left_out)) | more == set(committed)


def test_remedies_of_mixtures_are_told_of_where_they_were_measured(tmp_path):
    """Of seeds that both sides of a comparison have; the one that did best on the validation split is asked of."""
    report = importlib.import_module("benchmarks.clip_moe.report")
    results = read(benchmarks.FOLDER / "clip_moe" / "results" / "clip_moe.json")
    added = {*report.REMEDIES, "dense, imitation"}
    runs = {key: run for key, run in results["runs"].items() if not added & set(key.split("/")[:2])}

    def measured(mean, top1):
        figures = runs["base/0"]["figures"] | {"mean_R@1": mean, "top1": top1}
        about = {"remedies": {"expert_rank": 8, "router_z_loss_coef": 0.001, "feature_weight": 30}}
        return runs["moe/0"] | {"figures": figures, "ancestor_flops": 3e12} | about

    def told():
        write(tmp_path / "clip_moe.json", results | {"runs": runs})
        return [row["measured"]["mean"] for row in report.targets(tmp_path)[6:]], report.page(tmp_path)

    write(tmp_path / "clip_moe.json", results | {"runs": {key: runs[key] for key in runs if "dense" not in key}})
    assert not any(words in report.page(tmp_path) for words in ("nan", "dense, same compute", "dense: the base"))
    figures = runs["base/0"]["figures"]
    base, top1 = figures["mean_R@1"], figures["top1"]
    dense = runs["dense/1"]["figures"]["mean_R@1"]
    assert "Remedies" not in told()[1]
    assert told()[0] == []
    runs["clusters/1"] = measured(base + 0.03, top1 - 0.02)
    means, page = told()
    assert means == pytest.approx([3.0, 100 * (base + 0.03 - dense), -2.0], abs=0.01)
    assert "cut to rank 8" in page
    assert "cluster-aware against dense, same compute" in page
    assert "+ imitation" not in page
    runs["imitation/0"] = runs["imitation/1"] = measured(base + 0.01, top1)
    runs["tuning/imitation/0.1/100"] = measured(0.5, top1)
    assert told()[0] == pytest.approx([1.0, 0.0], abs=0.01)
    runs["dense, imitation/1"] = measured(base, top1)
    means, page = told()
    assert means == pytest.approx([1.0, 1.0, 0.0], abs=0.01)
    assert "takes 3.00 TFLOPs" in page


def test_the_family_is_measured_with_the_settings_of_its_file():
    program = importlib.import_module("benchmarks.family.__main__")
    settings = read_settings(program.__file__)["configurations"]["fashion"]["settings"]
    committed = read(benchmarks.FOLDER / "family" / "results" / "family.json")["settings"]
    assert settings == {name: committed[name] for name in settings}
    assert set(committed) - set(settings) == {"configuration", "quick"}


def test_the_flops_of_muon_are_those_that_torch_counts():
    config = gene_config(pico_clip(), num_multimodal_blocks=1, num_unimodal_blocks=2, mixing="linear")
    stacks = [p for blocks in LearngeneModel(config).block_groups().values() for p in blocks.parameters()]
    matrices = [torch.nn.Parameter(block) for stack in stacks if stack.dim() == 3 for block in stack.detach()]
    for matrix in matrices:
        matrix.grad = torch.ones_like(matrix)
    muon = torch.optim.Muon(matrices)
    with FlopCounterMode(display=False) as counter:
        muon.step()
    assert muon_gflops(config) == pytest.approx(counter.get_total_flops() / 1e9, rel=1e-12)


# How the documents name the starts of the family study.
NAMED = {
    "scratch": "scratch",
    "TLEG in each encoder": "TLEG",
    "weight selection": "weight selection",
    "TinyCLIP's inheritance": "TinyCLIP inheritance",
    "FRONT": "FRONT",
    "CLIP-Map": "CLIP-Map",
    "students without a gene": "students without a gene",
    "MM-LG, as short": "MM-LG",
    "MM-LG, the bundled gene": "MM-LG, bundled",
    "**the bundled gene**": "MM-LG, bundled",
}


@pytest.mark.parametrize(("document", "rows"), [("README.md", 6), ("docs/measurements.md", 9)])
def test_tables_of_the_family_in_documents_say_what_was_measured(document, rows):
    root = Path(benchmarks.__file__).parent.parent
    family = Family(read(root / "benchmarks" / "family" / "results" / "family.json"))
    cells = [
        line.strip("| ").split(" | ") for line in (root / document).read_text().splitlines() if line.startswith("| ")
    ]
    compared = 0
    for label, stored, *shown in (row for row in cells if len(row) == 6):
        method = next((method for name, method in NAMED.items() if label.startswith(name)), None)
        if method is not None:
            columns = [(figure, when) for figure in ("top1", "image_to_text_R@10") for when in ("before", "after")]
            assert shown == [f"{family.mean(method, when, figure).mean():.1f}" for figure, when in columns], label
            megabytes = family.stored_megabytes(method)
            assert stored == ("none" if megabytes is None else f"{megabytes:.1f} MB")
            compared += 1
    assert compared == rows
