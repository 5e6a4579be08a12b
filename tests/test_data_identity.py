"""The fingerprint of data: what they hold, and neither where they lie nor how they are cut."""

import io

import numpy as np
import pytest
from datasets import Array3D, Dataset, Features, Image, IterableDataset, Value, concatenate_datasets
from pico import pico_image, pico_pairs, pico_processor
from pico_data import rows_of, stored
from PIL import Image as PILImage

from mmlg_hf.data import process_pairs
from mmlg_hf.data.identity import fingerprint_data


def files_at(folder, *colors):
    folder.mkdir()
    paths = [str(folder / f"{row}.png") for row in range(len(colors))]
    for path, color in zip(paths, colors, strict=True):
        pico_image(color, "blue").save(path)
    return rows_of(paths, ["a"] * len(paths))


def test_the_bytes_of_pictures_count_and_not_where_they_lie(tmp_path):
    here, there = files_at(tmp_path / "here", "red", "pink"), files_at(tmp_path / "there", "red", "pink")
    before = fingerprint_data(here)
    assert fingerprint_data(there) == before
    with open(tmp_path / "here" / "0.png", "rb") as first, open(tmp_path / "here" / "1.png", "rb") as second:
        inside = rows_of([{"bytes": file.read(), "path": None} for file in (first, second)], ["a"] * 2)
    assert fingerprint_data(inside) == before
    pico_image("green", "blue").save(tmp_path / "here" / "1.png")
    assert fingerprint_data(here) != before
    (tmp_path / "here" / "1.png").unlink()
    assert fingerprint_data(here) not in (before, fingerprint_data(there))


def test_rows_and_their_order_and_the_columns_asked_for_count():
    pairs = pico_pairs(4, labels=True)
    whole = fingerprint_data(pairs)
    assert fingerprint_data(pico_pairs(4, labels=True)) == whole
    assert fingerprint_data(pairs.select([1, 0, 2, 3])) != whole
    assert fingerprint_data(pairs.select(range(3))) != whole
    some = fingerprint_data(pairs, ["image", "caption"])
    assert some == fingerprint_data(pairs.remove_columns("label"))
    assert some == fingerprint_data(pairs, ["caption", "image"])
    renamed = pairs.rename_column("caption", "label_").rename_column("label", "caption")
    assert fingerprint_data(renamed, ["image", "caption"]) != some


@pytest.mark.parametrize("kind", ["torch", "numpy", "arrow", "pandas"])
def test_the_format_and_the_cut_of_a_table_do_not_count(kind):
    pairs = process_pairs(pico_pairs(5), pico_processor()).with_format(None)
    parts = concatenate_datasets([pairs.select(range(2)), pairs.select(range(2, 5))])
    assert fingerprint_data(pairs.with_format(kind)) == fingerprint_data(pairs) == fingerprint_data(parts)


def test_one_pixel_counts():
    pixels = np.zeros((2, 3, 4, 4), np.float32)
    features = Features({"pixel_values": Array3D((3, 4, 4), "float32")})
    before = fingerprint_data(Dataset.from_dict({"pixel_values": pixels}, features=features))
    pixels[1, 2, 3, 3] = 1e-7
    assert fingerprint_data(Dataset.from_dict({"pixel_values": pixels}, features=features)) != before


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (["a", "bc"], ["ab", "c"]),
        ([["a"], ["b", "c"]], [["a", "b"], ["c"]]),
        ([None], ["None"]),
        ([1], ["1"]),
        ([1], [1.0]),
        ([{"a": "x", "b": None}], [{"a": None, "b": "x"}]),
    ],
)
def test_different_values_have_different_fingerprints(one, other):
    assert fingerprint_data(Dataset.from_dict({"x": one})) != fingerprint_data(Dataset.from_dict({"x": other}))


def test_a_stream_is_known_by_its_first_rows():
    def stream(color, features=None):
        rows = [{"image": PILImage.open(io.BytesIO(stored(pico_image(color, "blue")))), "caption": "a"}] * 3
        return IterableDataset.from_generator(lambda: iter(rows), features=features)

    typed = Features({"image": Image(), "caption": Value("string")})
    for features in (None, typed):
        assert fingerprint_data(stream("red", features)) == fingerprint_data(stream("red", features))
        assert fingerprint_data(stream("red", features)) != fingerprint_data(stream("pink", features))
    broken = rows_of([b"no image"], ["a"]).to_iterable_dataset()
    assert len(fingerprint_data(broken)) == 32  # nothing is decoded
