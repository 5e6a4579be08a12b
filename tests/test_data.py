"""Image-text data: columns, splits that keep texts apart, processing once, and images that cannot be read."""

import io
from types import SimpleNamespace
from unittest.mock import patch

import datasets
import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict, Features, Image, List, Value
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pico import IMAGE_SIZE, pico_image, pico_pairs, pico_processor
from PIL import Image as PILImage

from mmlg_hf.data import (
    find_columns,
    hash_split,
    load_image_text,
    open_image,
    process_images,
    process_pairs,
    processor_key,
    split_of,
)
from mmlg_hf.errors import LearngeneError


@pytest.fixture(scope="module")
def processor():
    return pico_processor()


def png(color="red", background="blue", kind="PNG") -> bytes:
    stored = io.BytesIO()
    pico_image(color, background).save(stored, kind)
    return stored.getvalue()


def pairs_with_bad_images(bad=(2, 5), n=8) -> Dataset:
    """Pairs whose images are bytes, some of them unreadable."""
    images = [{"bytes": b"no image" if row in bad else png(), "path": None} for row in range(n)]
    rows = {"image": images, "caption": [f"a photo of row {row}" for row in range(n)]}
    return Dataset.from_dict(rows, features=Features({"image": Image(), "caption": Value("string")}))


# --- loading ---------------------------------------------------------------------------------------------------------


def test_a_dataset_object_is_taken_as_it_is():
    pairs = pico_pairs(4)
    assert load_image_text(pairs) is pairs
    stream = pairs.to_iterable_dataset()
    assert load_image_text(stream) is stream


def test_folders_written_by_save_to_disk_load_with_and_without_splits(tmp_path):
    pairs = pico_pairs(4)
    pairs.save_to_disk(tmp_path / "one")
    DatasetDict(train=pairs, test=pairs.select([0])).save_to_disk(tmp_path / "splits")
    assert len(load_image_text(tmp_path / "one")) == 4
    assert len(load_image_text(str(tmp_path / "splits"))) == 4
    assert len(load_image_text(tmp_path / "splits", "test")) == 1


def test_folders_of_parquet_and_of_images_load(tmp_path):
    pico_pairs(4).to_parquet(str(tmp_path / "parquet" / "train.parquet"))
    assert len(load_image_text(tmp_path / "parquet", cache_dir=str(tmp_path / "cache"))) == 4
    images = tmp_path / "images" / "train"
    images.mkdir(parents=True)
    pico_image("red", "blue").save(images / "0.png")
    (images / "metadata.csv").write_text("file_name,caption\n0.png,a red square on blue\n")
    loaded = load_image_text(tmp_path / "images", cache_dir=str(tmp_path / "cache"))
    assert loaded[0]["caption"] == "a red square on blue"
    assert find_columns(loaded) == ("image", "caption")


def test_the_only_split_there_is_may_go_unnamed():
    only = DatasetDict(validation=pico_pairs(3))
    assert len(load_image_text(only, None)) == 3


def test_a_split_that_is_not_there_is_refused_with_those_that_are():
    splits = DatasetDict(train=pico_pairs(3), test=pico_pairs(2))
    with pytest.raises(LearngeneError, match="has no split 'validation': it has train, test"):
        load_image_text(splits, "validation")


def test_an_empty_dataset_is_refused():
    with pytest.raises(LearngeneError, match=r"the dataset is empty \(0 rows\)"):
        load_image_text(pico_pairs(2).select([]))


@pytest.mark.parametrize("thing", [7, None, ["a"], {"train": 1}])
def test_what_is_no_dataset_is_refused_by_its_type(thing):
    with pytest.raises(LearngeneError, match=f"the dataset is a {type(thing).__name__}: give a Hub id, a folder"):
        load_image_text(thing)


def test_a_folder_that_is_not_there_and_one_without_data_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (tmp_path / "empty").mkdir()
    for name in (tmp_path / "absent", tmp_path / "empty"):
        with pytest.raises(LearngeneError, match=f"cannot load the dataset '{name}'") as caught:
            load_image_text(name)
        assert "\n" not in str(caught.value)


# --- columns ---------------------------------------------------------------------------------------------------------


def test_columns_are_found_by_type_then_name():
    assert find_columns(pico_pairs(2, labels=True)) == ("image", "caption")
    features = Features({"photo": Image(), "a": Value("string"), "title": Value("string"), "n": Value("int64")})
    assert find_columns(features) == ("photo", "title")


def test_the_only_column_of_a_kind_needs_no_known_name():
    assert find_columns(Features({"x": Image(), "y": Value("large_string")})) == ("x", "y")


def test_lists_of_captions_are_text():
    assert find_columns(Features({"image": Image(), "captions": List(Value("string"))})) == ("image", "captions")


def test_columns_of_a_stream_without_features_are_found_by_its_first_row():
    rows = [{"picture": pico_image("red", "blue"), "text": "red", "n": 1}]
    stream = datasets.IterableDataset.from_generator(lambda: iter(rows))
    assert find_columns(stream) == ("picture", "text")


def test_several_captions_in_the_first_row_of_such_a_stream_are_text():
    rows = [{"img": pico_image("red", "blue"), "captions": ["red", "blue"], "scores": [], "n": [1]}]
    assert find_columns(datasets.IterableDataset.from_generator(lambda: iter(rows))) == ("img", "captions")


def test_named_columns_are_taken():
    features = Features({"a": Image(), "b": Image(), "c": Value("string"), "d": Value("string")})
    assert find_columns(features, "b", "d") == ("b", "d")


@pytest.mark.parametrize(
    ("columns", "named", "sentence"),
    [
        ({"a": Value("string"), "n": Value("int64")}, {}, "has no image column: its columns are 'a', 'n'"),
        ({"image": Image(), "n": Value("int64")}, {}, "has no text column: its columns are 'image', 'n'"),
        ({}, {}, "has no image column: its columns are none"),
        ({"x": Image(), "y": Image()}, {}, r"more than one possible \(x, y\) image column"),
        (
            {"image": Image(), "x": Value("string"), "y": Value("string")},
            {},
            r"more than one possible \(x, y\) text column.* Name one with text_column",
        ),
        ({"image": Image()}, {"image_column": "photo"}, "no image column 'photo': its columns are 'image'"),
        ({"image": Image()}, {"text_column": "words"}, "no text column 'words': its columns are 'image'"),
    ],
)
def test_columns_that_cannot_be_found_are_refused_with_those_there_are(columns, named, sentence):
    with pytest.raises(LearngeneError, match=sentence):
        find_columns(Features(columns), **named)


# --- splits ----------------------------------------------------------------------------------------------------------


def test_a_split_depends_on_the_keys_text_alone_and_never_on_the_machine():
    # SHA-256 begins with 6b86... for "1" (0.42 of the range), 1958... for "9" (0.099) and 1a65... for "50" (0.103).
    assert [split_of(key) for key in (1, "1", 9, 50)] == ["train", "train", "test", "validation"]


def test_splits_have_about_the_shares_asked_for():
    shares = [split_of(key) for key in range(4000)]
    assert shares.count("test") / 4000 == pytest.approx(0.10, abs=0.015)
    assert shares.count("validation") / 4000 == pytest.approx(0.05, abs=0.012)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.sampled_from(["red", "blue", "green", " red ", "", None, "pink", "a", "b", "c"]), max_size=40))
def test_no_text_is_in_two_splits_and_none_twice_in_a_measured_one(texts):
    rows = Dataset.from_dict({"id": list(range(len(texts))), "title": texts}, features=ID_AND_TITLE)
    splits = hash_split(rows, "id", "title", validation=0.3, test=0.3)
    found = {name: [text.strip() for text in part["title"]] for name, part in splits.items()}
    for name, other in (("train", "validation"), ("train", "test"), ("validation", "test")):
        assert not set(found[name]) & set(found[other])
    for name in ("validation", "test"):
        assert len(found[name]) == len(set(found[name]))
    wanted = {text.strip() for text in texts if text and text.strip()}
    assert set().union(*found.values()) == wanted


ID_AND_TITLE = Features({"id": Value("int64"), "title": Value("string")})


def test_rows_follow_the_smallest_id_of_their_text_whatever_their_order():
    keys = list(range(60))
    forward = Dataset.from_dict({"id": keys, "title": [str(key % 20) for key in keys]})
    backward = forward.select(keys[::-1])
    for name in ("train", "validation", "test"):
        ids = [sorted(hash_split(rows, "id", "title", test=0.3)[name]["id"]) for rows in (forward, backward)]
        assert ids[0] == ids[1]
        assert all(split_of(key % 20, test=0.3) == name for key in ids[0])
        assert name == "train" or all(key < 20 for key in ids[0])


def test_splitting_by_a_column_that_is_not_there_is_refused():
    with pytest.raises(LearngeneError, match="no column 'key': it has image, caption"):
        hash_split(pico_pairs(2), "key", "caption")


# --- images ----------------------------------------------------------------------------------------------------------


def test_an_image_opens_from_every_form_it_comes_in(tmp_path):
    image = pico_image("red", "blue")
    image.save(tmp_path / "image.png")
    expected = np.asarray(image)
    for form in (
        image,
        png(),
        tmp_path / "image.png",
        str(tmp_path / "image.png"),
        {"bytes": png(), "path": None},
        {"bytes": None, "path": str(tmp_path / "image.png")},
    ):
        assert np.array_equal(np.asarray(open_image(form)), expected)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "CMYK"])
def test_an_image_of_any_mode_becomes_rgb(mode):
    assert open_image(pico_image("black", "white").convert(mode)).mode == "RGB"


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kind=st.sampled_from(["PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF"]), data=st.data())
def test_damaged_bytes_are_read_or_refused_with_their_row_and_nothing_else(kind, data, processor):
    stored = bytearray(png(kind=kind))
    for _ in range(data.draw(st.integers(1, 4))):
        stored[data.draw(st.integers(0, len(stored) - 1))] = data.draw(st.integers(0, 255))
    stored = bytes(stored[: data.draw(st.integers(1, len(stored)))])
    stream = Dataset.from_dict({"image": [stored], "text": ["a"]}).to_iterable_dataset()
    try:
        row = next(iter(process_pairs(stream, processor, image_column="image", text_column="text")))
        assert np.shape(row["pixel_values"]) == (3, IMAGE_SIZE, IMAGE_SIZE)
    except LearngeneError as error:
        if "the image of row 0 cannot be read" not in str(error):
            raise


def damaged_gif(*changes):
    stored = bytearray(png(kind="GIF"))
    for position, byte in changes:
        stored[position] = byte
    return bytes(stored)


def test_what_pillow_raises_of_a_damaged_image_is_an_os_error():
    # The frame's size, two bytes for each side after its separator and its place: no image is 65535 pixels a side.
    frame = damaged_gif().index(b",", 13) + 5
    with pytest.raises(OSError, match=r"damaged image: .*exceeds limit"):
        open_image(damaged_gif(*((frame + offset, 255) for offset in range(4))))
    with (
        pytest.raises(OSError, match="damaged image"),
        patch.object(PILImage.Image, "convert", side_effect=ValueError),
    ):
        open_image(png())


# --- processing ------------------------------------------------------------------------------------------------------


def test_processed_pairs_are_what_the_processor_makes_of_them(processor):
    pairs = pico_pairs(5, labels=True)
    done = process_pairs(pairs, processor, keep_columns=("label",))
    assert done.column_names == ["label", "pixel_values", "input_ids"]
    expected = processor.image_processor(pairs["image"][:], return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(done[:]["pixel_values"], expected)
    assert done[3]["input_ids"].tolist() == processor.tokenizer(pairs[3]["caption"])["input_ids"]
    assert done["label"][:].tolist() == pairs["label"][:]


def test_a_stream_is_processed_alike(processor):
    pairs = pico_pairs(5)
    done = list(process_pairs(pairs.to_iterable_dataset(), processor))
    expected = process_pairs(pairs, processor)
    assert len(done) == 5
    for row, other in zip(done, expected, strict=True):
        torch.testing.assert_close(torch.as_tensor(np.array(row["pixel_values"])), other["pixel_values"])
        assert list(row["input_ids"]) == other["input_ids"].tolist()


def test_images_alone_are_processed_alike(processor):
    pairs = pico_pairs(5, labels=True)
    done = process_images(pairs, processor.image_processor, keep_columns=("label",))
    expected = process_pairs(pairs, processor)
    assert done.column_names == ["label", "pixel_values"]
    assert torch.equal(done[:]["pixel_values"], expected[:]["pixel_values"])


def test_long_texts_are_cut_at_the_end_token(processor):
    rows = Dataset.from_dict(
        {"image": [png()] * 2, "text": ["a " * 50, "red"]},
        features=Features({"image": Image(), "text": Value("string")}),
    )
    by_limit, by_wish = process_pairs(rows, processor), process_pairs(rows, processor, max_length=6)
    end = processor.tokenizer.eos_token_id
    assert [len(by_limit[0]["input_ids"]), len(by_wish[0]["input_ids"])] == [16, 6]
    assert by_limit[0]["input_ids"][-1] == by_wish[0]["input_ids"][-1] == end
    assert torch.equal(by_limit[1]["input_ids"], by_wish[1]["input_ids"])


def test_the_first_of_several_captions_counts_and_none_is_an_empty_text(processor):
    features = Features({"image": Image(), "captions": List(Value("string"))})
    rows = Dataset.from_dict({"image": [png()] * 3, "captions": [["red", "blue"], [], None]}, features=features)
    done = process_pairs(rows, processor)
    expected = processor.tokenizer(["red", "", ""])["input_ids"]
    assert [ids.tolist() for ids in done["input_ids"]] == expected


def test_one_unreadable_image_is_raised_with_its_row(processor):
    for rows in (pairs_with_bad_images(), pairs_with_bad_images().to_iterable_dataset()):
        with pytest.raises(LearngeneError, match="the image of row 2 cannot be read .*on_bad_image=.skip"):
            list(process_pairs(rows, processor))


def test_unreadable_images_are_skipped_with_a_count(processor, caplog):
    logger = "mmlg_hf.data"
    with caplog.at_level("WARNING", logger=logger):
        caplog_handler_on(logger, caplog)
        done = process_pairs(pairs_with_bad_images(), processor, on_bad_image="skip")
    assert "skipped 2 of 8 rows: their images cannot be read" in caplog.text
    kept = [f"a photo of row {row}" for row in range(8) if row not in (2, 5)]
    assert [ids.tolist() for ids in done["input_ids"]] == processor.tokenizer(kept)["input_ids"]


def test_a_stream_drops_unreadable_images_as_they_come(processor):
    stream = pairs_with_bad_images().to_iterable_dataset()
    assert len(list(process_pairs(stream, processor, on_bad_image="skip"))) == 6


def test_a_batch_of_unreadable_images_alone_is_dropped(processor):
    rows = pairs_with_bad_images(bad=range(64), n=66)
    assert len(process_pairs(rows, processor, on_bad_image="skip")) == 2
    assert len(list(process_pairs(rows.to_iterable_dataset(), processor, on_bad_image="skip"))) == 2


def test_no_readable_image_at_all_is_refused(processor):
    with pytest.raises(LearngeneError, match="none of the 4 images can be read"):
        process_pairs(pairs_with_bad_images(range(4), 4), processor, on_bad_image="skip")


def test_an_image_that_is_not_there_is_unreadable_too(processor):
    features = Features({"image": Image(), "text": Value("string")})
    rows = Dataset.from_dict({"image": [png(), None], "text": ["a", "b"]}, features=features)
    assert len(process_pairs(rows, processor, on_bad_image="skip")) == 1
    with pytest.raises(LearngeneError, match="the image of row 1 cannot be read"):
        process_pairs(rows, processor)


def test_an_unknown_way_with_bad_images_is_refused(processor):
    with pytest.raises(LearngeneError, match="on_bad_image is 'ignore': it takes .raise. or .skip."):
        process_pairs(pico_pairs(2), processor, on_bad_image="ignore")


def test_data_on_disk_is_processed_once_for_the_same_processor(tmp_path, processor):
    pico_pairs(4).save_to_disk(tmp_path)
    calls = []

    def counting(size):
        image_processor = pico_processor(size).image_processor
        call = type(image_processor).__call__
        counted = type("Counted", (type(image_processor),), {})(**image_processor.to_dict())
        counted.__class__.__call__ = lambda self, images, **kwargs: (
            calls.append(len(images)) or call(self, images, **kwargs)
        )
        return SimpleNamespace(image_processor=counted, tokenizer=processor.tokenizer)

    first = process_pairs(load_image_text(tmp_path), counting(16))
    assert calls == [1, 4]  # the blank image that tells the shape, and the rows
    again = process_pairs(load_image_text(tmp_path), counting(16))
    assert calls == [1, 4, 1]
    assert torch.equal(first[:]["pixel_values"], again[:]["pixel_values"])
    other = process_pairs(load_image_text(tmp_path), counting(8))
    assert calls == [1, 4, 1, 1, 4]
    assert other[0]["pixel_values"].shape == (3, 8, 8)


def test_a_processors_key_stays_when_it_is_used_and_changes_with_its_settings():
    processor = pico_processor()
    key = processor_key(processor)
    processor(text=["a red square"], images=[pico_image("red", "blue")], padding=True, truncation=True)
    assert processor_key(processor) == key == processor_key(pico_processor())
    assert processor_key(pico_processor(8)) != key
    assert processor_key(processor.image_processor) != key
    processor.tokenizer.add_tokens(["turquoise"])
    assert processor_key(processor) != key


def caplog_handler_on(logger, caplog):
    """transformers' loggers do not propagate to the root logger, where caplog listens."""
    import logging

    logging.getLogger(logger).addHandler(caplog.handler)
