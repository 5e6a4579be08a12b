"""The ancestor as it comes, whole or refused, and its kept outputs, keyed by all that made them."""

import json

import accelerate
import pytest
import torch
from datasets import Dataset, Image
from pico import pico_clip, pico_pairs, pico_processor
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPModel,
    Dinov2Config,
    Dinov2ForImageClassification,
    Dinov2Model,
    MetaClip2Config,
    MetaClip2Model,
    Siglip2Config,
    Siglip2Model,
    SiglipConfig,
    SiglipModel,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
)

from mmlg_hf import ExtractionArguments, extract_learngene
from mmlg_hf.data import process_pairs
from mmlg_hf.data.identity import fingerprint_model
from mmlg_hf.errors import LearngeneError
from mmlg_hf.extraction.ancestors import (
    EMBEDDING_COLUMNS,
    ancestor_outputs,
    load_ancestor,
    public_name,
)
from mmlg_hf.extraction.outputs import cache_ancestor_outputs
from mmlg_hf.extraction.trainer import AncestorCollator
from mmlg_hf.training import ImageTextCollator


@pytest.fixture
def folder(tmp_path):
    pico_clip().save_pretrained(tmp_path / "clip")
    return tmp_path / "clip"


def rewrite(folder, change):
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})


def test_an_ancestor_that_lacks_tensors_is_refused(folder):
    rewrite(folder, lambda state: {f"module.{name}": tensor for name, tensor in state.items()})
    with pytest.raises(LearngeneError, match="the ancestor .* lacks 78 tensors of a CLIPModel, such as logit_scale"):
        load_ancestor(folder)


def test_one_missing_tensor_is_enough(folder):
    rewrite(folder, lambda state: {name: t for name, t in state.items() if name != "visual_projection.weight"})
    with pytest.raises(LearngeneError, match=r"lacks 1 tensor of a CLIPModel, such as visual_projection\.weight"):
        load_ancestor(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused_from_a_file_and_from_memory(folder, value):
    model = pico_clip()
    with torch.no_grad():
        model.text_projection.weight[1, 2] = value
    model.save_pretrained(folder)
    for ancestor in (folder, model):
        with pytest.raises(LearngeneError, match=r"text_projection\.weight of the ancestor.* holds NaN or infinity"):
            load_ancestor(ancestor)


def half(dtype):
    return pico_clip().to(dtype)


def prepared():
    return accelerate.Accelerator(cpu=True).prepare(pico_clip())


@pytest.mark.parametrize(
    "held",
    [
        pico_clip,
        prepared,
        lambda: torch.nn.DataParallel(pico_clip()),
        lambda: torch.compile(pico_clip()),
        lambda: accelerate.cpu_offload(pico_clip(), execution_device="cpu"),
        lambda: pico_clip().requires_grad_(False).train(),
    ],
)
def test_a_model_in_memory_is_taken_whatever_holds_it_and_left_as_it_is(held):
    model = held()
    before = {name: (p.device, p.dtype, p.requires_grad, id(p)) for name, p in model.named_parameters()}
    training, state = model.training, torch.get_rng_state()
    loaded = load_ancestor(model)
    assert type(loaded) is CLIPModel
    assert fingerprint_model(loaded) == fingerprint_model(pico_clip())
    assert not loaded.training
    assert not any(p.requires_grad for p in loaded.parameters())
    assert {name: (p.device, p.dtype, p.requires_grad, id(p)) for name, p in model.named_parameters()} == before
    assert model.training == training
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_taken_in_float32_from_memory_and_from_a_file(dtype, folder):
    rounded = {name: tensor.to(dtype).float() for name, tensor in pico_clip().state_dict().items()}
    half(dtype).save_pretrained(folder)
    for ancestor in (half(dtype), CLIPModel.from_pretrained(folder, dtype="auto"), folder):
        loaded = load_ancestor(ancestor)
        assert {p.dtype for p in loaded.parameters()} == {torch.float32}
        for name, tensor in loaded.state_dict().items():
            torch.testing.assert_close(tensor, rounded[name], rtol=0, atol=0)


def test_a_gene_of_a_half_precision_ancestor_is_float32(tmp_path):
    args = arguments(tmp_path, max_steps=1)
    gene = extract_learngene(half(torch.float16), pico_pairs(8), args, processor=pico_processor())
    assert {p.dtype for p in gene.parameters()} == {torch.float32}
    assert gene.config.vision_config.dtype in (None, torch.float32)


def test_adapters_are_named(folder):
    model = pico_clip()
    model.visual_projection = torch.nn.Sequential(model.visual_projection)
    with pytest.raises(LearngeneError, match="tensors are not those of a CLIPModel .* without adapters"):
        load_ancestor(model)


def save_vit(folder):
    config = ViTConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=8
    )
    ViTForImageClassification(config).save_pretrained(folder)


def test_a_vit_ancestor_that_lacks_tensors_is_refused(tmp_path):
    save_vit(tmp_path)
    rewrite(tmp_path, lambda state: {name: t for name, t in state.items() if "classifier" not in name})
    with pytest.raises(LearngeneError, match="lacks 2 tensors of a ViTForImageClassification"):
        load_ancestor(tmp_path)


def test_an_ancestor_without_processor_is_said(folder, tmp_path):
    save_vit(tmp_path / "vit")
    for ancestor, match in (
        (folder, "has no processor stored with it"),
        (tmp_path / "vit", "has no processor stored with it"),
        (pico_clip(), "model in memory"),
    ):
        with pytest.raises(LearngeneError, match=match):
            extract_learngene(ancestor, pico_pairs(8), arguments(tmp_path / "out"))


ENCODER = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
PICTURES = {"image_size": 16, "patch_size": 8}
PARTS = {"vision_config": ENCODER | PICTURES, "text_config": ENCODER | {"vocab_size": 40}}
STOCK = {
    MetaClip2Model: lambda: MetaClip2Config(**PARTS, projection_dim=8),
    SiglipModel: lambda: SiglipConfig(**PARTS),
    ViTModel: lambda: ViTConfig(**ENCODER, **PICTURES),
    ViTForImageClassification: lambda: ViTConfig(**ENCODER, **PICTURES),
    Dinov2Model: lambda: Dinov2Config(**ENCODER, **PICTURES),
    Dinov2ForImageClassification: lambda: Dinov2Config(**ENCODER, **PICTURES),
}


@pytest.mark.parametrize("cls", STOCK)
def test_other_families_load_as_they_are_from_a_folder_and_from_memory(cls, tmp_path):
    model = cls(STOCK[cls]())
    model.save_pretrained(tmp_path)
    for ancestor in (tmp_path, str(tmp_path), model, model.half()):
        loaded = load_ancestor(ancestor)
        assert type(loaded) is cls
        for name, tensor in loaded.state_dict().items():
            torch.testing.assert_close(tensor, model.state_dict()[name].float(), rtol=1e-3, atol=1e-3)
    # No class is written by tools that save a bare config.
    config = json.loads((tmp_path / "config.json").read_text())
    del config["architectures"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    if "Classification" not in cls.__name__:
        assert type(load_ancestor(tmp_path)) is cls


@pytest.mark.parametrize("cls", STOCK)
def test_other_families_that_lack_a_tensor_or_hold_no_numbers_are_refused(cls, tmp_path):
    model = cls(STOCK[cls]())
    name = next(name for name in model.state_dict() if name.endswith("layernorm.weight"))
    model.save_pretrained(tmp_path)
    rewrite(tmp_path, lambda state: {key: t for key, t in state.items() if not key.endswith("layernorm.weight")})
    with pytest.raises(LearngeneError, match=f"lacks . tensors? of a {cls.__name__}, such as .*layernorm.weight"):
        load_ancestor(tmp_path)
    model.get_parameter(name).data[0] = float("nan")
    with pytest.raises(LearngeneError, match="layernorm.weight of the ancestor holds NaN"):
        load_ancestor(model)


def test_a_vit_is_taken_with_and_without_its_pooler(tmp_path):
    config = ViTConfig(**ENCODER, **PICTURES)
    for index, options in enumerate(({}, {"add_pooling_layer": False}, {"use_mask_token": True})):
        model = ViTModel(config, **options).eval()
        model.save_pretrained(tmp_path / str(index))
        pixels = torch.randn(2, 3, 16, 16)
        with torch.no_grad():
            for ancestor in (model, tmp_path / str(index)):
                loaded = load_ancestor(ancestor)
                assert loaded.pooler is None
                torch.testing.assert_close(loaded(pixels).last_hidden_state, model(pixels).last_hidden_state)


def test_families_that_do_not_fit_are_refused_with_the_reason(tmp_path):
    naflex = Siglip2Model(Siglip2Config(vision_config=ENCODER, text_config=ENCODER | {"vocab_size": 40}))
    naflex.save_pretrained(tmp_path / "naflex")
    with pytest.raises(LearngeneError, match=r"Siglip2Model .*NaFlex.*Give a CLIPModel, .*open_clip"):
        load_ancestor(tmp_path / "naflex")
    headless = SiglipModel(
        SiglipConfig(
            vision_config=PARTS["vision_config"] | {"vision_use_head": False}, text_config=PARTS["text_config"]
        )
    )
    with pytest.raises(LearngeneError, match="SiglipModel.*without its pooling head it embeds no images"):
        load_ancestor(headless)
    giant = Dinov2Model(Dinov2Config(**ENCODER, **PICTURES, use_swiglu_ffn=True))
    giant.save_pretrained(tmp_path / "giant")
    for ancestor in (tmp_path / "giant", giant):
        with pytest.raises(LearngeneError, match=r"Dinov2Model.*SwiGLU"):
            load_ancestor(ancestor)


def test_names_are_told_without_paths(tmp_path, monkeypatch):
    (tmp_path / "org" / "data").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert public_name("other/my-data") == "other/my-data"
    assert public_name("org/data") == "data"
    assert public_name(str(tmp_path / "org") + "/") == "org"
    assert public_name("/nowhere/at/all") == "all"
    assert public_name(".") == tmp_path.name


def arguments(folder, **changes):
    settings = {"max_steps": 2, "per_device_train_batch_size": 8, "rotate": False, "elastic": False}
    settings |= {"save_strategy": "no", "report_to": "none", "disable_tqdm": True, "use_cpu": True}
    return ExtractionArguments(str(folder), **(settings | changes))


@pytest.fixture
def kept(tmp_path):
    """Pairs, and a function that gives an ancestor's outputs over them by the cache, beside those computed anew."""
    processor = pico_processor()
    collator = AncestorCollator(ImageTextCollator(processor))

    def outputs(ancestor, pairs):
        processed = process_pairs(pairs, processor)
        cached = cache_ancestor_outputs(ancestor, processed, collator, processor, tmp_path, batch_size=4)
        own = collator([cached[index] for index in range(len(pairs))])
        new = ancestor_outputs(ancestor, collator([processed[index] for index in range(len(pairs))]))
        return {name: (own[name], new[name]) for name in EMBEDDING_COLUMNS}

    return outputs


def close(outputs):
    for own, new in outputs.values():
        torch.testing.assert_close(own, new, rtol=0, atol=1e-6)


def test_a_corrected_activation_is_not_answered_with_kept_outputs(kept):
    def clip(activation):
        model = pico_clip()
        with torch.no_grad():  # far from where the two activations agree
            for layer in (*model.vision_model.encoder.layers, *model.text_model.encoder.layers):
                layer.mlp.fc1.weight.mul_(50)
                layer.mlp.activation_fn = torch.nn.GELU() if activation == "gelu" else layer.mlp.activation_fn
        for config in (model.config.vision_config, model.config.text_config):
            config.hidden_act = activation
        return model.eval()

    first = kept(clip("quick_gelu"), pico_pairs(8))
    second = kept(clip("gelu"), pico_pairs(8))
    close(first)
    close(second)
    assert not torch.allclose(first[EMBEDDING_COLUMNS[0]][0], second[EMBEDDING_COLUMNS[0]][0], rtol=0, atol=2e-5)


def test_pictures_replaced_under_their_paths_are_not_answered_with_kept_outputs(kept, tmp_path):
    (tmp_path / "photos").mkdir()
    paths = [str(tmp_path / "photos" / f"{index}.png") for index in range(6)]

    def pairs(first):
        for row, path in zip(pico_pairs(20).select(range(first, first + 6)), paths, strict=True):
            row["image"].save(path)
        return Dataset.from_dict({"image": paths, "caption": ["a photo"] * 6}).cast_column("image", Image())

    ancestor = pico_clip().eval()
    first = kept(ancestor, pairs(0))
    second = kept(ancestor, pairs(9))
    close(first)
    close(second)
    assert not torch.allclose(first[EMBEDDING_COLUMNS[0]][0], second[EMBEDDING_COLUMNS[0]][0], rtol=0, atol=2e-5)


def test_texts_that_changed_are_not_answered_with_kept_outputs(kept):
    ancestor, pairs = pico_clip().eval(), pico_pairs(6)
    first = kept(ancestor, pairs)
    second = kept(ancestor, pairs.map(lambda row: {"caption": "photo of " + row["caption"]}))
    close(second)
    assert not torch.allclose(first[EMBEDDING_COLUMNS[1]][0], second[EMBEDDING_COLUMNS[1]][0], rtol=0, atol=2e-5)
