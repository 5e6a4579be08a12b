"""The one decoder of pictures: every form and mode, upright, scaled, and damaged ones refused in one sentence."""

import io
import warnings
import zipfile
from unittest.mock import patch

import numpy as np
import pytest
import torch
from datasets import Dataset, load_dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pico import IMAGE_SIZE, pico_image, pico_pairs, pico_processor
from pico_data import photo, rows_of, stored
from PIL import Image as PILImage

from mmlg_hf.data import (
    UnreadableImage,
    make_pixels,
    open_image,
    picture_files,
    process_pairs,
    read_image,
    undecoded,
)
from mmlg_hf.errors import LearngeneError

RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)


@pytest.fixture(scope="module")
def processor():
    return pico_processor()


# --- folders ---------------------------------------------------------------------------------------------------------


def test_a_folder_of_pictures_is_found_by_the_names_of_its_files(tmp_path):
    (tmp_path / "below").mkdir()
    (tmp_path / "empty").mkdir()
    for name in ("red.png", "below/more.JPG", ".hidden.png", "notes.txt"):
        (tmp_path / name).write_bytes(b"")
    found = [path.relative_to(tmp_path).as_posix() for path in picture_files(tmp_path)]
    assert found == ["below/more.JPG", "red.png"]
    with pytest.raises(LearngeneError, match=r"has no pictures in it \(\.jpg"):
        picture_files(tmp_path / "empty")
    with pytest.raises(LearngeneError, match="is no folder: give one with pictures in it"):
        picture_files(tmp_path / "red.png")


# --- forms -----------------------------------------------------------------------------------------------------------


def test_an_image_opens_from_every_form_it_comes_in(tmp_path):
    image = pico_image("red", "blue")
    image.save(tmp_path / "image.png")
    expected = np.asarray(image)
    for form in (
        image,
        stored(),
        tmp_path / "image.png",
        str(tmp_path / "image.png"),
        {"bytes": stored(), "path": None},
        {"bytes": None, "path": str(tmp_path / "image.png")},
    ):
        assert np.array_equal(np.asarray(open_image(form)), expected)


def test_an_open_file_and_a_view_of_bytes_are_read():
    expected = np.asarray(pico_image("red", "blue"))
    for form in (io.BytesIO(stored()), memoryview(stored()), bytearray(stored()), {"bytes": stored()}):
        assert np.array_equal(np.asarray(open_image(form)), expected)


def test_what_formatted_datasets_make_of_rgb_images_is_read_and_what_cannot_be_told_is_refused():
    pairs = pico_pairs(2)
    for kind in ("numpy", "torch"):
        assert np.array_equal(open_image(pairs.with_format(kind)[1]["image"]), pairs[1]["image"])
    for array in (RAMP, torch.zeros(1, 8, 8), np.zeros((8, 8, 4), np.uint8), np.zeros((8, 8, 3), np.float32)):
        with pytest.raises(UnreadableImage, match=r"an array of shape .* whose channels cannot be told"):
            open_image(array)


@pytest.mark.parametrize(
    ("thing", "sentence"),
    [
        (None, "the image of row 3 cannot be read .there is none.: mend it or drop that row"),
        (7, "a value of type int is no image: give a PIL image, bytes, a path"),
        ({}, "a value of type dict is no image"),
        ({"raw": b""}, "a value of type dict is no image"),
        ({"bytes": None, "path": None}, "it has neither bytes nor a path"),
        ([b"x"], "a value of type list is no image"),
        (b"", "its bytes are no image that Pillow knows"),
        ("/no/such/file.png", "No such file or directory"),
        ({"path": "/no/such/file.png", "bytes": None}, "No such file or directory"),
        ("zero\0byte.png", "null"),
    ],
)
def test_what_is_no_image_is_refused_with_its_row(thing, sentence):
    with pytest.raises(LearngeneError, match=sentence) as caught:
        read_image(thing, "row 3")
    assert isinstance(caught.value, OSError)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("streaming", [False, True])
def test_pictures_in_a_zip_are_read_by_datasets_own_opener(tmp_path, processor, streaming):
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        for row in range(6):
            archive.writestr(f"{row}.jpg", photo())
        archive.writestr("metadata.csv", "file_name,caption\n" + "".join(f"{row}.jpg,red\n" for row in range(6)))
    files = {"data_files": str(tmp_path / "photos.zip"), "cache_dir": str(tmp_path / "cache")}
    rows = load_dataset("imagefolder", split="train", streaming=streaming, **files)
    done = list(process_pairs(rows, processor))
    assert len(done) == 6
    expected = make_pixels(processor.image_processor, [PILImage.open(io.BytesIO(photo(1)))])[0]
    torch.testing.assert_close(torch.as_tensor(np.array(done[5]["pixel_values"])), expected, atol=0.05, rtol=0)


# --- upright ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_a_photo_is_upright_from_every_form(orientation, kind):
    file = photo(orientation, kind)
    dataset = rows_of([{"bytes": file, "path": None}], ["a"])
    decoded = dataset[0]["image"]  # by datasets itself
    for form in (file, PILImage.open(io.BytesIO(file)), decoded, undecoded(dataset)[0]["image"], open_image(file)):
        pixels = np.asarray(open_image(form), dtype=int)
        assert abs(pixels[:6] - (220, 30, 30)).max() < 16
        assert abs(pixels[10:] - (40, 60, 220)).max() < 16


def test_all_orientations_are_turned_as_pillow_turns_them():
    from PIL import ImageOps

    for orientation in range(10):
        exif = PILImage.Exif()
        exif[0x0112] = orientation
        file = stored(PILImage.fromarray(RAMP[:8]), exif=exif)
        expected = ImageOps.exif_transpose(PILImage.open(io.BytesIO(file))).convert("RGB")
        assert np.array_equal(open_image(file), expected)


def test_damaged_exif_data_leave_the_picture_as_it_is():
    damaged = stored(exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    assert np.array_equal(open_image(damaged), pico_image("red", "blue"))


# --- modes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV"])
def test_an_image_of_8_bits_becomes_what_pillow_makes_of_it(mode):
    image = pico_image("red", "blue").convert("L" if mode in ("1", "LA") else "P" if mode == "PA" else "RGB")
    image = image.convert(mode)
    assert np.array_equal(open_image(image), image.convert("RGB"))


@pytest.mark.parametrize("mode", ["La", "RGBa"])
def test_premultiplied_modes_become_rgb(mode):
    image = pico_image("red", "blue").convert({"La": "LA", "RGBa": "RGBA"}[mode])
    assert np.array_equal(open_image(image.convert(mode)), image.convert("RGB"))


def test_transparency_is_dropped_without_a_warning():
    image = pico_image("red", "blue").convert("P", palette=PILImage.Palette.ADAPTIVE)
    file = stored(image, transparency=bytes([0, 128]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(open_image(file), image.convert("RGB"))


def wide(dtype, factor):
    return PILImage.fromarray((RAMP.astype(np.float64) * factor).astype(dtype))


@pytest.mark.parametrize(
    "image",
    [
        pytest.param(wide(np.uint16, 257), id="16-bit"),
        pytest.param(wide(np.uint16, 256), id="16-bit-shifted"),
        pytest.param(wide(">u2", 257), id="16-bit-big-endian"),
        pytest.param(wide(np.int32, 257), id="16-in-32-bit"),
        pytest.param(wide(np.int32, 2**23), id="32-bit"),
        pytest.param(wide(np.int32, 1), id="8-in-32-bit"),
        pytest.param(wide(np.float32, 1 / 255), id="float-to-1"),
        pytest.param(wide(np.float32, 1), id="float-to-255"),
        pytest.param(wide(np.float32, 257), id="float-to-65535"),
    ],
)
def test_wider_values_are_scaled_to_the_8_bit_ramp_and_not_clipped(image):
    expected = np.repeat(RAMP[..., None], 3, axis=2)
    assert np.array_equal(open_image(image), expected)
    assert np.array_equal(open_image(stored(image, "TIFF")), expected)


@pytest.mark.parametrize(
    ("image", "sentence"),
    [
        (wide(np.uint16, 1), r"mode I;16, from 0 to 255\): give 8-bit values, 16-bit ones up to 65535, or floats"),
        (wide(np.int32, -1), "mode I, from -255 to 0"),
        (wide(np.int32, 300), "mode I, from 0 to 76500"),
        (wide(np.float32, -1 / 255), "mode F, from -1 to -?0"),
        (wide(np.float32, 0.1), "mode F, from 0 to 25.5"),
        (wide(np.float32, np.nan), "mode F, from nan to nan"),
        (wide(np.float32, 1e30), "mode F, from 0 to 2.55e.32"),
    ],
)
def test_values_whose_range_cannot_be_told_are_refused(image, sentence):
    with pytest.raises(UnreadableImage, match="the range of its values cannot be told .*" + sentence):
        open_image(image)


def test_black_is_black_in_every_mode():
    for dtype in (np.uint16, np.int32, np.float32):
        assert np.asarray(open_image(wide(dtype, 0))).max() == 0


# --- damaged ---------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kind=st.sampled_from(["PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF"]), data=st.data())
def test_damaged_bytes_are_read_or_refused_with_their_row_and_nothing_else(kind, data, processor):
    file = bytearray(stored(kind=kind))
    for _ in range(data.draw(st.integers(1, 4))):
        file[data.draw(st.integers(0, len(file) - 1))] = data.draw(st.integers(0, 255))
    file = bytes(file[: data.draw(st.integers(1, len(file)))])
    stream = Dataset.from_dict({"image": [file], "text": ["a"]}).to_iterable_dataset()
    try:
        row = next(iter(process_pairs(stream, processor, image_column="image", text_column="text")))
        assert np.shape(row["pixel_values"]) == (3, IMAGE_SIZE, IMAGE_SIZE)
    except LearngeneError as error:
        if "the image of row 0 cannot be read" not in str(error):
            raise


def damaged_gif(*changes):
    file = bytearray(stored(kind="GIF"))
    for position, byte in changes:
        file[position] = byte
    return bytes(file)


def test_what_pillow_raises_of_a_damaged_image_is_an_os_error():
    # The frame's size, two bytes for each side after its separator and its place: no image is 65535 pixels a side.
    frame = damaged_gif().index(b",", 13) + 5
    with pytest.raises(OSError, match=r"damaged image: .*exceeds limit"):
        open_image(damaged_gif(*((frame + offset, 255) for offset in range(4))))
    with (
        pytest.raises(OSError, match="damaged image"),
        patch.object(PILImage.Image, "convert", side_effect=ValueError),
    ):
        open_image(stored())


def test_a_decompression_bomb_is_refused_and_so_is_one_warned_of_where_warnings_are_errors(monkeypatch):
    monkeypatch.setattr(PILImage, "MAX_IMAGE_PIXELS", 100)  # a picture of 256 is more than twice that
    with pytest.raises(UnreadableImage, match="the image of row 1 cannot be read .*decompression bomb"):
        read_image(stored(), "row 1")
    monkeypatch.setattr(PILImage, "MAX_IMAGE_PIXELS", 200)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UnreadableImage, match="decompression bomb"):
            open_image(stored())
    with pytest.warns(PILImage.DecompressionBombWarning):
        assert open_image(stored()).size == (16, 16)


def test_pictures_that_cannot_make_one_batch_are_refused_with_their_sizes():
    image_processor = pico_processor().image_processor
    image_processor.do_resize = image_processor.do_center_crop = False
    images = [PILImage.new("RGB", (16, 16)), PILImage.new("RGB", (8, 4))]
    with pytest.raises(LearngeneError, match=r"one batch of pictures of 8x4, 16x16 pixels .*set do_resize=True in"):
        make_pixels(image_processor, images)
    assert make_pixels(image_processor, images[:1]).shape == (1, 3, 16, 16)


def test_an_unreadable_image_can_be_sent_between_processes():
    import pickle

    error = pickle.loads(pickle.dumps(UnreadableImage("the image of row 3 cannot be read")))
    assert str(error) == "the image of row 3 cannot be read"
