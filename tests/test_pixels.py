"""Pictures as 8-bit pixels until the device: the processor's own floats in the end, and nothing of them stored."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from datasets import Dataset, Features, Image, Value
from pico import pico_clip, pico_pairs, pico_processor
from pico_data import stored
from PIL import Image as PILImage
from torch.utils.data import DataLoader
from transformers import CLIPImageProcessorPil, TrainingArguments, ViTImageProcessorPil

from mmlg_hf import ContrastiveTrainer, ExtractionArguments, ImageTextCollator, extract_learngene
from mmlg_hf.data import PictureRows, Pixels, open_image, process_images, process_pairs, read_rows
from mmlg_hf.errors import LearngeneError
from mmlg_hf.extraction.extracting import _Batches
from mmlg_hf.extraction.outputs import cache_ancestor_outputs
from mmlg_hf.extraction.trainer import AncestorCollator

# Those with "Pil" in their names, and, where torchvision is installed, the fast ones.
PROCESSORS = [f"{kind}ImageProcessor{backend}" for kind in ("CLIP", "Siglip", "ViT") for backend in ("Pil", "")]


def pictures():
    """Pictures of all modes and of odd sizes, one of them lying on its side."""
    generator = np.random.default_rng(1)
    noise = PILImage.fromarray(generator.integers(0, 256, (311, 457, 3), dtype=np.uint8))
    found = [noise.convert(mode) for mode in ("RGB", "L", "RGBA", "P", "CMYK", "1", "LA", "YCbCr", "HSV")]
    found.append(PILImage.fromarray(generator.integers(0, 65536, (90, 333), dtype=np.uint16)))
    found.append(PILImage.fromarray(generator.random((250, 100), dtype=np.float32)))
    found.append(PILImage.new("RGB", (9, 70), (255, 0, 3)))
    turned = noise.copy()
    turned.getexif()[0x0112] = 6
    return [open_image(picture) for picture in [*found, turned]]


@pytest.mark.parametrize("name", PROCESSORS)
def test_bytes_finished_by_the_table_are_the_stock_processors_floats(name):
    processor = getattr(transformers, name)()
    pixels, images = Pixels(processor), pictures()
    read = pixels.read(images)
    assert read.dtype == torch.uint8
    expected = processor(images=images, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(pixels.finish(read), expected, rtol=0, atol=1e-6)
    assert pixels.finish(read).dtype == torch.float32


@pytest.mark.parametrize(
    "settings",
    [
        {"do_normalize": False},
        {"image_mean": [0.1, 0.5, 0.9], "image_std": [1.0, 0.2, 0.5]},
        {"rescale_factor": 1 / 127.5},
        {"do_center_crop": False, "size": {"height": 20, "width": 30}},
        {"do_resize": False, "crop_size": {"height": 40, "width": 40}},
    ],
    ids=str,
)
def test_other_settings_of_a_processor_are_followed(settings):
    processor = CLIPImageProcessorPil(**settings)
    pixels, images = Pixels(processor), pictures()[:1]
    read = pixels.read(images)
    assert read.dtype == torch.uint8
    expected = processor(images=images, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(pixels.finish(read), expected.float(), rtol=0, atol=1e-6)


def test_settings_that_change_make_another_table():
    processor = ViTImageProcessorPil()
    pixels, images = Pixels(processor), pictures()[:2]
    pixels.read(images)
    processor.image_mean = [0.2, 0.3, 0.4]
    expected = processor(images=images, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(pixels.finish(pixels.read(images)), expected, rtol=0, atol=1e-6)


class OfEachPicture(CLIPImageProcessorPil):
    """One whose floats depend on the whole picture."""

    def __call__(self, images, **kwargs):
        made = super().__call__(images=images, **kwargs)
        made["pixel_values"] = made["pixel_values"] - made["pixel_values"].float().mean(dim=(1, 2, 3), keepdim=True)
        return made


class OfNoKeywords(ViTImageProcessorPil):
    """One that takes none of the stock keywords."""

    def __call__(self, images, return_tensors):
        return super().__call__(images=images, return_tensors=return_tensors)


@pytest.mark.parametrize("kind", [OfEachPicture, OfNoKeywords])
def test_a_processor_that_is_no_table_gives_its_floats_at_once(kind):
    processor, images = kind(), pictures()[:2]
    pixels = Pixels(processor)
    assert pixels.table is None
    read = pixels.read(images)
    assert torch.equal(read, processor(images=images, return_tensors="pt")["pixel_values"])
    assert pixels.finish(read) is read


def test_a_deferred_collator_gives_bytes_and_finishes_them_to_what_the_plain_one_gives():
    plain, rows = ImageTextCollator(pico_processor()), list(pico_pairs(4))
    deferred = plain.deferred()
    batch, expected = deferred(rows), plain(rows)
    assert batch["pixel_values"].dtype == torch.uint8
    assert plain(rows)["pixel_values"].dtype == torch.float32
    done = deferred.finish(batch)
    assert done.keys() == expected.keys()
    torch.testing.assert_close(done["pixel_values"], expected["pixel_values"], rtol=0, atol=1e-6)
    assert torch.equal(done["input_ids"], expected["input_ids"])


def test_a_collator_takes_rows_of_bytes():
    processor, pairs = pico_processor(), pico_pairs(4)
    rows = read_rows(pairs, processor)
    assert rows[0]["pixel_values"].dtype == torch.uint8
    done = ImageTextCollator(processor)([rows[index] for index in range(4)])
    expected = ImageTextCollator(processor)(list(process_pairs(pairs, processor)))
    torch.testing.assert_close(done["pixel_values"], expected["pixel_values"], rtol=0, atol=1e-6)
    assert torch.equal(done["input_ids"], expected["input_ids"])


class Seeing(torch.nn.Module):
    """Keep what reaches a CLIP."""

    def __init__(self, model):
        super().__init__()
        self.model, self.config, self.logit_scale, self.seen = model, model.config, model.logit_scale, []

    def forward(self, **inputs):
        self.seen.append(inputs)
        return self.model(**inputs)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_trainer_gets_bytes_from_its_workers_and_gives_the_model_floats(tmp_path, workers):
    settings = {"max_steps": 2, "per_device_train_batch_size": 4, "report_to": [], "disable_tqdm": True}
    args = TrainingArguments(tmp_path, use_cpu=True, dataloader_num_workers=workers, save_strategy="no", **settings)
    model, pairs, processor = Seeing(pico_clip()), pico_pairs(8), pico_processor()
    trainer = ContrastiveTrainer(model, args, train_dataset=pairs, eval_dataset=pairs, processing_class=processor)
    assert next(iter(trainer.get_train_dataloader()))["pixel_values"].dtype == torch.uint8
    trainer.train()
    trainer.evaluate()
    assert {inputs["pixel_values"].dtype for inputs in model.seen} == {torch.float32}
    expected = ImageTextCollator(processor)(list(pairs))["pixel_values"]
    seen = torch.cat([inputs["pixel_values"] for inputs in model.seen[:2]])
    found = {tuple(row.flatten().tolist()) for row in seen}
    assert found == {tuple(row.flatten().tolist()) for row in expected}


def test_rows_are_what_process_pairs_makes_and_name_the_row_that_cannot_be_read():
    processor = pico_processor()
    features = Features({"image": Image(), "caption": Value("string")})
    pictures = [stored(), stored(), {"bytes": b"no picture", "path": None}, stored()]
    rows = Dataset.from_dict({"image": pictures, "caption": ["red", "a pink square", "blue", "a"]}, features=features)
    read = read_rows(rows.select([0, 1, 3]), processor)
    made = process_pairs(rows.select([0, 1, 3]), processor)
    assert isinstance(read, PictureRows)
    for mine, other in zip(read, made, strict=True):
        torch.testing.assert_close(read.pixels.finish(mine["pixel_values"][None])[0], other["pixel_values"])
        assert torch.equal(mine["input_ids"], other["input_ids"])
    with pytest.raises(LearngeneError, match="the image of row 2 cannot be read"):
        list(read_rows(rows, processor))
    kept = read_rows(rows, processor, on_bad_image="skip")
    assert [row["input_ids"].tolist() for row in kept] == [row["input_ids"].tolist() for row in read]
    with pytest.raises(LearngeneError, match="on_bad_image is 'ignore'"):
        read_rows(rows, processor, on_bad_image="ignore")


def test_rows_of_pictures_alone_and_of_a_stream_are_alike():
    processor, pairs = pico_processor(), pico_pairs(3)
    images = read_rows(pairs, processor.image_processor, of_pairs=False)
    expected = process_images(pairs, processor.image_processor)
    stream = list(read_rows(pairs.to_iterable_dataset(), processor))
    for row, streamed, other in zip(images, stream, expected, strict=True):
        assert set(row) == {"pixel_values"}
        torch.testing.assert_close(images.pixels.finish(row["pixel_values"][None])[0], other["pixel_values"])
        assert np.array_equal(np.asarray(streamed["pixel_values"], dtype=np.uint8), row["pixel_values"])


def test_rows_of_a_transform_are_read_as_it_makes_them():
    pairs = pico_pairs(3)
    grey = pairs.with_transform(
        lambda rows: {"image": [image.convert("L") for image in rows["image"]], "words": rows["caption"]}
    )
    read, made = read_rows(grey, pico_processor()), process_pairs(grey, pico_processor())
    for mine, other in zip(read, made, strict=True):
        torch.testing.assert_close(read.pixels.finish(mine["pixel_values"][None])[0], other["pixel_values"])
        assert torch.equal(mine["input_ids"], other["input_ids"])
    assert read.fingerprint() != read_rows(pairs, pico_processor()).fingerprint()


def test_rows_are_known_by_their_content():
    pairs, processor = pico_pairs(4), pico_processor()
    key = read_rows(pairs, processor).fingerprint()
    assert read_rows(pico_pairs(4), processor).fingerprint() == key
    assert read_rows(pairs.select([1, 0, 2, 3]), processor).fingerprint() != key
    assert read_rows(pairs.select([0, 1, 2]), processor).fingerprint() != key
    assert pickle.loads(pickle.dumps(read_rows(pairs, processor))).fingerprint() == key


def kept(folder, shard=4, rows=10, **settings):
    processor = pico_processor()
    pairs = read_rows(pico_pairs(rows), processor)
    collator = AncestorCollator(ImageTextCollator(processor).deferred())
    ancestor = pico_clip().eval()
    return cache_ancestor_outputs(ancestor, pairs, collator, processor, folder, batch_size=3, shard=shard, **settings)


def test_outputs_are_kept_in_shards_and_a_pass_that_was_cut_off_is_gone_on_with(tmp_path):
    rows = kept(tmp_path)
    assert [file.name for file in rows.files] == ["000000.safetensors", "000001.safetensors", "000002.safetensors"]
    before = [row["ancestor_image_embeds"].clone() for row in rows]  # they are views of the files
    stamps = [file.stat().st_mtime_ns for file in rows.files]
    rows.files[1].unlink()
    rows.files[2].write_bytes(rows.files[2].read_bytes()[:100])
    again = kept(tmp_path, num_workers=1)
    now = [file.stat().st_mtime_ns for file in again.files]
    assert [old == new for old, new in zip(stamps, now, strict=True)] == [True, False, False]
    assert torch.equal(torch.stack(before), torch.stack([row["ancestor_image_embeds"] for row in again]))
    batch = again.__getitems__([7, 0])
    assert torch.equal(batch[0]["ancestor_image_embeds"], before[7])
    assert torch.equal(batch[1]["ancestor_image_embeds"], before[0])


def extract(folder, **changes):
    settings = {"max_steps": 2, "per_device_train_batch_size": 8, "report_to": "none", "disable_tqdm": True}
    args = ExtractionArguments(str(folder), use_cpu=True, save_strategy="no", **settings, **changes)
    return extract_learngene(pico_clip(), pico_pairs(16), args, processor=pico_processor()).state_dict()


def test_the_batches_that_channels_are_turned_on_are_floats_of_one_batch_at_a_time():
    processor = pico_processor()
    rows = list(read_rows(pico_pairs(5), processor))
    batches = _Batches(rows, AncestorCollator(ImageTextCollator(processor).deferred()), size=2)
    assert len(batches) == len(list(batches)) == 3
    expected = ImageTextCollator(processor)(list(pico_pairs(5)))["pixel_values"]
    for _ in range(2):
        torch.testing.assert_close(torch.cat([batch["pixel_values"] for batch in batches]), expected)
    assert {row["pixel_values"].dtype for row in rows} == {torch.uint8}


@pytest.mark.slow
def test_workers_change_nothing_of_a_gene(tmp_path):
    alone, read = extract(tmp_path / "alone"), extract(tmp_path / "workers", dataloader_num_workers=2)
    assert all(torch.equal(read[name], weight) for name, weight in alone.items())


PHOTOS = 2000


def memory(folder):
    """Read 2,000 photos as an extraction does, and print how far the process grew after the first 400, in MiB."""
    import psutil

    generator = np.random.default_rng(0)
    files = [str(Path(folder, f"{row}.jpg")) for row in range(PHOTOS)]
    base = PILImage.fromarray(generator.integers(0, 256, (14, 14, 3), dtype=np.uint8))
    for row, file in enumerate(files):
        base.rotate(row).resize((224, 224)).save(file, quality=80)
    rows = Dataset.from_dict({"image": files, "caption": ["a red square"] * PHOTOS}).cast_column("image", Image())
    processor = pico_processor(224)
    collator = AncestorCollator(ImageTextCollator(processor).deferred())
    read, process = read_rows(rows, processor), psutil.Process()
    first = None
    for number, batch in enumerate(DataLoader(read, batch_size=50, collate_fn=collator)):
        assert batch["pixel_values"].shape == (50, 3, 224, 224)
        assert collator.finish(batch)["pixel_values"].dtype == torch.float32
        first = process.memory_info().rss if number == 7 else first
    print((process.memory_info().rss - first) / 2**20)


@pytest.mark.slow
def test_memory_and_disk_stay_flat_over_two_thousand_photos(tmp_path):
    (tmp_path / "photos").mkdir()
    cache = tmp_path / "cache"
    environment = {**os.environ, "HF_DATASETS_CACHE": str(cache), "TMPDIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent.parent), str(Path(__file__).parent)])
    done = subprocess.run(
        [sys.executable, __file__, str(tmp_path / "photos")], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    # All of them take 1,148 MiB as floats, and 287 MiB as bytes.
    assert float(done.stdout.split()[-1]) < 60
    elsewhere = [path for path in tmp_path.rglob("*") if path.is_file() and path.parent.name != "photos"]
    assert sum(path.stat().st_size for path in elsewhere) < 2**20


if __name__ == "__main__":
    memory(sys.argv[1])
