"""Fine-tuning by contrast and imitation of an ancestor: its loss, whose tokens and pictures fit, what is refused."""

import pytest
import torch
from pico import pico_clip, pico_pairs, pico_processor
from transformers import CLIPImageProcessor, CLIPModel, CLIPProcessor, TrainingArguments

from mmlg_hf import ContrastiveTrainer, DistillationTrainer
from mmlg_hf.data import process_pairs
from mmlg_hf.errors import LearngeneError
from mmlg_hf.extraction.outputs import cache_ancestor_outputs
from mmlg_hf.extraction.trainer import AncestorCollator
from mmlg_hf.extraction.vocabulary import trim_embedding, trim_tokenizer
from mmlg_hf.training import ImageTextCollator, contrastive_loss, with_muon

PROCESSOR = pico_processor()


@pytest.fixture
def trainer_of(tmp_path):
    def make(model, ancestor, processor=PROCESSOR, cls=DistillationTrainer, muon=None, **kwargs):
        names = ("max_steps", "learning_rate", "per_device_train_batch_size")
        settings = {name: kwargs.pop(name) for name in names if name in kwargs}
        settings = {"max_steps": 3, "learning_rate": 1e-3, "per_device_train_batch_size": 4, **settings}
        settings |= {"save_strategy": "no", "report_to": [], "disable_tqdm": True, "use_cpu": True, "logging_steps": 1}
        args = TrainingArguments(str(tmp_path), **settings)
        given = {"train_dataset": pico_pairs(8), "processing_class": processor, **kwargs}
        given |= {"ancestor": ancestor} if cls is DistillationTrainer else {}
        given |= {"optimizer_cls_and_kwargs": with_muon(args, muon)} if muon else {}
        return cls(model, args, **given)

    return make


def batch_of(rows=4, processor=PROCESSOR):
    return ImageTextCollator(processor)([pico_pairs(rows)[index] for index in range(rows)])


@torch.no_grad()
def embeds_of(model, batch):
    outputs = model.eval()(**{name: batch[name] for name in ("pixel_values", "input_ids", "attention_mask")})
    return outputs.image_embeds, outputs.text_embeds


def test_the_loss_is_the_contrastive_one_and_the_squared_distances_by_their_weights(trainer_of):
    model, ancestor, batch = pico_clip(seed=1), pico_clip(vision_depth=3, text_depth=1, seed=2), batch_of()
    own, theirs = embeds_of(model, batch), embeds_of(ancestor, batch)
    distances = [(ours - others).square().sum(-1).mean() for ours, others in zip(own, theirs, strict=True)]
    contrast = contrastive_loss(*own, model.logit_scale.exp().detach())
    for weights in ((1.0, 10.0), (0.5, 0.0), (0.0, 3.0)):
        named = dict(zip(("contrastive_weight", "feature_weight"), weights, strict=True))
        loss = trainer_of(model, ancestor, **named).compute_loss(model, dict(batch))
        expected = weights[0] * contrast + weights[1] * sum(distances) / 2
        torch.testing.assert_close(loss.detach(), expected, rtol=1e-5, atol=1e-6)


def test_an_ancestor_is_not_asked_again_about_rows_that_carry_what_it_said(trainer_of, tmp_path, monkeypatch):
    pairs, collator = process_pairs(pico_pairs(8), PROCESSOR), AncestorCollator(ImageTextCollator(PROCESSOR))
    kept = cache_ancestor_outputs(pico_clip(seed=2), pairs, collator, PROCESSOR, tmp_path / "kept")
    trained = []
    for rows, with_outputs in ((pairs, {}), (kept, {"data_collator": collator})):
        model = pico_clip(seed=1)
        trainer_of(model, pico_clip(seed=2), train_dataset=rows, **with_outputs).train()
        trained.append(model.state_dict())
        monkeypatch.setattr("mmlg_hf.extraction.distillation.ancestor_outputs", None)
    for name, weight in trained[0].items():
        torch.testing.assert_close(weight, trained[1][name], msg=name)


def test_without_imitation_it_trains_as_the_contrastive_trainer(trainer_of):
    trained = []
    for cls, more in ((DistillationTrainer, {"feature_weight": 0.0}), (ContrastiveTrainer, {})):
        model = pico_clip(seed=1)
        trainer_of(model, pico_clip(), cls=cls, **more).train()
        trained.append(model.state_dict())
    for name, weight in trained[0].items():
        torch.testing.assert_close(weight, trained[1][name], rtol=0, atol=0)


def test_imitation_alone_comes_nearer_to_the_ancestor_which_stays_as_it_is(trainer_of):
    model, ancestor = pico_clip(seed=1), pico_clip(seed=2)
    batch, before = batch_of(), {name: weight.clone() for name, weight in ancestor.state_dict().items()}

    def distance():
        pairs = zip(embeds_of(model, batch), embeds_of(ancestor, batch), strict=True)
        return sum((ours - theirs).square().sum(-1).mean() for ours, theirs in pairs).item()

    far = distance()
    alone = {"contrastive_weight": 0.0, "per_device_train_batch_size": 1}
    trainer = trainer_of(model, ancestor, max_steps=8, muon=1e-2, **alone)
    trainer.train()
    assert distance() < 0.7 * far
    for name, weight in before.items():
        torch.testing.assert_close(trainer.ancestor.state_dict()[name], weight, rtol=0, atol=0)
        torch.testing.assert_close(ancestor.state_dict()[name], weight, rtol=0, atol=0)
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert all(entry["loss_feature"] == pytest.approx(float(entry["loss"]), rel=1e-3) for entry in logged)


def test_a_model_of_a_trimmed_vocabulary_has_its_whole_ancestor_for_a_model(trainer_of):
    whole, small = pico_clip(seed=2), pico_clip(seed=2)
    tokenizer, old_ids = trim_tokenizer(PROCESSOR.tokenizer, ["a red square on blue"])
    trim_embedding(small, tokenizer, old_ids)
    assert len(tokenizer) < len(PROCESSOR.tokenizer)
    trimmed = CLIPProcessor(PROCESSOR.image_processor, tokenizer)
    trainer = trainer_of(small, whole, trimmed, ancestor_processor=PROCESSOR, contrastive_weight=0.0)
    assert trainer.compute_loss(small.eval(), batch_of(processor=trimmed)).item() == pytest.approx(0, abs=1e-8)
    with pytest.raises(LearngeneError, match="loaded from nowhere"):
        trainer_of(small, whole, trimmed)
    with pytest.raises(LearngeneError, match="lacks .* of the model's .* tokens, such as"):
        trainer_of(whole, small, ancestor_processor=trimmed)


def test_ancestors_and_weights_that_do_not_fit_are_refused_in_a_sentence(trainer_of, tmp_path):
    def refused(match, ancestor=None, train=False, **kwargs):
        given = (pico_clip(), ancestor or pico_clip())
        trainer = trainer_of(*given, **kwargs) if train else None
        with pytest.raises(LearngeneError, match=match):
            trainer.train() if train else trainer_of(*given, **kwargs)

    refused("feature_weight is -1", feature_weight=-1)
    refused("contrastive_weight is nan", contrastive_weight=float("nan"))
    refused("both 0", contrastive_weight=0, feature_weight=0)
    refused("equal embedding sizes, got 16 and the ancestor's 8", pico_clip(projection_dim=8), train=True)
    config = pico_clip().config
    config.vision_config.image_size = 32
    refused("pictures of 16 px come in, but the ancestor takes 32", CLIPModel(config), train=True)
    whitened = CLIPImageProcessor(**PROCESSOR.image_processor.to_dict() | {"image_mean": [0.5, 0.5, 0.5]})
    others = CLIPProcessor(whitened, PROCESSOR.tokenizer)
    refused("image_mean of the model's processor is", ancestor_processor=others)
    pico_clip().save_pretrained(tmp_path / "clip")
    PROCESSOR.save_pretrained(tmp_path / "clip")
    assert trainer_of(pico_clip(), str(tmp_path / "clip")).train().global_step == 3
