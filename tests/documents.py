"""The pages that people read: their snippets, commands and links, and stand-ins for what they name on the Hub."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

from pico import pico_clip, pico_pairs, pico_processor
from PIL import Image
from transformers import ViTConfig, ViTForImageClassification

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def name_of(page):
    return page.relative_to(ROOT).as_posix()


def snippets(page):
    """The Python blocks of a page, in order: together they are one program."""
    return re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def commands(page):
    """The commands in a page's shell blocks and indented lines, each as its words."""
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"```(?:bash|sh|shell|console)\n(.*?)```", text, re.DOTALL)
    blocks += re.findall(r"^    ((?:mmlg|make|python3?|python -m) .*)$", text, re.MULTILINE)
    for block in blocks:
        for line in block.replace("\\\n", " ").splitlines():
            for command in re.split(r"&&|;", line.partition(" #")[0].removeprefix("$ ")):
                if command.strip() and not command.lstrip().startswith("#"):
                    yield shlex.split(command)


def links(page):
    """The files that a page links to or shows."""
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8")):
        if not re.match(r"https?:|mailto:", target):
            yield target


def stand_ins(folder):
    """Make what the pages fetch from the Hub, small, and map what is written there to what runs here."""
    pico_clip(vision_width=64, text_width=64, vision_depth=6, text_depth=6).save_pretrained(folder / "clip")
    pico_processor().save_pretrained(folder / "clip")
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4}
    ViTForImageClassification(ViTConfig(**sizes, image_size=16, patch_size=8)).save_pretrained(folder / "vit")
    pico_processor().image_processor.save_pretrained(folder / "vit")
    pairs = pico_pairs(32).rename_column("caption", "productDisplayName")
    kinds = [f"kind {row % 4}" for row in range(len(pairs))]
    pairs.add_column("articleType", kinds).to_parquet(folder / "data" / "train.parquet")
    return {
        '"openai/clip-vit-base-patch32"': repr(str(folder / "clip")),
        '"google/vit-base-patch16-224"': repr(str(folder / "vit")),
        '"ashraq/fashion-product-images-small"': repr(str(folder / "data")),
        "max_steps=2000, per_device_train_batch_size=256": "max_steps=2, per_device_train_batch_size=8",
        "max_steps=8000, per_device_train_batch_size=64": "max_steps=2, per_device_train_batch_size=8",
        "max_steps=200, per_device_train_batch_size=64": "max_steps=2, per_device_train_batch_size=8",
        "test_size=500": "test_size=8",
        "range(600)": "range(16)",
        "width=384": "width=32",
        '"max_steps": 60': '"max_steps": 4',
        '"max_steps": 20': '"max_steps": 2',
    }


def run(code, folder):
    """Run a program in a folder that has what a clone has, and a picture, without network; return what it prints."""
    (folder / "examples").symlink_to(ROOT / "examples")
    Image.new("RGB", (64, 64), "brown").save(folder / "shoe.jpg")
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{code}\n{done.stderr[-3000:]}"
    return done.stdout
