"""The ways in which a user loads a published gene and a descendant of it, as programs for fresh processes.

Each compares outputs with those of the local artifacts, bit by bit, and leaves in `result` the names of those that
differ. `start_ways` begins each program: `ways` names the repositories and the descendant's size.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

# Sums in another order differ in the last bit: every process runs on one thread, as `Client.start` sets it.
PREAMBLE = """
import json, os, torch
from pathlib import Path
from safetensors.torch import load_file, save_file
@torch.no_grad()
def outputs(model):
    size = model.config.vision_config.image_size
    pixels = torch.linspace(0, 1, 2 * 3 * size * size).reshape(2, 3, size, size).to(model.dtype)
    inputs = {"input_ids": torch.tensor([[1, 2, 3, 4], [4, 3, 2, 1]]), "pixel_values": pixels}
    images = model.get_image_features(pixels).pooler_output
    texts = model.get_text_features(inputs["input_ids"]).pooler_output
    return {"logits": model(**inputs).logits_per_image.contiguous(), "images": images, "texts": texts}
def same(model, expected):
    found = outputs(model)
    return all(torch.equal(found[name], expected[name]) for name in expected)
def refusal(call):
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "no refusal"
"""

# Online first and then offline, with the same home.
WITH_PACKAGE = """
from huggingface_hub import snapshot_download
from transformers import AutoModel
import mmlg_hf
from mmlg_hf import LearngeneModel, from_learngene
name = ways["gene"]
load = LearngeneModel.from_pretrained
cache = dict(cache_dir=os.environ["HF_HOME"] + "/other")
checks = {
    "main": same(load(name), gene_outputs),
    "tag": same(load(name, revision=ways["tag"]), gene_outputs),
    "commit": same(load(name, revision=ways["commit"]), gene_outputs),
    "other cache": same(load(name, **cache), gene_outputs),
    "cache only": same(load(name, local_files_only=True), gene_outputs),
    "device map": same(load(name, device_map="cpu"), gene_outputs),
    "dtype": load(name, dtype=torch.float16).dtype == torch.float16,
    "subfolder": same(load(ways["nested"], subfolder="inner/gene"), gene_outputs),
    "auto": type(AutoModel.from_pretrained(name)) is LearngeneModel,
    "auto outputs": same(AutoModel.from_pretrained(name, revision=ways["tag"]), gene_outputs),
    "descendant": same(from_learngene(name, *ways["size"]), descendant_outputs),
    "descendant of tag": same(from_learngene(name, *ways["size"], revision=ways["tag"]), descendant_outputs),
    "descendant, other cache": same(from_learngene(name, *ways["size"], **cache), descendant_outputs),
    "descendant, cache only": same(from_learngene(name, *ways["size"], local_files_only=True), descendant_outputs),
    "descendant of subfolder": same(
        from_learngene(ways["nested"], *ways["size"], subfolder="inner/gene"), descendant_outputs
    ),
    "code does not run": same(load(ways["hostile"]), gene_outputs),
    "code does not run, auto": same(AutoModel.from_pretrained(ways["hostile"]), gene_outputs),
    "code does not run, descendant": same(from_learngene(ways["hostile"], *ways["size"]), descendant_outputs),
    "no code came": not list(Path(os.environ["HF_HOME"], "modules").rglob("modeling_learngene.py")),
    "snapshot": same(from_learngene(snapshot_download(name), *ways["size"]), descendant_outputs),
}
grown = from_learngene(name, *ways["size"])
grown.save_pretrained(os.environ["HF_HOME"] + "/grown")
saved = {path.name for path in Path(os.environ["HF_HOME"], "grown").iterdir()}
checks["processor"] = {"tokenizer.json", "processor_config.json"} <= saved
result = [
    [key for key, passed in checks.items() if not passed],
    grown.config.learngene["learngene"], grown.config.learngene["revision"],
]
"""

WITHOUT_PACKAGE = """
from PIL import Image
from transformers import AutoModel, AutoModelForZeroShotImageClassification, pipeline
model = AutoModelForZeroShotImageClassification.from_pretrained(ways["clip"], trust_remote_code=False)
checks = {"clip": same(model, descendant_outputs), "clip class": type(model).__name__ == "CLIPModel"}
picture = Image.new("RGB", (20, 20), "red")
classify = pipeline("zero-shot-image-classification", model=ways["clip"])
scores = classify(picture, candidate_labels=["red", "blue"], hypothesis_template="{}")
checks["zero-shot"] = sorted(score["label"] for score in scores) == ["blue", "red"]
name = ways["gene"]
checks |= {"refused": "trust_remote_code" in refusal(lambda: AutoModel.from_pretrained(name))}
checks["no code came"] = not list(Path(os.environ["HF_HOME"]).rglob("*.py"))
gene = AutoModel.from_pretrained(name, trust_remote_code=True)
checks["forward"] = same(gene, gene_outputs)
grown = gene.descendant(*ways["size"])
checks["stock"] = type(grown).__module__ == "transformers.models.clip.modeling_clip"
checks["descendant"] = same(grown, descendant_outputs)
image = gene.descendant(*ways["size"], "image", num_labels=3)
checks["image"] = type(image).__name__ == "CLIPForImageClassification"
if "classifier" in ways:
    classify = pipeline("image-classification", model=ways["classifier"])
    scores = classify(picture)
    checks["classifier"] = type(classify.model).__name__ == "CLIPForImageClassification"
    checks["labels"] = sorted(score["label"] for score in scores) == ["LABEL_0", "LABEL_1", "LABEL_2"]
checks["of a tag"] = same(AutoModel.from_pretrained(name, revision=ways["tag"], trust_remote_code=True), gene_outputs)
import sys
checks["package is absent"] = "mmlg_hf" not in sys.modules
result = [key for key, passed in checks.items() if not passed]
"""


def save_expected(gene: Path, clip: Path, folder: Path) -> None:
    """Write the outputs of a local gene and of a local descendant to `folder`."""
    import torch
    from safetensors.torch import save_file
    from transformers import CLIPModel

    from mmlg_hf import LearngeneModel

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    names: dict[str, Any] = {}
    exec(PREAMBLE, names)
    save_file(names["outputs"](LearngeneModel.from_pretrained(gene)), folder / "gene.safetensors")
    save_file(names["outputs"](CLIPModel.from_pretrained(clip)), folder / "descendant.safetensors")
    torch.set_num_threads(threads)


def start_ways(folder: Path, **ways: Any) -> str:
    """The beginning of a program: what it compares with, and what it loads."""
    outputs = [
        f"{name}_outputs = load_file({str(folder / name)!r} + '.safetensors')" for name in ("gene", "descendant")
    ]
    return PREAMBLE + "\n".join([*outputs, f"ways = {ways!r}", ""])
