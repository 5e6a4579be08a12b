"""Probed heads are scikit-learn's regressions on what the heads are given, and nothing else of a model changes."""

import sys

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict
from pico import pico_clip, pico_siglip, pico_tokenizer
from pico_genes import image_gene, perturb
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertForTokenClassification,
    CLIPForImageClassification,
    DataCollatorWithPadding,
    SiglipForImageClassification,
    Trainer,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
)

from mmlg_hf import CLIPTextForSequenceClassification, LearngeneError
from mmlg_hf.evaluation.classification import classification_metrics
from mmlg_hf.training import probe_head

COLORS = ("red", "green", "blue", "pink")
ENCODER = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


def clip_classifier(num_labels=3):
    config = pico_clip().config
    config.num_labels = num_labels
    torch.manual_seed(0)
    return CLIPForImageClassification(config)


def siglip_classifier(num_labels=3):
    config = pico_siglip().config
    config.num_labels = num_labels
    torch.manual_seed(0)
    return SiglipForImageClassification(config)


def vit_classifier(num_labels=3):
    torch.manual_seed(0)
    return ViTForImageClassification(ViTConfig(**ENCODER, image_size=16, patch_size=8, num_labels=num_labels))


def text_classifier(num_labels=3):
    config = pico_clip().config.text_config
    config.num_labels = num_labels
    torch.manual_seed(0)
    return CLIPTextForSequenceClassification(config)


def bert(cls=BertForSequenceClassification, num_labels=3):
    """With the dropout that it has by default."""
    torch.manual_seed(0)
    return cls(BertConfig(**ENCODER, vocab_size=len(pico_tokenizer()), num_labels=num_labels))


def pictures(labels, seed=0):
    """Rows of noise on a level of grey by class, so that classes overlap."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(len(labels), 3, 16, 16, generator=generator)
    return [
        {"pixel_values": pixels + 0.1 * label, "labels": label} for pixels, label in zip(noise, labels, strict=True)
    ]


def texts(labels):
    """Rows of as many tokens each, whose third word is of the class more often than not."""
    words = np.random.default_rng(0).integers(len(COLORS), size=len(labels))
    said = [COLORS[words[row] if row % 3 == 0 else label] for row, label in enumerate(labels)]
    encoded = pico_tokenizer()([f"a {color} square number {row}" for row, color in enumerate(said)], padding=True)
    columns = {name: encoded[name] for name in ("input_ids", "attention_mask")}
    return [
        {name: torch.tensor(column[row]) for name, column in columns.items()} | {"labels": label}
        for row, label in enumerate(labels)
    ]


def run(model, rows):
    """Features [N, D] that the head is given and logits [N, C], in evaluation mode; not by the code that is tested."""
    caught = []
    handle = model.classifier.register_forward_hook(lambda module, given, found: caught.append((given[0], found)))
    modes = {name: module.training for name, module in model.named_modules()}
    with torch.no_grad():
        model.eval()(**{name: torch.stack([row[name] for row in rows]) for name in rows[0] if name != "labels"})
    handle.remove()
    for name, module in model.named_modules():
        module.training = modes[name]
    return (part.double().numpy() for part in caught[0])


def regression_on(features, labels, strength=0.1, **settings):
    scaled = StandardScaler().fit_transform(features)
    return LogisticRegression(C=strength, max_iter=1000, **settings).fit(scaled, labels), scaled


MODELS = {
    "CLIP": (clip_classifier, pictures),
    "SigLIP": (siglip_classifier, pictures),
    "ViT": (vit_classifier, pictures),
    "image gene": (lambda: image_gene(num_labels=3), pictures),
    "text classifier": (text_classifier, texts),
    "BERT": (bert, texts),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_probed_head_is_the_logistic_regression_on_the_models_own_features(name):
    make, rows_of = MODELS[name]
    model, labels = perturb(make()), np.arange(30) % 3  # so that features vary by much more than by rounding
    rows = rows_of(labels.tolist())
    features, _ = run(model, rows)
    regression, scaled = regression_on(features, labels)
    probe_head(model, rows, batch_size=7)
    _, logits = run(model, rows)
    probabilities = torch.tensor(logits).softmax(-1).numpy()
    np.testing.assert_allclose(probabilities, regression.predict_proba(scaled), atol=2e-3)
    assert (logits.argmax(-1) == regression.predict(scaled)).all()
    assert regression.score(scaled, labels) > 0.6  # it has learnt something


@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("strength", [0.01, 1.0])
def test_two_classes_and_their_weights(balanced, strength):
    model, labels = clip_classifier(2), np.array([0] * 24 + [1] * 8)
    rows = pictures(labels.tolist())
    features, _ = run(model, rows)
    weights = "balanced" if balanced else None
    regression, scaled = regression_on(features, labels, strength, class_weight=weights)
    probe_head(model, rows, strength=strength, balanced=balanced)
    _, logits = run(model, rows)
    probabilities = torch.tensor(logits).softmax(-1).numpy()
    np.testing.assert_allclose(probabilities, regression.predict_proba(scaled), atol=2e-3)
    np.testing.assert_allclose(logits.sum(-1), 0, atol=1e-4)


@pytest.mark.parametrize("present", [(0, 2), (1, 2, 4)])
def test_a_class_without_rows_is_never_predicted_and_the_others_are_as_without_it(present):
    model, labels = clip_classifier(5), np.array(present * 10)
    rows = pictures(labels.tolist())
    features, _ = run(model, rows)
    regression, scaled = regression_on(features, labels)
    probe_head(model, rows)
    _, logits = run(model, rows)
    absent = [label for label in range(5) if label not in present]
    assert (logits[:, absent] == -10.0).all()
    assert not model.classifier.weight[absent].any()
    kept = torch.tensor(logits[:, list(present)]).softmax(-1).numpy()
    np.testing.assert_allclose(kept, regression.predict_proba(scaled), atol=2e-3)
    _, unseen = run(model, pictures(labels.tolist(), seed=1))
    assert np.isin(unseen.argmax(-1), present).all()
    assert np.isin(logits.argmax(-1), present).all()


def test_the_trainer_measures_the_accuracy_that_scikit_learn_predicts(tmp_path):
    model, labels = text_classifier(), np.arange(33) % 3
    rows = texts(labels.tolist())
    regression, scaled = regression_on(next(run(model, rows)), labels)
    probe_head(model, rows)
    args = TrainingArguments(str(tmp_path), report_to="none", use_cpu=True, disable_tqdm=True)
    trainer = Trainer(model, args, eval_dataset=rows, compute_metrics=classification_metrics)
    assert trainer.evaluate()["eval_accuracy"] == pytest.approx(regression.score(scaled, labels))


def test_nothing_but_the_head_changes():
    """Neither other weights, nor the modes of modules, nor the config, nor random states, nor hooks."""
    model = bert().train()
    model.bert.encoder.layer[0].eval()  # as a frozen layer may be
    modes = [module.training for module in model.modules()]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    config, random = model.config.to_dict(), torch.random.get_rng_state()
    probe_head(model, texts([0, 1, 2] * 4))
    assert [module.training for module in model.modules()] == modes
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {"classifier.weight", "classifier.bias"}
    assert model.config.to_dict() == config
    assert torch.equal(torch.random.get_rng_state(), random)
    assert not model.classifier._forward_pre_hooks
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_probed_head_does_not_depend_on_the_mode_the_model_is_in():
    models, rows = [bert().train(), bert().eval()], texts([0, 1, 2] * 4)
    for model in models:
        probe_head(model, rows)
    assert torch.equal(models[0].classifier.weight, models[1].classifier.weight)


def rows_like(kind, rows):
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    more = {"label": columns.pop("labels"), "number": list(range(len(rows))), "name": ["a"] * len(rows)}
    dataset = Dataset.from_dict({**{k: [v.tolist() for v in c] for k, c in columns.items()}, **more})
    return {"dataset": dataset, "formatted": dataset.with_format("torch"), "stream": dataset.to_iterable_dataset()}[
        kind
    ]


@pytest.mark.parametrize("kind", ["dataset", "formatted", "stream"])
def test_rows_of_a_data_set_come_as_the_trainer_takes_them(kind):
    """With a column "label", and columns that the model does not take."""
    models, rows = [clip_classifier(), clip_classifier()], pictures([0, 1, 2] * 4)
    probe_head(models[0], rows)
    probe_head(models[1], rows_like(kind, rows))
    torch.testing.assert_close(models[1].classifier.weight, models[0].classifier.weight)


def test_a_collator_of_ones_own_makes_the_batches():
    models, rows = [text_classifier(), text_classifier()], texts([0, 1, 2] * 4)
    probe_head(models[0], rows)
    ragged = [
        {"input_ids": row["input_ids"][: int(row["attention_mask"].sum())].tolist(), "labels": row["labels"]}
        for row in rows
    ]
    probe_head(models[1], ragged, data_collator=DataCollatorWithPadding(pico_tokenizer()))
    torch.testing.assert_close(models[1].classifier.weight, models[0].classifier.weight, rtol=1e-3, atol=1e-4)


def test_a_model_in_half_precision_keeps_its_dtype():
    model, rows = clip_classifier().to(torch.bfloat16), pictures([0, 1, 2] * 4)
    probe_head(model, rows)
    assert model.classifier.weight.dtype == model.classifier.bias.dtype == torch.bfloat16
    assert model.classifier.weight.isfinite().all()


class NoBias(nn.Module):
    def __init__(self):
        super().__init__()
        self.config = pico_clip().config
        self.config.num_labels = 3
        self.score = nn.Linear(4, 3, bias=False)


class TwoHeads(NoBias):
    def __init__(self):
        super().__init__()
        self.score, self.classifier = nn.Linear(4, 3), nn.Linear(4, 3)


def broken():
    model = clip_classifier()
    with torch.no_grad():
        model.vision_model.embeddings.patch_embedding.weight[0] = float("nan")
    return model


FEW = pictures([0, 1, 2] * 4)
ERRORS = {
    "no head": (
        pico_clip,
        FEW,
        {},
        r"the CLIPModel has no head to probe.*config.num_labels = 2 outputs; it has neither",
    ),
    "no bias": (NoBias, FEW, {}, r"the NoBias has no head.*it has score \(Linear\(.*bias=False\)\)"),
    "two heads": (TwoHeads, FEW, {}, r"the TwoHeads has no head to probe \(or several\)"),
    "no model of transformers": (lambda: nn.Linear(2, 2), FEW, {}, "the Linear has no head"),
    "tokens": (
        lambda: bert(BertForTokenClassification),
        texts([0, 1]),
        {},
        r"given states \[2, \d+, 16\], those of sin",
    ),
    "no rows": (clip_classifier, [], {}, "there are 0 rows to probe the head on: give"),
    "splits": (
        clip_classifier,
        DatasetDict(train=Dataset.from_dict({})),
        {},
        "the training data is a DatasetDict with",
    ),
    "one class": (clip_classifier, pictures([1, 1, 1]), {}, "all 3 rows have the label 1: .* at least two classes"),
    "too high": (
        clip_classifier,
        pictures([0, 1, 3]),
        {},
        r"label 3, but the model has 3 classes, 0 to 2: .*num_labels",
    ),
    "too low": (clip_classifier, pictures([0, 1, -100]), {}, "label -100, but the model has 3 classes"),
    "no labels": (
        clip_classifier,
        [{"pixel_values": FEW[0]["pixel_values"]}],
        {},
        r"no 'labels', only \['pixel_values'",
    ),
    "numbers": (clip_classifier, pictures([0.5, 1.5]), {}, r"are torch.float32 \[2\]: give each row one class"),
    "many labels": (clip_classifier, [{**FEW[0], "labels": [0, 1]}], {}, r"\[1, 2\]"),
    "nan": (broken, FEW, {}, "the features of 12 of 12 rows are not finite, first those of row 0: look at"),
    "no strength": (clip_classifier, FEW, {"strength": 0.0}, "strength is 0.0: give a number above 0"),
    "negative strength": (clip_classifier, FEW, {"strength": -1}, "strength is -1: give a number above 0"),
    "no batch": (clip_classifier, FEW, {"batch_size": 0}, "batch_size is 0: give a number above 0"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_what_cannot_be_probed_is_told_in_a_sentence_and_the_model_stays_as_it_was(name):
    make, rows, settings, said = ERRORS[name]
    model = make().train()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with pytest.raises(LearngeneError, match=said) as told:
        probe_head(model, rows, **settings)
    assert "\n" not in str(told.value)
    assert all(module.training for module in model.modules())
    assert not any(module._forward_pre_hooks for module in model.modules())
    for key, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, before[key], equal_nan=True, rtol=0, atol=0)


def test_without_scikit_learn_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.linear_model", None)
    with pytest.raises(LearngeneError, match=r"This needs sklearn.*pip install 'mmlg_hf\[demo\]' brings it"):
        probe_head(clip_classifier(), FEW)
