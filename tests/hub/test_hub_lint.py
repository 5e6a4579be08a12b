"""The lint: a staged artifact passes, and each planted defect is refused by name."""

from __future__ import annotations

import json
import shutil

import pytest
from typer.testing import CliRunner

from upload.cli import app
from upload.lint import lint_folder, run_snippets


@pytest.fixture
def folder(staged_descendant, tmp_path):
    return shutil.copytree(staged_descendant, tmp_path / "pico-clip")


def edit(folder, old, new):
    card = folder / "README.md"
    text = card.read_text()
    assert old in text
    card.write_text(text.replace(old, new, 1))


def test_a_staged_artifact_is_fit_to_be_published(folder):
    assert lint_folder(folder, run=False) == []


def test_the_snippets_of_a_staged_artifact_run_without_network(folder):
    assert lint_folder(folder) == []


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("license: apache-2.0\n", "", "The metadata has no license"),
        ("license: apache-2.0", "license: my-own", "The licence 'my-own' is not one of"),
        ("license: apache-2.0", "license: other", "license_name and license_link must say which"),
        ("language: en\n", "", "The metadata has no language"),
        ("base_model: demo/pico-gene\n", "", "The metadata has no base_model"),
        ("base_model: demo/pico-gene", "base_model: ../pico-gene", "is not a Hub id"),
        ("base_model_relation: finetune", "base_model_relation: child", "The base_model_relation 'child' is not one"),
        (
            "pipeline_tag: zero-shot-image-classification",
            "pipeline_tag: magic",
            "The pipeline tag 'magic' is not one of",
        ),
        (
            "pipeline_tag: zero-shot-image-classification",
            "pipeline_tag: image-classification",
            "is for 'zero-shot-image",
        ),
        ("datasets:\n- demo/squares\n", "", "The metadata has no datasets"),
        ("## Citation", "## Quote", "no section 'Citation'"),
        ("Not for decisions about people.", "[More Information Needed]", "placeholder '[More Information Needed]'"),
        ("Not for decisions about people.", "TODO: limits", "placeholder 'TODO'"),
        ("Not for decisions about people.", "It reaches 99.9 %.", "The figure 99.9 in"),
        ("Not for decisions about people.", "It is right in 77% of cases.", "The figure 77 in"),
        ("31.2 |", "39.2 |", "The figure 39.2 in"),
        ("41.2 ± 1.1", "41.2 ± 0.1", "The figure 0.1 in"),
        ("| depth 1, width 16 |", "| depth 9, width 16 |", "a row 'depth 9, width 16'"),
        ("](results.png)", "](other.png)", "shows other.png, which is not in the folder"),
        ("classify = pipeline(", "classify = pipeline((", "Snippet 1 of README.md is not Python"),
        ("---\n", "", "does not begin with a metadata block"),
    ],
)
def test_a_planted_defect_of_the_card_is_refused(folder, old, new, problem):
    edit(folder, old, new)
    assert any(problem in found for found in lint_folder(folder, run=False)), lint_folder(folder, run=False)


def test_a_card_without_a_snippet_is_refused(folder):
    card = folder / "README.md"
    card.write_text(card.read_text().replace("```python", "```text"))
    assert "README.md has no Python snippet" in lint_folder(folder, run=False)


def test_a_snippet_that_does_not_run_is_refused(folder):
    edit(folder, "from PIL import Image\n", "from PIL import Picture\n")
    (problem,) = lint_folder(folder)
    assert problem.startswith(
        "A snippet of README.md does not run: pico-clip snippet 1: ImportError: cannot import name 'Picture'"
    )


def test_the_command_runs_the_snippets_of_all_folders_in_one_process(folder, monkeypatch):
    other, ran = shutil.copytree(folder, folder.parent / "other" / "pico-clip"), []

    def run(snippets):
        ran.append(list(snippets))
        return None if len(ran) == 1 else f"{ran[-1][-1]}: NameError: x"

    monkeypatch.setattr("upload.lint.run_snippets", run)
    done = CliRunner().invoke(app, ["lint", str(folder), str(other)])
    assert done.exit_code == 0, done.stderr
    assert done.stdout.count("fit to be published") == 2
    ((first, *_, last),) = ran
    assert (first, last[: len(str(other))]) == (f"{folder} snippet 1", str(other))
    failed = CliRunner().invoke(app, ["lint", str(other)])
    assert failed.exit_code == 1
    assert failed.stderr == f"A snippet of a card does not run: {last}: NameError: x\n"


def test_a_figure_of_the_result_entries_that_was_not_measured_is_refused(folder):
    entries = folder / ".eval_results" / "demo--squares.yaml"
    entries.write_text(entries.read_text().replace("0.3125", "0.9"))
    assert lint_folder(folder, run=False) == [
        "The figure 0.9 in .eval_results/demo--squares.yaml is not in results.json"
    ]


def test_results_that_changed_after_the_card_are_noticed(folder):
    results = json.loads((folder / "results.json").read_text())
    results["models"][1]["figures"]["top1"] = 0.5
    (folder / "results.json").write_text(json.dumps(results))
    assert any("The figure 31.2" in problem for problem in lint_folder(folder, run=False))


def test_pickled_weights_links_and_a_missing_card_are_refused(folder):
    (folder / "pytorch_model.bin").write_bytes(b"")
    (folder / "linked.json").symlink_to(folder / "config.json")
    assert lint_folder(folder, run=False) == [
        "linked.json is a link: publish the file itself",
        "pytorch_model.bin is a pickled file: weights are published as safetensors only",
    ]
    (folder / "README.md").unlink()
    assert lint_folder(folder)[0].endswith("has no README.md")


def test_each_snippet_runs_by_itself():
    assert run_snippets({"first": "x = 1", "second": "print(x)"}) == "second: NameError: name 'x' is not defined"
