"""Measuring classifiers: accuracies from logits, labels by name or by number, and rows that cannot be measured."""

import numpy as np
import pytest
import torch
from datasets import Dataset
from pico import COLORS, pico_pairs, pico_processor
from pico_genes import multimodal_gene
from transformers import EvalPrediction

from mmlg_hf import LearngeneError
from mmlg_hf.classification import accuracies, classification_metrics, evaluate_classification

NAMES = list(COLORS)


def always(index: int, modality: str, names=NAMES):
    """A classifier grown from a gene whose head always says class `index`."""
    model = multimodal_gene().descendant(1, 16, modality, id2label=dict(enumerate(names)))
    torch.nn.init.zeros_(model.classifier.weight)
    torch.nn.init.zeros_(model.classifier.bias)
    model.classifier.bias.data[index] = 1.0
    return model


@pytest.fixture(scope="module")
def pairs():
    return pico_pairs(12, labels=True)  # labels 0 to 7, then 0 to 3


def test_accuracies_count_the_highest_logit_and_average_over_classes():
    logits = torch.eye(6)[[0, 0, 0, 1, 2]]
    figures = accuracies(logits, torch.tensor([0, 0, 0, 2, 2]))
    assert figures == pytest.approx({"accuracy": 4 / 5, "top5": 4 / 5, "mean_per_class": (1 + 1 / 2) / 2})


def test_the_trainer_is_given_the_same_accuracies():
    logits, labels = np.eye(3, dtype=np.float32)[[0, 1, 1, 2]], np.array([0, 1, 2, 2])
    assert classification_metrics(EvalPrediction(logits, labels)) == pytest.approx(
        {"accuracy": 3 / 4, "mean_per_class": (1 + 1 + 1 / 2) / 3}
    )


def test_an_image_classifier_is_measured_on_named_labels(pairs):
    model = always(2, "image")
    figures = evaluate_classification(model, pairs, pico_processor(), batch_size=5)
    assert figures["accuracy"] == pytest.approx(2 / 12)
    assert not model.training


def test_labels_are_matched_by_name_when_the_models_order_is_another(pairs):
    turned = NAMES[::-1]
    figures = evaluate_classification(always(turned.index("green"), "image", turned), pairs, pico_processor())
    assert figures["accuracy"] == pytest.approx(2 / 12)


def test_a_text_classifier_is_measured_on_texts(pairs):
    figures = evaluate_classification(always(0, "text"), pairs, pico_processor(), text_column="caption")
    assert figures["accuracy"] == pytest.approx(2 / 12)
    rows = Dataset.from_dict({"text": ["a red square"] * 3, "label": ["red", "red", "blue"]})
    assert evaluate_classification(always(0, "text"), rows, pico_processor().tokenizer)["accuracy"] == pytest.approx(
        2 / 3
    )


def test_numbers_are_the_models_own_classes(pairs):
    rows = Dataset.from_dict({"image": pairs["image"][:4], "class": [7, 7, 1, 7]})
    assert evaluate_classification(always(7, "image"), rows, pico_processor())["accuracy"] == pytest.approx(3 / 4)


def test_the_model_keeps_its_mode(pairs):
    model = always(0, "image").train()
    evaluate_classification(model, pairs.select(range(2)), pico_processor())
    assert model.training


@pytest.mark.parametrize(
    ("rows", "options", "sentence"),
    [
        ({"text": [], "label": []}, {}, "0 rows"),
        ({"text": ["a"], "mood": ["red"]}, {}, "no label column that stands out: name one of 'text', 'mood'"),
        ({"text": ["a"], "label": ["red"]}, {"label_column": "kind"}, "no label column 'kind': its columns are"),
        ({"text": ["a", "b"], "label": ["red", "mauve"]}, {}, "row 1 has the label 'mauve'"),
        ({"text": ["a"], "label": [8]}, {}, "row 0 has the label 8"),
    ],
)
def test_rows_that_cannot_be_measured_are_refused(rows, options, sentence):
    with pytest.raises(LearngeneError, match=sentence):
        evaluate_classification(always(0, "text"), Dataset.from_dict(rows), pico_processor(), **options)


def test_an_unreadable_image_is_named_by_its_row(pairs):
    rows = Dataset.from_dict({"image": ["nowhere.png"] * 3, "label": [0, 1, 2]})
    with pytest.raises(LearngeneError, match="image 0 cannot be read"):
        evaluate_classification(always(0, "image"), rows, pico_processor(), image_column="image", batch_size=2)
