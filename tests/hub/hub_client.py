"""Fresh processes in which the real `huggingface_hub` client talks to the double."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import huggingface_hub
from hub_double import HubDouble

# Whether the client itself goes on with a download that was cut.
GOES_ON = int(huggingface_hub.__version__.partition(".")[0]) >= 2
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
