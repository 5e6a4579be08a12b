"""The command `mmlg`: what each command prints and writes, and one sentence and exit code 2 for bad input."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from datasets import DatasetDict
from pico import pico_clip, pico_pairs, pico_processor
from pico_genes import image_gene, multimodal_gene
from safetensors.torch import load_file
from transformers import (
    CLIPForImageClassification,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPProcessor,
    CLIPTextModelWithProjection,
)
from typer.testing import CliRunner

from mmlg_hf import LearngeneModel
from mmlg_hf.cli import app
from mmlg_hf.evaluation import evaluate_retrieval, evaluate_zero_shot
from mmlg_hf.evaluation.classification import evaluate_classification
from mmlg_hf.inspection import descendant_sizes

COMMANDS = ("extract", "inspect", "descend", "evaluate", "demo")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Folders with a gene, a CLIP, a classifier that always says "green", and a labelled dataset."""
    root = tmp_path_factory.mktemp("cli")
    gene = multimodal_gene(ancestor={"id": "pico/ancestor", "parameters": 100_000})
    gene.processor = pico_processor()
    gene.save_pretrained(root / "gene")
    clip = pico_clip()
    clip.save_pretrained(root / "clip")
    pico_processor().save_pretrained(root / "clip")
    names = pico_pairs(1, labels=True).features["label"].names
    classifier = gene.descendant(1, 16, "image", id2label=dict(enumerate(names)))
    torch.nn.init.zeros_(classifier.classifier.weight)
    classifier.classifier.bias.data = torch.arange(8.0).roll(2)  # the highest at index 1
    classifier.save_pretrained(root / "classifier")
    gene.descendant(modality="image").save_pretrained(root / "image-model")
    pairs = pico_pairs(16, labels=True)
    DatasetDict({"train": pairs, "test": pairs}).save_to_disk(root / "pairs")
    return root


def run(*words):
    return CliRunner().invoke(app, list(map(str, words)))


def refused(result) -> str:
    """The sentence on stderr of a command that ended with exit code 2."""
    assert result.exit_code == 2, (result.output, result.exception)
    sentence = result.stderr.strip()
    assert "Traceback" not in sentence
    return sentence


def test_importing_the_command_line_imports_no_framework():
    code = "import sys, mmlg_hf.cli; print([m for m in ('torch', 'transformers', 'datasets') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_package_runs_as_a_module():
    done = subprocess.run([sys.executable, "-m", "mmlg_hf", "--help"], capture_output=True, text=True, check=True)
    assert all(command in done.stdout for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example(command):
    result = run(command, "--help")
    assert result.exit_code == 0
    assert f"Example: mmlg {command}" in result.output


def test_inspect_prints_a_row_for_each_size(folders):
    result = run("inspect", folders / "gene", "--depth", "2", "--depth", "3,1", "--width", "16", "--modality", "image")
    assert result.exit_code == 0, result.output
    gene = LearngeneModel.from_pretrained(folders / "gene")
    for size in descendant_sizes(gene.config, [2, (3, 1)], [16], ["image"]):
        assert f"{size.parameters:,}" in result.output
    assert f"{gene.num_parameters():,} parameters" in result.output
    assert f"{gene.num_parameters() / 100_000:.1%} of its 100,000 parameters" in result.output


def test_inspect_of_the_bundled_gene_fits_a_terminal_of_80_columns_whole():
    result = CliRunner(env={"COLUMNS": "80"}).invoke(app, ["inspect", "mmlg-fashion-48"])
    assert result.exit_code == 0, result.output
    assert "…" not in result.output
    lines = result.stdout.splitlines()
    table = lines[next(index for index, line in enumerate(lines) if line.split()[:2] == ["modality", "depth"]) :]
    assert max(map(len, table)) <= 80
    assert "192,128" in result.output


def test_inspect_prints_json_that_a_program_can_read(folders):
    result = run("inspect", folders / "gene", "--json")
    found, gene = json.loads(result.stdout), LearngeneModel.from_pretrained(folders / "gene")
    assert {row["modality"] for row in found["descendants"]} == {"multimodal", "image", "text"}
    assert found["gene"]["parameters"] == gene.num_parameters()
    assert found["gene"]["vocabulary"] == gene.text_model.embeddings.token_embedding.weight.numel()
    assert found["gene"]["tokens"] == gene.config.text_config.vocab_size


def test_inspect_tells_what_of_a_gene_and_of_its_descendants_is_vocabulary(folders):
    gene = LearngeneModel.from_pretrained(folders / "gene")
    table = gene.text_model.embeddings.token_embedding.weight
    result = run("inspect", folders / "gene", "--depth", "1", "--width", "8", "--modality", "text")
    tokens, width = table.shape
    assert (
        f"vocabulary: {tokens:,} tokens x {width}, stored whole: {table.numel():,} parameters, "
        f"{table.numel() / gene.num_parameters():.1%} of the gene"
    ) in result.output
    grown = gene.descendant(1, 8, "text")
    assert f"{tokens * 8 / grown.num_parameters():.0%}" in result.output


def test_inspect_tells_the_rank_of_a_factored_vocabulary_and_scales_and_nothing_of_none(tmp_path):
    multimodal_gene(token_embedding_rank=4, weight_scales=True).save_pretrained(tmp_path / "factored")
    output = run("inspect", tmp_path / "factored", "--depth", "1", "--width", "8").output
    assert f"stored at rank 4: {553 * 4 + 4 * 16:,} parameters" in output
    assert "mixing with scales of each layer;" in output
    image_gene().save_pretrained(tmp_path / "image")
    output = run("inspect", tmp_path / "image", "--depth", "1", "--width", "8").output
    assert "vocabulary:" not in output


def test_descend_writes_what_the_gene_grows(folders, tmp_path):
    output = tmp_path / "new" / "small"
    words = ("--depth", "2,1", "--width", "16,8", "--output", output)
    result = run("descend", folders / "gene", *words)
    assert result.exit_code == 0, result.output
    loaded = CLIPModel.from_pretrained(output)
    assert (loaded.config.vision_config.num_hidden_layers, loaded.config.text_config.hidden_size) == (2, 8)
    grown = LearngeneModel.from_pretrained(folders / "gene").descendant((2, 1), (16, 8)).state_dict()
    assert all(torch.equal(weight, grown[name]) for name, weight in loaded.state_dict().items())
    assert CLIPProcessor.from_pretrained(output).tokenizer.model_max_length == 16
    assert [path.name for path in output.parent.iterdir()] == ["small"]


def test_descend_grows_a_classifier_with_a_head(folders, tmp_path):
    (tmp_path / "out").mkdir()
    words = ("--modality", "image", "--num-labels", "3", "--output", tmp_path / "out")
    assert run("descend", folders / "gene", *words).exit_code == 0
    assert CLIPForImageClassification.from_pretrained(tmp_path / "out").config.num_labels == 3
    assert CLIPImageProcessorPil.from_pretrained(tmp_path / "out").crop_size["height"] == 16


def test_descend_grows_an_image_model_from_an_image_gene_without_being_told(tmp_path):
    image_gene().save_pretrained(tmp_path / "image")
    run("descend", tmp_path / "image", "--depth", 1, "--output", tmp_path / "grown")
    assert CLIPForImageClassification.from_pretrained(tmp_path / "grown").config.vision_config.num_hidden_layers == 1


def test_descend_grows_a_text_model(folders, tmp_path):
    assert run("descend", folders / "gene", "--modality", "text", "--output", tmp_path / "out").exit_code == 0
    assert CLIPTextModelWithProjection.from_pretrained(tmp_path / "out").config.hidden_size == 16


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--depth", "0"), "depth is 0"),
        (("--depth", "-1"), "depth is -1"),
        (("--depth", "deep"), "neither a number nor a pair"),
        (("--depth", "1,2,3"), "has 3 numbers"),
        (("--width", "12"), "no multiple of the head size 8"),
        (("--width", "64"), "above the image encoder's 32"),
        (("--width", "0"), "width is 0"),
        (("--modality", "audio"), "multimodal"),
        (("--num-labels", "3"), 'use "image" or "text"'),
        (("--num-labels", "0", "--modality", "image"), "--num-labels is 0"),
    ],
)
def test_a_size_that_cannot_be_grown_is_refused_and_nothing_written(folders, tmp_path, words, sentence):
    assert sentence in refused(run("descend", folders / "gene", *words, "--output", tmp_path / "out"))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_another_model_is_refused_by_its_kind(folders, tmp_path):
    for command in (("inspect", folders / "clip"), ("descend", folders / "clip", "--output", tmp_path / "out")):
        sentence = refused(run(*command))
        assert "holds a 'clip' model, not a learngene" in sentence
        assert len(sentence.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_gene_is_refused(folders, tmp_path):
    shutil.copytree(folders / "gene", tmp_path / "gene")
    weights = next(iter(sorted((tmp_path / "gene").glob("*.safetensors"))))
    weights.write_bytes(weights.read_bytes()[:200])
    assert "truncated" in refused(run("inspect", tmp_path / "gene"))


def test_an_output_that_holds_something_is_left_alone(folders, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    assert "no empty folder" in refused(run("descend", folders / "gene", "--output", tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_write_that_fails_leaves_nothing_behind(folders, tmp_path, monkeypatch):
    def fail(self, folder, *args, **kwargs):
        Path(folder, "half").write_text("half")
        raise OSError(28, "No space left on device", str(folder))

    monkeypatch.setattr(CLIPModel, "save_pretrained", fail)
    result = run("descend", folders / "gene", "--output", tmp_path / "out")
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1].startswith("Error: cannot read or write")
    assert result.stderr.splitlines()[-1].endswith("No space left on device")
    assert list(tmp_path.iterdir()) == []


def test_evaluate_retrieval_prints_and_writes_what_the_function_measures(folders, tmp_path):
    output = tmp_path / "figures" / "retrieval.json"
    result = run(
        "evaluate", folders / "clip", "--data", folders / "pairs", "--task", "retrieval", "--limit", "8",
        "--output", output,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    measured = json.loads(output.read_text())
    expected = evaluate_retrieval(pico_clip(), pico_pairs(8), pico_processor())
    assert measured["figures"] == pytest.approx(expected)
    assert measured["rows"] == 8
    assert f"{expected['mean_R@1']:.2%}" in result.output


def test_evaluate_measures_a_gene_as_the_model_it_is(folders, tmp_path):
    words = ("--data", folders / "pairs", "--task", "zero-shot", "--template", "a {} square", "--output")
    assert run("evaluate", folders / "gene", *words, tmp_path / "gene.json").exit_code == 0
    pairs = pico_pairs(16, labels=True)
    gene = LearngeneModel.from_pretrained(folders / "gene")
    expected = evaluate_zero_shot(gene, pairs, pico_processor(), templates=["a {} square"])
    assert json.loads((tmp_path / "gene.json").read_text())["figures"] == pytest.approx(expected)


def test_evaluate_measures_a_classifier(folders, tmp_path):
    words = ("--data", folders / "pairs", "--task", "classification", "--output", tmp_path / "classifier.json")
    result = run("evaluate", folders / "classifier", *words)
    assert result.exit_code == 0, result.output
    # Bias 6 7 0 1 2 3 4 5: the second class always wins, and five of the eight are always among the first five.
    figures = json.loads((tmp_path / "classifier.json").read_text())["figures"]
    assert figures == pytest.approx({"accuracy": 1 / 8, "top5": 5 / 8, "mean_per_class": 1 / 8})


def test_evaluate_measures_an_image_gene_as_the_classifier_it_is(folders, tmp_path):
    gene, pairs = image_gene(num_labels=8), pico_pairs(16, labels=True)
    gene.processor = pico_processor().image_processor
    gene.save_pretrained(tmp_path / "gene")
    words = ("evaluate", tmp_path / "gene", "--data", folders / "pairs", "--task")
    result = run(*words, "classification", "--output", tmp_path / "figures.json")
    assert result.exit_code == 0, result.output
    expected = evaluate_classification(gene, pairs, pico_processor())
    assert json.loads((tmp_path / "figures.json").read_text())["figures"] == pytest.approx(expected)
    assert "this is an image gene" in refused(run(*words, "retrieval"))


@pytest.mark.parametrize(
    ("model", "task", "sentence"),
    [
        ("gene", "classification", "holds a LearngeneModel, which has no trained classifier"),
        ("clip", "classification", "holds a CLIPModel, which has no trained classifier"),
        ("classifier", "retrieval", "was saved as CLIPForImageClassification and lacks"),
        ("image-model", "zero-shot", "holds a CLIPVisionModelWithProjection: "),
        ("nothing-here", "retrieval", "there is no folder"),
        ("nothing-here", "classification", "there is no folder"),
    ],
)
def test_a_model_that_cannot_do_the_task_is_refused(folders, model, task, sentence):
    assert sentence in refused(run("evaluate", folders / model, "--data", folders / "pairs", "--task", task))


def test_evaluate_names_the_splits_there_are(folders):
    words = ("--data", folders / "pairs", "--task", "retrieval", "--split", "validation")
    assert "no split 'validation': it has train, test" in refused(run("evaluate", folders / "clip", *words))


@pytest.mark.slow
def test_extract_goes_on_with_its_own_run_alone(folders, tmp_path):
    start = ("extract", folders / "clip", "--data", folders / "pairs", "--output", tmp_path / "gene", "--use_cpu")
    quick = ("--batch-size", "8", "--save_steps", "1", "--report_to", "none", "--initialisation", "random")
    assert "holds no checkpoint to go on from" in refused(run(*start, *quick, "--resume"))
    assert run(*start, *quick, "--max-steps", "1").exit_code == 0
    other = (*quick, "--max-steps", "2", "--resume", "--learning-rate", "0.5")
    assert "holds a run with learning rate 0.001, now it is 0.5" in refused(run(*start, *other))
    assert run(*start, *quick, "--max-steps", "2", "--resume").exit_code == 0
    assert (tmp_path / "gene" / "checkpoint-2").is_dir()


@pytest.mark.slow
def test_extract_makes_a_gene_that_descend_grows(folders, tmp_path):
    words = (
        "extract", folders / "clip", "--data", folders / "pairs", "--output", tmp_path / "gene", "--max-steps", "2",
        "--batch-size", "8", "--mixing", "chebyshev", "--num_unimodal_blocks", "2", "--use_cpu", "--save_steps", "1",
    )  # fmt: skip
    result = run(*words)
    assert result.exit_code == 0, result.output
    assert run("descend", tmp_path / "gene", "--depth", "3", "--output", tmp_path / "grown").exit_code == 0
    config = json.loads((tmp_path / "gene" / "config.json").read_text())
    assert (config["mixing"], config["num_unimodal_blocks"], config["recipe"]["steps"]) == ("chebyshev", 2, 2)
    assert "no empty folder" in refused(run(*words))
    before = {path.name: load_file(path) for path in (tmp_path / "gene").glob("*.safetensors")}
    assert run(*words, "--resume").exit_code == 0
    for name, tensors in before.items():
        after = load_file(tmp_path / "gene" / name)
        assert all(torch.equal(tensor, after[key]) for key, tensor in tensors.items())


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--mixing", "fourier"), "it takes one of 'shared-slope', 'linear', 'chebyshev', 'learned'"),
        (("--no_such_field", "1"), "no_such_field"),
        (("--text-column", "title"), "its columns are 'image', 'caption', 'label'"),
        (("--affinity_weight", "heavy"), "invalid float value"),
    ],
)
def test_an_extraction_that_cannot_run_is_refused_and_nothing_written(folders, tmp_path, words, sentence):
    start = ("extract", folders / "clip", "--data", folders / "pairs", "--output", tmp_path / "gene", "--use_cpu")
    assert sentence in refused(run(*start, *words))
    assert list(tmp_path.iterdir()) == []


def test_an_ancestor_that_is_no_clip_is_refused(folders, tmp_path):
    gene = image_gene()
    gene.save_pretrained(tmp_path / "ancestor")
    result = run("extract", tmp_path / "ancestor", "--data", folders / "pairs", "--output", tmp_path / "out")
    assert "learngene" in refused(result)
    assert not (tmp_path / "out").exists()
