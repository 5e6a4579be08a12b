"""open_clip checkpoints: converted, and compared with a forward pass written from open_clip's own layout."""

import json

import pytest
import torch
from pico import pico_pairs, pico_processor, pico_tokenizer
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from mmlg_hf import ExtractionArguments, LearngeneError, LearngeneModel, extract_learngene
from mmlg_hf.extraction.ancestors import load_ancestor, load_ancestor_processor
from mmlg_hf.extraction.open_clip import is_open_clip, load_open_clip, load_open_clip_processor

VISION = {"image_size": 16, "layers": 2, "width": 32, "patch_size": 8, "head_width": 8, "mlp_ratio": 2.0}
TEXT = {"context_length": 16, "vocab_size": 0, "width": 24, "heads": 3, "layers": 3, "mlp_ratio": 2.0}
EMBED = 12


class Block(nn.Module):
    """open_clip's ResidualAttentionBlock."""

    def __init__(self, width, heads, mlp_ratio, quick):
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.mlp = nn.Module()
        self.mlp.c_fc = nn.Linear(width, int(width * mlp_ratio))
        self.mlp.c_proj = nn.Linear(int(width * mlp_ratio), width)
        self.quick = quick

    def forward(self, x, mask=None):
        normed = self.ln_1(x)
        x = x + self.attn(normed, normed, normed, attn_mask=mask, need_weights=False)[0]
        hidden = self.mlp.c_fc(self.ln_2(x))
        return x + self.mlp.c_proj(hidden * torch.sigmoid(1.702 * hidden) if self.quick else F.gelu(hidden))


class Encoder(nn.Module):
    def __init__(self, cfg, heads, quick):
        super().__init__()
        blocks = [Block(cfg["width"], heads, cfg.get("mlp_ratio", 4.0), quick) for _ in range(cfg["layers"])]
        self.resblocks = nn.ModuleList(blocks)

    def forward(self, x, mask=None):
        for block in self.resblocks:
            x = block(x, mask)
        return x


class Reference(nn.Module):
    """open_clip's CLIP, plain."""

    def __init__(self, vocab_size, quick):
        super().__init__()
        width, patches = VISION["width"], (VISION["image_size"] // VISION["patch_size"]) ** 2
        self.visual = nn.Module()
        self.visual.conv1 = nn.Conv2d(3, width, VISION["patch_size"], VISION["patch_size"], bias=False)
        self.visual.class_embedding = nn.Parameter(torch.randn(width))
        self.visual.positional_embedding = nn.Parameter(torch.randn(patches + 1, width))
        self.visual.ln_pre, self.visual.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        self.visual.transformer = Encoder(VISION, width // VISION["head_width"], quick)
        self.visual.proj = nn.Parameter(torch.randn(width, EMBED))
        self.token_embedding = nn.Embedding(vocab_size, TEXT["width"])
        self.positional_embedding = nn.Parameter(torch.randn(TEXT["context_length"], TEXT["width"]))
        self.transformer = Encoder(TEXT, TEXT["heads"], quick)
        self.ln_final = nn.LayerNorm(TEXT["width"])
        self.text_projection = nn.Parameter(torch.randn(TEXT["width"], EMBED))
        self.logit_scale = nn.Parameter(torch.tensor(2.0))
        for parameter in self.parameters():  # nothing stays at a starting value
            nn.init.normal_(parameter, mean=parameter.mean().item(), std=0.3)

    def encode_image(self, pixels):
        v = self.visual
        x = v.conv1(pixels).flatten(2).transpose(1, 2)
        x = torch.cat([v.class_embedding.expand(len(x), 1, -1), x], dim=1) + v.positional_embedding
        return v.ln_post(v.transformer(v.ln_pre(x)))[:, 0] @ v.proj

    def encode_text(self, ids):
        x = self.token_embedding(ids) + self.positional_embedding[: ids.shape[1]]
        mask = torch.full((ids.shape[1],) * 2, -torch.inf).triu(1)
        x = self.ln_final(self.transformer(x, mask))
        return x[torch.arange(len(ids)), ids.argmax(dim=-1)] @ self.text_projection


def save(folder, *, quick=False, prefix="", vision=None, text=None, extra=None, weights="open_clip_model.safetensors"):
    """Write what open_clip writes and return the reference it is of."""
    torch.manual_seed(0)
    tokenizer = pico_tokenizer()
    reference = Reference(len(tokenizer), quick).eval()
    folder.mkdir(exist_ok=True)
    state = {
        name if name.startswith(("visual", "logit_scale")) else prefix + name: tensor.detach().clone().contiguous()
        for name, tensor in reference.state_dict().items()
    }
    save_file(state, folder / weights, metadata={"format": "pt"})
    cfg = {"embed_dim": EMBED, "vision_cfg": VISION | (vision or {})}
    cfg |= {"text_cfg": TEXT | {"vocab_size": len(tokenizer)} | (text or {})} | ({"quick_gelu": True} if quick else {})
    preprocess = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "interpolation": "bicubic"}
    config = {"model_cfg": cfg | (extra or {}), "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    tokenizer.save_pretrained(folder)
    return reference


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("prefix", ["", "text."])
def test_a_converted_model_computes_what_open_clip_does(tmp_path, quick, prefix):
    reference = save(tmp_path / "clip", quick=quick, prefix=prefix)
    model, processor = load_open_clip(tmp_path / "clip"), load_open_clip_processor(tmp_path / "clip")
    pixels = torch.randn(3, 3, 16, 16)
    ids = processor.tokenizer(["a red square", "blue", "a photo of a pink square on white"], padding=True)["input_ids"]
    ids = torch.tensor(ids)
    with torch.no_grad():
        image = model.get_image_features(pixel_values=pixels).pooler_output
        text = model.get_text_features(input_ids=ids).pooler_output
        torch.testing.assert_close(image, reference.encode_image(pixels), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(text, reference.encode_text(ids), atol=1e-4, rtol=1e-4)
    assert model.logit_scale.item() == pytest.approx(reference.logit_scale.item())


def test_the_processor_has_the_means_of_the_config(tmp_path):
    save(tmp_path / "clip")
    processor = load_open_clip_processor(tmp_path / "clip")
    assert list(processor.image_processor.image_mean) == [0.1, 0.2, 0.3]
    assert list(processor.image_processor.image_std) == [0.4, 0.5, 0.6]
    assert processor.tokenizer.model_max_length == TEXT["context_length"]


def test_a_folder_is_known_as_open_clips(tmp_path):
    save(tmp_path / "clip")
    pico_processor().save_pretrained(tmp_path / "other")
    assert is_open_clip(tmp_path / "clip")
    assert not is_open_clip(tmp_path / "other")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"vision": {"timm_model_name": "vit_so400m"}}, "vit_so400m"),
        ({"text": {"hf_model_name": "roberta-base"}}, "roberta-base"),
        ({"vision": {"layers": [3, 4, 6, 3]}}, "ResNet"),
        ({"vision": {"attentional_pool": True}}, "vision_cfg.attentional_pool"),
        ({"vision": {"no_ln_pre": True}}, "vision_cfg.no_ln_pre"),
        ({"text": {"no_causal_mask": True}}, "text_cfg.no_causal_mask"),
        ({"text": {"pool_type": "last"}}, "text_cfg.pool_type"),
        ({"text": {"embed_cls": True}}, "text_cfg.embed_cls"),
        ({"extra": {"multimodal_cfg": {"width": 8}}}, "multimodal_cfg"),
    ],
)
def test_another_architecture_is_refused_by_name(tmp_path, changes, named):
    save(tmp_path / "clip", **changes)
    with pytest.raises(LearngeneError, match=named):
        load_open_clip(tmp_path / "clip")


def test_tensors_that_do_not_fit_are_named(tmp_path):
    save(tmp_path / "clip", vision={"layers": 3})
    with pytest.raises(LearngeneError, match=r"missing vision_model.encoder.layers.2"):
        load_open_clip(tmp_path / "clip")


def test_damaged_and_pickled_weights_are_refused(tmp_path):
    save(tmp_path / "clip")
    path = tmp_path / "clip" / "open_clip_model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(LearngeneError, match="damaged"):
        load_open_clip(tmp_path / "clip")
    path.rename(path.with_name("open_clip_pytorch_model.bin"))
    with pytest.raises(LearngeneError, match="pickled"):
        load_open_clip(tmp_path / "clip")


def test_a_config_that_is_none_is_refused(tmp_path):
    save(tmp_path / "clip")
    (tmp_path / "clip" / "open_clip_config.json").write_text("[]")
    with pytest.raises(LearngeneError, match=r"open_clip_config\.json"):
        load_open_clip(tmp_path / "clip")


def test_pictures_that_are_not_square_are_refused(tmp_path):
    save(tmp_path / "clip", vision={"image_size": [16, 32]})
    with pytest.raises(LearngeneError, match=r"takes pictures of \[16, 32\]: only square ones"):
        load_open_clip(tmp_path / "clip")


def arguments(folder):
    return ExtractionArguments(
        str(folder), max_steps=1, per_device_train_batch_size=8, report_to="none", disable_tqdm=True, use_cpu=True
    )


def test_a_gene_is_extracted_from_an_open_clip_folder_with_its_own_processor(tmp_path):
    save(tmp_path / "clip")
    extract_learngene(str(tmp_path / "clip"), pico_pairs(16), arguments(tmp_path / "gene"))
    gene = LearngeneModel.from_pretrained(tmp_path / "gene")
    assert gene.config.ancestor["id"] == "clip"
    assert gene.config.ancestor["class"] == "CLIPModel"
    assert gene.config.vision_config.hidden_size == VISION["width"]
    processor = load_open_clip_processor(tmp_path / "clip")
    assert list(gene.processor.image_processor.image_mean) == list(processor.image_processor.image_mean)
    assert gene.processor.tokenizer.get_vocab() == processor.tokenizer.get_vocab()


def test_an_open_clip_model_that_lacks_a_tensor_or_is_another_architecture_is_no_ancestor(tmp_path):
    save(tmp_path / "deep", vision={"layers": 3})
    with pytest.raises(LearngeneError, match=r"missing vision_model.encoder.layers.2"):
        load_ancestor(tmp_path / "deep")
    save(tmp_path / "timm", vision={"timm_model_name": "vit_so400m"})
    with pytest.raises(LearngeneError, match="vit_so400m"):
        load_ancestor(tmp_path / "timm")


def test_transformers_own_files_come_first_where_a_folder_has_both(tmp_path):
    save(tmp_path / "clip")
    model = load_open_clip(tmp_path / "clip")
    with torch.no_grad():
        model.logit_scale.fill_(1.5)
    model.save_pretrained(tmp_path / "clip")
    assert load_ancestor(tmp_path / "clip").logit_scale.item() == 1.5


COMMIT = "0123456789" * 4


@pytest.mark.parametrize("name", ["hf-hub:org/clip", "org/clip"])
def test_an_open_clip_model_of_the_hub_is_an_ancestor_with_its_commit(tmp_path, monkeypatch, name):
    from huggingface_hub import constants

    repo = tmp_path / "models--org--clip"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(COMMIT)
    (repo / "snapshots").mkdir()
    reference = save(repo / "snapshots" / COMMIT)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    ancestor = load_ancestor(name)
    assert ancestor.logit_scale.item() == pytest.approx(reference.logit_scale.item())
    assert ancestor.name_or_path == "org/clip"
    assert ancestor.config._commit_hash == COMMIT
    assert load_ancestor_processor(ancestor).tokenizer.get_vocab() == pico_tokenizer().get_vocab()
    with pytest.raises(LearngeneError, match="org/other"):
        load_ancestor(name.replace("clip", "other"))
