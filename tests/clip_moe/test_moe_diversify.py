"""diversify(): clusters, the sampler that draws from one cluster, stages, resuming, and what is refused."""

import copy
import json

import numpy as np
import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from datasets import IterableDataset
from hypothesis import given, settings
from hypothesis import strategies as st
from pico import pico_pairs, pico_processor
from torch.utils.data import BatchSampler
from transformers import CLIPModel

from mmlg_hf.clip_moe import DiversifyArguments, diversify, upcycle
from mmlg_hf.clip_moe import diversification as module
from mmlg_hf.clip_moe.clusters import ClusterSampler, accumulate, cluster_pairs, embed_pairs, report_clusters
from mmlg_hf.errors import LearngeneError
from mmlg_hf.training import ImageTextCollator


def arguments(folder, **changes):
    """Two stages of a few steps on a batch of 4."""
    values = {
        "num_experts": 3,
        "num_clusters": 2,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "max_dropped": 0.9,
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "save_strategy": "no",
        "logging_strategy": "no",
    }
    return DiversifyArguments(str(folder), **(values | changes))


def weights(folder):
    return CLIPModel.from_pretrained(folder).state_dict()


@given(
    sizes=st.lists(st.integers(0, 40), min_size=1, max_size=6), batch_size=st.integers(1, 8), epoch=st.integers(0, 3)
)
@settings(max_examples=60, deadline=None)
def test_every_batch_comes_from_one_cluster_and_only_remainders_are_dropped(sizes, batch_size, epoch):
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(sizes)), sizes))
    sampler = ClusterSampler(labels, batch_size)
    sampler.set_epoch(epoch)
    rows = list(sampler)
    assert len(rows) == len(sampler) == sum(size // batch_size for size in sizes) * batch_size
    assert len(set(rows)) == len(rows)
    for start in range(0, len(rows), batch_size):
        assert len({labels[row] for row in rows[start : start + batch_size]}) == 1


def test_clusters_take_turns_and_epochs_differ():
    labels = np.repeat([0, 1, 2], 8)
    sampler = ClusterSampler(labels, 4)
    first = list(sampler)
    assert first == list(sampler), "the same epoch draws the same"
    for round_start in (0, 12):
        assert len({labels[row] for row in first[round_start : round_start + 12]}) == 3
    sampler.set_epoch(1)
    assert list(sampler) != first


@pytest.mark.parametrize("num_processes", [2, 3])
def test_the_parts_that_processes_get_make_up_one_batch_of_one_cluster(num_processes):
    labels = np.random.default_rng(0).integers(0, 4, 200)
    shards = [
        list(
            BatchSamplerShard(
                BatchSampler(ClusterSampler(labels, 4 * num_processes, seed=3), 4, drop_last=True),
                num_processes=num_processes,
                process_index=index,
            )
        )
        for index in range(num_processes)
    ]
    whole = list(ClusterSampler(labels, 4 * num_processes, seed=3))
    assert len(shards[0]) > 5
    for step, parts in enumerate(zip(*shards, strict=True)):
        together = [row for part in parts for row in part]
        assert together == whole[step * 4 * num_processes : (step + 1) * 4 * num_processes]
        assert len({labels[row] for row in together}) == 1


def test_pairs_are_labelled_by_both_clusterings():
    images = np.array([[1, 0], [1, 0.1], [0, 1], [0.1, 1]] * 3, dtype=np.float32)
    texts = np.array([[1, 0], [0, 1], [1, 0.1], [0.1, 1]] * 3, dtype=np.float32)
    labels = cluster_pairs(images, texts, 2)
    assert set(labels) == {0, 1, 2, 3}
    for row in range(12):
        assert labels[row] == labels[row % 4]
    # K * text + image: rows 0 and 1 share the image cluster, rows 0 and 2 the text cluster.
    assert labels[0] % 2 == labels[1] % 2 != labels[2] % 2
    assert labels[0] // 2 == labels[2] // 2 != labels[1] // 2


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=30))
@settings(max_examples=60, deadline=None)
def test_accumulated_labels_are_equal_where_all_assignments_are(rows):
    labels = None
    for stage in range(3):
        labels = accumulate(labels, np.array([row[stage] for row in rows]))
    assert sorted(set(labels)) == list(range(len(set(rows))))
    for one, row in zip(labels, rows, strict=True):
        for other, other_row in zip(labels, rows, strict=True):
            assert (one == other) == (row == other_row)


def test_embeddings_of_pairs_are_the_models_own_in_the_order_of_the_rows(base):
    pairs = pico_pairs(10)
    images, texts = embed_pairs(base, pairs, ImageTextCollator(pico_processor()), batch_size=4)
    with torch.no_grad():
        batch = ImageTextCollator(pico_processor())(list(pairs))
        outputs = base(**batch)
    np.testing.assert_allclose(images, outputs.image_embeds.numpy(), atol=1e-5)
    np.testing.assert_allclose(texts, outputs.text_embeds.numpy(), atol=1e-5)


def test_a_report_counts_what_fills_no_batch():
    report = report_clusters(np.repeat([0, 1, 2], [9, 4, 3]), 4, stage=1, max_dropped=1.0)
    assert (report.sizes, report.dropped, report.too_small) == ([9, 4, 3], 1 + 0 + 3, 1)
    assert report.as_dict()["dropped_share"] == 4 / 16


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """One finished run: its base, its folder and its experts."""
    from pico import pico_clip

    base = pico_clip()
    before = copy.deepcopy(base.state_dict())
    folder = tmp_path_factory.mktemp("diversify")
    experts = diversify(base, pico_pairs(48), arguments(folder), processor=pico_processor())
    assert all(torch.equal(tensor, before[name]) for name, tensor in base.state_dict().items()), "the base stays"
    return base, folder, experts


def test_experts_differ_from_the_base_in_their_mlps_alone_and_from_each_other(run):
    base, _, experts = run
    dense = base.state_dict()
    for folder in experts:
        changed = {name for name, tensor in weights(folder).items() if not torch.equal(tensor, dense[name])}
        assert changed == {name for name in dense if ".mlp." in name}
    assert not torch.equal(*(weights(folder)["vision_model.encoder.layers.0.mlp.fc1.weight"] for folder in experts))
    assert upcycle(base, experts).config.num_experts == 3


def test_a_run_leaves_processor_clusters_report_and_plot_and_no_checkpoints(run):
    _, folder, experts = run
    assert (folder / "clusters.png").stat().st_size > 1000
    for stage, expert in enumerate(experts, start=1):
        assert (expert / "tokenizer.json").exists()
        record = json.loads((folder / f"stage-{stage}" / "stage.json").read_text())
        labels = np.load(folder / f"stage-{stage}" / "clusters.npy")
        assert sum(record["sizes"]) == len(labels) == 48
        assert record["steps"] == (48 - record["dropped"]) // 4
        assert not (folder / f"stage-{stage}" / "trainer").exists()
    earlier, later = (np.load(folder / f"stage-{stage}" / "clusters.npy") for stage in (1, 2))
    for cluster in set(later):
        assert len(set(earlier[later == cluster])) == 1, "later clusters lie within earlier ones"


def test_a_finished_run_is_taken_as_it_is_and_a_further_expert_is_added(run, tmp_path, monkeypatch):
    import shutil

    base, folder, _ = run
    shutil.copytree(folder, tmp_path / "run")
    trained = []
    train_stage = module._train_stage
    monkeypatch.setattr(module, "_train_stage", lambda *args: (trained.append(args[-2].name), train_stage(*args)))
    same = diversify(base, pico_pairs(48), arguments(tmp_path / "run"), processor=pico_processor())
    assert (len(same), trained) == (2, [])
    more = diversify(base, pico_pairs(48), arguments(tmp_path / "run", num_experts=4), processor=pico_processor())
    assert (len(more), trained) == (3, ["stage-3"])


@pytest.mark.slow
def test_an_interrupted_run_goes_on_to_the_same_experts(run, tmp_path, monkeypatch):
    base, _, experts = run
    pairs, processor = pico_pairs(48), pico_processor()
    trainer_class = module.DiversifyTrainer

    class Interrupted(trainer_class):
        def training_step(self, *args, **kwargs):
            if "stage-2" in self.args.output_dir and self.state.global_step == 3:
                raise KeyboardInterrupt
            return super().training_step(*args, **kwargs)

    saving = {"save_strategy": "steps", "save_steps": 2}
    monkeypatch.setattr(module, "DiversifyTrainer", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        diversify(base, pairs, arguments(tmp_path, **saving), processor=processor)
    assert (tmp_path / "stage-1" / "stage.json").exists()
    assert (tmp_path / "stage-2" / "trainer" / "checkpoint-2").exists()
    monkeypatch.setattr(module, "DiversifyTrainer", trainer_class)
    resumed = diversify(base, pairs, arguments(tmp_path, **saving), processor=processor)
    for one, other in zip(resumed, experts, strict=True):
        torch.testing.assert_close(weights(one), weights(other))


def test_other_settings_in_a_folder_that_holds_a_run_are_refused_by_name(run):
    base, folder, _ = run
    with pytest.raises(LearngeneError, match=r"learning rate 0\.01, now it is 0\.1"):
        diversify(base, pico_pairs(48), arguments(folder, learning_rate=0.1), processor=pico_processor())
    with pytest.raises(LearngeneError, match="pairs 48, now it is 40"):
        diversify(base, pico_pairs(40), arguments(folder), processor=pico_processor())
    other = copy.deepcopy(base)
    with torch.no_grad():
        other.logit_scale += 1
    with pytest.raises(LearngeneError, match="with base"):
        diversify(other, pico_pairs(48), arguments(folder), processor=pico_processor())


def test_clusters_too_small_for_a_batch_are_refused_with_sizes(base, tmp_path):
    args = arguments(tmp_path, per_device_train_batch_size=40, max_dropped=0.2)
    with pytest.raises(LearngeneError, match="clusters are too small for a batch of 40, the smallest has"):
        diversify(base, pico_pairs(48), args, processor=pico_processor())
    with pytest.raises(LearngeneError, match="leave out 100% of the 3 pairs"):
        report_clusters(np.array([0, 0, 1]), 4, stage=1, max_dropped=1.0)


def test_fewer_pairs_than_clusters_are_refused(base, tmp_path):
    with pytest.raises(LearngeneError, match="2 pairs for 3 clusters"):
        diversify(base, pico_pairs(2), arguments(tmp_path, num_clusters=3), processor=pico_processor())
    with pytest.raises(LearngeneError, match="1 pairs for 2 clusters"):
        cluster_pairs(np.ones((1, 2)), np.ones((1, 2)), 2)
    assert not (tmp_path / "diversify.json").exists()


def test_a_mixture_a_stream_and_a_missing_processor_are_refused(base, mixture, tmp_path):
    with pytest.raises(LearngeneError, match="mixture of experts already"):
        diversify(mixture, pico_pairs(8), arguments(tmp_path), processor=pico_processor())
    stream = IterableDataset.from_generator(lambda: iter(pico_pairs(8)))
    with pytest.raises(LearngeneError, match="stream"):
        diversify(base, stream, arguments(tmp_path), processor=pico_processor())
    with pytest.raises(LearngeneError, match="processor"):
        diversify(base, pico_pairs(8), arguments(tmp_path))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_experts": 1}, "num_experts is 1"),
        ({"num_clusters": 0}, "num_clusters is 0"),
        ({"max_dropped": 1.5}, r"max_dropped is 1\.5"),
    ],
)
def test_arguments_out_of_range_are_refused(tmp_path, changes, said):
    with pytest.raises(LearngeneError, match=said):
        arguments(tmp_path, **changes)
