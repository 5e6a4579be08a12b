"""The base install: what it does without the libraries of the extras, and what it says where they are missing."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mmlg_hf import LearngeneError
from mmlg_hf.errors import require

ROOT = Path(__file__).resolve().parent.parent
# Found neither by `import` nor by those who ask first, such as transformers.
WITHOUT = """
import sys
from importlib.machinery import PathFinder

class Others(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        hidden = name.partition(".")[0] in {"sklearn", "matplotlib", "peft"}
        return None if hidden else super().find_spec(name, path, target)

sys.meta_path = [Others if finder is PathFinder else finder for finder in sys.meta_path]
"""


def run_without_extras(code, folder):
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", WITHOUT + code]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment, check=False)


def test_a_module_of_an_installed_library_is_returned():
    assert require("json.decoder", "demo").JSONDecoder


def test_a_missing_library_is_named_with_the_extra_that_brings_it():
    with pytest.raises(LearngeneError, match=r"This needs no_such_library.*pip install 'mmlg_hf\[demo\]'"):
        require("no_such_library.part", "demo")


def test_a_library_that_lacks_something_of_its_own_is_not_called_missing(tmp_path, monkeypatch):
    (tmp_path / "broken_library.py").write_text("import its_own_missing_part")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="its_own_missing_part"):
        require("broken_library", "demo")


@pytest.mark.slow
def test_the_base_install_extracts_grows_and_fine_tunes(tmp_path):
    done = run_without_extras(
        """
from pico import pico_clip, pico_pairs, pico_processor
from transformers import TrainingArguments
from mmlg_hf import ContrastiveTrainer, ExtractionArguments, evaluate_retrieval, extract_learngene, save_model_card

settings = {"max_steps": 1, "per_device_train_batch_size": 4, "report_to": "none"}
pairs, processor = pico_pairs(8), pico_processor()
gene = extract_learngene(pico_clip(), pairs, ExtractionArguments("gene", **settings), processor=processor)
clip = gene.descendant(1)
args = TrainingArguments("out", **settings)
ContrastiveTrainer(clip, args, train_dataset=pairs, processing_class=processor).train()
print(evaluate_retrieval(clip, pairs, processor))
clip.save_pretrained("clip")
save_model_card("clip")
import mmlg_hf.clip_moe as moe
moe.upcycle(clip, [clip])
assert not {"sklearn", "matplotlib", "peft"} & set(sys.modules)
""",
        tmp_path,
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
def test_what_an_extra_is_for_says_so_before_anything_is_trained(tmp_path):
    programs = [
        "from mmlg_hf.cli import main; sys.argv = ['mmlg', 'demo', '--output-dir', 'out']; main()",
        "from mmlg_hf.clip_moe import diversify",
        "from mmlg_hf.clip_moe import train_router",
        "from mmlg_hf.demo.digits import digit_splits",
    ]
    done = run_without_extras(
        f"""
for program in {programs!r}:
    try:
        exec(program)
    except SystemExit as end:
        print("exit code", end.code, file=sys.stderr)
    except ValueError as error:
        print(type(error).__name__, error, file=sys.stderr)
""",
        tmp_path,
    )
    needs = r"This needs (sklearn|matplotlib), which is not installed: pip install 'mmlg_hf\[demo\]' brings it\n"
    told = re.sub(r"(?m)^\[transformers\].*\n", "", done.stderr)  # what it says of itself, as of torchvision
    assert re.fullmatch(rf"Error: {needs}exit code 2\n(LearngeneError {needs}){{3}}", told), done.stderr
    assert not list(tmp_path.iterdir())
