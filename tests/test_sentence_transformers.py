"""A saved descendant in sentence-transformers, where that is installed: it embeds what `CLIPModel` embeds."""

import re

import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, CLIPModel

from mmlg_hf import create_model_card, from_learngene

sentence_transformers = pytest.importorskip("sentence_transformers", minversion="5.4")
TEXTS = ["a red shirt", "a watch", "shoes"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "clip"
    from_learngene("mmlg-fashion-48", depth=2, width=64).save_pretrained(folder)
    return folder


def test_pictures_and_texts_are_embedded_as_clip_embeds_them(saved):
    pictures = [Image.new("RGB", (64, 64), colour) for colour in ("red", "blue")]
    loaded = sentence_transformers.SentenceTransformer(str(saved), device="cpu")
    clip, processor = CLIPModel.from_pretrained(saved).eval(), AutoProcessor.from_pretrained(saved)
    with torch.no_grad():
        expected = clip(**processor(text=TEXTS, images=pictures, padding=True, return_tensors="pt"))
    for found, embeds in (
        (loaded.encode(pictures), expected.image_embeds),
        (loaded.encode(TEXTS), expected.text_embeds),
    ):
        found = torch.nn.functional.normalize(torch.tensor(found), dim=-1)
        torch.testing.assert_close(found, embeds, atol=1e-5, rtol=1e-5)


def test_the_snippet_of_its_card_runs(saved, capsys):
    card = str(create_model_card(saved, repo_id="my-org/clip"))
    (snippet,) = [code for code in re.findall(r"```python\n(.*?)```", card, re.S) if "sentence_transformers" in code]
    exec(snippet.replace("my-org/clip", str(saved)), {})
    assert "tensor([[" in capsys.readouterr().out


def test_the_card_of_an_image_only_descendant_does_not_name_it(tmp_path):
    from_learngene("mmlg-fashion-48", depth=2, width=64, modality="image").save_pretrained(tmp_path)
    assert "sentence_transformers" not in str(create_model_card(tmp_path, repo_id="my-org/image"))
