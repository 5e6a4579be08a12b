"""Every Python snippet of the README runs as written, with the Hub ids it names put in place from local stand-ins."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from pico import pico_clip, pico_pairs, pico_processor
from transformers import ViTConfig, ViTForImageClassification

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
# Sections whose snippets talk to the Hub are run against the double, by tests/hub.
ELSEWHERE = {"Publish your own gene", "Use one from the Hub"}


def snippets():
    """Map each heading to its Python snippets."""
    found: dict[str, list[str]] = {}
    for section in re.split(r"^## ", README, flags=re.M)[1:]:
        title, body = section.split("\n", 1)
        code = re.findall(r"^```python\n(.*?)^```", body, flags=re.M | re.S)
        if code and title not in ELSEWHERE:
            found[title] = code
    return found


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory):
    """Folders for the ancestor and the data set that the README fetches from the Hub."""
    folder = tmp_path_factory.mktemp("stand-ins")
    pico_clip(vision_width=64, text_width=64, vision_depth=6, text_depth=6).save_pretrained(folder / "clip")
    pico_processor().save_pretrained(folder / "clip")
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4}
    ViTForImageClassification(ViTConfig(**sizes, image_size=16, patch_size=8)).save_pretrained(folder / "vit")
    pico_processor().image_processor.save_pretrained(folder / "vit")
    pico_pairs(32).rename_column("caption", "productDisplayName").to_parquet(folder / "data" / "train.parquet")
    return {
        '"openai/clip-vit-base-patch32"': repr(str(folder / "clip")),
        '"google/vit-base-patch16-224"': repr(str(folder / "vit")),
        '"ashraq/fashion-product-images-small"': repr(str(folder / "data")),
        "max_steps=8000, per_device_train_batch_size=64": "max_steps=2, per_device_train_batch_size=8",
        "max_steps=200, per_device_train_batch_size=64": "max_steps=2, per_device_train_batch_size=8",
        "test_size=500": "test_size=8",
        "width=384": "width=32",
    }


def run(code, folder):
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{code}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("title", sorted(snippets()))
def test_snippets_of_a_section_run(title, tmp_path, stand_ins):
    code = "\n".join(snippets()[title])
    for written, local in stand_ins.items():
        code = code.replace(written, local)
    (tmp_path / "examples").symlink_to(ROOT / "examples")  # snippets may use what a clone has
    run(code, tmp_path)


def test_the_three_first_snippets_are_there():
    assert {"Grow", "Fine-tune", "Extract"} <= set(snippets())


def test_ci_runs_the_test_command_of_the_readme():
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    command = next(line for line in README.splitlines() if line.startswith("python3 -m venv") and "pytest" in line)
    assert "README.md" in script
    assert re.match(r"^python3 -m venv .* pytest", command)


def test_pictures_of_the_readme_are_there():
    for path in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", README):
        assert (ROOT / path).is_file(), path
