"""What README and the documentation tell: snippets run, commands and files exist, links lead somewhere."""

import importlib.util
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import documents
import nbformat
import pytest
import yaml
from documents import PAGES, ROOT, commands, links, name_of, run, snippets

import mmlg_hf

README = (ROOT / "README.md").read_text(encoding="utf-8")
# The snippets of this page talk to the Hub: tests/hub runs them against its double.
ELSEWHERE = {"docs/publish.md"}
WITH_SNIPPETS = [page for page in PAGES if snippets(page) and name_of(page) not in ELSEWHERE]
NOTEBOOK = ROOT / "examples" / "grow_and_fine_tune.ipynb"


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory):
    return documents.stand_ins(tmp_path_factory.mktemp("stand-ins"))


@pytest.mark.slow
@pytest.mark.parametrize("page", WITH_SNIPPETS, ids=name_of)
def test_the_snippets_of_a_page_run_one_after_the_other(page, tmp_path, stand_ins):
    onnx = ("onnxscript", "onnxruntime")
    optional = {"sentence_transformers": ("sentence_transformers",), "onnxruntime": onnx, "mmlg_hf.export": onnx}
    missing = [name for name, needs in optional.items() if not all(map(importlib.util.find_spec, needs))]
    code = "\n".join(text for text in snippets(page) if not any(name in text for name in missing))
    for written, local in stand_ins.items():
        code = code.replace(written, local)
    run(code, tmp_path)


def test_every_task_has_a_page_with_a_snippet_or_a_command():
    tasks = ["grow", "fine-tune", "extract", "evaluate", "mixtures", "aligning", "events", "export", "publish"]
    assert {f"docs/{task}.md" for task in tasks} <= {name_of(page) for page in WITH_SNIPPETS} | ELSEWHERE
    assert all(f"(docs/{task}.md" in README for task in [*tasks, "command-line", "method", "measurements"])


def test_the_readme_is_read_on_one_page():
    lines = README.splitlines()
    assert len(lines) <= 150
    assert [line for line in lines if len(line) > 119] == []


def test_ci_runs_the_test_command_of_the_readme():
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    command = next(line for line in README.splitlines() if line.startswith("python3 -m venv") and "pytest" in line)
    assert "README.md" in script
    assert re.match(r"^python3 -m venv .* pytest", command)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_the_links_and_pictures_of_a_page_lead_somewhere(page):
    assert [target for target in links(page) if not (page.parent / target).exists()] == []


@pytest.mark.parametrize("page", [page for page in PAGES if list(commands(page))], ids=name_of)
def test_a_page_names_only_commands_and_files_that_are_there(page):
    from typer.main import get_command

    from mmlg_hf.cli import app

    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    offered = set(get_command(app).commands)
    for words in commands(page):
        if words[:3] in (["python", "-m", "mmlg_hf"], ["python3", "-m", "mmlg_hf"]):
            words = ["mmlg", *words[3:]]
        program, *rest = words
        if Path(program).name == "mmlg":
            assert rest, "mmlg alone does nothing"
            assert rest[0] in offered or rest[0].startswith("-"), words
        elif program == "make":
            assert {word for word in rest if "=" not in word and word[0] != "-"} <= targets, words
        elif program.startswith((".", "/")) or "/" in program:
            assert (ROOT / program).exists() or ".venv" in program, words
        for word in rest:
            if word.endswith(".py"):
                assert (ROOT / word).is_file(), words


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_the_names_that_a_page_imports_or_refers_to_are_there(page):
    text = page.read_text(encoding="utf-8")
    for module, names in re.findall(r"^from (mmlg_hf[\w.]*) import ([\w, ]+)$", text, re.MULTILINE):
        for name in names.split(","):
            assert hasattr(import_module(module), name.strip()), f"{module}.{name}"
    for path in re.findall(r"^::: (\S+)$|`(mmlg_hf(?:\.\w+)+)`", text, re.MULTILINE):
        assert is_there("".join(path)), path


def is_there(path):
    """Whether a dotted name leads to a module or to what one holds."""
    *names, thing = [], import_module("mmlg_hf")
    for name in path.split(".")[1:]:
        names.append(name)
        if not hasattr(thing, name):
            try:
                import_module(f"{thing.__name__}.{name}")
            except ImportError:
                return False
        thing = getattr(thing, name)
    return True


# --- the site --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def gather():
    """The program that gathers the site's pages."""
    spec = importlib.util.spec_from_file_location("gather", ROOT / "docs" / "gather.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_of_the_command_line_has_every_command_and_option(gather):
    from typer.main import get_command

    from mmlg_hf.cli import app

    text = gather.page("command-line.md", (ROOT / "docs" / "command-line.md").read_text(encoding="utf-8"))
    todo = [("mmlg", get_command(app))]
    while todo:
        name, command = todo.pop()
        below = getattr(command, "commands", {})
        todo += [(f"{name} {word}", subcommand) for word, subcommand in below.items()]
        if not below:
            assert f"## {name}\n" in text
            part = text.split(f"## {name}\n")[1].split("\n## ")[0]
            for parameter in command.params:
                assert (parameter.opts[-1] if parameter.opts[0].startswith("-") else parameter.name) in part


def test_links_of_a_page_lead_to_its_place_on_the_site(gather):
    assert gather.page("index.md", "[a](docs/grow.md) [b](LICENSE)") == "[a](grow.md) [b](LICENSE)"
    assert gather.page("grow.md", "[a](../benchmarks/README.md)") == "[a](benchmarks/README.md)"
    assert gather.page("CONTRIBUTING.md", "[a](README.md)") == "[a](index.md)"


def test_the_reference_names_where_a_public_name_is_defined_and_the_fields_of_arguments(gather):
    text = gather.page("reference/extraction.md", "::: mmlg_hf.ExtractionArguments")
    assert f"::: {mmlg_hf.ExtractionArguments.__module__}.ExtractionArguments\n" in text
    assert "| `trim_vocabulary` | `False` |" in text
    assert "`output_dir`" not in text


def test_the_navigation_has_every_page_of_the_documentation():
    settings = yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), Loader=yaml.BaseLoader)
    listed, todo = set(), list(settings["nav"])
    while todo:
        entry = todo.pop()
        if isinstance(entry, dict):
            todo += [page for pages in entry.values() for page in pages]
        else:
            listed.add(entry)
    there = {page.relative_to(ROOT / "docs").as_posix() for page in (ROOT / "docs").rglob("*.md")}
    assert listed == there | {"index.md", "CONTRIBUTING.md", "CHANGELOG.md"}


# --- the repository's own files --------------------------------------------------------------------------------------


def test_every_workflow_fits_its_schema():
    pytest.importorskip("check_jsonschema")
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.github-workflows"]
    workflows = [str(path) for path in sorted((ROOT / ".github" / "workflows").glob("*.yml"))]
    assert len(workflows) == 3
    done = subprocess.run([*command, *workflows], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_tests_run_on_every_python_that_the_package_takes():
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "tests.yml").read_text(encoding="utf-8"))["jobs"]
    assert jobs["tests"]["strategy"]["matrix"]["python"] == ["3.10", "3.11", "3.12", "3.13"]
    assert 'requires-python = ">=3.10"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_pre_commit_formats_with_the_ruff_of_the_constraints():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    (ruff,) = [repo["rev"] for repo in hooks if repo["repo"].endswith("ruff-pre-commit")]
    assert f"ruff=={ruff.removeprefix('v')}\n" in (ROOT / "constraints.txt").read_text(encoding="utf-8")


def test_the_citation_names_the_version_of_the_package():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f'version = "{citation["version"]}"' in project
    assert citation["cff-version"] == "1.2.0"
    assert all("authors" in entry for entry in [citation, *citation["references"]])


def test_where_what_goes_names_files_that_are_there():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = re.findall(r"`((?:mmlg_hf|tests|docs|upload|benchmarks)/[\w./]*)`", text)
    assert len(named) > 12
    assert [path for path in named if not (ROOT / path).exists()] == []


# --- the notebook ----------------------------------------------------------------------------------------------------


def test_the_notebook_is_stored_without_outputs():
    cells = nbformat.read(NOTEBOOK, as_version=4).cells
    assert all(not cell.get("outputs") and cell.get("execution_count") is None for cell in cells)


@pytest.mark.slow
def test_the_notebook_runs_offline_and_the_gene_wins(tmp_path, monkeypatch):
    from nbclient import NotebookClient

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 2
    printed = "".join(output.get("text", "") for output in outputs)
    gene, scratch = (float(re.search(rf"from {start}: ([\d.]+) %", printed)[1]) for start in ("the gene", "scratch"))
    assert gene > scratch + 10
