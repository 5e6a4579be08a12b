"""What all evaluations share: rows that cannot be read, formats, models in any state, on any device, of any dtype."""

import io
import struct
import zlib

import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value
from pico import COLORS, pico_clip, pico_image, pico_pairs, pico_processor
from pico_genes import multimodal_gene
from PIL import Image as PILImage
from transformers import CLIPModel, pipeline

from mmlg_hf import LearngeneError
from mmlg_hf.evaluation import embed_images, embed_texts, evaluate_retrieval, evaluate_zero_shot
from mmlg_hf.evaluation.classification import evaluate_classification

NAMES = list(COLORS)


def classifier(modality="image"):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return multimodal_gene().descendant(1, 16, modality, id2label=dict(enumerate(NAMES)))


def evaluations():
    """Each evaluation of a dataset, with a model of its own."""
    processor, clip = pico_processor(), pico_clip()
    images, texts = classifier(), classifier("text")
    return {
        "retrieval": (clip, lambda rows, **kw: evaluate_retrieval(clip, rows, processor, **kw)),
        "zero-shot": (clip, lambda rows, **kw: evaluate_zero_shot(clip, rows, processor, **kw)),
        "images": (images, lambda rows, **kw: evaluate_classification(images, rows, processor, **kw)),
        "texts": (texts, lambda rows, **kw: evaluate_classification(texts, rows, processor, **kw)),
    }


OF_IMAGES = ("retrieval", "zero-shot", "images")
ALL = (*OF_IMAGES, "texts")


def png() -> bytes:
    buffer = io.BytesIO()
    pico_image("red", "blue").save(buffer, "PNG")
    return buffer.getvalue()


def bomb() -> bytes:
    """A small PNG file that says it has 3.6 billion pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"0")) + chunk(b"IEND", b"")


# --- rows ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content", [png()[:60], b"", b"no image", bomb(), None], ids=["cut", "empty", "text", "bomb", "none"]
)
@pytest.mark.parametrize("which", OF_IMAGES)
def test_an_image_that_cannot_be_read_is_named_by_its_row(which, content):
    images = [{"bytes": png(), "path": None}] * 3
    images.append(None if content is None else {"bytes": content, "path": None})
    rows = Dataset.from_dict(
        {"image": images, "caption": ["a red", "a", "blue", "of"], "label": [0, 1, 2, 3]},
        features=Features({"image": Image(), "caption": Value("string"), "label": ClassLabel(names=NAMES)}),
    )
    with pytest.raises(LearngeneError, match=r"^image 3 cannot be read \(.+\): mend it or drop that row$"):
        evaluations()[which][1](rows, batch_size=2)


@pytest.mark.parametrize("which", ALL)
def test_the_format_of_the_rows_changes_nothing(which):
    rows, (_, evaluate) = pico_pairs(12, labels=True), evaluations()[which]
    expected = evaluate(rows)
    for name in ("torch", "numpy", "arrow", "pandas"):
        assert evaluate(rows.with_format(name)) == expected
    assert evaluate(rows.with_transform(lambda batch: {"nothing": [0] * len(batch["image"])})) == expected


@pytest.mark.parametrize("which", ALL)
def test_what_is_no_dataset_of_rows_is_refused(which):
    rows, (_, evaluate) = pico_pairs(2, labels=True), evaluations()[which]
    for other in (DatasetDict(test=rows), rows.to_iterable_dataset(), [rows[0]], None, "name"):
        with pytest.raises(LearngeneError, match=f"not a {type(other).__name__}: pick one split, and no stream"):
            evaluate(other)
    with pytest.raises(LearngeneError, match=r"the dataset is empty \(0 rows\)"):
        evaluate(rows.select([]))
    with pytest.raises(LearngeneError, match="batch_size is 0"):
        evaluate(rows, batch_size=0)


@pytest.mark.parametrize(
    ("captions", "value"),
    [
        ([{"raw": "a red", "imgid": 3}], r"\{'raw': 'a red', 'imgid': 3\}"),
        ([None], "None"),
        ([["a", None]], r"\['a', None\]"),
        ([[]], r"\[\]"),
        ([7], "7"),
    ],
)
def test_captions_that_are_no_texts_are_refused_with_their_row(captions, value):
    good = {dict: {"raw": "a", "imgid": 1}, list: ["a"], int: 1}.get(type(captions[0]), "a")
    rows = Dataset.from_dict({"image": [pico_image("red", "blue")] * 2, "caption": [good, *captions]})
    row = 1 if isinstance(good, (str, list)) else 0
    shown = value if row else r"(\{'raw': 'a', 'imgid': 1\}|1)"
    with pytest.raises(LearngeneError, match=f"row {row} .*text.* {shown}"):
        evaluate_retrieval(pico_clip(), rows.cast_column("image", Image()), pico_processor(), text_column="caption")
    with pytest.raises(LearngeneError, match="text 1 is .*: give a string"):
        embed_texts(pico_clip(), ["a", *captions], pico_processor())


def test_a_text_that_is_none_is_refused_by_the_text_classifier():
    rows = Dataset.from_dict({"text": ["a red", None], "label": ["red", "red"]})
    with pytest.raises(LearngeneError, match="text 1 is None: give a string"):
        evaluate_classification(classifier("text"), rows, pico_processor())


def test_a_single_item_in_place_of_a_list_is_refused_and_a_generator_is_read():
    model, processor = pico_clip(), pico_processor()
    with pytest.raises(LearngeneError, match="the texts are one str: give a list"):
        embed_texts(model, "a red square", processor)
    with pytest.raises(LearngeneError, match="the images are one Image: give a list"):
        embed_images(model, pico_image("red", "blue"), processor)
    texts = ["a red", "pink"]
    assert torch.equal(embed_texts(model, iter(texts), processor), embed_texts(model, texts, processor))


def test_pictures_of_the_right_size_need_no_resizing_and_others_are_refused():
    model, rows, processor = pico_clip(), pico_pairs(4), pico_processor()
    expected = embed_images(model, rows["image"], processor)
    processor.image_processor.do_resize = processor.image_processor.do_center_crop = False
    assert torch.equal(embed_images(model, rows["image"], processor), expected)
    small = [pico_image("red", "blue"), pico_image("red", "blue", 20)]
    with pytest.raises(LearngeneError, match=r"do_resize is False\) makes no batch of images 0 to 1, .* 16x16, 20x20"):
        embed_images(model, small, processor)
    with pytest.raises(LearngeneError, match=r"images 0 to 0 cannot be embedded by this model: Input image size"):
        embed_images(model, small[1:], processor)
    rows = Dataset.from_dict({"image": small, "label": ["red", "red"]}).cast_column("image", Image())
    with pytest.raises(LearngeneError, match="makes no batch of images 0 to 1"):
        evaluate_classification(classifier(), rows, processor)
    with pytest.raises(LearngeneError, match="makes no batch of images 0 to 0, which are of 0x4 pixels"):
        embed_images(model, [PILImage.new("RGB", (0, 4))], pico_processor())


def test_a_processor_that_lacks_a_part_is_refused_and_the_part_alone_will_do():
    model, rows, processor = pico_clip(), pico_pairs(4), pico_processor()
    for wrong, kind in ((None, "NoneType"), (processor.image_processor, "CLIPImageProcessor")):
        with pytest.raises(LearngeneError, match=f"is a {kind}.*, without tokenizer"):
            embed_texts(model, ["a"], wrong)
    with pytest.raises(LearngeneError, match="without image_processor"):
        evaluate_retrieval(model, rows, processor.tokenizer)
    expected = embed_texts(model, ["a"], processor)
    assert torch.equal(embed_texts(model, ["a"], processor.tokenizer), expected)


# --- models ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ALL)
def test_a_model_is_left_as_it_was_found_also_where_measuring_fails(which):
    rows, (model, evaluate) = pico_pairs(4, labels=True), evaluations()[which]
    model.train()
    frozen = next(module for module in model.modules() if isinstance(module, torch.nn.LayerNorm)).eval()
    modes = [module.training for module in model.modules()]
    evaluate(rows, device="cpu")
    lost = "caption" if which == "texts" else "image"
    broken = rows.to_list()
    broken[3][lost] = None
    with pytest.raises(LearngeneError, match="3"):
        evaluate(Dataset.from_list(broken, features=rows.features), batch_size=1)
    with pytest.raises(LearngeneError, match="the device is 'gpu': "):
        evaluate(rows, device="gpu")
    assert [module.training for module in model.modules()] == modes
    assert not frozen.training
    assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_model_is_moved_to_the_device_and_back(monkeypatch):
    model, rows, places, ranked = pico_clip(), pico_pairs(2), [], []
    stock, stock_tensor = CLIPModel.to, torch.Tensor.to

    def to(tensor, *args, **kwargs):
        if args and str(args[0]) == "cuda":  # which is not there
            ranked.append(list(tensor.shape))
            return tensor
        return stock_tensor(tensor, *args, **kwargs)

    monkeypatch.setattr(CLIPModel, "to", lambda self, device: places.append(str(device)) or stock(self, "cpu"))
    monkeypatch.setattr(torch.Tensor, "to", to)
    evaluate_retrieval(model, rows, pico_processor(), device="cuda")
    assert places == ["cuda", "cpu"] * 2  # for the texts and for the images
    assert ranked == [[2, 16]]  # the embeddings of the images, and by them all that is compared with them
    places.clear()
    evaluate_retrieval(model, rows, pico_processor(), device="cpu")
    assert (places, len(ranked)) == ([], 1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("which", ALL)
def test_models_in_half_precision_are_measured(which, dtype):
    rows, (model, evaluate) = pico_pairs(16, labels=True), evaluations()[which]
    expected = evaluate(rows)
    model.to(dtype)
    found = evaluate(rows)
    assert found.keys() == expected.keys()
    assert all(found[name] == pytest.approx(value, abs=2.5 / 16) for name, value in expected.items() if "R@" in name)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}


def test_a_model_whose_weights_accelerate_keeps_on_disk_is_measured(tmp_path):
    from accelerate import disk_offload

    rows, processor = pico_pairs(8, labels=True), pico_processor()
    pico_clip().save_pretrained(tmp_path)
    expected = evaluate_retrieval(pico_clip(), rows, processor), evaluate_zero_shot(pico_clip(), rows, processor)
    parts = dict.fromkeys(
        ("vision_model", "visual_projection", "text_projection", "logit_scale"), "cpu"
    )  # all but one
    mapped = CLIPModel.from_pretrained(
        tmp_path, device_map={**parts, "text_model": "disk"}, offload_folder=tmp_path / "offloaded"
    )
    offloaded = pico_clip()
    disk_offload(offloaded, tmp_path / "all", execution_device=torch.device("cpu"))
    assert offloaded.device.type == "meta"
    for model in (mapped, offloaded, CLIPModel.from_pretrained(tmp_path, device_map={"": "cpu"})):
        found = evaluate_retrieval(model, rows, processor), evaluate_zero_shot(model, rows, processor)
        assert found == expected
    with pytest.raises(LearngeneError, match="the CLIPModel cannot be moved to the device 'meta': "):
        evaluate_retrieval(mapped, rows, processor, device="meta")


def test_transformers_zero_shot_pipeline_takes_a_genes_folder(tmp_path):
    gene, image, labels = multimodal_gene(), pico_image("red", "blue"), ["red", "green", "blue"]
    gene.processor = pico_processor()
    gene.save_pretrained(tmp_path)
    found = pipeline("zero-shot-image-classification", model=str(tmp_path))(image, candidate_labels=labels)
    texts = [f"This is a photo of {label}." for label in labels]
    inputs = gene.processor(images=[image], text=texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = gene(**inputs).logits_per_image.softmax(dim=-1)[0]
    scores = {row["label"]: row["score"] for row in found}
    assert [scores[label] for label in labels] == pytest.approx(expected.tolist(), abs=1e-5)
