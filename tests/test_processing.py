"""Rows turned into tensors once: what is made, what is left out, and when what is kept is used again."""

import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, IterableDataset, List, Value
from pico import pico_image, pico_pairs, pico_processor
from pico_data import pairs_with_bad_images, rows_of, stored
from torch.utils.data import DataLoader
from transformers import CLIPTextConfig, SiglipTextConfig

from mmlg_hf.data import (
    find_columns,
    hash_split,
    load_image_text,
    process_images,
    process_pairs,
    processor_key,
)
from mmlg_hf.data.identity import PROCESSING_VERSION
from mmlg_hf.errors import LearngeneError


@pytest.fixture(scope="module")
def processor():
    return pico_processor()


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
        {"image": [stored()] * 2, "text": ["a " * 50, "red"]},
        features=Features({"image": Image(), "text": Value("string")}),
    )
    by_limit, by_wish = process_pairs(rows, processor), process_pairs(rows, processor, max_length=6)
    end = processor.tokenizer.eos_token_id
    assert [len(by_limit[0]["input_ids"]), len(by_wish[0]["input_ids"])] == [16, 6]
    assert by_limit[0]["input_ids"][-1] == by_wish[0]["input_ids"][-1] == end
    assert torch.equal(by_limit[1]["input_ids"], by_wish[1]["input_ids"])


def test_the_first_of_several_captions_counts(processor):
    rows = rows_of([stored()] * 2, [["red", "blue"], ["green"]], List(Value("string")))
    done = process_pairs(rows, processor)
    assert [ids.tolist() for ids in done["input_ids"]] == processor.tokenizer(["red", "green"])["input_ids"]


@pytest.mark.parametrize("caption", [None, "", "  ", [], [None, "a"], ["a", ""]])
def test_a_row_without_a_text_is_refused_or_left_out_as_the_caller_says(processor, caption):
    listed = isinstance(caption, list)
    captions = [["red"], caption, ["blue"]] if listed else ["red", caption, "blue"]
    rows = rows_of([stored()] * 3, captions, List(Value("string")) if listed else Value("string"))
    for data in (rows, rows.to_iterable_dataset()):
        with pytest.raises(LearngeneError, match="row 1 has the text .*on_bad_image=.skip") as caught:
            list(process_pairs(data, processor))
        assert f"row 1 has the text {caption!r}" in str(caught.value)
        done = process_pairs(data, processor, on_bad_image="skip")
        assert [list(row["input_ids"]) for row in done] == processor.tokenizer(["red", "blue"])["input_ids"]


@pytest.mark.parametrize("caption", [5, {"raw": "a red square", "imgid": 1}, [{"raw": "a red square"}]])
def test_captions_that_are_no_strings_are_refused_with_the_row(processor, caption):
    rows = Dataset.from_dict({"image": [stored()], "about": [caption]})
    with pytest.raises(LearngeneError, match=r"row 0 has the text .*: give a string") as caught:
        process_pairs(rows, processor, image_column="image", text_column="about")
    assert str(caption)[1:6] in str(caught.value)


def test_one_unreadable_image_is_raised_with_its_row(processor):
    for rows in (pairs_with_bad_images(), pairs_with_bad_images().to_iterable_dataset()):
        with pytest.raises(LearngeneError, match="the image of row 2 cannot be read .*on_bad_image=.skip"):
            list(process_pairs(rows, processor))


def test_unreadable_images_are_skipped_with_a_count(processor, caplog):
    done = process_pairs(pairs_with_bad_images(), processor, on_bad_image="skip")
    assert "the first: the image of row 2 cannot be read" in caplog.text
    assert "skipped 2 of 8 rows: their images cannot be read, or they have no text" in caplog.text
    kept = [f"a photo of row {row}" for row in range(8) if row not in (2, 5)]
    assert [ids.tolist() for ids in done["input_ids"]] == processor.tokenizer(kept)["input_ids"]


def test_a_stream_leaves_out_unreadable_images_and_counts_them_at_its_end(processor, caplog):
    stream = process_pairs(pairs_with_bad_images().to_iterable_dataset(), processor, on_bad_image="skip")
    for read in (lambda: list(stream), lambda: [row for batch in stream.iter(4) for row in batch["input_ids"]]):
        caplog.clear()
        assert len(read()) == 6
        assert "skipped 2 of 8 rows: their images cannot be read, or they have no text" in caplog.text


def test_a_stream_read_by_workers_leaves_out_rows_too(processor):
    rows = pairs_with_bad_images(bad=(0, 1), n=4).to_iterable_dataset(num_shards=2)
    stream = process_pairs(rows, processor, on_bad_image="skip")
    assert len(list(DataLoader(stream, batch_size=None, num_workers=2))) == 2


def test_a_stream_of_which_nothing_can_be_used_or_which_is_empty_says_so_at_its_end(processor):
    stream = pairs_with_bad_images(range(4), 4).to_iterable_dataset()
    with pytest.raises(LearngeneError, match="none of the 4 rows can be used: their images cannot be read"):
        list(process_pairs(stream, processor, on_bad_image="skip"))
    empty = pico_pairs(4).to_iterable_dataset().filter(lambda row: False)
    with pytest.raises(LearngeneError, match=r"the dataset is empty \(0 rows\)"):
        list(process_pairs(empty, processor))


def test_columns_that_only_late_rows_of_a_stream_have_are_left_out(processor):
    def rows():
        for row in range(70):
            late = {"note": "late"} if row == 66 else {}
            yield {"image": b"" if row == 5 else stored(), "caption": "red", **late}

    stream = IterableDataset.from_generator(rows)
    assert len(list(process_pairs(stream, processor, on_bad_image="skip"))) == 69


def test_a_stream_that_cannot_be_read_on_says_why(processor):
    def rows():
        yield {"image": stored(), "caption": "red"}
        raise OSError("the connection broke")

    stream = IterableDataset.from_generator(rows, features=Features({"image": Image(), "caption": Value("string")}))
    with pytest.raises(LearngeneError, match="the dataset cannot be read on: the connection broke"):
        list(process_pairs(stream, processor))


def test_a_batch_of_unreadable_images_alone_is_dropped(processor):
    rows = pairs_with_bad_images(bad=range(64), n=66)
    assert len(process_pairs(rows, processor, on_bad_image="skip")) == 2
    assert len(list(process_pairs(rows.to_iterable_dataset(), processor, on_bad_image="skip"))) == 2


def test_no_readable_image_at_all_is_refused(processor):
    with pytest.raises(LearngeneError, match="none of the 4 rows can be used: their images cannot be read"):
        process_pairs(pairs_with_bad_images(range(4), 4), processor, on_bad_image="skip")


def test_an_image_that_is_not_there_is_unreadable_too(processor):
    features = Features({"image": Image(), "text": Value("string")})
    rows = Dataset.from_dict({"image": [stored(), None], "text": ["a", "b"]}, features=features)
    assert len(process_pairs(rows, processor, on_bad_image="skip")) == 1
    with pytest.raises(LearngeneError, match="the image of row 1 cannot be read"):
        process_pairs(rows, processor)


def test_all_splits_in_one_and_what_is_no_dataset_are_refused(processor):
    pairs = pico_pairs(2)
    splits = DatasetDict(train=pairs, test=pairs)
    for call in (
        lambda data: process_pairs(data, processor),
        lambda data: process_images(data, processor.image_processor),
        find_columns,
        lambda data: hash_split(data, "image", "caption"),
    ):
        with pytest.raises(
            LearngeneError, match=r"all of DatasetDict\(train, test\): give one split, such as dataset"
        ):
            call(splits)
        with pytest.raises(LearngeneError, match="the dataset is a list: give a Dataset or an IterableDataset"):
            call(["a"])


def test_the_image_and_the_text_can_be_kept_and_one_column_named_alone(processor):
    pairs = pico_pairs(2)
    done = process_pairs(pairs, processor, keep_columns=("caption", "image")).with_format(None)
    assert done[1]["caption"] == pairs[1]["caption"]
    assert np.array_equal(done[1]["image"], pairs[1]["image"])
    assert process_pairs(pairs, processor, keep_columns="caption")["caption"][:] == pairs["caption"][:]


def test_a_column_to_keep_that_is_not_there_is_refused(processor):
    for rows in (pico_pairs(2), pico_pairs(2).to_iterable_dataset()):
        with pytest.raises(LearngeneError, match="no column 'label' to keep: its columns are image, caption"):
            process_pairs(rows, processor, keep_columns=("label",))


@pytest.mark.parametrize("kind", ["torch", "numpy", "arrow", "pandas"])
def test_formatted_datasets_and_streams_are_processed_alike(processor, kind):
    pairs = pico_pairs(3)
    expected = process_pairs(pairs, processor)[:]["pixel_values"]
    for rows in (pairs.with_format(kind), pairs.to_iterable_dataset().with_format(kind)):
        done = list(process_pairs(rows, processor))
        assert torch.equal(torch.stack([torch.as_tensor(np.array(row["pixel_values"])) for row in done]), expected)


def test_rows_made_by_a_transform_are_processed_as_it_makes_them(processor):
    pairs = pico_pairs(3)
    grey = pairs.with_transform(
        lambda rows: {"image": [image.convert("L") for image in rows["image"]], "words": rows["caption"]}
    )
    done = process_pairs(grey, processor)
    expected = processor.image_processor([image.convert("L").convert("RGB") for image in pairs["image"]])
    assert np.allclose(done[:]["pixel_values"], np.stack(expected["pixel_values"]), atol=1e-6)
    assert done[0]["input_ids"].tolist() == processor.tokenizer(pairs[0]["caption"])["input_ids"]


def test_images_of_one_size_need_no_resizing_and_others_are_refused_with_their_row(processor):
    image_processor = pico_processor().image_processor
    image_processor.do_resize = image_processor.do_center_crop = False
    sized = SimpleNamespace(image_processor=image_processor, tokenizer=processor.tokenizer)
    pairs = pico_pairs(2)
    assert process_pairs(pairs, sized)[:]["pixel_values"].shape == (2, 3, 16, 16)
    rows = rows_of([pico_image("red", "blue", size) for size in [16] * 64 + [8]], ["red"] * 65)
    for data in (rows, rows.to_iterable_dataset()):
        with pytest.raises(
            LearngeneError, match=r"makes \[3, 8, 8\] values of the image of row 64, and \[3, 16, 16\]"
        ):
            list(process_pairs(data, sized))
    for data in (rows.select([0, 64]), rows.select([0, 64]).to_iterable_dataset()):
        with pytest.raises(LearngeneError, match="one batch of pictures of 8x8, 16x16 pixels .*do_resize=True"):
            list(process_pairs(data, sized))


def test_texts_are_cut_to_the_positions_of_the_encoder_and_padded_where_it_needs_one_length(processor):
    rows = rows_of([stored()] * 2, ["a " * 50, "red"])
    clip = CLIPTextConfig(max_position_embeddings=7)
    assert [len(ids) for ids in process_pairs(rows, processor, text_config=clip)["input_ids"]] == [7, 3]
    siglip = SiglipTextConfig(max_position_embeddings=9)
    assert [len(ids) for ids in process_pairs(rows, processor, text_config=siglip)["input_ids"]] == [9, 9]


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


def image_files(folder, *colors):
    folder.mkdir(exist_ok=True)
    for row, color in enumerate(colors):
        pico_image(color, "blue").save(folder / f"{row}.bmp")
    lines = [f"{row}.bmp,a {color} square" for row, color in enumerate(colors)]
    (folder / "metadata.csv").write_text("\n".join(["file_name,caption", *lines, ""]))


def test_pictures_replaced_under_the_same_path_are_processed_again(tmp_path, processor):
    image_files(tmp_path / "images", "red", "red")
    rows = load_image_text(tmp_path / "images", cache_dir=str(tmp_path / "cache"))
    before, stat = process_pairs(rows, processor), (tmp_path / "images" / "1.bmp").stat()
    pico_image("green", "blue").save(tmp_path / "images" / "1.bmp")
    os.utime(tmp_path / "images" / "1.bmp", ns=(stat.st_atime_ns, stat.st_mtime_ns))  # of the same size, too
    after = process_pairs(rows, processor)
    expected = processor.image_processor([pico_image("red", "blue"), pico_image("green", "blue")], return_tensors="pt")
    torch.testing.assert_close(after[:]["pixel_values"], expected["pixel_values"])
    assert after._fingerprint != before._fingerprint


def test_what_another_version_of_this_package_made_is_not_used_again(tmp_path, processor, monkeypatch):
    pico_pairs(4).save_to_disk(tmp_path)
    rows = load_image_text(tmp_path)
    first = process_pairs(rows, processor)
    assert process_pairs(rows, processor).cache_files == first.cache_files
    monkeypatch.setattr("mmlg_hf.data.processing.PROCESSING_VERSION", PROCESSING_VERSION + 1)
    assert process_pairs(rows, processor).cache_files != first.cache_files


def test_what_is_kept_is_known_by_every_setting(tmp_path, processor):
    pairs = pico_pairs(4, labels=True)
    pairs.save_to_disk(tmp_path)
    rows = load_image_text(tmp_path)
    renamed = rows.cast_column("label", ClassLabel(names=[f"class {row}" for row in range(8)]))
    made = [
        process_pairs(rows, processor),
        process_pairs(rows, processor, max_length=5),
        process_pairs(rows, processor, keep_columns=("label",)),
        process_pairs(renamed, processor, keep_columns=("label",)),
        process_pairs(rows.select([1, 0, 2, 3]), processor),
        process_pairs(rows, processor, text_config=SiglipTextConfig(max_position_embeddings=16)),
        process_images(rows, processor.image_processor),
    ]
    assert len({done._fingerprint for done in made}) == len(made)
    assert made[3].features["label"].names[0] == "class 0"


def test_a_processors_key_stays_when_it_is_used_and_changes_with_its_settings():
    processor = pico_processor()
    key = processor_key(processor)
    processor(text=["a red square"], images=[pico_image("red", "blue")], padding=True, truncation=True)
    assert processor_key(processor) == key == processor_key(pico_processor())
    assert processor_key(pico_processor(8)) != key
    assert processor_key(processor.image_processor) != key
    processor.tokenizer.add_tokens(["turquoise"])
    assert processor_key(processor) != key
