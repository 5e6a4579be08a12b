"""Zero-shot classification and retrieval against brute force, algebra, and a model that cannot err."""

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image, Value
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pico import COLORS, pico_clip, pico_image, pico_pairs, pico_processor
from torch import nn
from torch.nn import functional as F
from transformers import CLIPTextModelWithProjection, CLIPVisionModelWithProjection, EvalPrediction

from mmlg_hf.errors import LearngeneError
from mmlg_hf.evaluation import (
    ClassificationAccuracy,
    ImageTextRetrieval,
    class_embeddings,
    compute_retrieval,
    embed_images,
    embed_texts,
    evaluate_retrieval,
    evaluate_zero_shot,
    retrieval_results,
)


@pytest.fixture(scope="module")
def processor():
    return pico_processor()


# ----------------------------------------------------------------------------------------------- retrieval


def brute_force_ranks(images, texts, owners):
    """Ranks by definition, in float64: what is as similar as the match or more comes before it."""

    def unit(rows):
        return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)

    similarity = unit(texts.astype(np.float64)) @ unit(images.astype(np.float64)).T
    text_ranks, image_ranks = [], []
    for text, owner in enumerate(owners):
        others = np.delete(similarity[text], owner)
        text_ranks.append(1 + int((others >= similarity[text, owner] - 1e-6).sum()))
    for image in range(len(images)):
        own = np.asarray(owners) == image
        best = similarity[own, image].max()
        image_ranks.append(1 + int((similarity[~own, image] >= best - 1e-6).sum()))
    return {"image_to_text": np.array(image_ranks), "text_to_image": np.array(text_ranks)}


def brute_force(images, texts, owners):
    results = {}
    for direction, ranks in brute_force_ranks(images, texts, owners).items():
        results |= {f"{direction}_R@{k}": float((ranks <= k).mean()) for k in (1, 5, 10)}
        results[f"{direction}_median_rank"] = float(np.median(ranks))
    results["mean_R@1"] = (results["image_to_text_R@1"] + results["text_to_image_R@1"]) / 2
    return results


@st.composite
def retrieval_problems(draw):
    """Embeddings on a coarse grid, so that ties are common; one to three texts for each image, in any order."""
    count = draw(st.integers(1, 14))
    owners = draw(st.permutations([i for i in range(count) for _ in range(draw(st.integers(1, 3)))]))
    grid = st.integers(-2, 2).map(float)
    images = draw(hnp.arrays(np.float32, (count, 3), elements=grid))
    texts = draw(hnp.arrays(np.float32, (len(owners), 3), elements=grid))
    return images, texts, owners


@settings(max_examples=60, deadline=None)
@given(retrieval_problems(), st.integers(1, 9))
def test_retrieval_equals_brute_force_for_any_chunk_size_with_ties_and_several_captions(problem, chunk_size):
    assert retrieval_results(*problem, chunk_size=chunk_size) == pytest.approx(brute_force(*problem))


def test_retrieval_equals_brute_force_on_random_data_through_the_metric_in_batches():
    random = np.random.default_rng(0)
    images, owners = random.normal(size=(90, 12)), np.repeat(np.arange(90), 5)
    texts = images[owners] + random.normal(size=(450, 12))
    metric = ImageTextRetrieval(keep_in_memory=True)
    for rows in np.array_split(np.arange(450), 7):
        metric.add_batch(predictions=texts[rows], references=owners[rows])
    results = metric.compute(image_embeds=images, chunk_size=64)
    assert results == pytest.approx(brute_force(images.astype(np.float32), texts.astype(np.float32), owners))
    assert 0.1 < results["mean_R@1"] < 0.9


def test_perfect_embeddings_are_retrieved_first_and_reversed_ones_last():
    eye = torch.eye(20)
    perfect = retrieval_results(eye, 3 * eye, range(20))
    assert perfect == dict.fromkeys(perfect, 1.0)
    opposite = retrieval_results(eye, -eye, range(20))
    assert opposite["mean_R@1"] == opposite["image_to_text_R@10"] == 0
    assert opposite["text_to_image_median_rank"] == opposite["image_to_text_median_rank"] == 20


@pytest.mark.parametrize("value", [0.0, 0.37])
def test_a_model_that_embeds_everything_alike_retrieves_nothing(value):
    same = torch.full((12, 7), value)
    results = retrieval_results(same, same, range(12), chunk_size=5)
    assert results["mean_R@1"] == results["text_to_image_R@10"] == 0
    assert results["image_to_text_median_rank"] == 12


def test_the_rank_of_an_image_is_that_of_its_best_caption():
    images = torch.eye(3)
    texts = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.1], [0.0, 1.0, 0.2], [0.0, 0.0, 1.0]])
    results = retrieval_results(images, texts, [0, 0, 1, 2])
    assert results["text_to_image_R@1"] == pytest.approx(3 / 4)
    # The first caption of image 0 lies nearer to image 1 than image 1's own.
    assert results["image_to_text_R@1"] == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("images", "texts", "owners", "message"),
    [
        (torch.eye(3), torch.eye(3), [0, 1, 1], "image 2 has no text"),
        (torch.eye(3), torch.eye(3), [0, 1, 3], "row 2 has the image index 3, but there are 3 images"),
        (torch.eye(3), torch.eye(3), [0, 1], r"\[3, 3\] text embeddings and \[2\] image indices do not fit"),
        (torch.eye(3), torch.eye(4), [0, 1, 2, 2], "do not fit"),
        (torch.eye(3) / 0, torch.eye(3), [0, 1, 2], "row 0 of the image embeddings holds NaN or infinity"),
        (torch.zeros(0, 3), torch.zeros(0, 3), [], r"the image embeddings .* shape \[0, 3\]"),
        (torch.eye(3), [[1.0], [1.0, 2.0]], [0, 1, 2], "the text embeddings must be rows of equally many numbers"),
    ],
)
def test_retrieval_refuses_what_does_not_fit(images, texts, owners, message):
    with pytest.raises(LearngeneError, match=message):
        retrieval_results(images, texts, owners)
    with pytest.raises(LearngeneError, match="chunk_size is 0"):
        retrieval_results(torch.eye(2), torch.eye(2), [0, 1], chunk_size=0)


# ------------------------------------------------------------------------------------------ classification


def test_accuracies_by_hand():
    scores = [[0.9, 0.1, 0, 0, 0, 0], [0.8, 0.2, 0, 0, 0, 0], [0.1, 0.9, 0, 0, 0, 0], [9, 8, 7, 6, 5, 4]]
    results = ClassificationAccuracy(keep_in_memory=True).compute(predictions=scores, references=[0, 0, 0, 5])
    assert results == pytest.approx({"top1": 2 / 4, "top5": 3 / 4, "mean_per_class": (2 / 3 + 0) / 2})


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_accuracies_equal_brute_force_with_ties_counted_as_wrong(data):
    scores = data.draw(
        hnp.arrays(np.float32, (data.draw(st.integers(1, 9)), 7), elements=st.integers(0, 3).map(float))
    )
    labels = data.draw(st.lists(st.integers(0, 6), min_size=len(scores), max_size=len(scores)))
    ranks = [
        1 + sum(row[other] >= row[label] for other in range(7) if other != label)
        for row, label in zip(scores, labels, strict=True)
    ]
    by_class = [np.mean([rank == 1 for rank, of in zip(ranks, labels, strict=True) if of == c]) for c in set(labels)]
    expected = {
        "top1": np.mean([rank == 1 for rank in ranks]),
        "top5": np.mean([rank <= 5 for rank in ranks]),
        "mean_per_class": np.mean(by_class),
    }
    results = ClassificationAccuracy(keep_in_memory=True).compute(predictions=scores, references=labels)
    assert results == pytest.approx(expected)


def test_top5_is_left_out_where_it_would_always_be_1():
    results = ClassificationAccuracy(keep_in_memory=True).compute(predictions=np.eye(5), references=range(5))
    assert results == {"top1": 1.0, "mean_per_class": 1.0}


def test_classification_refuses_labels_without_scores_and_scores_that_are_no_numbers():
    metric = ClassificationAccuracy(keep_in_memory=True)
    with pytest.raises(LearngeneError, match="row 1 has the label 3, but there are 3 classes, from 0"):
        metric.compute(predictions=np.eye(3), references=[0, 3, 2])
    with pytest.raises(LearngeneError, match="row 0 of the scores holds NaN"):
        metric.compute(predictions=np.full((2, 3), np.nan), references=[0, 1])


# ------------------------------------------------------------------------------------- embedding with models


def test_embeddings_are_those_of_the_forward_pass_whatever_the_batch_size(processor):
    pairs, model = pico_pairs(7), pico_clip()
    inputs = processor(images=list(pairs["image"]), text=pairs["caption"][:], padding=True, return_tensors="pt")
    with torch.no_grad():
        output = model(**inputs)
    model.train()
    for batch_size in (3, 64):
        images = embed_images(model, pairs["image"], processor, batch_size=batch_size)
        texts = embed_texts(model, pairs["caption"], processor, batch_size=batch_size)
        torch.testing.assert_close(images, output.image_embeds, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(texts, output.text_embeds, atol=1e-6, rtol=1e-5)
    assert model.training
    assert not images.requires_grad


def test_models_of_one_modality_embed_it_and_refuse_the_other(processor, tmp_path):
    pairs, model = pico_pairs(4), pico_clip()
    model.save_pretrained(tmp_path)
    vision = CLIPVisionModelWithProjection.from_pretrained(tmp_path)
    text = CLIPTextModelWithProjection.from_pretrained(tmp_path)
    expected = embed_images(model, pairs["image"], processor)
    torch.testing.assert_close(embed_images(vision, pairs["image"], processor), expected)
    expected = embed_texts(model, pairs["caption"], processor)
    torch.testing.assert_close(embed_texts(text, pairs["caption"], processor), expected)
    with pytest.raises(LearngeneError, match="CLIPVisionModelWithProjection embeds no texts"):
        embed_texts(vision, pairs["caption"], processor)
    with pytest.raises(LearngeneError, match="CLIPTextModelWithProjection embeds no images"):
        embed_images(text, pairs["image"], processor)


def test_a_bfloat16_model_gives_normalised_float32_embeddings(processor):
    pairs = pico_pairs(4)
    embeds = embed_images(pico_clip().bfloat16(), pairs["image"], processor, device="cpu")
    assert embeds.dtype == torch.float32
    torch.testing.assert_close(embeds.norm(dim=-1), torch.ones(4))
    expected = embed_images(pico_clip(), pairs["image"], processor)
    torch.testing.assert_close(embeds, expected, atol=0.05, rtol=0)


@pytest.mark.parametrize("batch_size", [0, -1, 2.5, True, None])
def test_a_batch_size_that_is_no_count_is_refused(processor, batch_size):
    with pytest.raises(LearngeneError, match=f"batch_size is {batch_size}: give a whole number above 0"):
        embed_texts(pico_clip(), ["a"], processor, batch_size=batch_size)


def test_unreadable_and_missing_items_are_named_by_their_index(processor):
    model = pico_clip()
    images = [pico_image("red", "blue"), b"no image"]
    with pytest.raises(LearngeneError, match="image 1 cannot be read"):
        embed_images(model, images, processor)
    broken = Dataset.from_dict(
        {"image": [{"bytes": b"no image", "path": None}], "caption": ["a"]},
        features=Features({"image": Image(), "caption": Value("string")}),
    )
    with pytest.raises(LearngeneError, match="image 0 cannot be read"):
        evaluate_retrieval(model, broken, processor)
    with pytest.raises(LearngeneError, match="text 1 is None: give a string"):
        embed_texts(model, ["a", None], processor)
    with pytest.raises(LearngeneError, match="there are no texts to embed"):
        embed_texts(model, [], processor)
    nn.init.constant_(model.visual_projection.weight, float("nan"))
    with pytest.raises(LearngeneError, match="row 0 of the embeddings of images holds NaN"):
        embed_images(model, images[:1], processor)


class ColorClip(nn.Module):
    """Embeds an image as the colour of its middle, and a text as the last colour it names: one axis per colour."""

    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self, processor):
        super().__init__()
        self.word_ids = [processor.tokenizer(name, add_special_tokens=False)["input_ids"][0] for name in COLORS]
        pixels = processor.image_processor(images=[pico_image(name, name) for name in COLORS], return_tensors="pt")[
            "pixel_values"
        ]
        self.colors = pixels.mean(dim=(2, 3))  # [8, 3]

    def get_image_features(self, pixel_values):
        middle = pixel_values[:, :, 6:10, 6:10].mean(dim=(2, 3))
        return F.one_hot(torch.cdist(middle, self.colors).argmin(dim=1), len(COLORS)).float()

    def get_text_features(self, input_ids, attention_mask):
        rows = []
        for ids in input_ids.tolist():
            named = [self.word_ids.index(token) for token in ids if token in self.word_ids]
            rows.append(F.one_hot(torch.tensor(named[-1]), len(COLORS)).float() if named else torch.zeros(len(COLORS)))
        return torch.stack(rows)


def test_a_model_that_knows_the_colours_classifies_every_image(processor):
    pairs = pico_pairs(20, labels=True)
    results = evaluate_zero_shot(ColorClip(processor), pairs, processor, batch_size=6)
    assert results == {"top1": 1.0, "top5": 1.0, "mean_per_class": 1.0}


def test_zero_shot_figures_when_one_class_is_labelled_wrongly(processor):
    pairs = pico_pairs(24, labels=True)
    labels = [1 if label == 0 else label for label in pairs["label"]]
    pairs = pairs.remove_columns("label").add_column("label", labels)
    results = evaluate_zero_shot(ColorClip(processor), pairs, processor, class_names=list(COLORS))
    # Three of 24 are red but called green: green has 3 of 6 right, the six other classes that occur have all.
    assert results["top1"] == pytest.approx(21 / 24)
    assert results["mean_per_class"] == pytest.approx((0.5 + 6) / 7)


def test_string_labels_and_longer_class_names_work(processor):
    pairs = pico_pairs(16, labels=True)
    names = [f"{list(COLORS)[label]}_square" for label in pairs["label"]]
    pairs = pairs.remove_columns("label").add_column("kind", names)
    model = ColorClip(processor)
    assert evaluate_zero_shot(model, pairs, processor, label_column="kind")["top1"] == 1
    assert (
        evaluate_zero_shot(model, pairs, processor, label_column="kind", class_names=sorted(set(names)))["top1"] == 1
    )


def test_class_embeddings_are_the_renormalised_mean_over_templates(processor):
    model, templates = pico_clip(), ["a photo of a {}.", "a {} square"]
    embeds = class_embeddings(model, ["red", "dark_blue"], processor, templates=templates)
    prompts = embed_texts(model, ["a photo of a dark blue.", "a dark blue square"], processor)
    torch.testing.assert_close(embeds[1], F.normalize(prompts.mean(dim=0), dim=0))


def test_templates_may_be_functions_and_hold_other_braces(processor):
    model, names = pico_clip(), ["red", "blue"]
    expected = class_embeddings(model, names, processor, templates=["a photo of a {}.", "a {} square"])
    functions = [lambda name: f"a photo of a {name}.", "a {} square".format]
    assert torch.equal(class_embeddings(model, names, processor, templates=functions), expected)
    literal = class_embeddings(model, names, processor, templates=["{a} {} {0}"])
    torch.testing.assert_close(literal, embed_texts(model, ["{a} red {0}", "{a} blue {0}"], processor))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"templates": "a {}"}, "templates must be a list of texts"),
        ({"templates": []}, "templates must be a list of texts"),
        ({"templates": ["a photo"]}, 'with one "{}" each'),
        ({"templates": ["a {label}"]}, 'with one "{}" each'),
        ({"templates": [None]}, 'with one "{}" each'),
        ({"templates": str.upper}, "templates must be a list of texts"),
        ({"templates": [len]}, "makes 3 of 'red': it must make a text"),
        ({"class_names": "red"}, "class_names is 'red': give a list of names"),
        ({"class_names": ["red", None]}, "class_names calls class 1 None"),
        (
            {"class_names": dict(enumerate(COLORS, 1))},
            "class_names counts its 8 classes 1, 2, 3, .*: count them from 0",
        ),
        ({"class_names": ["red"]}, "two or more distinct class names"),
        ({"class_names": ["red"] * 8}, "two or more distinct class names"),
        ({"class_names": ["red", "blue"]}, "row 2 has the label 2, but there are 2 classes, from 0"),
        ({"label_column": "colour"}, "no label column 'colour': its columns are 'image', 'caption', 'label'"),
        (
            {"label_column": "caption", "class_names": ["red", "blue"]},
            "row 0 has the label 'a red square on green', but there are 2",
        ),
        ({"image_column": "photo"}, "no image column 'photo'"),
    ],
)
def test_zero_shot_refuses_what_does_not_fit(processor, options, message):
    if options.get("class_names") == ["red"]:
        pairs = pico_pairs(8, labels=True).filter(lambda row: row["label"] == 0)
    else:
        pairs = pico_pairs(8, labels=True)
    with pytest.raises(LearngeneError, match=message):
        evaluate_zero_shot(pico_clip(), pairs, processor, **options)


def test_datasets_that_cannot_be_measured_are_refused(processor):
    model, pairs = pico_clip(), pico_pairs(4)
    with pytest.raises(LearngeneError, match="no label column that stands out: name one of 'image', 'caption'"):
        evaluate_zero_shot(model, pairs, processor)
    numbers = pairs.add_column("label", [0, 1, 2, 3])
    with pytest.raises(LearngeneError, match="no names: give class_names in the order of the labels"):
        evaluate_zero_shot(model, numbers, processor)
    unlabelled = pico_pairs(4, labels=True).cast_column("label", ClassLabel(names=list(COLORS)))
    unlabelled = unlabelled.map(lambda row: {"label": -1})
    with pytest.raises(LearngeneError, match="row 0 has the label -1"):
        evaluate_zero_shot(model, unlabelled, processor)
    with pytest.raises(LearngeneError, match="row 0 has the label 0.5, but there are 2 classes"):
        evaluate_zero_shot(model, pairs.add_column("label", [0.5] * 4), processor, class_names=["a", "b"])
    for evaluate_it in (evaluate_zero_shot, evaluate_retrieval):
        with pytest.raises(LearngeneError, match="the dataset is empty"):
            evaluate_it(model, pairs.select([]), processor)
        with pytest.raises(LearngeneError, match="not a IterableDataset: pick one split, and no stream"):
            evaluate_it(model, pairs.to_iterable_dataset(), processor)


def test_retrieval_of_a_dataset_with_several_captions_per_image(processor):
    colors = list(COLORS)
    rows = {
        "image": [pico_image(c, "black") for c in colors],
        "captions": [[f"a {c} square", f"photo of {c}"] for c in colors],
    }
    pairs = Dataset.from_dict(rows).cast_column("image", Image())
    results = evaluate_retrieval(ColorClip(processor), pairs, processor, batch_size=3)
    assert results["text_to_image_R@1"] == results["image_to_text_R@1"] == 1
    blank = pairs.select([0]).map(lambda row: {"captions": []})
    with pytest.raises(LearngeneError, match=r"row 0 has the text \[\]"):
        evaluate_retrieval(ColorClip(processor), blank, processor)


def test_retrieval_of_a_dataset_equals_that_of_its_embeddings(processor):
    pairs, model = pico_pairs(24), pico_clip()
    images, texts = embed_images(model, pairs["image"], processor), embed_texts(model, pairs["caption"], processor)
    assert evaluate_retrieval(model, pairs, processor) == pytest.approx(
        brute_force(images.numpy(), texts.numpy(), range(24))
    )


@pytest.mark.parametrize("labels", [[0, 1, -1], [0, 1, None], ["red", "green", None]])
def test_zero_shot_refuses_a_row_that_is_not_labelled(processor, labels):
    rows = pico_pairs(3).add_column("label", labels)
    with pytest.raises(LearngeneError, match=f"row 2 has the label {labels[2]}, so it is not labelled"):
        evaluate_zero_shot(ColorClip(processor), rows, processor, class_names=list(COLORS))


def test_class_names_in_another_order_or_a_mapping_give_the_same_figures(processor):
    pairs, model = pico_pairs(20, labels=True), ColorClip(processor)
    for names in (list(COLORS)[::-1], dict(enumerate(COLORS)), {str(i): name for i, name in enumerate(COLORS)}):
        assert evaluate_zero_shot(model, pairs, processor, class_names=names)["top1"] == 1


# ------------------------------------------------------------------------------------------ compute_metrics


def test_the_trainers_pairs_are_measured_joined_or_in_batches():
    random = np.random.default_rng(0)
    images, texts = random.normal(size=(2, 9, 4)).astype(np.float32)
    expected = brute_force(images, texts, range(9))
    assert compute_retrieval(EvalPrediction((images, texts), None)) == pytest.approx(expected)
    batches = [(images[:5], texts[:5]), (images[5:], texts[5:])]
    assert compute_retrieval(EvalPrediction(batches, None)) == pytest.approx(expected)
    half = tuple(torch.as_tensor(side).bfloat16() for side in (images, texts))
    rounded = brute_force(*(side.float().numpy() for side in half), range(9))
    assert compute_retrieval(EvalPrediction(half, None)) == pytest.approx(rounded)


@pytest.mark.parametrize(
    ("predictions", "sentence"),
    [
        ((np.eye(3),) * 4, "takes the pair .* not 4 outputs"),
        (np.eye(3), "takes the pair .* not a ndarray"),
        ([np.eye(3)], "takes the pair .* not a list"),
        ((np.eye(3), np.eye(2)), "do not fit"),
        ((np.eye(3), np.eye(3) * np.nan), "row 0 of the text embeddings holds NaN"),
    ],
)
def test_predictions_that_are_no_pairs_are_refused(predictions, sentence):
    with pytest.raises(LearngeneError, match=sentence):
        compute_retrieval(EvalPrediction(predictions, None))
