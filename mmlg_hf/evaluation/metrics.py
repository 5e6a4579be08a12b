"""Zero-shot classification and image-text retrieval as `evaluate` metrics, and the functions they call.

Everything runs without the network. Accuracies and recalls are fractions in [0, 1].
"""

from typing import Any

import evaluate
import torch
from datasets import Features, List, Value
from torch import Tensor
from torch.nn import functional as F

from ..errors import LearngeneError, first_line

RECALL_AT = (1, 5, 10)
# float32 rounding of a product of unit vectors stays well below this; equal embeddings must count as equal
# whatever kernel, chunk or device computed their products.
TIE_MARGIN = 1e-6
# Rows handled at once where each row needs little memory.
CHUNK = 4096


def _metric_info(metric: evaluate.Metric, features: dict[str, Any]) -> evaluate.MetricInfo:
    description = type(metric).__doc__ or ""
    info = evaluate.MetricInfo(
        description=description, inputs_description=description, citation="", features=Features(features)
    )
    # Set afterwards, as evaluate lets only scalar features ask for arrays; lists of Python floats would need many
    # times the memory of the embeddings.
    info.format = "numpy"
    return info


def as_matrix(values: Any, name: str) -> Tensor:
    try:
        matrix = torch.as_tensor(values, dtype=torch.float32).detach()
    except (TypeError, ValueError, RuntimeError) as error:
        raise LearngeneError(f"the {name} must be rows of equally many numbers") from error
    if matrix.ndim != 2 or 0 in matrix.shape:
        raise LearngeneError(f"the {name} must be rows of equally many numbers, got the shape {list(matrix.shape)}")
    if not matrix.isfinite().all():
        row = int((~matrix.isfinite()).any(dim=1).nonzero()[0])
        raise LearngeneError(f"row {row} of the {name} holds NaN or infinity")
    return matrix


def as_numbers(values: Any, count: int, name: str) -> Tensor:
    """Return whole numbers [count], or name the first row that holds none."""
    if isinstance(values, (list, tuple)):
        for row, value in enumerate(values):
            if value is None:
                raise LearngeneError(f"row {row} has the {name} None")
    try:
        numbers = torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise LearngeneError(f"the {name}s must be whole numbers, one for each of {count} rows") from error
    if numbers.shape != (count,) or numbers.is_floating_point() or numbers.is_complex():
        dtype = str(numbers.dtype).removeprefix("torch.")
        raise LearngeneError(
            f"the {name}s have the shape {list(numbers.shape)} and the type {dtype}: give whole numbers, one for each "
            f"of {count} rows"
        )
    return numbers.long()


def joined_batches(values: Any, dims: int) -> Any:
    """Return what the Trainer gives `compute_metrics` as one array of `dims` axes.

    Args:
        values: an array, a tuple of outputs of which the first counts (hidden states follow), or a list of batches
            of either, as `eval_do_concat_batches=False` leaves them.
    """
    first = values[0] if isinstance(values, tuple) else values
    if not isinstance(first, list):
        return first
    batches = [batch[0] if isinstance(batch, tuple) else batch for batch in first]
    if not batches or any(getattr(batch, "ndim", None) != dims for batch in batches):
        return first  # a list of rows
    try:
        return torch.cat([torch.as_tensor(batch) for batch in batches])
    except (RuntimeError, TypeError) as error:
        raise LearngeneError(f"the batches do not fit together: {first_line(error)}") from error


def check_range(indices: Tensor, size: int, name: str, things: str) -> None:
    wrong = ((indices < 0) | (indices >= size)).nonzero()
    if len(wrong):
        row = int(wrong[0])
        raise LearngeneError(f"row {row} has the {name} {int(indices[row])}, but there are {size} {things}, from 0")


def label_ranks(scores: Tensor, labels: Tensor) -> Tensor:
    """Return each row's 1 + the number of other classes that score at least as high as its label [N]."""
    own = scores.gather(1, labels[:, None])  # [N, 1]
    return (scores >= own).sum(dim=1)


def classification_results(ranks: Tensor, labels: Tensor, num_classes: int) -> dict[str, float]:
    correct = (ranks == 1).double()
    of_class = torch.bincount(labels, minlength=num_classes)
    correct_of_class = torch.bincount(labels, weights=correct, minlength=num_classes)
    present = of_class > 0
    results = {"top1": correct.mean().item()}
    if num_classes > 5:
        results["top5"] = (ranks <= 5).double().mean().item()
    results["mean_per_class"] = (correct_of_class[present] / of_class[present]).mean().item()
    return results


def score_results(scores: Any, labels: Any) -> dict[str, float]:
    """Return what `ClassificationAccuracy` does, of scores [N, C] and labels [N]."""
    matrix = as_matrix(scores, "scores")
    if matrix.shape[1] < 2:
        raise LearngeneError("the scores are of one class: with nothing to tell apart there is no accuracy")
    numbers = as_numbers(labels, len(matrix), "label").to(matrix.device)
    check_range(numbers, matrix.shape[1], "label", "classes")
    return classification_results(label_ranks(matrix, numbers), numbers, matrix.shape[1])


class ClassificationAccuracy(evaluate.Metric):
    """Top-1, top-5 and mean per-class accuracy of class scores, as an `evaluate` metric.

    `compute(predictions=scores [N, C], references=labels [N])`, or in batches by `add_batch`. Scores are similarities,
    logits or probabilities: the highest wins. A tie counts as wrong, so that a constant model scores 0 and not 1/C or
    1. The result holds "top1", "mean_per_class" (the mean of the accuracies of the classes that occur) and, with more
    than five classes, "top5".
    """

    def _info(self) -> evaluate.MetricInfo:
        return _metric_info(self, {"predictions": List(Value("float32")), "references": Value("int64")})

    def _compute(self, *, predictions: Any, references: Any) -> dict[str, float]:
        return score_results(predictions, references)


ZeroShotClassification = ClassificationAccuracy  # its first name, from when zero-shot was all it measured


def retrieval_results(
    image_embeds: Any, text_embeds: Any, image_of_text: Any, *, chunk_size: int = 256
) -> dict[str, float]:
    """Rank all texts for each image and all images for each text, by cosine similarity.

    The similarities are made `chunk_size` texts at a time: 100,000 texts and images need about 100 MB of them.
    Everything but an item's own match that comes within 1e-6 of the match or above counts as ranked before it, so that
    ties are decided against the model and alike everywhere. An image's rank is that of its best text.

    Args:
        image_embeds: [I, D], normalised here.
        text_embeds: [T, D], normalised here.
        image_of_text: [T], the row of `image_embeds` that each text describes; every image needs at least one text.
        chunk_size: texts compared with all images at once; the results do not depend on it.

    Returns:
        "image_to_text_R@1", "..._R@5", "..._R@10" and "image_to_text_median_rank" (1 is best), the same for
        "text_to_image", and "mean_R@1" of both directions.

    Raises:
        LearngeneError: on shapes that do not fit, values that are not finite, or an image without text.
    """
    images = F.normalize(as_matrix(image_embeds, "image embeddings"), dim=-1)
    texts = F.normalize(as_matrix(text_embeds, "text embeddings"), dim=-1).to(images.device)
    if images.shape[1] != texts.shape[1] or len(image_of_text) != len(texts):
        raise LearngeneError(
            f"{list(images.shape)} image embeddings, {list(texts.shape)} text embeddings and "
            f"[{len(image_of_text)}] image indices do not fit: they are [I, D], [T, D] and [T]"
        )
    owners = as_numbers(image_of_text, len(texts), "image index").to(images.device)
    check_range(owners, len(images), "image index", "images")
    if chunk_size < 1:
        raise LearngeneError(f"chunk_size is {chunk_size}: give a whole number above 0")
    image_ranks, text_ranks = _retrieval_ranks(images, texts, owners, chunk_size)
    results = {}
    for direction, ranks in (("image_to_text", image_ranks), ("text_to_image", text_ranks)):
        for k in RECALL_AT:
            results[f"{direction}_R@{k}"] = (ranks <= k).double().mean().item()
        results[f"{direction}_median_rank"] = ranks.double().quantile(0.5).item()
    results["mean_R@1"] = (results["image_to_text_R@1"] + results["text_to_image_R@1"]) / 2
    return results


def _retrieval_ranks(images: Tensor, texts: Tensor, owners: Tensor, chunk_size: int) -> tuple[Tensor, Tensor]:
    """Return the rank of each image's best text [I] and of each text's image [T]."""
    matches = torch.cat(  # [T], the similarity of each text to its image
        [
            (chunk * images[owner]).sum(dim=-1)
            for chunk, owner in zip(texts.split(CHUNK), owners.split(CHUNK), strict=True)
        ]
    )
    best = torch.full((len(images),), -torch.inf, device=images.device)
    best = best.scatter_reduce(0, owners, matches, "amax")  # [I]
    lonely = (best == -torch.inf).nonzero()
    if len(lonely):
        raise LearngeneError(f"image {int(lonely[0])} has no text: retrieval needs at least one for each image")
    image_ranks = torch.ones(len(images), dtype=torch.long, device=images.device)
    text_ranks = []
    for start in range(0, len(texts), chunk_size):
        stop = min(start + chunk_size, len(texts))
        similarity = texts[start:stop] @ images.T  # [chunk, I]
        similarity[torch.arange(stop - start, device=images.device), owners[start:stop]] = -torch.inf
        text_ranks.append(1 + _count(similarity >= matches[start:stop, None] - TIE_MARGIN, 1))
        image_ranks += _count(similarity >= best - TIE_MARGIN, 0)
    return image_ranks, torch.cat(text_ranks)


def _count(hits: Tensor, dim: int) -> Tensor:
    # Sums of ones are exact in float32 up to 2^24, and twice as fast as torch's sums of booleans.
    return hits.float().sum(dim=dim).long()


class ImageTextRetrieval(evaluate.Metric):
    """Recall at 1, 5 and 10 and the median rank, image to text and text to image, as an `evaluate` metric.

    `compute(predictions=text_embeds [T, D], references=image_of_text [T], image_embeds=[I, D])`, where `references`
    names for each text the row of `image_embeds` that it describes, so that an image can have several texts. The texts
    may be added in batches by `add_batch`. See `retrieval_results` for what is returned and how ties count.
    """

    def _info(self) -> evaluate.MetricInfo:
        return _metric_info(self, {"predictions": List(Value("float32")), "references": Value("int64")})

    def _compute(
        self, *, predictions: Any, references: Any, image_embeds: Any, chunk_size: int = 256
    ) -> dict[str, float]:
        return retrieval_results(image_embeds, predictions, references, chunk_size=chunk_size)


def compute_retrieval(prediction: Any) -> dict[str, float]:
    """Give `ContrastiveTrainer(compute_metrics=...)` what `retrieval_results` returns, one text for each image.

    It needs all pairs at once: leave `batch_eval_metrics` off.

    Args:
        prediction: `transformers.EvalPrediction` whose predictions are (image_embeds, text_embeds), [N, D] each, or a
            list of batches of such pairs, as the Trainer has them with `eval_do_concat_batches=False`.
    """
    pairs = prediction.predictions
    if isinstance(pairs, list) and all(isinstance(batch, tuple) and len(batch) == 2 for batch in pairs):
        pairs = tuple(joined_batches(list(side), 2) for side in zip(*pairs, strict=True))
    if not isinstance(pairs, tuple) or len(pairs) != 2:
        raise LearngeneError(
            f"compute_retrieval takes the pair (image_embeds, text_embeds) that ContrastiveTrainer gives, not "
            f"{f'{len(pairs)} outputs' if isinstance(pairs, tuple) else f'a {type(pairs).__name__}'}"
        )
    image_embeds, text_embeds = pairs
    return retrieval_results(image_embeds, text_embeds, torch.arange(len(text_embeds)))
