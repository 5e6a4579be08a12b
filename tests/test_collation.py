"""ImageTextCollator: rows, raw or processed, into batches."""

import io
from types import SimpleNamespace

import pytest
import torch
from datasets import Image
from pico import MAX_LENGTH, pico_image, pico_pairs, pico_processor, pico_tokenizer
from pico_data import photo, rows_of
from PIL import Image as PILImage
from transformers import CLIPTextConfig, SiglipTextConfig

from mmlg_hf.data import open_image, process_pairs
from mmlg_hf.errors import LearngeneError
from mmlg_hf.training import ImageTextCollator


@pytest.fixture(scope="module")
def processor():
    return pico_processor()


def test_collator_gives_what_the_processor_gives_and_asks_for_the_loss(processor):
    rows = list(pico_pairs(5))
    batch = ImageTextCollator(processor)(rows)
    expected = processor(
        images=[row["image"] for row in rows], text=[row["caption"] for row in rows], padding=True, return_tensors="pt"
    )
    assert batch.pop("return_loss") is True
    assert set(batch) == set(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(batch[name], tensor)


def test_collator_takes_processed_rows_and_pads_their_texts(processor):
    pairs = pico_pairs(5)
    raw = ImageTextCollator(processor)(list(pairs))
    processed = ImageTextCollator(processor)(list(process_pairs(pairs, processor)))
    assert set(raw) == set(processed)
    for name in ("pixel_values", "input_ids", "attention_mask"):
        torch.testing.assert_close(raw[name], processed[name])


def test_collator_takes_image_bytes_and_named_columns(processor):
    buffer = io.BytesIO()
    pico_image("red", "blue").save(buffer, "PNG")
    row = {"front": buffer.getvalue(), "alt": "a red square", "other": "nonsense"}
    batch = ImageTextCollator(processor, image_column="front", text_column="alt")([row])
    expected = ImageTextCollator(processor)([{"image": pico_image("red", "blue"), "caption": "a red square"}])
    torch.testing.assert_close(batch["pixel_values"], expected["pixel_values"])
    assert batch["input_ids"].tolist() == expected["input_ids"].tolist()


def test_collator_cuts_at_max_length_and_pads_to_a_multiple(processor):
    row = {"image": pico_image("red", "blue"), "caption": "a red square on blue " * 9}
    short = {"image": pico_image("red", "blue"), "caption": "a red square"}
    assert ImageTextCollator(processor)([short])["input_ids"].shape == (1, 5)
    assert ImageTextCollator(processor)([row])["input_ids"].shape == (1, MAX_LENGTH)
    assert ImageTextCollator(processor, max_length=5)([row])["input_ids"].shape == (1, 5)
    assert ImageTextCollator(processor, max_length=12, pad_to_multiple_of=4)([short])["input_ids"].shape == (1, 8)


def test_collator_draws_one_of_several_captions_by_the_torch_seed(processor):
    captions = ["a red square", "a square on blue", "photo"]
    rows = [{"image": pico_image("red", "blue"), "captions": captions}] * 40
    collator = ImageTextCollator(processor)

    def draw(seed):
        torch.manual_seed(seed)
        return processor.tokenizer.batch_decode(collator(rows)["input_ids"], skip_special_tokens=True)

    assert set(draw(0)) == set(captions)
    assert draw(0) == draw(0)
    assert draw(0) != draw(1)


GOOD = {"image": pico_image("red", "blue"), "caption": "a red square"}


@pytest.mark.parametrize("position", [0, 1])
@pytest.mark.parametrize("beside", [{}, {"filename": "a.png"}, {"thumb": pico_image("pink", "blue")}])
@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ({"image": b"no image"}, "the image of row {} of the batch cannot be read"),
        ({"image": None}, r"the image of row {} of the batch cannot be read \(there is none\)"),
        ({"image": {"bytes": None, "path": "/no/such.png"}}, "the image of row {} of the batch cannot be read"),
        ({"caption": None}, "row {} of the batch has the text None"),
        ({"caption": []}, r"row {} of the batch has the text \[\]"),
        ({"caption": ""}, "row {} of the batch has the text ''"),
        ({"caption": [None, "a"]}, r"row {} of the batch has the text \[None, 'a'\]"),
        ({"caption": {"raw": "a"}}, r"row {} of the batch has the text {{'raw': 'a'}}"),
        ({"caption": 5}, "row {} of the batch has the text 5"),
        ({"caption": "\ud800"}, r"row {} of the batch has the text '\\ud800'"),
    ],
)
def test_collator_names_the_row_that_it_cannot_use_and_takes_no_other_column(
    processor, position, beside, fault, message
):
    rows = [GOOD | beside, GOOD | beside]
    rows[position] = rows[position] | fault
    with pytest.raises(LearngeneError, match=message.format(position)):
        ImageTextCollator(processor)(rows)


def test_a_batch_without_any_caption_takes_no_other_column(processor):
    with pytest.raises(LearngeneError, match="row 0 of the batch has the text None"):
        ImageTextCollator(processor)([{**GOOD, "caption": None, "filename": "a.png"}] * 2)
    with pytest.raises(LearngeneError, match=r"more than one possible \(blurb, filename\) text column"):
        ImageTextCollator(processor)([{"image": GOOD["image"], "blurb": None, "filename": "a.png"}])
    with pytest.raises(LearngeneError, match=r"the image of row 0 of the batch cannot be read"):
        ImageTextCollator(processor)([{**GOOD, "image": None, "thumb": GOOD["image"]}] * 2)


def test_collator_keeps_to_the_columns_of_its_first_batch(processor):
    collator = ImageTextCollator(processor)
    rows = [{"pic": GOOD["image"], "blurb": "a red square", "n": None}] * 2
    with pytest.raises(LearngeneError, match=r"more than one possible \(pic, n\) image column"):
        collator(rows)
    collator([{**row, "n": 1} for row in rows])
    assert collator(rows)["input_ids"].tolist() == collator([GOOD] * 2)["input_ids"].tolist()


def test_collator_takes_rows_whose_pictures_are_not_decoded_and_webdatasets_columns(processor):
    pairs = pico_pairs(3)
    expected = ImageTextCollator(processor)(list(pairs))
    rows = list(pairs.cast_column("image", Image(decode=False)))
    shard = [
        {"__key__": "0", "__url__": "a.tar", "json": {"n": 1}, "png": row["image"], "txt": row["caption"]}
        for row in rows
    ]
    for batch in (ImageTextCollator(processor)(rows), ImageTextCollator(processor)(shard)):
        assert torch.equal(batch["pixel_values"], expected["pixel_values"])
        assert torch.equal(batch["input_ids"], expected["input_ids"])


@pytest.mark.parametrize("kind", ["torch", "numpy"])
def test_collator_takes_formatted_rows(processor, kind):
    pairs = pico_pairs(3)
    expected = ImageTextCollator(processor)(list(pairs))
    batch = ImageTextCollator(processor)(list(pairs.with_format(kind)))
    assert torch.equal(batch["pixel_values"], expected["pixel_values"])
    assert torch.equal(batch["input_ids"], expected["input_ids"])
    captions = pairs.map(lambda row: {"caption": [row["caption"]]}).with_format(kind)
    assert torch.equal(ImageTextCollator(processor)(list(captions))["input_ids"], expected["input_ids"])


def test_photos_are_upright_in_a_batch(processor):
    file = photo()
    batch = ImageTextCollator(processor)(
        [{"image": image, "caption": "a"} for image in (file, PILImage.open(io.BytesIO(file)), open_image(file))]
    )
    upright = processor.image_processor(open_image(photo(1)), return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(batch["pixel_values"], upright.expand(3, -1, -1, -1), atol=0.1, rtol=0)


def test_texts_are_cut_to_the_positions_of_the_encoder(processor):
    tokenizer = pico_tokenizer()
    tokenizer.model_max_length = int(1e30)
    unlimited = SimpleNamespace(image_processor=processor.image_processor, tokenizer=tokenizer)
    rows = [{**GOOD, "caption": "a " * 50}]
    assert ImageTextCollator(unlimited)(rows)["input_ids"].shape == (1, 52)
    config = CLIPTextConfig(max_position_embeddings=7)
    ids = ImageTextCollator(unlimited, text_config=config)(rows)["input_ids"]
    assert ids.shape == (1, 7)
    assert ids[0, -1] == tokenizer.eos_token_id
    with pytest.raises(LearngeneError, match="up to 7 tokens, no multiple of pad_to_multiple_of=4"):
        ImageTextCollator(unlimited, pad_to_multiple_of=4, text_config=config)


def test_texts_of_an_encoder_that_reads_its_last_position_are_padded_to_one_length(processor):
    config = SiglipTextConfig(max_position_embeddings=9)
    collator = ImageTextCollator(processor, text_config=config)
    raw = collator([GOOD])
    pad = processor.tokenizer.pad_token_id
    assert raw["input_ids"].tolist() == [processor.tokenizer("a red square")["input_ids"] + [pad] * 4]
    assert "attention_mask" not in raw
    row = rows_of([GOOD["image"]], [GOOD["caption"]])
    for settings in ({}, {"text_config": config}):
        batch = collator(list(process_pairs(row, processor, **settings)))
        assert torch.equal(batch["input_ids"], raw["input_ids"])
        assert "attention_mask" not in batch


def test_processed_texts_are_padded_on_the_right_for_an_encoder_whatever_the_tokenizer_says(processor):
    tokenizer = pico_tokenizer()
    tokenizer.padding_side = "left"
    left = SimpleNamespace(image_processor=processor.image_processor, tokenizer=tokenizer)
    rows = list(process_pairs(rows_of([GOOD["image"]] * 2, ["red", "a red square"]), processor))
    batch = ImageTextCollator(left, text_config=CLIPTextConfig())(rows)
    assert batch["input_ids"][:, 0].tolist() == [tokenizer.bos_token_id] * 2
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1] * 5]


def test_processed_rows_that_make_no_batch_are_refused(processor):
    rows = list(process_pairs(pico_pairs(2), processor))
    with pytest.raises(LearngeneError, match="row 1 of the batch lacks pixel_values or input_ids"):
        ImageTextCollator(processor)([rows[0], {"pixel_values": rows[1]["pixel_values"]}])
    with pytest.raises(LearngeneError, match=r"row 1 of the batch has pixel_values \[3, 8, 8\], row 0 has"):
        ImageTextCollator(processor)([rows[0], rows[1] | {"pixel_values": torch.zeros(3, 8, 8)}])
    with pytest.raises(LearngeneError, match="has 10 input_ids and the text encoder takes 5"):
        ImageTextCollator(processor, text_config=CLIPTextConfig(max_position_embeddings=5))(rows)


def test_pictures_of_unequal_sizes_that_are_not_resized_are_refused():
    processor = pico_processor()
    processor.image_processor.do_resize = processor.image_processor.do_center_crop = False
    rows = [GOOD, {**GOOD, "image": pico_image("red", "blue", 8)}]
    with pytest.raises(LearngeneError, match="one batch of pictures of 8x8, 16x16 pixels .*do_resize=True"):
        ImageTextCollator(processor)(rows)
    assert ImageTextCollator(processor)(rows[1:])["pixel_values"].shape == (1, 3, 8, 8)


def test_collator_refuses_what_it_cannot_work_with(processor):
    with pytest.raises(LearngeneError, match="has no image_processor"):
        ImageTextCollator(processor.tokenizer)
    with pytest.raises(LearngeneError, match="max_length is 0"):
        ImageTextCollator(processor, max_length=0)
    with pytest.raises(LearngeneError, match="pad_to_multiple_of is 0"):
        ImageTextCollator(processor, pad_to_multiple_of=0)
    with pytest.raises(LearngeneError, match=r"up to 16 tokens, no multiple of pad_to_multiple_of=6: .* such as 12"):
        ImageTextCollator(processor, pad_to_multiple_of=6)
    for length in (2.5, True, "8"):
        with pytest.raises(LearngeneError, match=f"max_length is {length!r}: give a number of tokens"):
            ImageTextCollator(processor, max_length=length)
    with pytest.raises(LearngeneError, match="row 0 of the batch is a Table: give rows with columns"):
        ImageTextCollator(processor)(list(pico_pairs(1).with_format("arrow")))
    with pytest.raises(LearngeneError, match="at least one row"):
        ImageTextCollator(processor)([])
    with pytest.raises(LearngeneError, match="no text column"):
        ImageTextCollator(processor)([{"image": pico_image("red", "blue"), "n": 1}])
