"""Loading stock models: what fits is loaded as it is stored, and every fault of a folder is one sentence."""

import json
import shutil

import pytest
import torch
from pico import pico_clip, pico_processor
from pico_genes import image_gene, perturb
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModel,
    CLIPForImageClassification,
    CLIPModel,
    CLIPTextModelWithProjection,
    CLIPVisionModelWithProjection,
)

from mmlg_hf import LearngeneError
from mmlg_hf.checkpoints import load_config, load_model
from mmlg_hf.errors import first_line
from mmlg_hf.evaluation.loading import load_classifier, load_dual_encoder

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A CLIP with its processor, whole and in shards."""
    root = tmp_path_factory.mktemp("checkpoints")
    model = perturb(pico_clip())
    for folder, size in (("whole", "1GB"), ("shards", "40KB")):
        model.save_pretrained(root / folder, max_shard_size=size)
        pico_processor().save_pretrained(root / folder)
    return root


@pytest.fixture
def copy(saved, tmp_path):
    """A function that copies one of them to be damaged."""
    return lambda name="whole": shutil.copytree(saved / name, tmp_path / name)


def refused(folder, sentence):
    """See that the loaders refuse a folder with the same sentence, which is one."""
    for load in (
        lambda: load_model(CLIPModel, folder, "the model"),
        lambda: load_model(AutoModel, folder, "the model", dtype=torch.float32),
        lambda: load_dual_encoder(folder),
    ):
        with pytest.raises(LearngeneError, match=sentence) as caught:
            load()
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 600


def change_weights(folder, change):
    save_file(change(load_file(folder / WEIGHTS)), folder / WEIGHTS, metadata={"format": "pt"})


def change_json(path, change):
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


@pytest.mark.parametrize("name", ["whole", "shards"])
def test_a_model_is_loaded_as_it_is_stored(saved, name):
    expected = perturb(pico_clip()).state_dict()
    for model in (load_model(CLIPModel, saved / name, "the model"), load_dual_encoder(saved / name)[0]):
        assert not model.training
        assert all(torch.equal(tensor, expected[key]) for key, tensor in model.state_dict().items())


def test_one_encoder_is_loaded_from_a_model_of_two(saved):
    for cls in (CLIPVisionModelWithProjection, CLIPTextModelWithProjection):
        assert load_model(cls, saved / "whole", "the encoder").config.projection_dim == 16
        with pytest.raises(LearngeneError, match=r"holds \d\d tensors that a CLIP\w+ has not, such as logit_scale"):
            load_model(cls, saved / "whole", "the encoder", may_hold_more=False)


def test_tensors_that_may_lack_are_initialised(saved):
    head = {"may_lack": lambda key: key.startswith("classifier.")}
    assert load_model(CLIPForImageClassification, saved / "whole", "the model", **head).classifier.out_features == 2
    with pytest.raises(LearngeneError, match=r"lacks 2 tensors .* such as classifier.bias, classifier.weight"):
        load_model(CLIPForImageClassification, saved / "whole", "the model")


# --- weights ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (lambda whole: whole[:-100], r"weights of the model .* are damaged \(.*not fully covered"),
        (lambda whole: whole[:100], "are damaged"),
        (lambda whole: b"", rf"{WEIGHTS} is empty"),
        (lambda whole: POINTER.encode(), rf"{WEIGHTS} is a Git LFS pointer, .* run `git lfs pull`"),
        (lambda whole: b"<html>404</html>", "are damaged"),
    ],
)
def test_damaged_weights_are_refused(copy, content, sentence):
    folder = copy()
    (folder / WEIGHTS).write_bytes(content((folder / WEIGHTS).read_bytes()))
    refused(folder, sentence)
    folder = copy("shards")
    shard = sorted(folder.glob("model-*"))[1]
    shard.write_bytes(content(shard.read_bytes()))
    refused(folder, sentence.replace(WEIGHTS, shard.name))


def test_pickled_and_missing_weights_are_refused(copy):
    folder = copy()
    torch.save(load_file(folder / WEIGHTS), folder / "pytorch_model.bin")
    assert isinstance(load_model(CLIPModel, folder, "the model"), CLIPModel)
    (folder / WEIGHTS).unlink()
    refused(folder, r"has pickled weights only \(pytorch_model.bin\), which can run code")
    (folder / "pytorch_model.bin").unlink()
    refused(folder, f"has no weights: it needs {WEIGHTS} or {INDEX}")


def with_nan(tensors):
    tensors["visual_projection.weight"][0, 0] = torch.nan
    return tensors


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda t: {f"module.{k}": v for k, v in t.items()}, "lacks 78 tensors of a CLIPModel, such as logit_scale, "),
        (lambda t: {}, "lacks 78 tensors of a CLIPModel"),
        (lambda t: {k: v for k, v in t.items() if k != "logit_scale"}, "lacks 1 tensor of a CLIPModel, such as logit"),
        (
            lambda t: t | {"visual_projection.weight": torch.ones(3, 32)},
            r"has 1 tensor of another shape .*visual_projection.weight: \[3, 32\] in place of \[16, 32\]",
        ),
        (with_nan, "visual_projection.weight of the model .* holds NaN or infinity"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(copy, change, sentence):
    folder = copy()
    change_weights(folder, change)
    refused(folder, sentence)


# --- index -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["x" * 5000, "../whole/model.safetensors", "/", "", "a\0b", None, 3, [], "model-00009-of-00008.safetensors"],
)
def test_an_index_that_names_a_file_that_is_not_there_is_refused(copy, name):
    copy("whole")  # so that the name that leads out of the folder leads to a file
    folder = copy("shards")
    change_json(
        folder / INDEX, lambda content: content | {"weight_map": content["weight_map"] | {"logit_scale": name}}
    )
    refused(folder, f"lacks .*, which its {INDEX} names")


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"weight_map": []}', '{"weight_map": {}, "metadata": {}}', "3"])
def test_an_index_that_is_none_is_refused(copy, content):
    folder = copy("shards")
    (folder / INDEX).write_text(content)
    refused(folder, f"the {INDEX} of the model .* is no index of weights")


def test_a_missing_shard_is_refused(copy):
    folder = copy("shards")
    sorted(folder.glob("model-*"))[0].unlink()
    refused(folder, f"lacks 'model-00001-of-00008.safetensors', which its {INDEX} names")


# --- config ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("", "config.json of the model .* is no JSON"),
        (POINTER, "is no JSON"),
        ("[]", "has no model_type: it is no model's config"),
        ("null", "has no model_type"),
        ("{}", "has no model_type"),
        ('{"model_type": 3}', "has no model_type"),
        ('{"model_type": "clip", "vision_config": 3}', "Validation error for field 'vision_config': TypeError"),
        ('{"model_type": "clip", "vision_config": {"hidden_size": "a"}}', "'hidden_size' expected int, got str"),
    ],
)
def test_a_config_that_is_none_is_refused(copy, content, sentence):
    folder = copy()
    (folder / "config.json").write_text(content)
    refused(folder, sentence)
    with pytest.raises(LearngeneError, match=sentence):
        load_config(AutoConfig, folder, "the model")


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"num_hidden_layers": 3}, "lacks 16 tensors of a CLIPModel, such as vision_model.encoder.layers.2"),
        ({"num_hidden_layers": 1}, "holds 16 tensors of more layers than its config says, such as vision_model.enc"),
        ({"hidden_size": 64}, r"38 tensors of another shape .*class_embedding: \[32\] in place of \[64\]"),
        ({"num_attention_heads": 5}, r"the hidden size \(32\) is not a multiple of the number of attention heads"),
        ({"hidden_act": "nope"}, "cannot load the model .*: there is no 'nope'"),
        ({"patch_size": 0}, "cannot load the model .*: integer division or modulo by zero"),
    ],
)
def test_a_config_that_does_not_fit_the_weights_is_refused(copy, fields, sentence):
    folder = copy()
    change_json(folder / "config.json", lambda c: c | {"vision_config": c["vision_config"] | fields})
    refused(folder, f"(?i){sentence}")


def test_odd_architectures_in_a_config_do_not_hide_what_is_wrong(copy):
    folder = copy()
    change_json(folder / "config.json", lambda c: c | {"architectures": 3})
    change_weights(folder, lambda tensors: {})
    for cls in (CLIPModel, AutoModel):
        with pytest.raises(LearngeneError, match=r"was saved as CLIPModel and lacks 78|cannot load"):
            load_model(cls, folder, "the model")


def test_a_model_of_another_kind_is_refused(copy):
    folder = copy()
    change_json(folder / "config.json", lambda c: c | {"model_type": "bert", "num_hidden_layers": 1, "vocab_size": 9})
    with pytest.raises(LearngeneError, match="is a 'bert' model, and a 'clip' model is needed"):
        load_model(CLIPModel, folder, "the model")
    with pytest.raises(LearngeneError, match=r"lacks \d+ tensors of a BertModel"):
        load_model(AutoModel, folder, "the model")


# --- places ----------------------------------------------------------------------------------------------------------


def test_places_where_no_model_is_are_refused(saved, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (saved / "bare").mkdir(exist_ok=True)
    for place, sentence in {
        str(saved / "nothing"): "there is no folder",
        "./nothing": "there is no folder './nothing'",
        str(saved / "whole" / WEIGHTS): "is a file: give the folder",
        str(saved / "bare"): "has no config.json",
        "no-such-org/no-such-model": "cannot load the model 'no-such-org/no-such-model': ",
        "x" * 5000: "cannot load the model 'xxx",
        "a\0b": "cannot load the model",
        "": "cannot load the model ''",
    }.items():
        with pytest.raises(LearngeneError, match=sentence) as caught:
            load_model(AutoModel, place, "the model", local_files_only=True)
        assert len(str(caught.value)) < 600
        with pytest.raises(LearngeneError, match=sentence.replace("load the model", "read the config of the model")):
            load_config(AutoConfig, place, "the model", local_files_only=True)


def test_a_damaged_or_missing_processor_is_refused(copy):
    folder = copy()
    (folder / "tokenizer.json").write_text(POINTER)
    with pytest.raises(LearngeneError, match="cannot load the processor of"):
        load_dual_encoder(folder)
    for path in folder.glob("*token*"):
        path.unlink()
    with pytest.raises(LearngeneError, match="another model's tokenizer"):
        load_dual_encoder(folder)


def test_a_classifier_is_loaded_checked_too(tmp_path):
    gene = image_gene()
    gene.processor = pico_processor().image_processor
    gene.save_pretrained(tmp_path / "gene")
    model, processor = load_classifier(tmp_path / "gene")
    assert all(torch.equal(tensor, gene.state_dict()[key]) for key, tensor in model.state_dict().items())
    assert processor.crop_size["height"] == 16
    gene.descendant(1, 16).save_pretrained(tmp_path / "grown")
    change_weights(tmp_path / "grown", lambda t: {k: v for k, v in t.items() if "classifier" not in k})
    with pytest.raises(LearngeneError, match="lacks 2 tensors of a CLIPForImageClassification, such as classifier"):
        load_classifier(tmp_path / "grown")


def test_the_first_line_of_an_error_says_what_is_wrong():
    assert first_line(ValueError("\n one\ntwo")) == "one"
    assert first_line(ValueError("Validation error for field 'a':\n    TypeError: no int")) == (
        "Validation error for field 'a': TypeError: no int"
    )
    assert first_line(KeyError("weights")) == "there is no 'weights'"
    assert first_line(ValueError()) == "ValueError"
