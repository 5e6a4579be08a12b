"""Every way a user loads what the zoo has published, in fresh processes, with outputs that equal the local ones."""

from __future__ import annotations

import json

import pytest
import torch
from loading_ways import WITH_PACKAGE, WITHOUT_PACKAGE, save_expected, start_ways
from pico_zoo import save_pico_gene
from safetensors.torch import load_file

from mmlg_hf import LearngeneModel

SIZE = (1, 16)


@pytest.fixture(scope="module")
def ways(published):
    """How the programs of `loading_ways` begin for the pico zoo."""
    local, folder = published.local, published.client.folder
    save_expected(local["pico-gene"], local["pico-clip"], folder)
    gene = published.hub.files("demo/pico-gene")
    moved = {**dict.fromkeys(gene), **{f"inner/gene/{name}": content for name, content in gene.items()}}
    published.hub.copy_repo("demo/pico-gene", "nested", **moved)
    hostile = {name: b"raise SystemExit('code ran')" for name in gene if name.endswith(".py")}
    published.hub.copy_repo("demo/pico-gene", "hostile", **hostile)
    return start_ways(
        folder,
        gene="demo/pico-gene",
        clip="demo/pico-clip",
        classifier="demo/pico-classifier",
        nested="demo/nested",
        hostile="demo/hostile",
        size=SIZE,
        tag="v1",
        commit=published.hub.repo("demo/pico-gene").branches["main"],
    )


def test_the_gene_is_stored_by_part_and_complete(published):
    folder = published.local["pico-gene"]
    files = sorted(path.name for path in folder.glob("model*.safetensors*"))
    assert files == [
        "model-image.safetensors",
        "model-shared.safetensors",
        "model-text.safetensors",
        "model.safetensors.index.json",
    ]
    names = {name: set(load_file(folder / name)) for name in files[:3]}
    assert all(name.startswith(("multimodal_blocks.", "logit_scale")) for name in names[files[1]])
    assert all(name.startswith(("vision_", "visual_")) for name in names[files[0]])
    assert all(name.startswith("text_") for name in names[files[2]])


def test_loading_with_the_package_online_and_then_offline(published, ways):
    hub, home = published.hub, published.client.new_home()
    loaded = [[], "demo/pico-gene", hub.repo("demo/pico-gene").branches["main"]]
    settings = {"preamble": ways, "home": home, "token": None}
    assert published.client.run(WITH_PACKAGE, **settings) == loaded
    hub.forget_requests()
    assert published.client.run(WITH_PACKAGE, HF_HUB_OFFLINE="1", **settings) == loaded
    assert hub.requests == []


def test_without_the_package_descendants_load_as_stock_models_and_a_gene_if_its_code_is_trusted(published, ways):
    assert published.client.run(WITHOUT_PACKAGE, preamble=ways, with_package=False, token=None) == []


def test_a_descendant_of_one_modality_fetches_no_byte_of_the_other_side(published, ways):
    hub = published.hub
    modalities = ("image", "text", "multimodal")
    for modality in modalities:
        hub.copy_repo("demo/pico-gene", f"for-{modality}")
    published.client.run(
        f"""
        from mmlg_hf import LearngeneModel, from_learngene
        local = LearngeneModel.from_pretrained({str(published.local["pico-gene"])!r})
        for modality in {modalities!r}:
            model = from_learngene("demo/for-" + modality, 1, 16, modality)
            for name, tensor in local.descendant(1, 16, modality).state_dict().items():
                assert torch.equal(tensor, model.state_dict()[name]), name
            model.save_pretrained("grown-" + modality)
        """,
        preamble=ways,
    )
    sizes = {name: len(content) for name, content in hub.files("demo/pico-gene").items()}
    fetched = {modality: hub.downloads(f"demo/for-{modality}") for modality in modalities}
    for files in fetched.values():
        assert all(size == sizes[name] for name, size in files.items())
    image, text = fetched["image"], fetched["text"]
    assert {"model-shared.safetensors", "model-image.safetensors"} <= image.keys()
    assert "model-text.safetensors" not in image
    assert "model-image.safetensors" not in text
    assert "model-text.safetensors" in text
    assert "tokenizer.json" in text
    assert not any("token" in name for name in image)
    assert sum(image.values()) < sum(fetched["multimodal"].values())
    grown = published.client.folder
    assert (grown / "grown-text" / "tokenizer.json").is_file()
    assert any(
        (grown / "grown-image" / name).is_file() for name in ("preprocessor_config.json", "processor_config.json")
    )


def test_a_fine_tuned_descendant_that_the_trainer_pushes_names_the_gene_and_no_base_of_other_weights(published, ways):
    published.client.run(
        """
        from datasets import Dataset
        from transformers import Trainer, TrainingArguments
        from mmlg_hf import from_learngene
        model = from_learngene("demo/pico-gene", 1, 16, "image", num_labels=3)
        rows = {"pixel_values": torch.rand(2, 3, 16, 16).tolist(), "labels": [0, 1]}
        args = TrainingArguments("tuned", max_steps=1, report_to=[], hub_model_id="owner/tuned", use_cpu=True)
        trainer = Trainer(model, args, train_dataset=Dataset.from_dict(rows).with_format("torch"))
        trainer.train()
        trainer.push_to_hub()
        """,
        preamble=ways,
    )
    card = published.hub.files("owner/tuned")["README.md"].decode()
    assert "base_model" not in card  # loaded by the gene's name, a stock class would not be what was fine-tuned
    assert json.loads(published.hub.files("owner/tuned")["config.json"])["learngene"]["learngene"] == "demo/pico-gene"


def test_a_descendant_is_pushed_with_its_processor_in_both_ways(published, ways):
    published.client.run(
        """
        from mmlg_hf import from_learngene
        from mmlg_hf.descendants import load_processor
        model = from_learngene("demo/pico-gene", 1, 16)
        model.push_to_hub("owner/grown-pushed")
        model.save_pretrained("grown", push_to_hub=True, repo_id="owner/grown-saved", private=True)
        for name in ("owner/grown-pushed", "owner/grown-saved"):
            assert type(load_processor(name)).__name__ == "CLIPProcessor"
        """,
        preamble=ways,
    )
    for name in ("owner/grown-pushed", "owner/grown-saved"):
        assert {"model.safetensors", "tokenizer.json", "processor_config.json"} <= published.hub.files(name).keys()
    assert published.hub.repo("owner/grown-saved").private


def test_pushing_a_gene_and_saving_it_with_push_to_hub_store_it_by_part(published, ways, tmp_path):
    save_pico_gene(tmp_path / "mine")
    published.client.run(
        f"""
        from mmlg_hf import LearngeneModel
        gene = LearngeneModel.from_pretrained({str(tmp_path / "mine")!r})
        gene.push_to_hub("owner/pushed", license="apache-2.0")
        gene.save_pretrained("saved", push_to_hub=True, repo_id="owner/saved", private=True)
        assert same(LearngeneModel.from_pretrained("owner/pushed"), gene_outputs)
        assert same(LearngeneModel.from_pretrained("owner/saved"), gene_outputs)
        """,
        preamble=ways,
    )
    for name in ("owner/pushed", "owner/saved"):
        card = published.hub.files(name)["README.md"].decode()
        assert "More Information Needed" not in card
        assert f'from_learngene("{name}"' in card
        assert ("license: apache-2.0" in card) == (name == "owner/pushed")
        assert "model-text.safetensors" in published.hub.files(name)
        assert "model.safetensors" not in published.hub.files(name)
    assert published.hub.repo("owner/saved").private


def test_saving_with_code_brings_it_along_this_once_only(tmp_path):
    gene = save_pico_gene(tmp_path / "gene")
    gene.save_pretrained(tmp_path / "with", with_code=True)
    gene.save_pretrained(tmp_path / "without")
    config = json.loads((tmp_path / "with" / "config.json").read_text())
    assert config["auto_map"]["AutoModel"] == "modeling_learngene.LearngeneModel"
    assert (tmp_path / "with" / "modeling_learngene.py").is_file()
    assert "auto_map" not in json.loads((tmp_path / "without" / "config.json").read_text())
    assert not list((tmp_path / "without").glob("*.py"))


def test_a_gene_in_half_precision_grows_what_its_float32_copy_grows(published):
    load, folder = LearngeneModel.from_pretrained, published.local["pico-gene"]
    half = load(folder, dtype=torch.float16)
    grown = half.descendant(1, 16).state_dict()
    expected = load(folder, dtype=torch.float16).float().descendant(1, 16).state_dict()
    assert all(torch.equal(grown[name], tensor) for name, tensor in expected.items())
