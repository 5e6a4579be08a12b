"""An aligned pair on the Hub: a few files, encoders by id and commit, and loading that fetches them at that commit."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "alignment"))
from pico_encoders import make_encoder

PREAMBLE = f"""
import sys
sys.path.insert(0, {str(Path(__file__).resolve().parents[1])!r})
import torch
from pico import pico_processor
from mmlg_hf.alignment import align, DualEncoderModel, load_processor
from mmlg_hf.errors import LearngeneError
from transformers import AutoModel
batch = {{
    "input_ids": torch.tensor([[5, 6, 552], [7, 8, 552]]),
    "pixel_values": torch.linspace(-1, 1, 2 * 3 * 16 * 16).view(2, 3, 16, 16),
}}
def logits(model):
    return model.eval()(**batch).logits_per_image.tolist()
"""


@pytest.fixture
def hub_with_encoders(hub, client, tmp_path):
    """A double that holds a ViT and a CLIP text encoder."""
    from pico import pico_processor

    for kind in ("vit", "clip-text"):
        make_encoder(kind).save_pretrained(tmp_path / kind)
        pico_processor().save_pretrained(tmp_path / kind)
    client.run(
        f"""
        from huggingface_hub import HfApi
        for name, kind in (("demo/vision", "vit"), ("demo/text", "clip-text")):
            HfApi().create_repo(name)
            HfApi().upload_folder(repo_id=name, folder_path={str(tmp_path)!r} + "/" + kind)
        """
    )
    return hub


def test_pushing_writes_a_card_and_the_trained_part_and_loading_fetches_the_encoders(hub_with_encoders, client):
    hub = hub_with_encoders
    pushed = client.run(
        """
        model = align("demo/vision", "demo/text", "lilt")
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.1)
        model.push_to_hub("demo/pair", processor=load_processor(model), license="apache-2.0")
        result = logits(model)
        """,
        preamble=PREAMBLE,
    )
    files = hub.files("demo/pair")
    assert {"README.md", "config.json", "model.safetensors", "tokenizer.json"} <= set(files)
    card = files["README.md"].decode()
    assert "license: apache-2.0" in card
    assert "base_model:\n- demo/vision\n- demo/text\nbase_model_relation: adapter" in card
    assert "More Information Needed" not in card
    assert "| Recipe | lilt |" in card
    assert 'pipeline("zero-shot-image-classification", model="demo/pair")' in card
    assert "pip install mmlg_hf" in card
    config = json.loads(files["config.json"])
    assert config["vision_base"]["name"] == "demo/vision"
    commit = config["text_base"]["revision"]
    assert len(commit) == 40
    assert f"name demo/text, revision {commit} |" in card
    assert len(files["model.safetensors"]) < len(hub.files("demo/vision")["model.safetensors"])

    # The encoders move on; the pair keeps to the commit it was trained on.
    hub.put_file("demo/text", "model.safetensors", b"\\0" * 100)
    loaded = client.run(
        "result = logits(AutoModel.from_pretrained('demo/pair'))",
        # Importing the package is enough for the auto classes to know an aligned pair.
        preamble=PREAMBLE.replace(
            "from mmlg_hf.alignment import align, DualEncoderModel, load_processor", "import mmlg_hf"
        ),
    )
    for row, expected in zip(loaded, pushed, strict=True):
        assert row == pytest.approx(expected, abs=1e-5)


def test_an_encoder_that_left_the_hub_is_named(hub_with_encoders, client, tmp_path):
    told = client.run(
        f"""
        align("demo/vision", "demo/text", "lilt").save_pretrained({str(tmp_path / "pair")!r})
        import json, pathlib
        path = pathlib.Path({str(tmp_path / "pair" / "config.json")!r})
        config = json.loads(path.read_text())
        config["text_base"]["name"] = "demo/gone"
        path.write_text(json.dumps(config))
        try:
            DualEncoderModel.from_pretrained({str(tmp_path / "pair")!r})
        except LearngeneError as error:
            result = str(error)
        """,
        preamble=PREAMBLE,
    )
    assert "the base text encoder 'demo/gone' of this aligned pair is missing" in told
    assert "from_pretrained(..., text=...)" in told
