"""Image-text data: loading, columns, and splits that keep texts apart."""

import traceback

import pytest
from datasets import Dataset, DatasetDict, Features, Image, IterableDataset, List, Value
from hypothesis import given, settings
from hypothesis import strategies as st
from pico import pico_image, pico_pairs, pico_processor

from mmlg_hf.data import (
    find_columns,
    hash_split,
    load_image_text,
    process_pairs,
    split_of,
)
from mmlg_hf.errors import LearngeneError


@pytest.fixture(scope="module")
def processor():
    return pico_processor()


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


def test_files_of_two_schemas_are_refused_in_one_sentence(tmp_path, processor):
    folder = tmp_path / "rows"
    folder.mkdir()
    (folder / "a.jsonl").write_text('{"image": "a.png", "text": "x"}\n')
    (folder / "b.jsonl").write_text('{"image": "a.png", "caption": "x"}\n')
    sentence = r"its files have different columns: there are 1 new columns \({'caption'}\)"
    with pytest.raises(LearngeneError, match=rf"cannot load the dataset .*{sentence}") as caught:
        load_image_text(folder, cache_dir=str(tmp_path / "cache"))
    assert len("".join(traceback.format_exception(caught.value)).splitlines()) < 20
    stream = load_image_text(folder, cache_dir=str(tmp_path / "cache"), streaming=True)
    with pytest.raises(LearngeneError, match=f"the dataset cannot be read on: {sentence}"):
        list(process_pairs(stream, processor, image_column="image", text_column="text", on_bad_image="skip"))


def test_a_damaged_file_and_an_unknown_option_are_refused_in_one_sentence(tmp_path):
    (tmp_path / "train.parquet").write_bytes(b"no parquet")
    for options in ({}, {"no_such_option": 1}):
        with pytest.raises(LearngeneError, match="cannot load the dataset") as caught:
            load_image_text(tmp_path, cache_dir=str(tmp_path / "cache"), **options)
        assert "\n" not in str(caught.value)


def test_one_of_several_splits_must_be_named():
    splits = DatasetDict(train=pico_pairs(3), test=pico_pairs(2))
    with pytest.raises(LearngeneError, match="the dataset has more than one split, or none: name one of train, test"):
        load_image_text(splits, None)


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
    stream = IterableDataset.from_generator(lambda: iter(rows))
    assert find_columns(stream) == ("picture", "text")


def test_several_captions_in_the_first_row_of_such_a_stream_are_text():
    rows = [{"img": pico_image("red", "blue"), "captions": ["red", "blue"], "scores": [], "n": [1]}]
    assert find_columns(IterableDataset.from_generator(lambda: iter(rows))) == ("img", "captions")


@pytest.mark.parametrize("missing", [None, []])
@pytest.mark.parametrize("lacking", [False, True])
def test_columns_of_such_a_stream_are_not_chosen_by_its_first_row_alone(missing, lacking):
    full = {"filename": "a.png", "image": pico_image("red", "blue"), "thumb": pico_image("red", "blue")}
    first = {"filename": "a.png", "thumb": full["thumb"]}
    if not lacking:
        first |= {"image": None, "caption": missing}
    stream = IterableDataset.from_generator(lambda: iter([first, full | {"caption": ["red"] if missing else "red"}]))
    assert find_columns(stream) == ("image", "caption")


def test_a_stream_without_rows_is_refused():
    with pytest.raises(LearngeneError, match=r"the dataset is empty \(0 rows\)"):
        find_columns(IterableDataset.from_generator(lambda: iter(())))


def test_rows_alone_give_their_columns_and_an_empty_column_may_be_the_right_one():
    image = pico_image("red", "blue")
    rows = [{"image": image, "caption": None, "filename": "a.png"}, {"image": None, "caption": "red", "filename": "b"}]
    for some in (rows, rows[:1], rows[0], rows[1:]):
        assert find_columns(some) == ("image", "caption")
    with pytest.raises(LearngeneError, match=r"more than one possible \(blurb, filename\) text column"):
        find_columns({"image": image, "blurb": None, "filename": "a.png"})
    with pytest.raises(LearngeneError, match="the dataset is a list"):
        find_columns([1])


def test_pictures_as_bytes_or_in_a_struct_are_image_columns():
    struct = {"bytes": Value("binary"), "path": Value("string")}
    for feature in (Value("binary"), Value("large_binary"), struct, Image(decode=False)):
        assert find_columns(Features({"blob": feature, "text": Value("string")})) == ("blob", "text")
    features = Features({"blob": Value("binary"), "front": Image(), "text": Value("string")})
    assert find_columns(features) == ("front", "text")
    assert find_columns({"blob": b"...", "text": "a"}) == ("blob", "text")


def test_the_formats_own_columns_are_no_texts():
    features = {"__key__": Value("string"), "__url__": Value("string")}
    assert find_columns(Features(features | {"jpg": Image(), "txt": Value("string")})) == ("jpg", "txt")
    assert find_columns(Features(features | {"seg.png": Image(), "note": Value("string")})) == ("seg.png", "note")


@pytest.mark.parametrize("feature", [{"raw": Value("string")}, List({"raw": Value("string")}), Value("int64")])
def test_a_column_called_as_captions_are_that_holds_none_makes_no_other_column_the_text(feature):
    features = Features({"image": Image(), "sentences": feature, "filename": Value("string")})
    with pytest.raises(LearngeneError, match="no certain text column, since 'sentences' holds none and 'filename'"):
        find_columns(features)
    assert find_columns(Features(features | {"caption": Value("string")})) == ("image", "caption")


@pytest.mark.parametrize("feature", [Value("null"), List(Value("null"))])
def test_a_column_that_is_empty_in_all_rows_stays_the_text(feature):
    features = Features({"image": Image(), "caption": feature, "filename": Value("string")})
    assert find_columns(features) == ("image", "caption")


def test_numbers_are_no_captions():
    with pytest.raises(LearngeneError, match="has no text column: its columns are 'image', 'caption'"):
        find_columns(Dataset.from_dict({"image": [b"a"], "caption": [5]}))


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


def test_splitting_by_texts_that_are_no_strings_or_ids_without_order_is_refused():
    with pytest.raises(LearngeneError, match=r"row 0 has the text \['a'\]: splitting takes one string a row"):
        hash_split(Dataset.from_dict({"id": [1], "captions": [["a"]]}), "id", "captions")
    with pytest.raises(LearngeneError, match="the ids in 'id' have no order"):
        hash_split(Dataset.from_dict({"id": [1, None], "title": ["a", "b"]}), "id", "title")
    with pytest.raises(LearngeneError, match="a stream cannot be split by hash"):
        hash_split(pico_pairs(2).to_iterable_dataset(), "image", "caption")


@pytest.mark.parametrize("kind", ["torch", "numpy"])
def test_formatted_rows_are_split_alike(kind):
    rows = Dataset.from_dict({"id": list(range(20)), "title": [str(key % 7) for key in range(20)]})
    plain, formatted = hash_split(rows, "id", "title"), hash_split(rows.with_format(kind), "id", "title")
    assert all(list(plain[name]["id"]) == [int(key) for key in formatted[name]["id"]] for name in plain)
