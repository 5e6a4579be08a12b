"""train_router(): what trains, the loss, the record of expert usage."""

import copy
import json

import pytest
import torch
from pico import pico_clip, pico_pairs, pico_processor

from mmlg_hf.clip_moe import CLIPMoEModel, train_router, upcycle
from mmlg_hf.clip_moe.router_training import (
    ImitatingRouterTrainer,
    RouterArguments,
    RouterTrainer,
    count_routed_tokens,
    usage_history,
)
from mmlg_hf.errors import LearngeneError
from mmlg_hf.training import ImageTextCollator
from mmlg_hf.training.losses import contrastive_loss


def arguments(folder, **changes):
    values = {
        "per_device_train_batch_size": 8,
        "learning_rate": 1e-2,
        "max_steps": 4,
        "logging_steps": 2,
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "save_strategy": "no",
    }
    return RouterArguments(str(folder), **(values | changes))


def changed_names(model, before):
    return {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}


@pytest.mark.parametrize("train_experts", [False, True])
def test_only_the_gates_train_unless_the_experts_shall_too(mixture, tmp_path, train_experts):
    before = {name: tensor.clone() for name, tensor in mixture.state_dict().items()}
    trained = train_router(
        mixture, pico_pairs(32), arguments(tmp_path, train_experts=train_experts), processor=pico_processor()
    )
    expected = {name for name in before if ".router." in name or (train_experts and ".experts." in name)}
    assert changed_names(trained, before) == expected
    assert all(parameter.requires_grad for parameter in trained.parameters())


def test_the_loss_is_the_contrastive_one_plus_the_balance_of_both_encoders(mixture, tmp_path):
    pairs, processor = pico_pairs(8), pico_processor()
    trainer = RouterTrainer(mixture, arguments(tmp_path), train_dataset=pairs, processing_class=processor)
    batch = ImageTextCollator(processor)(list(pairs))
    mixture.train()
    loss, outputs = trainer.compute_loss(mixture, batch, return_outputs=True)
    plain = contrastive_loss(outputs.image_embeds, outputs.text_embeds, mixture.logit_scale.exp())
    assert outputs.aux_loss > 0.01 * 2.9, "k for the images and k/2 for the texts is the least"
    torch.testing.assert_close(loss, plain + outputs.aux_loss)
    loss.backward()
    gates = [parameter for name, parameter in mixture.named_parameters() if ".router." in name]
    assert all(gate.grad.abs().sum() > 0 for gate in gates)
    mixture.eval()
    torch.testing.assert_close(trainer.compute_loss(mixture, batch), plain)


def test_gates_of_identical_experts_have_no_gradient_but_the_balance_loss(base, tmp_path):
    """Why plain upcycling has to train its experts too."""
    mixture = upcycle(base, [base] * 3, router_aux_loss_coef=0.0).train()
    batch = ImageTextCollator(pico_processor())(list(pico_pairs(8)))
    mixture(**batch).loss.backward()
    gates = [parameter.grad.abs().max() for name, parameter in mixture.named_parameters() if ".router." in name]
    assert max(gates) < 1e-6


def test_usage_is_counted_over_the_slots_and_without_padding():
    logits = torch.tensor([[[3.0, 2.0, 0.0], [0.0, 1.0, 2.0], [5.0, 0.0, 1.0], [9.0, 8.0, 0.0]]])  # [1, 4, 3]
    assert count_routed_tokens(tuple(logits), 2).tolist() == [[3.0, 3.0, 2.0]]
    mask = torch.tensor([[1, 1], [1, 0]])
    assert count_routed_tokens(tuple(logits), 2, mask).tolist() == [[2.0, 2.0, 2.0]]
    assert count_routed_tokens(tuple(logits), 1, mask).tolist() == [[2.0, 0.0, 1.0]]


def test_usage_is_logged_plotted_and_kept_for_every_layer(mixture, tmp_path):
    train_router(mixture, pico_pairs(32), arguments(tmp_path), processor=pico_processor())
    history = json.loads((tmp_path / "expert_usage.json").read_text())
    assert [record["step"] for record in history] == [2, 4]
    for record in history:
        for encoder, layers in (("vision", 3), ("text", 2)):
            shares = torch.tensor(record[encoder])
            assert shares.shape == (layers, 4)
            torch.testing.assert_close(shares.sum(dim=1), torch.ones(layers), atol=2e-4, rtol=0)
            assert shares.max() <= 0.5, "top-2 gives one expert at most half of the slots"
    assert (tmp_path / "expert_usage.png").stat().st_size > 1000
    loaded = CLIPMoEModel.from_pretrained(tmp_path)
    torch.testing.assert_close(loaded.state_dict(), mixture.state_dict())
    assert (tmp_path / "tokenizer.json").exists()


def test_the_whole_mixture_trains_where_asked(mixture, tmp_path):
    before = {name: tensor.clone() for name, tensor in mixture.state_dict().items()}
    trained = train_router(mixture, pico_pairs(32), arguments(tmp_path, train_all=True), processor=pico_processor())
    changed = changed_names(trained, before)
    assert {
        "logit_scale",
        "text_projection.weight",
        "vision_model.encoder.layers.0.self_attn.q_proj.weight",
    } <= changed


def embeds_of(model, batch):
    with torch.no_grad():
        outputs = model.eval()(**batch)
    return outputs.image_embeds, outputs.text_embeds


def test_imitation_leads_experts_to_the_ancestor_and_its_loss_is_contrast_and_distance(base, tmp_path):
    pairs, processor, ancestor = pico_pairs(32), pico_processor(), pico_clip(seed=5)
    batch = ImageTextCollator(processor)(list(pairs.select(range(8))))
    targets = embeds_of(ancestor, batch)

    def distance(model):
        return sum(
            (own - theirs).square().sum(-1).mean() / 2
            for own, theirs in zip(embeds_of(model, batch), targets, strict=True)
        )

    mixture = upcycle(base, [base] * 2, router_aux_loss_coef=0.0)
    given = {"train_dataset": pairs, "processing_class": processor, "ancestor": ancestor}
    losses = {
        weight: ImitatingRouterTrainer(mixture, arguments(tmp_path), feature_weight=weight, **given).compute_loss(
            mixture.eval(), dict(batch)
        )
        for weight in (0.0, 30.0)
    }
    torch.testing.assert_close(losses[30.0] - losses[0.0], 30 * distance(mixture), atol=1e-4, rtol=1e-4)
    before, weights = distance(mixture), {name: value.clone() for name, value in ancestor.state_dict().items()}
    after = {}
    for weight in (0.0, 1000.0):
        args = arguments(tmp_path, train_experts=True, feature_weight=weight, max_steps=8)
        imitated = {"ancestor": ancestor, "ancestor_processor": processor}
        after[weight] = distance(train_router(copy.deepcopy(mixture), pairs, args, processor=processor, **imitated))
    assert after[1000.0] < 0.8 * before
    assert after[1000.0] < 0.8 * after[0.0]
    assert not changed_names(ancestor, weights)
    record = json.loads((tmp_path / "router.json").read_text())
    assert record["feature_weight"] == 1000.0
    assert len(record["ancestor"]) == 32
    assert (tmp_path / "expert_usage.json").exists()


@pytest.mark.slow
def test_resumed_training_ends_like_uninterrupted_training_and_keeps_the_record(mixture, tmp_path):
    pairs, processor = pico_pairs(32), pico_processor()
    saving = {"save_strategy": "steps", "save_steps": 2}
    whole = train_router(copy.deepcopy(mixture), pairs, arguments(tmp_path / "whole", **saving), processor=processor)
    checkpoint = str(tmp_path / "whole" / "checkpoint-2")
    resumed = train_router(
        mixture, pairs, arguments(tmp_path / "resumed"), processor=processor, resume_from_checkpoint=checkpoint
    )
    torch.testing.assert_close(resumed.state_dict(), whole.state_dict())
    records = [(tmp_path / name / "expert_usage.json").read_text() for name in ("whole", "resumed")]
    assert records[0] == records[1]


def test_a_mixture_with_one_dense_encoder_records_the_other(base, tmp_path):
    mixture = upcycle(base, [base], text_layers=())
    trainer = RouterTrainer(
        mixture, arguments(tmp_path), train_dataset=pico_pairs(32), processing_class=pico_processor()
    )
    trainer.train()
    assert [set(record) for record in usage_history(trainer.state.log_history)] == [{"step", "vision"}] * 2


def test_a_dense_clip_is_refused(tmp_path):
    base = pico_clip()
    base.save_pretrained(tmp_path / "dense")
    with pytest.raises(LearngeneError, match="CLIPModel has no routers"):
        train_router(base, pico_pairs(8), arguments(tmp_path), processor=pico_processor())
    with pytest.raises(LearngeneError, match="type 'clip', not a mixture"):
        train_router(tmp_path / "dense", pico_pairs(8), arguments(tmp_path), processor=pico_processor())


def test_a_run_shorter_than_one_log_still_leaves_its_usage(mixture, tmp_path):
    train_router(mixture, pico_pairs(32), arguments(tmp_path, logging_steps=100), processor=pico_processor())
    assert [record["step"] for record in json.loads((tmp_path / "expert_usage.json").read_text())] == [4]
