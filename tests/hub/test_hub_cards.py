"""Cards: what `create_model_card` says about a gene, a descendant, and what was measured."""

from __future__ import annotations

import copy
import json

import pytest
import yaml
from hub_validate import LICENSES as HUB_LICENSES
from hub_validate import PIPELINE_TAGS as HUB_PIPELINE_TAGS
from hub_validate import RELATIONS as HUB_RELATIONS
from hub_validate import card_errors
from pico import pico_clip
from pico_genes import multimodal_gene
from pico_zoo import RESULTS, save_pico_gene

from mmlg_hf import LearngeneError, create_model_card
from mmlg_hf.cards import save_model_card
from mmlg_hf.cards.cards import PIPELINE_TAGS
from mmlg_hf.cards.results import format_figure, read_results, results_table
from upload.lint import LICENSES, RELATIONS


@pytest.fixture(scope="module")
def gene_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gene")
    save_pico_gene(folder)
    return folder


def test_a_gene_and_its_folder_get_the_same_card(gene_folder):
    from mmlg_hf import LearngeneModel

    settings = {"repo_id": "demo/pico-gene", "license": "mit"}
    from_folder = create_model_card(gene_folder, RESULTS, **settings)
    assert str(from_folder) == str(create_model_card(LearngeneModel.from_pretrained(gene_folder), RESULTS, **settings))


def test_a_gene_card_says_what_it_grows_how_it_was_made_and_where_from(gene_folder):
    card = create_model_card(gene_folder, RESULTS, repo_id="demo/pico-gene", license="mit", data_license="CC0-1.0")
    assert card.data.license == "mit"
    assert card.data.datasets == ["demo/squares"]
    assert card.data.metrics == ["top1", "image_to_text_R@1"]
    assert "gene" in card.data.tags
    assert card.data.pipeline_tag is None
    assert 'from_learngene("demo/pico-gene"' in card.text
    assert "| gene | 0.04 M | 0.2 | 41.2 ± 1.1 | 20.0 |" in card.text
    assert "| Ancestor | id runs/ancestor, parameters 100000 |" in card.text
    assert "| Steps | 10 |" in card.text
    assert "2506.16673" in card.text
    assert card_errors(str(card)) == []


def test_a_gene_card_says_how_its_token_embedding_is_stored():
    whole, factored = (str(create_model_card(multimodal_gene(token_embedding_rank=rank))) for rank in (None, 5))
    assert "stored as a product of rank 5" in factored
    assert "stored as a product" not in whole


def test_a_descendant_card_names_its_gene_as_base_model():
    model = pico_clip()
    model.config.learngene = {"learngene": "demo/pico-gene", "revision": "abc", "modality": "multimodal"}
    card = create_model_card(model, repo_id="demo/pico-clip", license="mit")
    assert card.data.base_model == "demo/pico-gene"
    assert card.data.to_dict()["base_model_relation"] == "finetune"
    assert card.data.pipeline_tag == "zero-shot-image-classification"
    assert "depth 2 and width 32" in card.text
    assert "## Figures" not in card.text
    assert card_errors(str(card)) == []


@pytest.mark.parametrize("kind", ["ancestor", "fine-tuned", "mixture", "aligned-pair"])
def test_every_kind_of_artifact_has_a_template_that_the_hub_takes(kind):
    card = create_model_card(pico_clip(), RESULTS, kind=kind, repo_id="demo/pico", license="mit")
    assert kind in card.data.tags
    assert card_errors(str(card)) == []


def test_an_ancestors_card_tells_its_training_and_how_a_gene_comes_of_it():
    model = pico_clip()
    model.config.recipe = {"dataset": "demo/pairs", "steps": 2400, "muon_learning_rate": 0.003}
    card = create_model_card(model, kind="ancestor", repo_id="demo/pico", license="mit")
    assert "| Muon learning rate | 0.003 |" in card.text
    assert "| Steps | 2400 |" in card.text
    assert "mmlg extract demo/pico --data YOUR_PAIRS" in card.text
    assert card_errors(str(card)) == []


def test_a_model_that_says_nothing_of_its_origin_needs_a_kind():
    with pytest.raises(LearngeneError, match="pass kind, one of 'ancestor', 'gene'"):
        create_model_card(pico_clip())
    with pytest.raises(LearngeneError, match="kind is 'recipe': it takes one of 'ancestor'"):
        create_model_card(pico_clip(), kind="recipe")


def test_a_folder_without_a_model_is_refused_and_stays_empty(tmp_path):
    with pytest.raises(LearngeneError, match="holds no model"):
        save_model_card(tmp_path, RESULTS)
    assert list(tmp_path.iterdir()) == []


def test_saving_writes_the_card_the_results_the_plot_and_the_entries_of_its_row(gene_folder):
    save_model_card(gene_folder, RESULTS, repo_id="demo/pico-gene", row="gene", license="mit")
    assert json.loads((gene_folder / "results.json").read_text()) == RESULTS
    assert (gene_folder / "results.png").read_bytes().startswith(b"\x89PNG")
    assert "](results.png)" in (gene_folder / "README.md").read_text()
    entries = yaml.safe_load((gene_folder / ".eval_results" / "demo--squares.yaml").read_text())
    assert [entry["value"] for entry in entries] == [0.4125, 0.2]
    assert entries[0]["dataset"] == {"id": "demo/squares", "task_id": "top1"}
    assert entries[0]["notes"] == "split: test; mean over 3 seeds, standard deviation 0.011"


def test_the_table_shows_only_columns_that_a_row_fills():
    lines = results_table(RESULTS).splitlines()
    assert lines[0] == "| Model | Parameters | MB | Zero-shot top-1 (%) | Image→text R@1 (%) |"
    assert lines[3] == "| depth 1, width 16 | 0.02 M | 0.1 | 31.2 | 10.0 |"
    assert format_figure("median_rank", 12) == "12.0"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda r: r.pop("models"), 'no "models"'),
        (lambda r: r["dataset"].pop("split"), 'no "dataset" with the "id" and "split"'),
        (lambda r: r["models"][0].update(role="queen"), 'a "role" from ancestor, gene'),
        (lambda r: r["models"][1].update(name="gene"), "more than one model named 'gene'"),
        (lambda r: r["models"][0].update(parameters=float("nan")), "parameters of 'gene' is nan"),
        (lambda r: r["models"][0]["figures"].update(top1="good"), "top1 of 'gene' is 'good'"),
    ],
)
def test_malformed_results_are_named(change, sentence):
    results = copy.deepcopy(RESULTS)
    change(results)
    with pytest.raises(LearngeneError, match=sentence):
        read_results(results)


def test_missing_and_broken_results_files_are_named(tmp_path):
    with pytest.raises(LearngeneError, match=r"There is no results file .*none\.json"):
        read_results(tmp_path / "none.json")
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(LearngeneError, match=r"broken\.json is not JSON"):
        read_results(tmp_path / "broken.json")


def test_what_our_lint_allows_the_hub_allows():
    assert LICENSES <= HUB_LICENSES
    assert set(PIPELINE_TAGS.values()) <= HUB_PIPELINE_TAGS
    assert RELATIONS <= HUB_RELATIONS
