"""Embed images and texts with a model, and measure it: zero-shot classification and image-text retrieval.

Everything runs without the network. Accuracies and recalls are fractions in [0, 1].
"""

from collections.abc import Sequence
from typing import Any

import torch
from datasets import ClassLabel, Dataset
from torch import Tensor
from torch.nn import functional as F
from tqdm.auto import tqdm

from .data import captions_of, find_columns, open_image, undecoded
from .errors import LearngeneError
from .metrics import (
    CHUNK,
    ImageTextRetrieval,
    ZeroShotClassification,
    as_matrix,
    check_range,
    classification_results,
    compute_retrieval,
    label_ranks,
    retrieval_results,
)

DEFAULT_TEMPLATES = ("a photo of a {}.",)
LABEL_COLUMN_NAMES = ("label", "labels", "class", "category")

__all__ = [
    "DEFAULT_TEMPLATES",
    "ImageTextRetrieval",
    "ZeroShotClassification",
    "class_embeddings",
    "compute_retrieval",
    "embed_images",
    "embed_texts",
    "evaluate_retrieval",
    "evaluate_zero_shot",
    "retrieval_results",
]


def embed_images(
    model: Any,
    images: Sequence[Any],
    processor: Any,
    *,
    batch_size: int = 64,
    device: str | torch.device | None = None,
    progress: bool = False,
) -> Tensor:
    """Return the normalised image embeddings [N, D], float32 on the CPU, in evaluation mode and without gradient.

    Args:
        model: a `CLIPModel` or another with `get_image_features`, or a `CLIPVisionModelWithProjection`.
        images: PIL images, bytes, paths or `datasets` image dictionaries; a column of a `Dataset` is read lazily.
        processor: a processor with an `image_processor`.
        batch_size: images in one forward pass.
        device: where to move the model first; None leaves it where it is.
        progress: show a progress bar.

    Raises:
        LearngeneError: if there are no images, one cannot be read, or the model embeds no images.
    """

    def forward(batch: list[Any]) -> Any:
        pixels = processor.image_processor(images=batch, return_tensors="pt")["pixel_values"]
        pixels = pixels.to(model.device, model.dtype)  # [b, 3, H, W]
        return model.get_image_features(pixels) if hasattr(model, "get_image_features") else model(pixels).image_embeds

    if not hasattr(model, "get_image_features") and not hasattr(model, "visual_projection"):
        raise LearngeneError(f"a {type(model).__name__} embeds no images: it has no get_image_features")
    return _embed(model, images, _read_image, forward, "images", batch_size, device, progress)


def embed_texts(
    model: Any,
    texts: Sequence[str],
    processor: Any,
    *,
    batch_size: int = 64,
    device: str | torch.device | None = None,
    progress: bool = False,
) -> Tensor:
    """Return the normalised text embeddings [N, D], float32 on the CPU, in evaluation mode and without gradient.

    Args:
        model: a `CLIPModel` or another with `get_text_features`, or a `CLIPTextModelWithProjection`.
        texts: strings; those longer than the tokenizer's limit are cut.
        processor: a processor with a `tokenizer`.
        batch_size: texts in one forward pass.
        device: where to move the model first; None leaves it where it is.
        progress: show a progress bar.

    Raises:
        LearngeneError: if there are no texts, one is no string, or the model embeds no texts.
    """

    def forward(batch: list[Any]) -> Any:
        tokens = processor.tokenizer(batch, padding=True, truncation=True, return_tensors="pt").to(model.device)
        return (
            model.get_text_features(**tokens) if hasattr(model, "get_text_features") else model(**tokens).text_embeds
        )

    if not hasattr(model, "get_text_features") and not hasattr(model, "text_projection"):
        raise LearngeneError(f"a {type(model).__name__} embeds no texts: it has no get_text_features")
    return _embed(model, texts, _read_text, forward, "texts", batch_size, device, progress)


def _embed(
    model: Any, items: Sequence[Any], read: Any, forward: Any, kind: str, batch_size: int, device: Any, progress: bool
) -> Tensor:
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise LearngeneError(f"batch_size is {batch_size!r}: give a whole number above 0")
    if len(items) == 0:
        raise LearngeneError(f"there are no {kind} to embed")
    if device is not None:
        model.to(device)
    was_training = model.training
    model.eval()
    embeds = []
    try:
        starts = range(0, len(items), batch_size)
        for start in tqdm(starts, desc=f"embedding {kind}", disable=not progress):
            batch = [read(items, index) for index in range(start, min(start + batch_size, len(items)))]
            with torch.no_grad():
                output = forward(batch)
            rows = getattr(output, "pooler_output", output)  # [b, D]; transformers 5 wraps the features
            embeds.append(F.normalize(rows.float(), dim=-1).cpu())
    finally:
        model.train(was_training)
    return as_matrix(torch.cat(embeds), f"embeddings of {kind}")


def _read_image(images: Sequence[Any], index: int) -> Any:
    try:
        return open_image(images[index])
    except OSError as error:
        raise LearngeneError(f"image {index} cannot be read ({error}): mend it or drop that row") from error


def _read_text(texts: Sequence[Any], index: int) -> str:
    if not isinstance(texts[index], str):
        raise LearngeneError(f"text {index} is {texts[index]!r}: give a string")
    return texts[index]


def class_embeddings(
    model: Any,
    class_names: Sequence[str],
    processor: Any,
    *,
    templates: Sequence[str] = DEFAULT_TEMPLATES,
    batch_size: int = 64,
    device: str | torch.device | None = None,
) -> Tensor:
    """Return one normalised embedding per class [C, D]: the mean of its prompts' normalised embeddings, renormalised.

    Args:
        class_names: a word or several for each class; underscores are read as spaces.
        templates: prompts with one `{}` where the class name goes.

    Raises:
        LearngeneError: if there are no classes, two have one name, or a template has no place for the name.
    """
    names = [name.replace("_", " ") for name in class_names]
    if len(names) < 2 or len(set(names)) < len(names):
        raise LearngeneError(f"zero-shot classification needs two or more distinct class names, got {names}")
    if isinstance(templates, str) or not templates or any(template.count("{}") != 1 for template in templates):
        raise LearngeneError(f'templates must be a list of texts with one "{{}}" each, got {templates!r}')
    prompts = [template.format(name) for name in names for template in templates]
    embeds = embed_texts(model, prompts, processor, batch_size=batch_size, device=device)
    return F.normalize(embeds.view(len(names), len(templates), -1).mean(dim=1), dim=-1)


def evaluate_zero_shot(
    model: Any,
    dataset: Dataset,
    processor: Any,
    *,
    class_names: Sequence[str] | None = None,
    label_column: str | None = None,
    image_column: str | None = None,
    templates: Sequence[str] = DEFAULT_TEMPLATES,
    batch_size: int = 64,
    device: str | torch.device | None = None,
    progress: bool = False,
) -> dict[str, float]:
    """Classify a dataset's images by the nearest class embedding (Radford et al., 2021, section 3.1).

    Args:
        model: a `CLIPModel`, a `LearngeneModel`, or another that embeds images and texts.
        dataset: an image column and a label column (`ClassLabel`, integers, or strings).
        processor: a `CLIPProcessor` or another with an `image_processor` and a `tokenizer`.
        class_names: the classes, in the order of integer labels; None takes those of the `ClassLabel`, or the sorted
            distinct strings of the column.
        label_column: None takes the only `ClassLabel` column, or one named label, labels, class or category.
        image_column: None finds it.
        templates: prompts with one `{}` each, averaged.
        batch_size: images, and prompts, in one forward pass.
        device: where to move the model first; None leaves it where it is.
        progress: show a progress bar over the images.

    Returns:
        What `ZeroShotClassification` does.

    Raises:
        LearngeneError: on missing columns or class names, labels outside them, no rows, or an unreadable image.
    """
    _check_dataset(dataset)
    label_column = _find_label_column(dataset, label_column)
    image_column, _ = find_columns(dataset, image_column, label_column)
    labels, class_names = _labels_and_names(dataset, label_column, class_names)
    classes = class_embeddings(
        model, class_names, processor, templates=templates, batch_size=batch_size, device=device
    )
    images = embed_images(
        model, undecoded(dataset)[image_column], processor, batch_size=batch_size, device=device, progress=progress
    )
    ranks = [
        label_ranks(chunk @ classes.T, labels_of_chunk)
        for chunk, labels_of_chunk in zip(images.split(CHUNK), labels.split(CHUNK), strict=True)
    ]
    return classification_results(torch.cat(ranks), labels, len(classes))


def _find_label_column(dataset: Dataset, label_column: str | None) -> str:
    have = ", ".join(map(repr, dataset.column_names))
    if label_column is not None:
        if label_column not in dataset.column_names:
            raise LearngeneError(f"the dataset has no label column {label_column!r}: its columns are {have}")
        return label_column
    candidates = [name for name, feature in dataset.features.items() if isinstance(feature, ClassLabel)]
    if len(candidates) != 1:
        candidates = [name for name in LABEL_COLUMN_NAMES if name in dataset.column_names][:1]
    if not candidates:
        raise LearngeneError(f"the dataset has no label column that stands out: name one of {have} with label_column")
    return candidates[0]


def _labels_and_names(
    dataset: Dataset, label_column: str, class_names: Sequence[str] | None
) -> tuple[Tensor, Sequence[str]]:
    values = list(dataset[label_column])
    feature = dataset.features[label_column]
    if any(isinstance(value, str) for value in values):
        names = sorted({value for value in values if value is not None}) if class_names is None else list(class_names)
        unknown = sorted({repr(value) for value in values} - {repr(name) for name in names})
        if unknown:
            raise LearngeneError(f"the column {label_column!r} holds {unknown[0]}, which is no class: {names}")
        return torch.tensor([names.index(value) for value in values]), names
    if class_names is None and not isinstance(feature, ClassLabel):
        raise LearngeneError(
            f"the column {label_column!r} holds {feature} and no names: give class_names in the order of the labels"
        )
    names = list(feature.names if class_names is None else class_names)
    if any(not isinstance(value, int) for value in values):
        raise LearngeneError(f"the column {label_column!r} holds {feature}: labels are integers or strings")
    labels = torch.tensor(values)
    check_range(labels, len(names), "label", "classes")
    return labels, names


def evaluate_retrieval(
    model: Any,
    dataset: Dataset,
    processor: Any,
    *,
    image_column: str | None = None,
    text_column: str | None = None,
    batch_size: int = 64,
    device: str | torch.device | None = None,
    progress: bool = False,
) -> dict[str, float]:
    """Retrieve each image's text among all texts of a dataset, and each text's image among all images.

    Args:
        model: a `CLIPModel`, a `LearngeneModel`, or another that embeds images and texts.
        dataset: an image column, and a text column of strings or of lists of strings (several captions per image).
        processor: a `CLIPProcessor` or another with an `image_processor` and a `tokenizer`.
        image_column: None finds it.
        text_column: None finds it.
        batch_size: images, and texts, in one forward pass.
        device: where to move the model first; None leaves it where it is.
        progress: show progress bars.

    Returns:
        What `retrieval_results` does.

    Raises:
        LearngeneError: on missing columns, no rows, a row without text, or an unreadable image.
    """
    _check_dataset(dataset)
    image_column, text_column = find_columns(dataset, image_column, text_column)
    texts: list[str] = []
    owners: list[int] = []
    for row, value in enumerate(dataset[text_column]):
        captions = captions_of(value, f"row {row}")
        texts += captions
        owners += [row] * len(captions)
    options: dict[str, Any] = {"batch_size": batch_size, "device": device, "progress": progress}
    text_embeds = embed_texts(model, texts, processor, **options)
    image_embeds = embed_images(model, undecoded(dataset)[image_column], processor, **options)
    return retrieval_results(image_embeds, text_embeds, owners)


def _check_dataset(dataset: Any) -> None:
    if not isinstance(dataset, Dataset):
        raise LearngeneError(
            f"evaluation takes a datasets.Dataset, not a {type(dataset).__name__}: pick one split, and no stream"
        )
    if len(dataset) == 0:
        raise LearngeneError("the dataset is empty (0 rows): there is nothing to measure")
