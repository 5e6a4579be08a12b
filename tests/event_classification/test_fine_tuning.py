"""Class weights, the weighted loss, the scores, and a training run through the stock Trainer."""

import numpy as np
import pytest
import torch
from fine_tuning import (
    check_labels,
    class_weights,
    examples,
    fine_tune,
    freeze_layers,
    image_processor,
    scores,
    weighted_loss,
)
from transformers import CLIPConfig, CLIPForImageClassification

from mmlg_hf.errors import LearngeneError

CLASSES = ("left", "right", "none")


def pico_classifier():
    """A stock classifier of two layers of width 16 for 16 px images."""
    torch.manual_seed(0)
    vision = {"image_size": 16, "patch_size": 4, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = CLIPConfig(vision_config=vision | {"intermediate_size": 32}, num_labels=len(CLASSES))
    model = CLIPForImageClassification(config)
    model.accepts_loss_kwargs = False
    return model


def striped(count=24):
    """Images that are dark on the left, dark on the right or white, and their examples."""
    labels = np.arange(count) % 3
    images = np.random.default_rng(0).integers(200, 256, (count, 16, 16, 3)).astype(np.uint8)
    images[labels == 0, :, :8] //= 4
    images[labels == 1, :, 8:] //= 4
    return examples(images, labels, image_processor(16)), labels


def test_class_weights_balance_the_classes_and_have_mean_one_over_the_events():
    labels = np.array([0] * 6 + [1] * 3 + [2])
    weights = class_weights(labels, 4)
    assert weights.tolist() == pytest.approx([10 / 18, 10 / 9, 10 / 3, 0])
    assert weights[labels].mean() == pytest.approx(1.0)


def test_the_weighted_loss_is_the_weighted_cross_entropy_over_the_events_of_the_step():
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    labels, weights = torch.tensor([0, 1, 1]), torch.tensor([2.0, 0.5])
    each = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    total = 2.0 * each[0] + 0.5 * each[1] + 0.5 * each[2]
    loss = weighted_loss(weights)
    torch.testing.assert_close(loss({"logits": logits}, labels), total / 3)
    torch.testing.assert_close(loss({"logits": logits}, labels, torch.tensor(12)), total / 12)


def test_scores_agree_with_a_confusion_matrix_worked_by_hand():
    truth = np.array([0, 0, 0, 1, 1, 2])
    guesses = np.array([0, 0, 1, 1, 2, 2])
    result = scores(np.eye(3)[guesses], truth, CLASSES)
    assert result["confusion"] == [[2, 1, 0], [0, 1, 1], [0, 0, 1]]
    assert result["per_class"]["left"] == pytest.approx({"precision": 1.0, "recall": 2 / 3, "f1": 0.8, "events": 3})
    assert result["f1"] == pytest.approx((0.8 + 0.5 + 2 / 3) / 3)
    assert result["accuracy"] == pytest.approx(4 / 6)
    assert scores(np.eye(3)[guesses], truth, CLASSES, positive=1)["f1"] == pytest.approx(0.5)


def test_frozen_layers_keep_their_weights_and_the_others_learn(tmp_path):
    model = pico_classifier()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    freeze_layers(model, 1)
    train, _ = striped()
    fine_tune(model, train, CLASSES, output_dir=tmp_path, steps=2, learning_rate=1e-2, quiet=True)
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert any(name.startswith("vision_model.encoder.layers.1.") for name in changed)
    assert not any(name.startswith(("vision_model.embeddings", "vision_model.encoder.layers.0.")) for name in changed)
    assert "classifier.weight" in changed


def test_training_learns_and_the_same_seed_gives_the_same_weights(tmp_path):
    train, labels = striped()
    models = [pico_classifier(), pico_classifier()]
    for model in models:
        trainer = fine_tune(model, train, CLASSES, output_dir=tmp_path, steps=50, learning_rate=1e-2, quiet=True)
    assert scores(trainer.predict(train).predictions, labels, CLASSES)["f1"] > 0.9
    for name, tensor in models[0].state_dict().items():
        torch.testing.assert_close(tensor, models[1].state_dict()[name], msg=name)


def test_no_steps_leave_the_model_as_it_is(tmp_path):
    model = pico_classifier()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    train, labels = striped()
    trainer = fine_tune(model, train, CLASSES, output_dir=tmp_path, steps=0, quiet=True)
    assert trainer.predict(train).predictions.shape == (len(labels), 3)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_one_class_only_is_refused_before_training(tmp_path):
    train, _ = striped()
    with pytest.raises(LearngeneError, match=r"hold only \['left'\]; a classifier needs at least two classes"):
        fine_tune(pico_classifier(), train[::3], CLASSES, output_dir=tmp_path / "out", quiet=True)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: check_labels(np.array([0, 3]), CLASSES), "labels go up to 3"),
        (lambda: freeze_layers(pico_classifier(), 3), "layers is 3; the model has 2"),
        (lambda: freeze_layers(pico_classifier(), -1), "layers is -1"),
        (lambda: fine_tune(pico_classifier(), striped()[0], CLASSES, output_dir="x", steps=-1), "steps is -1"),
    ],
)
def test_impossible_settings_are_refused(call, said):
    with pytest.raises(LearngeneError, match=said):
        call()
