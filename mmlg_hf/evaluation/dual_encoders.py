"""Embed images and texts with a model, and measure it: zero-shot classification and image-text retrieval.

Everything runs without the network. Accuracies and recalls are fractions in [0, 1].
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from datasets import ClassLabel, Dataset
from torch import Tensor
from torch.nn import functional as F
from tqdm.auto import tqdm

from ..data import captions_of, find_columns
from ..data.texts import encode_texts, text_config_of
from ..errors import LearngeneError
from .labels import LABEL_COLUMN_NAMES, class_list, class_numbers, find_label_column
from .measuring import (
    as_items,
    check_batch_size,
    device_of,
    explained,
    image_inputs,
    image_values,
    measured_rows,
    measuring,
    part_of,
    read_image,
    read_text,
    to_model,
    tokenizer_for,
)
from .metrics import (
    CHUNK,
    ClassificationAccuracy,
    ImageTextRetrieval,
    as_matrix,
    classification_results,
    compute_retrieval,
    label_ranks,
    retrieval_results,
)

Template: TypeAlias = str | Callable[[str], str]

DEFAULT_TEMPLATES = ("a photo of a {}.",)

__all__ = [
    "DEFAULT_TEMPLATES",
    "LABEL_COLUMN_NAMES",
    "ClassificationAccuracy",
    "ImageTextRetrieval",
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

    if not hasattr(model, "get_image_features") and not hasattr(model, "visual_projection"):
        raise LearngeneError(f"a {type(model).__name__} embeds no images: it has no get_image_features")
    image_processor = part_of(processor, "image_processor")

    def forward(batch: list[Any], first: int) -> Any:
        inputs = to_model(image_inputs(image_processor, batch, first), model)
        return model.get_image_features(**inputs) if hasattr(model, "get_image_features") else model(**inputs)

    return _embed(model, images, read_image, forward, "images", batch_size, device, progress)


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

    if not hasattr(model, "get_text_features") and not hasattr(model, "text_projection"):
        raise LearngeneError(f"a {type(model).__name__} embeds no texts: it has no get_text_features")
    tokenizer, text_config = tokenizer_for(model, processor), text_config_of(model)

    def forward(batch: list[Any], first: int) -> Any:
        tokens = to_model(encode_texts(tokenizer, batch, text_config), model)
        return model.get_text_features(**tokens) if hasattr(model, "get_text_features") else model(**tokens)

    return _embed(model, texts, read_text, forward, "texts", batch_size, device, progress)


def _embed(
    model: Any, items: Sequence[Any], read: Any, forward: Any, kind: str, batch_size: int, device: Any, progress: bool
) -> Tensor:
    check_batch_size(batch_size)
    items = as_items(items, kind)
    embeds = []
    with measuring(model, device):
        for start in tqdm(range(0, len(items), batch_size), desc=f"embedding {kind}", disable=not progress):
            batch = [read(items, index) for index in range(start, min(start + batch_size, len(items)))]
            with explained(f"{kind} {start} to {start + len(batch) - 1} cannot be embedded by this model"):
                rows = _features(forward(batch, start))  # [b, D]
            embeds.append(F.normalize(rows.float(), dim=-1).cpu())
    return as_matrix(torch.cat(embeds), f"embeddings of {kind}")


def _features(output: Any) -> Tensor:
    """The embeddings in a model's output; transformers 5 wraps those of `get_image_features`."""
    found = (getattr(output, name, None) for name in ("image_embeds", "text_embeds", "pooler_output"))
    return next((tensor for tensor in found if tensor is not None), output)


def class_embeddings(
    model: Any,
    class_names: Sequence[str],
    processor: Any,
    *,
    templates: Sequence[Template] = DEFAULT_TEMPLATES,
    batch_size: int = 64,
    device: str | torch.device | None = None,
) -> Tensor:
    """Return one normalised embedding per class [C, D]: the mean of its prompts' normalised embeddings, renormalised.

    Args:
        class_names: a word or several for each class; underscores are read as spaces.
        templates: prompts with one `{}` where the class name goes, or functions of the name, as open_clip has them.

    Raises:
        LearngeneError: if there are no classes, two have one name, or a template has no place for the name.
    """
    names = [name.replace("_", " ") for name in class_list(class_names, "class_names")]
    if len(names) < 2 or len(set(names)) < len(names):
        raise LearngeneError(f"zero-shot classification needs two or more distinct class names, got {names}")
    if isinstance(templates, str) or callable(templates) or not templates:
        raise LearngeneError(
            f'templates must be a list of texts with one "{{}}" each, or of functions of the name, got {templates!r}'
        )
    templates = list(templates)
    prompts = [_prompt(template, name) for name in names for template in templates]
    embeds = embed_texts(model, prompts, processor, batch_size=batch_size, device=device)
    return F.normalize(embeds.view(len(names), len(templates), -1).mean(dim=1), dim=-1)


def _prompt(template: Any, name: str) -> str:
    if isinstance(template, str) and template.count("{}") == 1:
        return template.replace("{}", name)  # and not `format`, to which other braces have a meaning
    if not callable(template):
        raise LearngeneError(f'the template {template!r} has no place for the name: give texts with one "{{}}" each')
    prompt = template(name)
    if not isinstance(prompt, str):
        raise LearngeneError(f"the template {template!r} makes {prompt!r} of {name!r}: it must make a text")
    return prompt


def evaluate_zero_shot(
    model: Any,
    dataset: Dataset,
    processor: Any,
    *,
    class_names: Sequence[str] | None = None,
    label_column: str | None = None,
    image_column: str | None = None,
    templates: Sequence[Template] = DEFAULT_TEMPLATES,
    batch_size: int = 64,
    device: str | torch.device | None = None,
    progress: bool = False,
) -> dict[str, float]:
    """Classify a dataset's images by the nearest class embedding (Radford et al., 2021, section 3.1).

    Args:
        model: a `CLIPModel`, a `LearngeneModel`, or another that embeds images and texts.
        dataset: an image column and a label column (`ClassLabel`, integers, or strings).
        processor: a `CLIPProcessor` or another with an `image_processor` and a `tokenizer`.
        class_names: the classes, in the order of integer labels, or a mapping of these to names; None takes those of
            the `ClassLabel`, or the sorted distinct strings of the column. The `ClassLabel`'s own names in another
            order are matched by name.
        label_column: None takes the only `ClassLabel` column, or one named label, labels, class or category.
        image_column: None finds it.
        templates: prompts with one `{}` each, or functions of the class name, averaged.
        batch_size: images, and prompts, in one forward pass.
        device: where to move the model first; None leaves it where it is.
        progress: show a progress bar over the images.

    Returns:
        What `ClassificationAccuracy` does.

    Raises:
        LearngeneError: on missing columns or class names, a row that is not labelled or whose label is none of them,
            no rows, an unreadable image, or another model's tokenizer.
    """
    dataset = measured_rows(dataset)
    label_column = find_label_column(dataset, label_column)
    image_column, _ = find_columns(dataset, image_column, label_column)
    labels, class_names = _labels_and_names(dataset, label_column, class_names)
    classes = class_embeddings(
        model, class_names, processor, templates=templates, batch_size=batch_size, device=device
    )
    images = embed_images(
        model, image_values(dataset, image_column), processor, batch_size=batch_size, device=device, progress=progress
    )
    ranks = [
        label_ranks(chunk @ classes.T, labels_of_chunk)
        for chunk, labels_of_chunk in zip(images.split(CHUNK), labels.split(CHUNK), strict=True)
    ]
    return classification_results(torch.cat(ranks), labels, len(classes))


def _labels_and_names(dataset: Dataset, label_column: str, class_names: Any) -> tuple[Tensor, list[str]]:
    """Return the rows' classes [N] and the classes' names."""
    values, feature = list(dataset[label_column]), dataset.features[label_column]
    names = None if class_names is None else class_list(class_names, "class_names")
    if isinstance(feature, ClassLabel):
        own = class_numbers(values, feature.names)
        if names is None:
            return own, feature.names
        if set(names) == set(feature.names):
            values = [feature.names[value] for value in own.tolist()]
    elif names is None:
        if not any(isinstance(value, str) for value in values):
            raise LearngeneError(
                f"the column {label_column!r} holds {feature} and no names: give class_names in the order of the "
                "labels"
            )
        names = sorted({value for value in values if isinstance(value, str)})
    return class_numbers(values, names), names


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
        LearngeneError: on missing columns, no rows, a row without text, an unreadable image, or another model's
            tokenizer.
    """
    dataset = measured_rows(dataset)
    image_column, text_column = find_columns(dataset, image_column, text_column)
    texts: list[str] = []
    owners: list[int] = []
    for row, value in enumerate(dataset[text_column]):
        captions = captions_of(value, f"row {row}")
        texts += captions
        owners += [row] * len(captions)
    options: dict[str, Any] = {"batch_size": batch_size, "device": device, "progress": progress}
    text_embeds = embed_texts(model, texts, processor, **options)
    image_embeds = embed_images(model, image_values(dataset, image_column), processor, **options)
    place = device_of(model) if device is None else torch.device(device)
    if place.type == "cuda":  # others lack the sums in float64
        image_embeds = image_embeds.to(place)
    return retrieval_results(image_embeds, text_embeds, owners)
