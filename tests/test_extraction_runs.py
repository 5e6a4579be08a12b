"""Going on with an extraction: the same run to the same weights, another one refused, and what the recipe says."""

import json
import shutil

import pytest
import torch
from pico import pico_clip, pico_pairs, pico_processor

from mmlg_hf import ExtractionArguments, extract_learngene
from mmlg_hf.errors import LearngeneError
from mmlg_hf.extraction.runs import RUN_FILE

QUICK = {
    "max_steps": 2,
    "per_device_train_batch_size": 8,
    "save_steps": 1,
    "lr_scheduler_type": "constant",
    "rotate": False,
    "elastic": False,
    "initialisation": "random",
    "report_to": "none",
    "disable_tqdm": True,
    "use_cpu": True,
}


def extract(folder, ancestor=None, pairs=None, processor=None, resume=None, **changes):
    return extract_learngene(
        ancestor or pico_clip(),
        pairs or pico_pairs(16),
        ExtractionArguments(str(folder), **(QUICK | changes)),
        processor=processor or pico_processor(),
        resume_from_checkpoint=resume,
    )


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """An output folder with the checkpoints of two steps."""
    folder = tmp_path_factory.mktemp("run")
    extract(folder)
    return folder


def refused(match, folder, **changes):
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(LearngeneError, match=match):
        extract(folder, **({"resume": True, "max_steps": 3} | changes))
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def other_ancestor():
    model = pico_clip()
    with torch.no_grad():
        model.visual_projection.weight[0, 0] += 0.1
    return model


def other_activation():
    model = pico_clip()
    model.config.text_config.hidden_act = "gelu"
    return model


def other_processor():
    processor = pico_processor()
    processor.image_processor.image_mean = [0.5, 0.5, 0.5]
    return processor


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"ancestor": other_ancestor()}, "ancestor"),
        ({"ancestor": other_activation()}, "ancestor"),
        ({"pairs": pico_pairs(24).select(range(8, 24))}, "data"),
        ({"pairs": pico_pairs(16).map(lambda row: {"caption": row["caption"] + " photo"})}, "data"),
        ({"pairs": pico_pairs(16).rename_column("caption", "title")}, "columns"),
        ({"processor": other_processor()}, "processor"),
        ({"num_unimodal_blocks": 2}, "num unimodal blocks"),
        ({"mixing": "learned"}, "mixing"),
        ({"affinity_weight": 1.0}, "affinity weight"),
        ({"learning_rate": 1e-4}, "learning rate"),
        ({"per_device_train_batch_size": 4}, "batch size"),
        ({"optim": "sgd"}, "optim"),
        ({"seed": 1}, "seed"),
        ({"rotate": True}, "rotate"),
    ],
)
def test_another_run_is_not_gone_on_with(begun, changes, named):
    refused(f"holds a run with {named} .*, now it is ", begun, **changes)


def test_a_checkpoint_of_an_unknown_run_is_refused(begun, tmp_path):
    shutil.copytree(begun / "checkpoint-2", tmp_path / "checkpoint-2")
    (tmp_path / "checkpoint-2" / RUN_FILE).unlink()
    refused(f"no {RUN_FILE}", tmp_path)
    refused(f"no {RUN_FILE}", tmp_path, resume=str(tmp_path / "checkpoint-2"))
    (tmp_path / RUN_FILE).write_text("{")
    refused("cannot be read", tmp_path)


def test_an_earlier_runs_checkpoint_in_the_same_folder_is_not_taken_for_this_runs(tmp_path):
    extract(tmp_path, max_steps=3)
    extract(tmp_path, max_steps=1, seed=7)  # begun anew where checkpoints 2 and 3 of another run lie
    refused("checkpoint-3.* holds a run with seed 42, now it is 7", tmp_path, max_steps=4, seed=7)


def test_nothing_to_go_on_from_is_said(tmp_path):
    refused("holds no checkpoint to go on from", tmp_path / "nowhere")
    refused("is no complete checkpoint", tmp_path, resume=str(tmp_path / "checkpoint-9"))


def test_a_run_that_was_cut_off_before_its_first_checkpoint_begins_anew(tmp_path):
    whole = extract(tmp_path / "whole")
    (tmp_path / "cut").mkdir()
    shutil.copy(tmp_path / "whole" / RUN_FILE, tmp_path / "cut")
    gone_on = extract(tmp_path / "cut", resume=True)
    for name, weight in whole.state_dict().items():
        torch.testing.assert_close(gone_on.state_dict()[name], weight, rtol=0, atol=0)


def test_a_checkpoint_that_was_cut_off_is_passed_over(begun, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(begun, folder)
    whole = extract(folder, resume=True, max_steps=3)
    shutil.rmtree(folder)
    shutil.copytree(begun, folder)
    (folder / "checkpoint-2" / "trainer_state.json").unlink()
    again = extract(folder, resume=True, max_steps=3)
    for name, weight in whole.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], weight, rtol=0, atol=0)


def test_a_run_that_is_gone_on_with_tells_all_its_seconds_and_the_loss_of_all_its_steps(tmp_path):
    whole = extract(tmp_path / "whole", max_steps=4, logging_steps=1).config.recipe
    extract(tmp_path / "cut", max_steps=4, logging_steps=1)
    for step in (3, 4):
        shutil.rmtree(tmp_path / "cut" / f"checkpoint-{step}")
    state = tmp_path / "cut" / "checkpoint-2" / "trainer_state.json"
    kept = json.loads(state.read_text())
    assert 0 < kept["stateful_callbacks"]["Stopwatch"]["args"]["before"] < 60
    kept["stateful_callbacks"]["Stopwatch"]["args"]["before"] = 1000.0
    state.write_text(json.dumps(kept))
    gone_on = extract(tmp_path / "cut", resume=True, max_steps=4, logging_steps=1).config.recipe
    assert 1000 <= gone_on["seconds"] < 1060
    assert gone_on["train_loss"] == pytest.approx(whole["train_loss"], abs=1e-4)  # logged losses are rounded


def test_a_run_may_be_made_longer_and_not_shorter(begun, tmp_path):
    shutil.copytree(begun, tmp_path / "run")
    assert extract(tmp_path / "run", resume=True, max_steps=3).config.recipe["steps"] == 3
    refused("max_steps is 2, but the run of .*checkpoint-3.* has come to 3", tmp_path / "run", max_steps=2)
    changes = {"max_steps": -1, "num_train_epochs": 0.5}
    refused("num_train_epochs is 0.5, but the run .* has come to 1.5", tmp_path / "run", **changes)


def test_a_run_is_the_same_from_a_copy_elsewhere(begun, tmp_path):
    ancestor, processor = tmp_path / "ancestor", pico_processor()
    pico_clip().save_pretrained(ancestor)
    processor.save_pretrained(ancestor)
    shutil.copytree(begun, tmp_path / "moved")
    pico_pairs(16).save_to_disk(tmp_path / "pairs")
    args = ExtractionArguments(str(tmp_path / "moved"), **(QUICK | {"max_steps": 3}))
    gene = extract_learngene(ancestor, tmp_path / "pairs", args, resume_from_checkpoint=True)
    assert gene.config.recipe["steps"] == 3


def test_the_recipe_names_hub_ids_whole_and_folders_without_their_paths(tmp_path, monkeypatch):
    ancestor = tmp_path / "secret" / "ancestor"
    pico_clip().save_pretrained(ancestor)
    pico_processor().save_pretrained(ancestor)
    pico_pairs(8).save_to_disk(tmp_path / "secret" / "pairs")
    args = ExtractionArguments(str(tmp_path / "gene"), **(QUICK | {"max_steps": 1, "save_strategy": "no"}))
    gene = extract_learngene(ancestor, f"{tmp_path}/secret/pairs/", args)
    assert gene.config.recipe["dataset"] == "pairs"
    assert gene.config.ancestor["id"] == "ancestor"
    for name in ("config.json", RUN_FILE):
        assert "secret" not in json.dumps(json.loads((tmp_path / "gene" / name).read_text()))
    monkeypatch.setattr("mmlg_hf.extraction.extracting.load_image_text", lambda dataset, split: pico_pairs(8))
    gene = extract_learngene(ancestor, "org/my-data", args)
    assert gene.config.recipe["dataset"] == "org/my-data"


def test_an_extraction_that_is_refused_leaves_no_trace(tmp_path):
    for match, changes in (
        ("mixing is 'fourier'", {"mixing": "fourier"}),
        ("fewer than one batch of 64", {"per_device_train_batch_size": 64}),
    ):
        with pytest.raises(LearngeneError, match=match):
            extract(tmp_path / "out", **changes)
        assert not (tmp_path / "out").exists()
