"""Every way in reads data alike: the same pixels and ids, or all refuse, with the row."""

import re

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Image, List, Value
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pico import pico_image, pico_processor
from pico_data import photo, stored
from PIL import Image as PILImage
from torch import nn

from mmlg_hf.data import ImageTextCollator, find_columns, open_image, process_images, process_pairs
from mmlg_hf.errors import LearngeneError
from mmlg_hf.evaluation import evaluate_retrieval

PROCESSOR = pico_processor()
RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)
COLOURED = pico_image("red", "blue")


def saved(mode: str) -> bytes:
    """A picture of a mode in a file that keeps the mode."""
    if mode == "I;16":
        return stored(PILImage.fromarray(RAMP.astype(np.uint16) * 257))
    if mode in ("I", "F"):
        return stored(PILImage.fromarray(RAMP.astype(np.int32 if mode == "I" else np.float32)), "TIFF")
    image = COLOURED.convert({"1": "L", "LA": "L", "PA": "P"}.get(mode, "RGB")).convert(mode)
    kind = {"CMYK": "TIFF", "YCbCr": "JPEG", "LAB": "TIFF", "RGBX": "TIFF"}.get(mode, "PNG")
    return stored(image, kind)


MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "I;16", "I", "F")
PICTURES = {mode: saved(mode) for mode in MODES}
PICTURES |= {f"turned {orientation}": photo(orientation) for orientation in (3, 6, 8)}
FAULTY_PICTURES = {
    "none": None,
    "no image": b"no image",
    "nothing": b"",
    "cut": PICTURES["RGB"][:60],
    "a range that cannot be told": stored(PILImage.fromarray(RAMP.astype(np.float32) / 10), "TIFF"),
    "no file": "/no/such/file.png",
}
TEXTS = ("a red square", "  a photo of blue ", "пять", "a " * 40)
FAULTY_TEXTS = (None, "", " ")
FAULTY_LISTS = (None, [], [None, "a"], ["a", None], [""], [None])


class Recorder(nn.Module):
    """A model that keeps what evaluation gives it."""

    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self):
        super().__init__()
        self.pixels, self.ids = [], []

    def get_image_features(self, pixel_values):
        self.pixels += list(pixel_values)
        return torch.ones(len(pixel_values), 2)

    def get_text_features(self, input_ids, attention_mask):
        self.ids += [row[mask.bool()].tolist() for row, mask in zip(input_ids, attention_mask, strict=True)]
        return torch.ones(len(input_ids), 2)


@st.composite
def datasets_of_pairs(draw):
    """Rows of pictures and captions, some faulty, beside other columns, in any order."""
    count = draw(st.integers(1, 4))
    faults = draw(st.sampled_from(["none", "image", "text", "both"]))
    pictures = st.sampled_from(list(PICTURES.values()))
    if faults in ("image", "both"):
        pictures |= st.sampled_from(list(FAULTY_PICTURES.values()))
    listed = draw(st.booleans())
    texts = st.sampled_from(TEXTS)
    captions = st.lists(texts, min_size=1, max_size=1) if listed else texts
    if faults in ("text", "both"):
        captions |= st.sampled_from(FAULTY_LISTS if listed else FAULTY_TEXTS)
    columns = {
        "image": (st.lists(pictures, min_size=count, max_size=count), Image(decode=draw(st.booleans()))),
        "caption": (
            st.lists(captions, min_size=count, max_size=count),
            List(Value("string")) if listed else Value("string"),
        ),
        "filename": (st.just(["0.png"] * count), Value("string")),
        "thumb": (st.just([PICTURES["L"]] * count), Image()),
        "__key__": (st.just(["key"] * count), Value("string")),
        "score": (st.just([None] * count), Value("float32")),
    }
    order = draw(st.permutations([*columns][: draw(st.integers(2, len(columns)))]))
    return Dataset.from_dict(
        {name: draw(columns[name][0]) for name in order},
        features=Features({name: columns[name][1] for name in order}),
    )


def undecoded_rows(dataset):
    return list(dataset.cast_column("image", Image(decode=False)))


def by_processing(dataset):
    done = process_pairs(dataset, PROCESSOR)
    rows = list(done)
    return [torch.as_tensor(np.array(row["pixel_values"])) for row in rows], [list(row["input_ids"]) for row in rows]


def by_collator(dataset):
    batch = ImageTextCollator(PROCESSOR)(undecoded_rows(dataset))
    masks = batch["attention_mask"].bool()
    return list(batch["pixel_values"]), [
        row[mask].tolist() for row, mask in zip(batch["input_ids"], masks, strict=True)
    ]


def by_evaluation(dataset):
    recorder = Recorder()
    evaluate_retrieval(recorder, dataset, PROCESSOR)
    return recorder.pixels, recorder.ids


def by_hand(dataset):
    """What stock parts make of each row's picture and caption."""
    image_column, text_column = find_columns(dataset)
    rows = undecoded_rows(dataset)
    images = [open_image(row[image_column]) for row in rows]
    texts = [row[text_column][0] if isinstance(row[text_column], list) else row[text_column] for row in rows]
    ids = PROCESSOR.tokenizer(texts, truncation=True)["input_ids"]
    return list(PROCESSOR.image_processor(images=images, return_tensors="pt")["pixel_values"]), ids


WAYS = {
    "process_pairs": by_processing,
    "process_pairs on a stream": lambda dataset: by_processing(dataset.to_iterable_dataset()),
    "ImageTextCollator": by_collator,
    "evaluate_retrieval": by_evaluation,
}


def faulty_rows(dataset):
    pictures = {repr(picture) for picture in FAULTY_PICTURES.values()}
    found = set()
    for index, row in enumerate(undecoded_rows(dataset)):
        image, caption = row["image"] or {}, row["caption"]
        stored_as = image.get("bytes") if image.get("bytes") is not None else image.get("path")
        if repr(stored_as) in pictures or caption in (*FAULTY_TEXTS, *FAULTY_LISTS):
            found.add(index)
    return found


def check_agreement(dataset):
    faulty = faulty_rows(dataset)
    if faulty:
        for name, read in WAYS.items():
            with pytest.raises(LearngeneError) as caught:
                read(dataset)
            named = re.search(r"(?<!\w)(?:row|image) (\d+)", str(caught.value))
            assert named is not None, f"{name}: {caught.value}"
            assert int(named[1]) in faulty, f"{name}: {caught.value}"
            assert "\n" not in str(caught.value)
        return
    pixels, ids = by_hand(dataset)
    alone = process_images(dataset.remove_columns("caption"), PROCESSOR.image_processor, image_column="image")
    for name, read in {**WAYS, "process_images": lambda _: (list(alone[:]["pixel_values"]), ids)}.items():
        found_pixels, found_ids = read(dataset)
        assert found_ids == ids, name
        assert len(found_pixels) == len(pixels)
        assert all(torch.equal(found, expected) for found, expected in zip(found_pixels, pixels, strict=True)), name


quickly = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
at_length = settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))


@quickly
@given(datasets_of_pairs())
def test_every_way_in_reads_the_same_pixels_and_ids_or_refuses_the_row(dataset):
    check_agreement(dataset)


@pytest.mark.slow
@at_length
@given(datasets_of_pairs())
def test_every_way_in_reads_the_same_of_many_more(dataset):
    check_agreement(dataset)


@pytest.mark.parametrize("name", list(PICTURES))
def test_a_picture_of_every_kind_is_read_alike_by_every_way_in(name):
    features = Features({"image": Image(), "caption": Value("string")})
    check_agreement(Dataset.from_dict({"image": [PICTURES[name]], "caption": ["a red square"]}, features=features))


@pytest.mark.parametrize("name", list(FAULTY_PICTURES))
def test_a_faulty_picture_of_every_kind_is_refused_by_every_way_in(name):
    features = Features({"image": Image(), "caption": Value("string")})
    faulty = [PICTURES["RGB"], FAULTY_PICTURES[name]]
    check_agreement(Dataset.from_dict({"image": faulty, "caption": ["a"] * 2}, features=features))


@pytest.mark.parametrize("caption", [*FAULTY_TEXTS, *FAULTY_LISTS[1:]])
@pytest.mark.parametrize("first", [False, True])
def test_a_row_without_a_caption_is_refused_by_every_way_in(caption, first):
    listed = isinstance(caption, list)
    captions = [["a"] if listed else "a", caption]
    features = Features({"filename": Value("string"), "image": Image(), "caption": Value("string")})
    features["caption"] = List(Value("string")) if listed else Value("string")
    columns = {"filename": ["x"] * 2, "image": [PICTURES["RGB"]] * 2, "caption": captions[::-1] if first else captions}
    check_agreement(Dataset.from_dict(columns, features=features))
