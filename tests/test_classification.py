"""Measuring classifiers: accuracies from logits, labels by name or by number, and rows that cannot be measured."""

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset
from pico import COLORS, pico_pairs, pico_processor
from pico_genes import multimodal_gene
from transformers import EvalPrediction, Trainer, TrainingArguments

from mmlg_hf import LearngeneError
from mmlg_hf.evaluation.classification import accuracies, classification_metrics, evaluate_classification

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


# --- labels ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", [NAMES, [f"LABEL_{index}" for index in range(8)]])
@pytest.mark.parametrize("missing", [-1, None])
def test_a_row_that_is_not_labelled_is_refused(pairs, names, missing):
    labels = [0, 1, missing]
    rows = Dataset.from_dict({"caption": ["a", "red", "blue"], "label": labels})
    for labelled in (rows, rows.cast_column("label", ClassLabel(names=NAMES))):
        with pytest.raises(LearngeneError, match=f"row 2 has the label {missing}, so it is not labelled"):
            evaluate_classification(always(7, "text", names), labelled, pico_processor(), text_column="caption")


def test_a_string_that_is_missing_is_a_row_that_is_not_labelled():
    rows = Dataset.from_dict({"text": ["a", "a"], "label": ["red", None]})
    with pytest.raises(LearngeneError, match="row 1 has the label None, so it is not labelled"):
        evaluate_classification(always(0, "text"), rows, pico_processor())


@pytest.mark.parametrize(
    ("labels", "shown"), [([0.0, 1.5], "0.0"), ([[0], [1]], r"\[0\]"), ([0, 8], "8"), ([-2, 0], "-2")]
)
def test_labels_that_are_no_classes_are_refused(labels, shown):
    rows = Dataset.from_dict({"text": ["a", "a"], "label": labels})
    with pytest.raises(LearngeneError, match=f"row . has the label {shown}, but there are 8 classes, from 0: 'red'"):
        evaluate_classification(always(0, "text"), rows, pico_processor())


def test_labels_of_two_truth_values_are_the_classes_0_and_1():
    rows = Dataset.from_dict({"text": ["a"] * 4, "label": [True, True, False, True]})
    model = always(1, "text", ["no", "yes"])
    assert evaluate_classification(model, rows, pico_processor())["accuracy"] == pytest.approx(3 / 4)


@pytest.mark.parametrize("id2label", [{1: "red", 2: "blue"}, {0: "red", 2: "blue"}])
def test_a_models_label_map_that_does_not_count_from_0_without_gaps_is_refused(id2label):
    model, rows = always(0, "text", ["a", "b"]), Dataset.from_dict({"text": ["a"], "label": ["red"]})
    model.config.id2label = id2label
    with pytest.raises(LearngeneError, match="the model's id2label counts its 2 classes ., 2: count them from 0"):
        evaluate_classification(model, rows, pico_processor())


def test_a_models_label_maps_that_disagree_are_refused_where_names_are_matched():
    model, rows = always(0, "text", ["red", "blue"]), Dataset.from_dict({"text": ["a"], "label": ["red"]})
    assert evaluate_classification(model, rows, pico_processor())["accuracy"] == 1
    model.config.label2id = {"red": 1, "blue": 0}
    with pytest.raises(LearngeneError, match="label2id counts 'red' as class 1, its id2label as 0"):
        evaluate_classification(model, rows, pico_processor())
    numbers = Dataset.from_dict({"text": ["a"], "label": [0]})
    assert evaluate_classification(model, numbers, pico_processor())["accuracy"] == 1


def test_a_name_that_two_classes_share_is_refused_only_where_it_is_a_label():
    model = always(0, "text", ["crane", "other", "red"])
    model.config.id2label[1] = "crane"  # as another model's config may have it
    rows = Dataset.from_dict({"text": ["a"] * 2, "label": ["red", "crane"]})
    with pytest.raises(LearngeneError, match="row 1 has the label 'crane', but 2 classes are called so"):
        evaluate_classification(model, rows, pico_processor())
    assert evaluate_classification(model, rows.select([0]), pico_processor())["accuracy"] == 0


# --- compute_metrics -------------------------------------------------------------------------------------------------

LOGITS, LABELS = np.eye(3, dtype=np.float32)[[0, 1, 1, 2]], np.array([0, 1, 2, 2])
FIGURES = {"accuracy": 3 / 4, "mean_per_class": (1 + 1 + 1 / 2) / 3}


@pytest.mark.parametrize(
    ("logits", "labels"),
    [
        ((LOGITS, (np.zeros((4, 2, 8)), np.zeros((4, 2, 8)))), LABELS),  # hidden states
        ([LOGITS[:3], LOGITS[3:]], [LABELS[:3], LABELS[3:]]),  # batches
        ([(LOGITS[:3], np.zeros(3)), (LOGITS[3:], np.zeros(1))], [LABELS[:3], LABELS[3:]]),  # both
        (torch.as_tensor(LOGITS).bfloat16().requires_grad_(), torch.as_tensor(LABELS).int()),
        (LOGITS.astype(np.float16), LABELS.tolist()),
        (LOGITS.tolist(), LABELS.astype(np.uint8)),
    ],
)
def test_the_logits_are_found_in_all_that_the_trainer_gives(logits, labels):
    assert classification_metrics(EvalPrediction(logits, labels)) == pytest.approx(FIGURES)


@pytest.mark.parametrize(
    ("logits", "labels", "sentence"),
    [
        (LOGITS, [0, 1, -100, 2], "row 2 has the label -100, but there are 3 classes"),
        (LOGITS, [0, 1, 2, -1], "row 3 has the label -1, but there are 3 classes"),
        (LOGITS, [0, None, 2, 2], "row 1 has the label None"),
        (LOGITS, None, "labels must be whole numbers, one for each of 4 rows"),
        (LOGITS, LABELS[:3], r"labels have the shape \[3\] .* one for each of 4 rows"),
        (LOGITS, LABELS[:, None], r"labels have the shape \[4, 1\]"),
        (LOGITS, LABELS.astype(float), "and the type float64: give whole numbers"),
        (LOGITS * np.nan, LABELS, "row 0 of the scores holds NaN"),
        (LOGITS[:, :1], LABELS * 0, "the scores are of one class"),
        (np.zeros((4, 2, 3)), LABELS, "the scores must be rows of equally many numbers"),
        (None, LABELS, "the scores must be rows of equally many numbers"),
        ([LOGITS, LOGITS[:, :2]], [LABELS, LABELS], "the batches do not fit together"),
    ],
)
def test_predictions_that_cannot_be_counted_are_refused(logits, labels, sentence):
    with pytest.raises(LearngeneError, match=sentence):
        classification_metrics(EvalPrediction(logits, labels))


def test_the_trainer_measures_with_hidden_states_and_with_batches_left_apart(tmp_path, pairs):
    model, processor = always(2, "image"), pico_processor()

    def collate(rows):
        pixels = processor.image_processor([row["image"] for row in rows], return_tensors="pt")["pixel_values"]
        return {"pixel_values": pixels, "labels": torch.tensor([row["label"] for row in rows])}

    expected = evaluate_classification(model, pairs, processor)
    model.config.output_hidden_states = True
    for joined in (True, False):
        args = TrainingArguments(
            tmp_path, per_device_eval_batch_size=5, report_to="none", disable_tqdm=True, use_cpu=True,
            eval_do_concat_batches=joined, remove_unused_columns=False,
        )  # fmt: skip
        trainer = Trainer(model, args, data_collator=collate, compute_metrics=classification_metrics)
        figures = trainer.evaluate(pairs)
        assert {name: figures[f"eval_{name}"] for name in expected} == pytest.approx(expected)
    args.batch_eval_metrics = True  # needs all rows at once: the Trainer says so before it starts
    with pytest.raises(ValueError, match="must take a `compute_result`"):
        Trainer(model, args, data_collator=collate, compute_metrics=classification_metrics)
