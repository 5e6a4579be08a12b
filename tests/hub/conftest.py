"""Fixtures of the Hub tests: the double, and fresh processes in which the real client talks to it."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

import pytest
from hub_double import HubDouble

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
# Stands in for a machine without the package: an import of it fails, wherever it may be installed.
HIDE_PACKAGE = """
import sys
class _Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("mmlg_hf", "upload"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, _Hidden())
"""


class Client:
    """Runs Python in fresh processes whose `huggingface_hub` talks to the double."""

    def __init__(self, hub: HubDouble, folder: Path) -> None:
        self.hub, self.folder = hub, folder
        self._homes = 0

    def new_home(self) -> Path:
        """A cache folder that nobody has used."""
        self._homes += 1
        return self.folder / f"home{self._homes}"

    def start(self, arguments, *, home=None, token=HubDouble.OWNER_TOKEN, with_package=True, **variables: str):
        """Run `python ARGUMENTS` to its end and give back the finished process with its output as text."""
        environment = self.hub.environment(home or self.new_home(), token, **variables)
        environment["OMP_NUM_THREADS"] = "1"
        if with_package:
            environment["PYTHONPATH"] = str(ROOT)
        else:
            environment.pop("PYTHONPATH", None)
        command = [sys.executable, *map(str, arguments)]
        return subprocess.run(
            command, cwd=self.folder, env=environment, text=True, capture_output=True, timeout=900, check=False
        )

    def run(self, code: str, *, preamble: str = "", with_package: bool = True, **settings):
        """Run `preamble` and `code`, give back what they stored in `result` (None for nothing); fail if they fail."""
        tail = "\nimport json as _json\nprint('\\n' + _json.dumps(globals().get('result')))\n"
        program = ("" if with_package else HIDE_PACKAGE) + preamble + textwrap.dedent(code) + tail
        done = self.start(["-c", program], with_package=with_package, **settings)
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        return json.loads(done.stdout.rstrip().rsplit("\n", 1)[-1])


@dataclass(frozen=True)
class Published:
    """A double with the pico zoo on it, a client of it, and the folders that were published."""

    hub: HubDouble
    client: Client
    local: dict[str, Path]


@pytest.fixture
def hub():
    """A running double without repositories."""
    with HubDouble() as double:
        yield double


@pytest.fixture
def client(hub, tmp_path):
    return Client(hub, tmp_path)


@pytest.fixture(scope="session")
def zoo(tmp_path_factory):
    """The manifest of the pico zoo; its folder is shared by all tests, so they leave it as it is."""
    from pico_zoo import write_zoo

    return write_zoo(tmp_path_factory.mktemp("zoo"))


@pytest.fixture(scope="session")
def staged_descendant(zoo, tmp_path_factory):
    """`pico-clip` of the pico zoo, staged for the namespace `demo`: copy it before you change it."""
    from upload.manifest import read_manifest
    from upload.staging import stage

    manifest = read_manifest(zoo)
    return stage(manifest["pico-clip"], manifest, tmp_path_factory.mktemp("staged") / "pico-clip", "demo")


@pytest.fixture(scope="session")
def published(zoo, tmp_path_factory):
    """The pico zoo as published: the double (`hub`), a `client`, and `local`, the staged folder of each artifact."""
    from upload.manifest import read_manifest
    from upload.staging import stage

    manifest = read_manifest(zoo)
    folder = tmp_path_factory.mktemp("published")
    local = {a.name: stage(a, manifest, folder / "local" / a.name, "demo") for a in manifest.artifacts}
    with HubDouble() as hub:
        client = Client(hub, folder)
        client.run(
            f"""
            from pathlib import Path
            from huggingface_hub import HfApi
            from upload.publishing import Plan, publish
            for name in {list(local)!r}:
                plan = Plan("demo/" + name, Path({str(folder / "local")!r}) / name, "Publish")
                publish(HfApi(), plan, tag="v1", revision=None, create_pr=False, private=None)
            """
        )
        yield Published(hub, client, local)
