"""Loading genes from folders: what comes back, and what each kind of wrong folder is told."""

import json
import pickle
from pathlib import Path

import pytest
import torch
from pico import pico_clip, pico_processor
from pico_genes import image_gene, multimodal_gene, pair_inputs
from safetensors.torch import load_file, save_file
from transformers import AutoModel, CLIPForImageClassification, CLIPModel, CLIPTextModelWithProjection

from mmlg_hf import from_learngene
from mmlg_hf.cards.cards import stored_parameters
from mmlg_hf.descendants import bundled_learngenes, load_learngene, load_processor, locate_learngene
from mmlg_hf.errors import LearngeneError
from mmlg_hf.modeling_learngene import LearngeneForImageClassification, LearngeneModel

PARTS = ("image", "shared", "text")
INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module")
def gene():
    """A gene with a processor that no test may change."""
    gene = multimodal_gene()
    gene.processor = pico_processor()
    return gene


@pytest.fixture
def folder(gene, tmp_path):
    gene.save_pretrained(tmp_path / "gene")
    return tmp_path / "gene"


def rewrite(folder: Path, change) -> None:
    """Store the gene's tensors in one file, after `change(tensors)`."""
    shards = list(folder.glob("model-*.safetensors"))
    tensors = {name: tensor for shard in shards for name, tensor in load_file(shard).items()}
    change(tensors)
    for path in [*shards, folder / INDEX]:
        path.unlink()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def refusal(load, *args, **kwargs) -> str:
    """The sentence of the error that this loading ends with."""
    with pytest.raises(LearngeneError) as caught:
        load(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def same_weights(model, other) -> bool:
    ours, theirs = model.state_dict(), other.state_dict()
    return list(ours) == list(theirs) and all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


# --- what comes back -------------------------------------------------------------------------------------------------


def test_growing_from_a_folder_equals_growing_from_the_gene_in_memory(gene, folder):
    for size in ({}, {"depth": 5, "width": 8}, {"modality": "image"}, {"modality": "text", "width": 8}):
        grown = from_learngene(folder, **size)
        assert same_weights(grown, gene.descendant(**size))
        assert not grown.training
        assert grown.config.learngene["learngene"] is None  # a path on this machine says nothing elsewhere
        assert str(folder) not in grown.config.to_json_string()
    grown = from_learngene(folder, 2, (16, 8), "multimodal", attention_dropout=0.5, dtype=torch.bfloat16)
    assert type(grown) is CLIPModel
    assert grown.dtype == torch.bfloat16
    assert grown.config.text_config.attention_dropout == 0.5
    assert type(from_learngene(str(folder), modality="image", num_labels=3)) is CLIPForImageClassification
    assert type(from_learngene(gene, modality="text")) is CLIPTextModelWithProjection


def test_a_gene_in_memory_is_taken_as_it_is(gene):
    assert load_learngene(gene) is gene


def test_the_kind_of_gene_decides_the_class(folder, tmp_path):
    assert type(load_learngene(folder)) is LearngeneModel
    image_gene().save_pretrained(tmp_path / "image")
    assert type(load_learngene(tmp_path / "image")) is LearngeneForImageClassification
    assert type(from_learngene(tmp_path / "image", 2, 16, "image")) is CLIPForImageClassification


def test_the_processor_comes_with_the_gene_and_goes_with_its_descendants(gene, folder, tmp_path):
    loaded = load_learngene(folder)
    assert loaded.processor.tokenizer("a red square") == gene.processor.tokenizer("a red square")
    from_learngene(folder, 1, 8).save_pretrained(tmp_path / "grown")
    again = load_processor(tmp_path / "grown")
    assert again.image_processor.to_dict() == gene.processor.image_processor.to_dict()


def test_what_the_last_call_and_the_loading_left_in_a_tokenizer_is_not_saved(gene, tmp_path):
    gene.save_pretrained(tmp_path / "first")
    file = tmp_path / "first" / "tokenizer.json"
    cutting = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    file.write_text(json.dumps(json.loads(file.read_text()) | {"truncation": cutting}))  # as transformers saves it
    loaded = load_learngene(tmp_path / "first")
    loaded.processor.tokenizer(["a red square", "a"], truncation=True, max_length=4, padding="longest")
    loaded.save_pretrained(tmp_path / "second")
    stored = json.loads((tmp_path / "second" / "tokenizer.json").read_text())
    assert stored["truncation"] is None
    assert stored["padding"] is None
    settings = json.loads((tmp_path / "second" / "tokenizer_config.json").read_text())
    assert settings.pop("truncation_side") == "right"  # which is a setting of transformers' own
    assert settings == json.loads((tmp_path / "first" / "tokenizer_config.json").read_text())


def test_a_gene_without_a_processor_loads_and_says_so_when_asked_for_it(tmp_path):
    multimodal_gene().save_pretrained(tmp_path)
    assert load_learngene(tmp_path).processor is None
    assert "has no processor stored with it: use its ancestor's" in refusal(load_processor, tmp_path)


def test_a_gene_loads_in_float32_unless_asked_otherwise(gene, tmp_path):
    multimodal_gene().half().save_pretrained(tmp_path)
    assert load_learngene(tmp_path).dtype == torch.float32
    assert load_learngene(tmp_path, dtype="auto").dtype == torch.float16
    assert from_learngene(tmp_path, 1, 8).dtype == torch.float32


def test_a_subfolder_is_looked_into(gene, folder):
    loaded = load_learngene(folder.parent, subfolder="gene")
    assert same_weights(loaded, gene)


def test_a_gene_is_built_from_a_config_and_tensors_as_stock_models_are(gene):
    built = LearngeneModel.from_pretrained(None, config=gene.config, state_dict=gene.state_dict())
    assert same_weights(built, gene)


def test_loading_one_side_takes_no_keyword_that_it_would_ignore(folder):
    sentence = refusal(LearngeneModel.from_pretrained, folder, modality="image", max_memory={})
    assert "With modality, from_pretrained takes dtype and device_map only, not max_memory" in sentence


def test_one_side_loads_from_its_own_files(gene, folder):
    (folder / "model-text.safetensors").unlink()
    grown = from_learngene(folder, 2, 16, "image")
    assert same_weights(grown, gene.descendant(2, 16, "image"))


def test_one_side_of_a_gene_with_scales_loads_from_its_own_files(tmp_path):
    gene = multimodal_gene(weight_scales=True)
    gene.save_pretrained(tmp_path)
    (tmp_path / "model-text.safetensors").unlink()
    grown = from_learngene(tmp_path, 5, 16, "image")
    assert same_weights(grown, gene.descendant(5, 16, "image"))


def test_a_gene_saved_again_into_its_folder_replaces_the_former(folder):
    other = multimodal_gene(seed=2)
    other.save_pretrained(folder)
    assert same_weights(LearngeneModel.from_pretrained(folder), other)


def test_a_gene_in_many_shards_loads(tmp_path):
    gene = multimodal_gene()
    gene.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 3
    assert same_weights(LearngeneModel.from_pretrained(tmp_path), gene)


def test_a_gene_in_one_file_loads(gene, folder):
    rewrite(folder, lambda tensors: None)
    assert same_weights(LearngeneModel.from_pretrained(folder), gene)
    assert same_weights(from_learngene(folder, 1, 8, "image"), gene.descendant(1, 8, "image"))


def test_a_loaded_gene_computes_what_it_computed(gene, folder):
    inputs = pair_inputs()
    with torch.no_grad():
        expected = gene(**inputs).logits_per_image
        assert torch.equal(LearngeneModel.from_pretrained(folder)(**inputs).logits_per_image, expected)


def test_bundled_names_are_folders_of_the_package(monkeypatch, gene, tmp_path):
    gene.save_pretrained(tmp_path / "pico-gene")
    monkeypatch.setattr("mmlg_hf.checkpoints.ZOO", tmp_path)
    assert bundled_learngenes() == ["pico-gene"]
    assert locate_learngene("pico-gene") == str(tmp_path / "pico-gene")
    descendant = from_learngene("pico-gene", 2, 8)
    assert same_weights(descendant, gene.descendant(2, 8))
    assert descendant.config.learngene["learngene"] == "pico-gene"
    assert str(tmp_path) not in descendant.config.to_json_string()
    loaded = LearngeneModel.from_pretrained("pico-gene")
    assert same_weights(loaded, gene)
    assert loaded.name_or_path == loaded.config._name_or_path == "pico-gene"
    assert same_weights(loaded.descendant(2, 8), descendant)


# --- what is refused -------------------------------------------------------------------------------------------------


def loaders():
    return pytest.mark.parametrize(
        "load", [from_learngene, load_learngene, LearngeneModel.from_pretrained], ids=lambda load: load.__qualname__
    )


@loaders()
def test_another_kind_of_model_is_named(load, tmp_path):
    pico_clip().save_pretrained(tmp_path)
    assert "holds a 'clip' model, not a learngene: extract one from it first" in refusal(load, tmp_path)


@loaders()
def test_a_folder_without_a_model_is_refused(load, tmp_path):
    assert f"{tmp_path} holds no model: it has no config.json" in refusal(load, tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", "", "\x00\xff"])
def test_a_config_that_is_no_json_object_is_refused(text, folder):
    (folder / "config.json").write_text(text, encoding="latin-1")
    assert "The config.json of" in refusal(from_learngene, folder)


def test_a_config_of_a_gene_that_cannot_be_is_refused(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "mixing": "cubic"}))
    assert "mixing is 'cubic'" in refusal(from_learngene, folder)


@loaders()
def test_missing_unexpected_and_misshapen_tensors_are_all_listed(load, folder):
    def change(tensors):
        del tensors["visual_projection.weight"]
        del tensors["multimodal_blocks.mlp.fc1.bias"]
        tensors["surplus.weight"] = torch.zeros(2)
        tensors["vision_blocks.layer_norm1.weight"] = torch.zeros(1, 24)

    rewrite(folder, change)
    sentence = refusal(load, folder)
    for part in (
        "missing visual_projection.weight",
        "missing multimodal_blocks.mlp.fc1.bias",
        "unexpected surplus.weight",
        "vision_blocks.layer_norm1.weight is [1, 24] in place of [1, 32]",
    ):
        assert part in sentence


@pytest.mark.parametrize("modality", ["image", "text"])
def test_loading_one_side_lists_what_does_not_fit_there(modality, folder):
    side = {"image": "vision", "text": "text"}[modality]

    def change(tensors):
        del tensors[f"{side}_blocks.mlp.fc1.bias"]
        tensors[f"{side}_surplus.weight"] = torch.zeros(2)
        tensors["multimodal_blocks.layer_norm1.weight"] = torch.zeros(1, 24)

    rewrite(folder, change)
    sentence = refusal(from_learngene, folder, modality=modality)
    for part in (
        f"missing {side}_blocks.mlp.fc1.bias",
        f"unexpected {side}_surplus.weight",
        "multimodal_blocks.layer_norm1.weight is [1, 24] in place of [1, 32]",
    ):
        assert part in sentence


@pytest.mark.parametrize("modality", ["multimodal", "image"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_not_finite_are_refused(value, modality, folder):
    rewrite(folder, lambda tensors: tensors["vision_blocks.mlp.fc1.bias"].view(-1)[3:4].fill_(value))
    sentence = refusal(from_learngene, folder, modality=modality)
    assert "vision_blocks.mlp.fc1.bias of" in sentence
    assert "is not finite" in sentence


@pytest.mark.parametrize("modality", ["multimodal", "image"])
@pytest.mark.parametrize("keep", [0, 4, 100, -8])
def test_a_truncated_file_is_refused(keep, modality, folder):
    rewrite(folder, lambda tensors: None)
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    assert "truncated or no safetensors file" in refusal(from_learngene, folder, modality=modality)


def test_a_truncated_shard_is_refused(folder):
    shard = folder / "model-text.safetensors"
    shard.write_bytes(shard.read_bytes()[:-100])
    assert "truncated or no safetensors file" in refusal(from_learngene, folder)


@pytest.mark.parametrize("modality", ["multimodal", "text"])
def test_a_shard_that_is_not_there_is_named(modality, folder):
    (folder / "model-text.safetensors").unlink()
    assert f"{folder} lacks model-text.safetensors" in refusal(from_learngene, folder, modality=modality)


@pytest.mark.parametrize("text", ["{", "{}", "[]", '{"weight_map": 7}'])
def test_an_index_that_is_none_is_refused(text, folder):
    (folder / INDEX).write_text(text)
    for modality in ("multimodal", "image"):
        assert f"The {INDEX} of {folder} is no index" in refusal(from_learngene, folder, modality=modality)


@loaders()
def test_pickled_weights_are_refused_unopened(load, folder, tmp_path):
    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "sprung",))

    for path in folder.glob("model*"):
        path.unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Trap()))
    assert "pickled weights only (pytorch_model.bin)" in refusal(load, folder)
    assert not (tmp_path / "sprung").exists()


def test_no_weights_at_all_are_refused(folder):
    for path in folder.glob("model*"):
        path.unlink()
    assert "has no weights: it needs model.safetensors" in refusal(from_learngene, folder)


def test_a_file_is_refused(folder):
    for load in (from_learngene, load_processor):
        assert "is a file: give the folder" in refusal(load, folder / "config.json")


@pytest.mark.parametrize("name", ["./not/there", "/not/there", "no such folder", "a/b/c", ""])
def test_what_is_neither_a_folder_nor_a_hub_id_is_refused(name):
    assert "is neither an existing folder nor a Hub id" in refusal(from_learngene, name)


@pytest.mark.parametrize("thing", [7, None, {"a": 1}, pico_clip])
def test_what_is_no_name_and_no_gene_is_refused_by_its_type(thing):
    sentence = refusal(from_learngene, thing)
    assert f"the learngene is a {type(thing).__name__}: give a Hub id, a folder, a bundled name" in sentence


def test_sizes_that_cannot_be_are_refused_from_a_folder_too(folder):
    assert "width 64 is above the image encoder's 32" in refusal(from_learngene, folder, width=64)
    assert "'audio': it takes one of" in refusal(from_learngene, folder, modality="audio")
    assert "num_labels is 3 with modality" in refusal(from_learngene, folder, num_labels=3)
    assert "depth is 0" in refusal(from_learngene, folder, 0, modality="image")


def test_saving_that_fails_half_way_leaves_the_former_gene_loadable(gene, folder, monkeypatch):
    other = multimodal_gene(seed=2)
    monkeypatch.setattr("safetensors.torch.save_file", lambda *_, **__: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        other.save_pretrained(folder)
    loaded = LearngeneModel.from_pretrained(folder)
    assert same_weights(loaded, other) or same_weights(loaded, gene)


# --- how it is asked for ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [torch.bfloat16, "bfloat16", "torch.bfloat16"])
@pytest.mark.parametrize("keyword", ["dtype", "torch_dtype"])
def test_a_type_of_weights_is_given_from_torch_or_by_name_under_either_keyword(keyword, given, folder):
    asked = {keyword: given}
    assert from_learngene(folder, 1, 8, **asked).dtype == torch.bfloat16
    assert load_learngene(folder, **asked).dtype == torch.bfloat16
    assert load_learngene(folder, modality="image", **asked).vision_model.dtype == torch.bfloat16
    assert LearngeneModel.from_pretrained(folder, **asked).dtype == torch.bfloat16
    assert LearngeneModel.from_pretrained(folder).descendant(1, 8, **asked).dtype == torch.bfloat16


def test_auto_is_the_type_that_the_gene_is_stored_in(folder, tmp_path):
    multimodal_gene().half().save_pretrained(tmp_path / "half")
    assert from_learngene(tmp_path / "half", 1, 8, dtype="auto").dtype == torch.float16
    assert from_learngene(folder, 1, 8, dtype="auto").dtype == torch.float32
    expected = from_learngene(tmp_path / "half", 3, 8).half()
    assert same_weights(from_learngene(tmp_path / "half", 3, 8, dtype="float16"), expected)


@pytest.mark.parametrize("given", ["int8", torch.int32, "half", 16, "", torch.complex64, torch.float8_e4m3fn])
def test_what_is_no_type_of_weights_is_refused_in_one_sentence(given, gene, folder):
    for load in (from_learngene, load_learngene, LearngeneModel.from_pretrained):
        assert f"dtype is {given!r}: it takes float32, float16" in refusal(load, folder, dtype=given)
    assert "dtype is" in refusal(gene.descendant, dtype=given)
    assert "give dtype alone" in refusal(from_learngene, folder, dtype="float16", torch_dtype="float32")


@pytest.mark.parametrize("device_map", ["cpu", "auto", {"": "cpu"}, torch.device("cpu")])
def test_a_device_map_is_taken_wherever_something_is_loaded(device_map, gene, folder):
    image = LearngeneModel.from_pretrained(folder, modality="image", device_map=device_map)
    assert same_weights(image.descendant(1, 8, "image"), gene.descendant(1, 8, "image"))
    grown = from_learngene(folder, 1, 8, device_map=device_map)
    assert same_weights(grown, gene.descendant(1, 8))
    assert same_weights(load_learngene(folder, device_map=device_map), gene)
    assert "device_map is 'nowhere'" in refusal(
        LearngeneModel.from_pretrained, folder, modality="image", device_map="nowhere"
    )


@pytest.mark.parametrize("token", [False, "hf_x", True])
def test_the_token_is_passed_on_as_the_caller_said(token, monkeypatch, folder):
    asked = []

    def fetch(name, **keywords):
        asked.append(keywords.get("token"))
        return folder, "0" * 40

    monkeypatch.setattr("mmlg_hf.genes.fetch_learngene", fetch)
    monkeypatch.setattr("mmlg_hf.gene_files.fetch_learngene", fetch)
    from_learngene("someone/gene", 1, 8, token=token)
    load_learngene("someone/gene", token=token)
    LearngeneModel.from_pretrained("someone/gene", token=token)
    assert set(map(repr, asked)) == {repr(token)}


def test_without_a_token_the_saved_one_is_taken(monkeypatch, folder):
    asked = []
    fetch = lambda name, **keywords: (asked.append(keywords.get("token")), (folder, "0" * 40))[1]  # noqa: E731
    monkeypatch.setattr("mmlg_hf.genes.fetch_learngene", fetch)
    monkeypatch.setattr("mmlg_hf.gene_files.fetch_learngene", fetch)
    from_learngene("someone/gene", 1, 8)
    assert asked == [None, None]


@loaders()
@pytest.mark.parametrize("name", ["runs/gene", "gnee"])
def test_a_mistyped_path_that_looks_like_a_hub_id_is_told_that_there_is_no_such_folder(name, load, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert f"there is no folder {name!r} either" in refusal(load, name)


def test_an_unknown_keyword_of_loading_is_refused(folder):
    assert "load_learngene takes revision, token" in refusal(load_learngene, folder, tokn="x")


# --- what lay in the folder before -----------------------------------------------------------------------------------


def test_a_model_saved_over_another_leaves_none_of_its_weight_files(gene, tmp_path):
    image, multimodal = image_gene(), multimodal_gene(seed=2)
    models = [gene, gene.descendant(1, 8), multimodal, image, multimodal, gene.descendant(1, 8, "image"), gene]
    for model in models:
        model.save_pretrained(tmp_path)
        assert same_weights(type(model).from_pretrained(tmp_path), model)
        assert stored_parameters(tmp_path) == model.num_parameters()
        names = {path.name for path in tmp_path.glob("*.safetensors*")}
        assert names in ({"model.safetensors"}, {INDEX, *(f"model-{part}.safetensors" for part in PARTS)})
    gene.save_pretrained(tmp_path, max_shard_size="20KB")
    gene.descendant(1, 8).save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.glob("*.safetensors*")} == {"model.safetensors"}


def test_a_stock_save_over_a_gene_is_counted_by_what_loads(gene, folder):
    small = CLIPModel.from_pretrained(
        None, config=(grown := gene.descendant(1, 8)).config, state_dict=grown.state_dict()
    )
    small.save_pretrained(folder)  # leaves the gene's parts, as stock code knows nothing of them
    assert stored_parameters(folder) == small.num_parameters()


# --- the processor beside a gene -------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["processor_config.json", "tokenizer.json"])
@pytest.mark.parametrize("text", ["{", "", "[]"])
def test_a_damaged_processor_is_told_from_none(file, text, folder, caplog):
    (folder / file).write_text(text)
    assert f"the processor stored with '{folder}' cannot be read" in refusal(load_processor, folder)
    assert load_learngene(folder).processor is None


def test_a_processor_that_cannot_be_reached_is_told_from_one_that_is_not_stored(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "has no processor in the cache, and the Hub is not asked" in refusal(load_processor, "someone/gene")


# --- configs that cannot be, and files that are not what they seem ---------------------------------------------------


@pytest.mark.parametrize(
    ("part", "field", "value"),
    [
        (None, "projection_dim", 10**12), (None, "projection_dim", float("nan")),
        (None, "num_unimodal_blocks", 10**9),
        (None, "num_labels", 10**12), ("text_config", "num_labels", 10**12),
        ("vision_config", "num_hidden_layers", 10**9),
        ("vision_config", "hidden_size", 33), ("vision_config", "num_attention_heads", 0),
        ("vision_config", "patch_size", [8, 8]), ("vision_config", "layer_norm_eps", float("nan")),
        ("text_config", "vocab_size", 10**12), ("text_config", "hidden_act", 7), ("text_config", "hidden_act", "none"),
        ("text_config", "eos_token_id", [1]), (None, "dtype", "int64"), (None, "vision_config", []),
        (None, "quantization_config", {"quant_method": "x"}), (None, "id2label", ["a"]), (None, "mixing", ["linear"]),
    ],
)  # fmt: skip
def test_a_value_that_cannot_be_is_refused_in_one_sentence_before_memory_is_taken(part, field, value, folder):
    config = json.loads((folder / "config.json").read_text())
    (config if part is None else config[part])[field] = value
    (folder / "config.json").write_text(json.dumps(config))
    for load in (from_learngene, load_learngene, LearngeneModel.from_pretrained, AutoModel.from_pretrained):
        assert len(refusal(load, folder)) < 3000


@pytest.mark.parametrize("modality", [None, "image"])
def test_a_pointer_of_git_lfs_is_named(modality, folder):
    (folder / "model-image.safetensors").write_text("version https://git-lfs.github.com/spec/v1\nsize 9\n")
    assert "is a Git LFS pointer, not the file itself" in refusal(from_learngene, folder, modality=modality)


@pytest.mark.parametrize("name", ["x" * 5000 + ".safetensors", "../model.safetensors", "/etc/passwd", 7, None, ""])
def test_an_index_that_names_no_plain_file_is_refused(name, folder):
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"]["logit_scale"] = name
    (folder / INDEX).write_text(json.dumps(index))
    assert "which is no plain file name" in refusal(from_learngene, folder)


def test_an_index_that_points_into_another_file_is_refused(folder):
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"]["logit_scale"] = "model-text.safetensors"
    (folder / INDEX).write_text(json.dumps(index))
    sentence = refusal(from_learngene, folder)
    assert f"logit_scale of {folder} is in model-shared.safetensors, where its {INDEX} says model-text" in sentence


def test_a_tensor_that_is_in_two_files_is_refused(folder):
    text = load_file(folder / "model-text.safetensors")
    save_file({**text, "logit_scale": torch.tensor(7.0)}, folder / "model-text.safetensors")
    assert "is in both model-shared.safetensors and model-text.safetensors" in refusal(from_learngene, folder)


def test_weights_that_are_no_floating_point_numbers_are_refused(folder):
    rewrite(folder, lambda tensors: tensors.update({"logit_scale": torch.tensor(3)}))
    assert "logit_scale is stored as I64 in place of F64, F32, F16, BF16" in refusal(from_learngene, folder)


def test_loading_within_the_meta_device_is_told_as_transformers_tells_it(folder):
    with pytest.raises(RuntimeError, match="meta device context manager"), torch.device("meta"):
        LearngeneModel.from_pretrained(folder)
