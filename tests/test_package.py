"""The package as it is installed: public names, version, and the wheel's contents."""

import ast
import inspect
import os
import re
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import packages_distributions
from importlib.util import find_spec
from pathlib import Path

import pytest

import mmlg_hf

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
BUILT_FROM = ("pyproject.toml", "README.md", "LICENSE")
# The names that the documentation promises.
PROMISED = {
    "LearngeneConfig",
    "LearngeneModel",
    "from_learngene",
    "extract_learngene",
    "ExtractionArguments",
    "ContrastiveTrainer",
    "ImageTextCollator",
    "load_learngene",
    "load_processor",
    "evaluate_zero_shot",
    "evaluate_retrieval",
    "evaluate_classification",
    "create_model_card",
    "save_model_card",
    "align",
    "LearngeneError",
}


def test_the_promised_names_are_public():
    assert set(mmlg_hf.__all__) >= PROMISED
    assert dir(mmlg_hf) == sorted(mmlg_hf.__all__)


@pytest.mark.parametrize("name", sorted(set(mmlg_hf.__all__) - {"__version__"}))
def test_a_public_name_imports_and_says_what_it_is(name):
    thing = getattr(mmlg_hf, name)
    assert thing.__name__ == name
    assert inspect.getdoc(thing)
    assert thing.__module__.startswith("mmlg_hf.")


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'mmlg_hf' has no attribute 'from_gene'"):
        mmlg_hf.from_gene  # noqa: B018
    with pytest.raises(ImportError):
        from mmlg_hf import from_gene  # noqa: F401


@pytest.mark.parametrize(
    "path", sorted((ROOT / "mmlg_hf").rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT))
)
def test_a_module_begins_by_saying_what_it_is_for(path):
    first = path.read_text(encoding="utf-8").splitlines()[0]
    assert re.match(r'r?"""\S.*[.:,]?', first), first


# --- the wheel -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel built, without network, from a copy of what it is made of."""
    source, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT / "mmlg_hf", source / "mmlg_hf", ignore=shutil.ignore_patterns("__pycache__"))
    for name in BUILT_FROM:
        shutil.copy(ROOT / name, source / name)
    command = [sys.executable, "-m", "pip", "wheel", str(source), "--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run([*command, "-q", "-w", str(built)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    (path,) = built.glob("*.whl")
    return path


@pytest.mark.slow
def test_the_wheel_holds_the_package_whole_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    there = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "mmlg_hf").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert held == there
    assert {name for name in held if name.startswith("mmlg_hf/cards/templates/")}


@pytest.mark.slow
def test_the_wheel_works_without_the_checkout(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
        (entry_points,) = [name for name in archive.namelist() if name.endswith("entry_points.txt")]
        assert "mmlg = mmlg_hf.cli:main" in archive.read(entry_points).decode()
    code = (
        "import mmlg_hf, mmlg_hf.descendants as d; print(mmlg_hf.__file__); print(mmlg_hf.__version__)\n"
        "for name in d.bundled_learngenes(): print(type(d.from_learngene(name, 1)).__name__)"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    file, version, *grown = done.stdout.split()
    assert Path(file).is_relative_to(tmp_path)
    assert f"-{version}-" in wheel.name
    assert len(grown) == len(list((ROOT / "mmlg_hf" / "zoo").glob("*/config.json")))
    assert set(grown) <= {"CLIPModel", "CLIPForImageClassification"}


def declared(section):
    """The distributions that a list of pyproject.toml names, in lower case."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    listed = re.search(rf"^{section} = \[(.*?)\]", text, re.MULTILINE | re.DOTALL)[1]
    return {re.split(r"[<>=!~ ;\[]", name)[0].lower().replace("_", "-") for name in re.findall(r'"(.+?)"', listed)}


def test_every_imported_distribution_is_declared():
    distributions, imported = packages_distributions(), set()
    for path in [*(ROOT / "mmlg_hf").rglob("*.py"), *(ROOT / "upload").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                imported.add(node.module.partition(".")[0])
    foreign = imported - set(sys.stdlib_module_names) - {"mmlg_hf", "upload"}
    absent = [name for name in foreign if name not in distributions]
    if absent and find_spec("onnxruntime") is None:
        pytest.skip("mmlg_hf[export] is not installed")
    assert absent == []
    needed = {distributions[name][0].lower().replace("_", "-") for name in foreign}
    assert needed - declared("dependencies") <= declared("peft") | declared("demo") | declared("export")
    assert declared("dependencies") - needed == set()


def test_the_floors_are_those_that_the_tests_pass_with():
    pinned = (ROOT / "constraints-min.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in pinned if line and not line.startswith("#"))
    floors = dict(re.findall(r'^    "([\w-]+)>=([\d.]+)",$', PYPROJECT, re.MULTILINE))
    extras = re.findall(r"^(?:peft|demo) = \[(.+)\]$", PYPROJECT, re.MULTILINE)
    floors |= dict(re.findall(r'"([\w-]+)>=([\d.]+)"', " ".join(extras)))
    of_tests_alone = PYPROJECT.partition("\ntest-core = [")[2].partition("]\n\n")[0]
    floors = {name: floor for name, floor in floors.items() if f'"{name}>=' not in of_tests_alone}
    assert floors.keys() - pins.keys() == {"torch"}  # constraints-min.txt says why
    assert pins.keys() <= floors.keys()

    def release(version):
        numbers = [int(number) for number in version.split(".")]
        return numbers + [0] * (3 - len(numbers))

    assert {name: release(pin) for name, pin in pins.items()} == {name: release(floors[name]) for name in pins}


def test_warnings_follow_the_verbosity_of_transformers_and_are_kept_where_only_transformers_is_silenced(caplog):
    from transformers.utils import logging

    from mmlg_hf.checkpoints import quiet

    own = logging.get_logger("mmlg_hf.data.processing")
    before = logging.get_verbosity()
    try:
        logging.set_verbosity_error()
        own.warning("unheard")
        logging.set_verbosity_info()
        own.info("told on request")
        logging.set_verbosity_warning()
        with quiet(), quiet():
            own.warning("told though transformers is silent")
            logging.get_logger("transformers.trainer").warning("silent")
        assert caplog.messages == ["told on request", "told though transformers is silent"]
        assert logging.get_verbosity() == logging.WARNING
    finally:
        logging.set_verbosity(before)
