"""The Space of the zoo: the folder that the Hub runs, what is refused, and publishing it to the double."""

import pytest
import yaml
from pico_zoo import write_zoo

from mmlg_hf import __version__
from upload.lint import lint_folder, split_card
from upload.manifest import read_manifest
from upload.space import pinned
from upload.staging import stage

NAME = "mmlg-fashion-48-sizes"


@pytest.fixture
def space(tmp_path):
    manifest = read_manifest()
    return stage(manifest[NAME], manifest, tmp_path / NAME, "demo")


def test_the_folder_runs_the_page_with_the_tested_versions(space):
    assert sorted(path.name for path in space.iterdir()) == ["README.md", "app.py", "requirements.txt"]
    assert lint_folder(space) == []
    metadata, body = split_card((space / "README.md").read_text(encoding="utf-8"))
    assert (metadata["sdk"], metadata["sdk_version"]) == ("gradio", pinned("gradio"))
    assert metadata["models"] == ["demo/mmlg-fashion-48"]
    assert "demo/mmlg-fashion-48" in body
    assert (space / "app.py").read_text().endswith('\nserve("mmlg-fashion-48")\n')
    needed = (space / "requirements.txt").read_text().splitlines()
    assert needed[1:] == [f"torch=={pinned('torch')}", f"mmlg_hf[app]=={__version__}"]


def test_a_gene_that_is_not_bundled_is_loaded_at_its_version(tmp_path):
    source = {"gene": "pico-gene"}
    space = {"name": "pico-sizes", "kind": "space", "source": source, "license": "mit", "data_license": "CC0-1.0"}
    path = write_zoo(tmp_path / "zoo")
    manifest = yaml.safe_load(path.read_text())
    manifest["artifacts"].append(space)
    path.write_text(yaml.safe_dump(manifest))
    read = read_manifest(path)
    folder = stage(read["pico-sizes"], read, tmp_path / "out", "demo")
    assert 'serve("demo/pico-gene", revision="v1.0.0")' in (folder / "app.py").read_text()
    assert lint_folder(folder) == []


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda folder: (folder / "app.py").unlink(), "There is no app.py, which the metadata names as app_file"),
        (lambda folder: (folder / "app.py").write_text("serve("), "app.py is not Python"),
        (lambda folder: (folder / "requirements.txt").write_text("torch"), "does not name mmlg_hf[app]"),
        (lambda folder: replace(folder, "sdk: gradio", "sdk: static"), "The sdk is 'static'"),
        (lambda folder: replace(folder, pinned("gradio"), "5.0.0"), "The sdk_version is 5.0.0, and"),
        (lambda folder: replace(folder, "license: apache-2.0\n", ""), "The metadata has no license"),
        (lambda folder: replace(folder, "side by side", "side by side, and " * 4), "more than 60 characters"),
        (lambda folder: replace(folder, "One learngene", "TODO"), "the placeholder 'TODO'"),
    ],
)
def test_a_folder_that_would_not_run_is_not_fit_to_be_published(space, change, problem):
    change(space)
    assert problem in "; ".join(lint_folder(space))


def replace(folder, old, new):
    path = folder / "README.md"
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def test_it_is_published_as_a_space_verified_and_not_repeated(hub, client):
    arguments = ["-m", "upload", "publish", NAME, "--namespace", "demo", "--yes"]
    written = client.start(arguments)
    assert written.returncode == 0, written.stderr
    assert f"demo/{NAME}: verified, 3 files are equal" in written.stdout
    assert hub.repo(f"demo/{NAME}").kind == "space"
    assert sorted(hub.files(f"demo/{NAME}")) == [".gitattributes", "README.md", "app.py", "requirements.txt"]
    assert "nothing changed, no commit" in client.start(arguments).stdout
    checked = client.start(["-m", "upload", "verify", f"demo/{NAME}"])
    assert "verified, 3 files are equal" in checked.stdout, checked.stderr
