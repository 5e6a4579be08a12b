"""What README and the documentation tell: snippets run, commands and files exist, links lead somewhere."""

import importlib.util
import re
from importlib import import_module
from pathlib import Path

import documents
import nbformat
import pytest
from documents import PAGES, ROOT, commands, links, name_of, run, snippets

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
    there = importlib.util.find_spec("sentence_transformers")
    code = "\n".join(text for text in snippets(page) if there or "sentence_transformers" not in text)
    for written, local in stand_ins.items():
        code = code.replace(written, local)
    run(code, tmp_path)


def test_every_task_has_a_page_with_a_snippet_or_a_command():
    tasks = ["grow", "fine-tune", "extract", "evaluate", "mixtures", "aligning", "events", "publish"]
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
