"""Mixtures at the edges: configs that disagree, data types, random states, damage, other genes, other runs."""

import copy
import json
import math

import pytest
import torch
from datasets import Dataset, DatasetDict, IterableDataset
from moe_parts import perturbed_mlps
from pico import pico_clip, pico_pairs, pico_processor
from safetensors.torch import load_file, save_file
from transformers import CLIPModel, Trainer, TrainingArguments

from mmlg_hf import LearngeneModel
from mmlg_hf.clip_moe import (
    CLIPMoEModel,
    DiversifyArguments,
    diversify,
    load_from_deltas,
    save_as_deltas,
    train_router,
    upcycle,
)
from mmlg_hf.clip_moe import diversification as module
from mmlg_hf.clip_moe.modeling_clip_moe import CLIPMoEForImageClassification
from mmlg_hf.clip_moe.router_training import RouterArguments
from mmlg_hf.errors import LearngeneError

QUIET = {"report_to": "none", "use_cpu": True, "disable_tqdm": True}


# --- configs ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("part", "field", "value"),
    [
        ("vision_config", "hidden_act", "gelu"),
        ("text_config", "hidden_act", "gelu"),
        ("text_config", "layer_norm_eps", 1e-3),
        ("vision_config", "num_attention_heads", 2),
        ("text_config", "eos_token_id", 3),
    ],
)
def test_an_expert_whose_config_computes_something_else_is_refused_by_the_field(part, field, value, base, tmp_path):
    base.save_pretrained(tmp_path / "expert")
    path = tmp_path / "expert" / "config.json"
    config = json.loads(path.read_text())
    config[part][field] = value
    path.write_text(json.dumps(config))
    with pytest.raises(LearngeneError, match=rf"expert .* has {part}\.{field} .*, the base"):
        upcycle(base, [tmp_path / "expert"])


def test_an_expert_that_differs_in_provenance_and_labels_alone_is_taken(base):
    expert = perturbed_mlps(base, 0)
    expert.config.learngene = {"learngene": "somewhere"}
    expert.config.vision_config.initializer_range = 0.5
    expert.config._name_or_path = "elsewhere"
    assert upcycle(base, [expert]).config.num_experts == 2


# --- data types, devices, random states ------------------------------------------------------------------------------


@torch.no_grad()
def test_an_expert_of_a_wider_data_type_is_kept_without_rounding(base):
    half = copy.deepcopy(base).half()
    expert = perturbed_mlps(copy.deepcopy(half).float(), 0, scale=1e-5)
    mixture = upcycle(half, [perturbed_mlps(half, 1), expert])
    assert mixture.dtype == torch.float32
    stack = mixture.vision_model.encoder.layers[0].mlp.experts.up_proj
    assert torch.equal(stack[2], expert.vision_model.encoder.layers[0].mlp.fc1.weight)
    assert torch.equal(stack[0], half.vision_model.encoder.layers[0].mlp.fc1.weight.float())


def test_an_expert_whose_data_type_rounds_the_base_is_refused_with_both(base):
    with pytest.raises(LearngeneError, match=r"number 1 \(float16\) differs from the base \(float32\)"):
        upcycle(base, [copy.deepcopy(base).half()])


def test_upcycling_seeds_no_accelerator(base, monkeypatch):
    seeded = []
    for name in ("manual_seed", "manual_seed_all"):
        monkeypatch.setattr(torch.cuda, name, seeded.append)
    before = torch.get_rng_state()
    one, other = upcycle(base, [base], seed=7), upcycle(base, [base], seed=7)
    assert seeded == []
    assert torch.equal(torch.get_rng_state(), before)
    assert all(map(torch.equal, one.state_dict().values(), other.state_dict().values()))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_upcycling_leaves_the_generator_of_the_gpu_and_stays_on_it(base):
    torch.cuda.manual_seed_all(3)
    before = torch.cuda.get_rng_state()
    mixture = upcycle(base.cuda(), [base])
    assert torch.equal(torch.cuda.get_rng_state(), before)
    assert mixture.device.type == "cuda"


# --- saving with code ------------------------------------------------------------------------------------------------


def test_a_plain_save_after_one_with_code_names_no_code(mixture, tmp_path):
    mixture.save_pretrained(tmp_path / "code", with_code=True)
    mixture.save_pretrained(tmp_path / "plain")
    CLIPMoEModel.from_pretrained(tmp_path / "code").save_pretrained(tmp_path / "again")
    for name, expected in (("code", True), ("plain", False), ("again", False)):
        assert ("auto_map" in json.loads((tmp_path / name / "config.json").read_text())) is expected
        assert (tmp_path / name / "modeling_clip_moe.py").exists() is expected


# --- the stock Trainer -----------------------------------------------------------------------------------------------


def test_four_accumulation_steps_of_a_classifier_update_by_the_mean_of_the_four(mixture, tmp_path):
    mixture.config.num_labels = 3
    mixture.config.router_aux_loss_coef = 0.0
    torch.manual_seed(0)
    CLIPMoEForImageClassification(mixture.config).save_pretrained(tmp_path / "start")
    start = CLIPMoEForImageClassification.from_pretrained(tmp_path / "start")
    rows = Dataset.from_dict({"pixel_values": torch.randn(8, 3, 16, 16).tolist(), "labels": [0, 1, 2, 0, 1, 2, 1, 0]})
    rows = rows.with_format("torch")
    moved = []
    for batch_size, steps in ((2, 4), (8, 1)):
        model = copy.deepcopy(start)
        args = TrainingArguments(
            str(tmp_path), per_device_train_batch_size=batch_size, gradient_accumulation_steps=steps, max_steps=1,
            optim="sgd", learning_rate=1.0, max_grad_norm=0.0, save_strategy="no", lr_scheduler_type="constant",
            **QUIET,
        )  # fmt: skip
        Trainer(model, args, train_dataset=rows).train()
        moved.append(model.classifier.weight - start.classifier.weight)
    torch.testing.assert_close(moved[0], moved[1], rtol=1e-4, atol=1e-6)


# --- damage ----------------------------------------------------------------------------------------------------------


def poison(path):
    tensors = load_file(path)
    next(value for value in tensors.values() if value.ndim == 2)[0, -1] = math.nan
    save_file(tensors, path, metadata={"format": "pt"})


DAMAGE = [
    (lambda path: path.write_bytes(path.read_bytes()[:-100]), "damaged"),
    (lambda path: path.write_bytes(b""), "is empty"),
    (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n"), "is a Git LFS pointer"),
    (poison, "holds NaN or infinity"),
    (
        lambda path: save_file(
            {name: value for name, value in load_file(path).items() if "layers.0.layer_norm1" not in name},
            path,
            metadata={"format": "pt"},
        ),
        "lacks 4 tensors",
    ),
    (lambda path: path.with_name("config.json").write_text("{"), "config.json of the model .* is no JSON"),
]


@pytest.mark.parametrize(("damage", "told"), DAMAGE)
def test_a_damaged_base_expert_or_mixture_is_one_sentence(damage, told, base, mixture, tmp_path):
    for name, model in (("base", base), ("mixture", mixture)):
        model.save_pretrained(tmp_path / name)
        damage(tmp_path / name / "model.safetensors")
    args = RouterArguments(str(tmp_path / "out"), **QUIET)
    for refused in (
        lambda: upcycle(tmp_path / "base", [base]),
        lambda: upcycle(base, [tmp_path / "base"]),
        lambda: train_router(tmp_path / "mixture", pico_pairs(8), args, processor=pico_processor()),
    ):
        with pytest.raises(LearngeneError, match=told):
            refused()


def test_a_nan_in_memory_is_refused(base, mixture, tmp_path):
    broken = copy.deepcopy(base)
    broken.logit_scale.data.fill_(math.nan)
    for refused in (lambda: upcycle(broken, [base]), lambda: upcycle(base, [broken])):
        with pytest.raises(LearngeneError, match="logit_scale of the CLIPModel holds NaN"):
            refused()
    mixture.logit_scale.data.fill_(math.nan)
    args = RouterArguments(str(tmp_path), **QUIET)
    with pytest.raises(LearngeneError, match="logit_scale of the mixture holds NaN"):
        train_router(mixture, pico_pairs(8), args, processor=pico_processor())
    with pytest.raises(LearngeneError, match="the CLIP is a int"):
        upcycle(3, [base])


# --- deltas ----------------------------------------------------------------------------------------------------------

SIZE = {"depth": (3, 2), "width": (24, 16)}


@pytest.fixture(scope="module")
def gene():
    from pico_genes import multimodal_gene

    return multimodal_gene()


@pytest.fixture
def small(gene):
    """The size and a mixture of a descendant and one expert."""
    size = {"depth": 2, "width": 8}
    base = gene.descendant(**size)
    return size, upcycle(base, [perturbed_mlps(base, 0, scale=0.02)])


def test_a_mixture_stored_without_its_gene_refuses_another_gene_of_the_same_size(gene, small, tmp_path):
    size, mixture = small
    save_as_deltas(mixture, gene, tmp_path / "deltas", **size, dtype=torch.float32, with_gene=False)
    other = copy.deepcopy(gene)
    with torch.no_grad():
        next(value for name, value in other.named_parameters() if "blocks" in name).view(-1)[-1] += 1e-3
    with pytest.raises(LearngeneError, match="was stored against the gene with fingerprint"):
        load_from_deltas(tmp_path / "deltas", other)
    changed = copy.deepcopy(gene)
    changed.config.vision_config.layer_norm_eps = 1e-3
    with pytest.raises(LearngeneError, match="was stored against the gene with fingerprint"):
        load_from_deltas(tmp_path / "deltas", changed)
    loaded = load_from_deltas(tmp_path / "deltas", gene)
    worst = max((value - loaded.state_dict()[name]).abs().max() for name, value in mixture.state_dict().items())
    assert worst < 1e-6


def test_a_gene_kept_in_half_precision_is_the_gene_that_it_widens_to(gene, tmp_path):
    gene.half().save_pretrained(tmp_path / "gene")
    stored = LearngeneModel.from_pretrained(tmp_path / "gene", dtype=torch.float32)
    base = stored.descendant(2, 8)
    save_as_deltas(upcycle(base, [base]), stored, tmp_path / "deltas", depth=2, width=8, with_gene=False)
    load_from_deltas(tmp_path / "deltas", LearngeneModel.from_pretrained(tmp_path / "gene", dtype=torch.float16))
    gene.float()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_mixture_in_half_precision_comes_back_in_it_exactly(dtype, gene, small, tmp_path):
    size, mixture = small
    mixture.to(dtype)
    save_as_deltas(mixture, gene, tmp_path / "deltas", **size, dtype=torch.float32)
    loaded = load_from_deltas(tmp_path / "deltas")
    assert loaded.dtype == dtype
    assert all(map(torch.equal, loaded.state_dict().values(), mixture.state_dict().values()))
    stored = load_file(tmp_path / "deltas" / "deltas.safetensors")
    assert all(".expert_" in name or ".router." in name for name in stored), "the rounded base is no difference"


def test_differences_that_are_not_finite_are_refused_and_nothing_is_written(gene, small, tmp_path):
    size, mixture = small
    with torch.no_grad():
        mixture.visual_projection.weight[0, 0] = 1e6
    with pytest.raises(
        LearngeneError, match=r"'visual_projection.weight' goes up to 1e\+06, too large for torch.float1"
    ):
        save_as_deltas(mixture, gene, tmp_path / "deltas", **size)
    save_as_deltas(mixture, gene, tmp_path / "wide", **size, dtype=torch.float32)
    with torch.no_grad():
        mixture.visual_projection.weight[0, 0] = math.nan
    with pytest.raises(LearngeneError, match=r"visual_projection.weight of the mixture holds NaN"):
        save_as_deltas(mixture, gene, tmp_path / "deltas", **size, dtype=torch.float32)
    with pytest.raises(LearngeneError, match="dtype is torch.int8"):
        save_as_deltas(mixture, gene, tmp_path / "deltas", **size, dtype=torch.int8)
    assert [path.name for path in tmp_path.iterdir()] == ["wide"]


def change(path, **changes):
    record = json.loads(path.with_name("deltas.json").read_text())
    path.with_name("deltas.json").write_text(json.dumps(record | changes))


def reshape(path):
    tensors = load_file(path)
    name = next(name for name in tensors if ".expert_1" in name and tensors[name].ndim == 2)
    save_file(tensors | {name: torch.ones(1)}, path)


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-9]), "cannot read"),
        (lambda path: path.write_bytes(b""), "is empty"),
        (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n"), "is a Git LFS pointer"),
        (poison, "holds NaN or infinity"),
        (reshape, r"is of shape \[1\], the tensor of"),
        (lambda path: path.with_name("deltas.json").write_text("["), "deltas.json' is damaged"),
        (lambda path: path.with_name("deltas.json").write_text("[]"), "deltas.json' is damaged"),
        (lambda path: change(path, config={}), "deltas.json' is damaged"),
        (lambda path: change(path, config={"vision_config": {"hidden_size": "x"}}), "deltas.json' is damaged"),
        (lambda path: change(path, dtype="none"), "deltas.json' is damaged"),
        (lambda path: change(path, gene="0"), "was stored against the gene with fingerprint 0"),
    ],
)
def test_damaged_deltas_are_one_sentence(damage, told, gene, small, tmp_path):
    size, mixture = small
    save_as_deltas(mixture, gene, tmp_path / "deltas", **size)
    damage(tmp_path / "deltas" / "deltas.safetensors")
    with pytest.raises(LearngeneError, match=told):
        load_from_deltas(tmp_path / "deltas")


def test_a_folder_of_other_things_is_not_replaced(gene, small, tmp_path):
    size, mixture = small
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(LearngeneError, match="holds other things than a mixture"):
        save_as_deltas(mixture, gene, tmp_path, **size)
    assert (tmp_path / "thesis.txt").read_text() == "mine"


# --- runs that go on -------------------------------------------------------------------------------------------------


def stages(folder, **changes):
    values = {
        "num_experts": 2, "num_clusters": 1, "per_device_train_batch_size": 4, "max_steps": 1, "max_dropped": 0.9,
        "save_strategy": "no", "logging_strategy": "no", "learning_rate": 1e-2,
    }  # fmt: skip
    return DiversifyArguments(str(folder), **(values | QUIET | changes))


def other_captions(number):
    return pico_pairs(number).map(
        lambda row, index: {"caption": row["caption"] if index else "a photo"}, with_indices=True
    )


@pytest.fixture(scope="module")
def diversified(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    base = pico_clip()
    diversify(base, pico_pairs(8), stages(folder), processor=pico_processor())
    return base, folder


def test_diversify_refuses_other_data_of_equal_length_and_another_activation(diversified):
    base, folder = diversified
    before = (folder / "stage-1" / "expert" / "model.safetensors").read_bytes()
    with pytest.raises(LearngeneError, match="holds a run with data"):
        diversify(base, other_captions(8), stages(folder), processor=pico_processor())
    other = copy.deepcopy(base)
    other.config.vision_config.hidden_act = "gelu"
    with pytest.raises(LearngeneError, match="holds a run with base"):
        diversify(other, pico_pairs(8), stages(folder), processor=pico_processor())
    with pytest.raises(LearngeneError, match="holds a run with processor"):
        diversify(base, pico_pairs(8), stages(folder), processor=pico_processor(8))
    assert (folder / "stage-1" / "expert" / "model.safetensors").read_bytes() == before


def test_diversify_refuses_stages_of_an_unknown_run_and_damaged_clusters(diversified, tmp_path):
    import shutil

    base, folder = diversified
    shutil.copytree(folder, tmp_path / "run")
    (tmp_path / "run" / "stage-1" / "clusters.npy").write_bytes(b"")
    with pytest.raises(LearngeneError, match="clusters.npy' is damaged"):
        diversify(base, pico_pairs(8), stages(tmp_path / "run"), processor=pico_processor())
    (tmp_path / "run" / "diversify.json").unlink()
    with pytest.raises(LearngeneError, match="diversify.json, which says what it was begun with, is missing"):
        diversify(base, pico_pairs(8), stages(tmp_path / "run"), processor=pico_processor())


def test_a_base_in_half_precision_is_diversified_in_float32(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "plot_clusters", lambda *args: None)
    base = pico_clip().half()
    base.save_pretrained(tmp_path / "base")
    for number, given in enumerate((base, tmp_path / "base")):
        (expert,) = diversify(given, pico_pairs(8), stages(tmp_path / str(number)), processor=pico_processor())
        loaded = CLIPModel.from_pretrained(expert)
        assert loaded.dtype == torch.float32
        assert upcycle(given, [expert]).dtype == torch.float32
    assert base.dtype == torch.float16
    one, other = ((tmp_path / str(number) / "diversify.json").read_text() for number in range(2))
    assert one == other


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        (
            DatasetDict({"train": pico_pairs(8), "test": pico_pairs(4)}),
            "has the splits 'train', 'test': give one of them",
        ),
        (pico_pairs(8).select([]), r"is empty \(0 rows\)"),
        (IterableDataset.from_generator(lambda: iter(pico_pairs(8))), "the dataset is a stream"),
    ],
)
def test_splits_no_rows_and_streams_are_refused_by_both_stages(rows, told, base, mixture, tmp_path):
    with pytest.raises(LearngeneError, match=told):
        diversify(base, rows, stages(tmp_path / "experts"), processor=pico_processor())
    args = RouterArguments(str(tmp_path / "router"), **QUIET)
    with pytest.raises(LearngeneError, match=told):
        train_router(mixture, rows, args, processor=pico_processor())


def routing(folder, **changes):
    values = {"per_device_train_batch_size": 4, "max_steps": 2, "save_steps": 1, "learning_rate": 1e-3}
    return RouterArguments(str(folder), **(values | QUIET | changes))


def test_a_router_goes_on_with_its_own_run_alone(base, mixture, tmp_path):
    pairs, processor = pico_pairs(8), pico_processor()
    start = copy.deepcopy(mixture)
    train_router(mixture, pairs, routing(tmp_path), processor=processor)
    other = copy.deepcopy(start)
    other.logit_scale.data += 1
    for model, rows, changes, told in (
        (start, other_captions(8), {}, "holds a run with data"),
        (other, pairs, {}, "holds a run with model"),
        (start, pairs, {"learning_rate": 1e-2}, r"holds a run with learning rate 0\.001, now it is 0\.01"),
        (start, pairs, {"train_experts": True}, "holds a run with train experts False, now it is True"),
    ):
        for resume in (True, None) if rows is pairs else (str(tmp_path / "checkpoint-1"),):
            args = routing(tmp_path, **changes)
            with pytest.raises(LearngeneError, match=told):
                train_router(copy.deepcopy(model), rows, args, processor=processor, resume_from_checkpoint=resume)
    resumed = train_router(
        start, pairs, routing(tmp_path), processor=processor, resume_from_checkpoint=str(tmp_path / "checkpoint-1")
    )
    torch.testing.assert_close(resumed.state_dict(), mixture.state_dict())


def test_a_router_is_not_taken_up_from_nowhere_or_from_an_unknown_run(mixture, tmp_path):
    pairs, processor = pico_pairs(8), pico_processor()
    for resume in (True, str(tmp_path / "checkpoint-9")):
        args = routing(tmp_path)
        with pytest.raises(LearngeneError, match="there is no checkpoint .* to go on from"):
            train_router(mixture, pairs, args, processor=processor, resume_from_checkpoint=resume)
    (tmp_path / "checkpoint-1").mkdir()
    (tmp_path / "checkpoint-1" / "trainer_state.json").write_text("{}")  # written last: the checkpoint is whole
    with pytest.raises(LearngeneError, match="router.json, which says what it was begun with, is missing"):
        train_router(mixture, pairs, routing(tmp_path), processor=processor, resume_from_checkpoint=True)
