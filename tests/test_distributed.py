"""Two and four gloo processes beside one: the same global batch gives the same losses, gradients, weights and metrics.

Run as a program (by torchrun) this file is one of the processes.
"""

import os
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from launching import launch
from torch.nn import functional as F

from mmlg_hf.errors import LearngeneError
from mmlg_hf.training.losses import (
    affinity_distillation_loss,
    contrastive_loss,
    feature_distillation_loss,
    sigmoid_loss,
)

HERE = Path(__file__).parent
GLOBAL_BATCH, DIM = 6, 8
SGD = {"muon_learning_rate": None, "optim": "sgd", "learning_rate": 0.05}
TRAININGS = {
    "whole": {},
    "accumulated": {"gradient_accumulation_steps": 2},
    "text side frozen": {},
    "stream": {},
    "stream of two shards": {},
    "SigLIP": {},
}
# Two batches of all processes and an odd rest.
STREAMED_ROWS = 20


def embeddings():
    """Image, text, ancestor image, ancestor text [6, 8], of which each process takes its part."""
    return F.normalize(torch.randn(4, GLOBAL_BATCH, DIM, generator=torch.Generator().manual_seed(0)), dim=-1)


def losses_and_gradients(own):
    """Map each loss to its value and its gradients for the images, texts and logit scale, over the rows in `own`."""
    results = {}
    images, texts, ancestor_images, ancestor_texts = embeddings()[:, own]
    scale = torch.tensor(3.0)
    inputs = [images.requires_grad_(), texts.requires_grad_(), scale.requires_grad_()]
    for name, loss in {
        "contrastive": contrastive_loss(images, texts, scale.exp(), label_smoothing=0.1),
        "affinity": affinity_distillation_loss(images, texts, ancestor_images, ancestor_texts, scale=10.0),
        "feature": feature_distillation_loss(images, ancestor_images),
        "sigmoid": sigmoid_loss(images, texts, scale.exp(), scale - 13),
        "images only": contrastive_loss(images, texts.detach(), 5.0),
    }.items():
        results[name] = [loss.detach(), *torch.autograd.grad(loss, inputs, allow_unused=True, materialize_grads=True)]
    return results


def train(name, folder, batch_size):
    """Train and evaluate a pico model; return its weights, the logged losses, the evaluation and the rows it saw."""
    from pico import pico_clip, pico_pairs, pico_processor, pico_siglip
    from transformers import TrainingArguments

    from mmlg_hf.evaluation import compute_retrieval
    from mmlg_hf.training import ContrastiveTrainer, ImageTextCollator

    model, seen = pico_siglip() if name == "SigLIP" else pico_clip(), []
    collator = ImageTextCollator(pico_processor(), text_config=model.config.text_config)

    def collate(rows):
        seen.append([row["caption"] for row in rows])
        return collator(rows)

    if name == "text side frozen":
        model.text_model.requires_grad_(False)
        model.text_projection.requires_grad_(False)
    args = TrainingArguments(
        folder,
        per_device_train_batch_size=batch_size,
        per_device_eval_batch_size=batch_size,
        max_steps=3,
        optim="sgd",
        learning_rate=0.05,
        max_grad_norm=0.0,  # clipping would hide an update scaled by a constant
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        **TRAININGS[name],
    )
    pairs = pico_pairs(52)
    if name.startswith("stream"):
        shards = 2 if "shards" in name else 1
        pairs = pairs.select(range(STREAMED_ROWS)).to_iterable_dataset(num_shards=shards)
    trainer = ContrastiveTrainer(
        model,
        args,
        data_collator=collate,
        train_dataset=pairs,
        eval_dataset=pairs,
        compute_metrics=compute_retrieval,
    )
    trainer.train()
    seen.clear()
    metrics = trainer.evaluate()
    return {
        "evaluated": list(seen),
        "weights": {key: tensor.clone() for key, tensor in model.state_dict().items()},
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        "metrics": {
            key: value for key, value in metrics.items() if "R@" in key or "rank" in key or key == "eval_loss"
        },
    }


def extract(folder, batch_size, stream=False, **changes):
    """Extract a pico gene, elastic; return its weights."""
    from pico import pico_clip, pico_pairs, pico_processor

    from mmlg_hf import ExtractionArguments, extract_learngene

    settings = {"max_steps": 3, "max_grad_norm": 0.0, "cache_ancestor": False, "report_to": [], "disable_tqdm": True}
    settings |= {"per_device_train_batch_size": batch_size, "use_cpu": True}
    args = ExtractionArguments(folder, **(settings | changes))
    pairs = pico_pairs(52).to_iterable_dataset() if stream else pico_pairs(52)
    return extract_learngene(pico_clip(), pairs, args, processor=pico_processor()).state_dict()


def be_the_only_process(folder):
    """One process under torchrun, whose device is "cpu:0"."""
    torch.save(extract(folder, batch_size=8), Path(folder) / "alone.pt")


def be_one_of_four(folder):
    """One of four processes, with a quarter of the global batch: its genes, one of them by kept outputs."""
    dist.init_process_group("gloo")
    results = {"gene": extract(folder, batch_size=2, **SGD)}
    kept = {"cache_ancestor": True, "ancestor_cache_dir": str(Path(folder) / "outputs")}
    results["gene by kept outputs"] = extract(folder, batch_size=2, **SGD, **kept)
    torch.save(results, Path(folder) / f"rank{dist.get_rank()}.pt")
    dist.destroy_process_group()


def refusal_of_a_split_stream(folder):
    """What is said of a stream that the user has already split between the processes."""
    from datasets.distributed import split_dataset_by_node
    from pico import pico_clip, pico_pairs, pico_processor
    from transformers import TrainingArguments

    from mmlg_hf.training import ContrastiveTrainer

    stream = split_dataset_by_node(pico_pairs(8).to_iterable_dataset(), rank=dist.get_rank(), world_size=2)
    args = TrainingArguments(folder, report_to=[], use_cpu=True)
    try:
        ContrastiveTrainer(pico_clip(), args, processing_class=pico_processor()).evaluate(stream)
    except LearngeneError as error:
        return str(error)


def scale_inside_distributed_training():
    """Whether the model is found in DistributedDataParallel, with PEFT inside."""
    import peft
    from pico import pico_clip

    from mmlg_hf.training.trainer import base_model_of

    model = pico_clip()
    wrapped = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"]))
    return base_model_of(torch.nn.parallel.DistributedDataParallel(wrapped)) is model


def be_one_process(folder):
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    half = GLOBAL_BATCH // 2
    results = {"losses": losses_and_gradients(slice(rank * half, (rank + 1) * half))}
    try:
        contrastive_loss(torch.zeros(2 + rank, DIM), torch.zeros(2 + rank, DIM), 1.0)
    except LearngeneError as error:
        results["unequal"] = str(error)
    for name in TRAININGS:
        results[name] = train(name, folder, batch_size=4)
    results["pairs"] = train("whole", folder, batch_size=1)
    results["split by node"] = refusal_of_a_split_stream(folder)
    results["scale"] = scale_inside_distributed_training()
    results["gene"] = extract(folder, batch_size=4, **SGD)
    results["gene by Muon"] = extract(folder, batch_size=4)
    kept = {"cache_stream": True, "ancestor_cache_dir": str(Path(folder) / "streamed")}
    results["gene of a stream"] = extract(folder, batch_size=4, stream=True, **SGD, **kept)
    torch.save(results, Path(folder) / f"rank{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """What each of the two processes found, by rank."""
    folder = tmp_path_factory.mktemp("two_processes")
    launch(__file__, folder, processes=2)
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(2)]


@pytest.fixture(scope="module")
def four_processes(tmp_path_factory):
    """What each of four processes found, by rank."""
    folder = tmp_path_factory.mktemp("four_processes")
    launch(__file__, folder, processes=4)
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(4)]


@pytest.fixture(scope="module")
def by_muon(tmp_path_factory):
    """The gene of one process that is not under torchrun, and how far each matrix of its blocks was moved."""
    folder = tmp_path_factory.mktemp("by_muon")
    gene = extract(str(folder / "gene"), batch_size=8)
    unmoved = extract(str(folder / "unmoved"), batch_size=8, learning_rate=1e-12, muon_learning_rate=1e-12)
    steps = {name: gene[name] - weight for name, weight in unmoved.items() if is_matrix(name, weight)}
    return gene, unmoved, steps


def is_matrix(name, weight):
    return "_blocks." in name and weight.dim() == 3


@pytest.mark.slow
@pytest.mark.parametrize("name", ["contrastive", "affinity", "feature", "sigmoid", "images only"])
def test_losses_and_gradients_of_two_processes_average_to_those_of_one(two_processes, name):
    loss, *gradients, scale_gradient = losses_and_gradients(slice(None))[name]
    (first, *first_gradients, first_scale), (second, *second_gradients, second_scale) = [
        results["losses"][name] for results in two_processes
    ]
    torch.testing.assert_close((first + second) / 2, loss)
    torch.testing.assert_close((first_scale + second_scale) / 2, scale_gradient)
    for expected, *halves in zip(gradients, first_gradients, second_gradients, strict=True):
        torch.testing.assert_close(torch.cat(halves) / 2, expected)


@pytest.mark.slow
def test_unequal_row_counts_are_refused_on_every_process(two_processes):
    for results in two_processes:
        assert "different numbers of rows ([2, 3])" in results["unequal"]


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAININGS)
def test_two_processes_get_the_weights_and_metrics_of_one(two_processes, name, tmp_path):
    one = train(name, str(tmp_path), batch_size=8)
    for results in two_processes:
        for key, weight in one["weights"].items():
            torch.testing.assert_close(results[name]["weights"][key], weight, atol=1e-6, rtol=1e-5)
        assert results[name]["metrics"] == pytest.approx(one["metrics"], rel=1e-4)
    assert two_processes[0][name]["losses"] == pytest.approx(one["losses"], rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in TRAININGS if name.startswith("stream")])
def test_a_stream_is_split_between_processes_with_no_row_twice_and_the_odd_rest_left_out(two_processes, name):
    from pico import pico_pairs

    first, second = (results[name]["evaluated"] for results in two_processes)
    assert [len(batch) for batch in first] == [len(batch) for batch in second] == [4, 4]
    together = [row for batches in zip(first, second, strict=True) for batch in batches for row in batch]
    assert together == pico_pairs(STREAMED_ROWS)["caption"][:16]


@pytest.mark.slow
def test_a_stream_that_was_already_split_is_refused(two_processes):
    for results in two_processes:
        assert "was already split by node: give the whole stream" in results["split by node"]


@pytest.mark.slow
def test_one_pair_on_each_of_two_processes_has_a_negative(two_processes, tmp_path):
    one = train("whole", str(tmp_path), batch_size=2)
    for results in two_processes:
        for key, weight in one["weights"].items():
            torch.testing.assert_close(results["pairs"]["weights"][key], weight, atol=1e-6, rtol=1e-5)
    assert min(one["losses"]) > 0


@pytest.mark.slow
def test_the_model_is_found_inside_distributed_training(two_processes):
    assert all(results["scale"] for results in two_processes)


@pytest.mark.slow
def test_two_processes_extract_the_gene_of_one(two_processes, tmp_path):
    one = extract(str(tmp_path), batch_size=8, **SGD)
    for results in two_processes:
        for key, weight in one.items():
            torch.testing.assert_close(results["gene"][key], weight, atol=1e-6, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gene", "gene by kept outputs"])
def test_four_processes_extract_the_gene_of_one(four_processes, name, tmp_path):
    one = extract(str(tmp_path), batch_size=8, **SGD)
    for results in four_processes:
        for key, weight in one.items():
            torch.testing.assert_close(results[name][key], weight, atol=1e-6, rtol=1e-5)


@pytest.mark.slow
def test_two_processes_extract_from_a_stream_what_one_does(two_processes, tmp_path):
    one = extract(str(tmp_path), batch_size=8, stream=True, **SGD)
    for results in two_processes:
        for key, weight in one.items():
            torch.testing.assert_close(results["gene of a stream"][key], weight, atol=1e-6, rtol=1e-5)


@pytest.mark.slow
def test_muon_leaves_two_processes_with_the_same_gene(two_processes):
    first, second = (results["gene by Muon"] for results in two_processes)
    for key, weight in first.items():
        torch.testing.assert_close(weight, second[key], rtol=0, atol=0)


@pytest.mark.slow
def test_muon_moves_the_matrices_of_two_processes_as_those_of_one(two_processes, by_muon):
    # Not to the last digit: Muon makes steps of one size of the smallest gradients too, rounding errors included.
    _, unmoved, steps = by_muon
    gene = two_processes[0]["gene by Muon"]
    for name, step in steps.items():
        moved = gene[name] - unmoved[name]
        assert moved.norm() == pytest.approx(step.norm().item(), rel=0.02), name
        assert F.cosine_similarity(moved.flatten(), step.flatten(), dim=0) > 0.98, name


@pytest.mark.slow
def test_one_process_under_torchrun_extracts_what_it_does_without(by_muon, tmp_path):
    launch(__file__, tmp_path, processes=1)
    gene, _, steps = by_muon
    alone = torch.load(tmp_path / "alone.pt")
    for name, weight in gene.items():
        torch.testing.assert_close(alone[name], weight, rtol=0, atol=1e-6)
    assert min(step.abs().max() for step in steps.values()) > 1e-4


if __name__ == "__main__":
    {"1": be_the_only_process, "2": be_one_process, "4": be_one_of_four}[os.environ["WORLD_SIZE"]](sys.argv[1])
