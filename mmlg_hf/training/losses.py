"""The training losses: contrastive and sigmoid over the negatives of all processes, affinity and feature distillation.

Every loss is the mean over this process's own rows. With equally many rows on each process, DistributedDataParallel's
average of the gradients is then the gradient of the loss of the whole global batch.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ..errors import LearngeneError


class _AllGather(torch.autograd.Function):
    """Concatenate all processes' rows; backward sums what all processes' losses say about this process's rows."""

    @staticmethod
    def forward(ctx: Any, embeds: Tensor) -> Tensor:
        ctx.num_rows = len(embeds)
        gathered = [torch.empty_like(embeds) for _ in range(dist.get_world_size())]
        dist.all_gather(gathered, embeds)
        return torch.cat(gathered)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        offset = dist.get_rank() * ctx.num_rows
        return gradient[offset : offset + ctx.num_rows]


def _is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _check_equal_rows(embeds: Tensor) -> None:
    own = torch.tensor([len(embeds)], device=embeds.device)
    counts = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(counts, own)
    rows = [int(count) for count in counts]
    if len(set(rows)) > 1:
        raise LearngeneError(
            f"the processes hold different numbers of rows ({rows}): give each the same number, "
            "for example with dataloader_drop_last=True"
        )


def gather_embeddings(embeds: Tensor) -> tuple[Tensor, int]:
    """Return the rows of all processes, in the order of their ranks, and where this process's own rows begin.

    The gradient flows back to every process's own rows, summed over the losses of all processes.

    Args:
        embeds: [B, D], with the same B on every process.

    Returns:
        [processes * B, D] and rank * B; on one process `embeds` itself and 0.

    Raises:
        LearngeneError: if the processes hold different numbers of rows.
    """
    if not _is_distributed():
        return embeds, 0
    _check_equal_rows(embeds)
    return _AllGather.apply(embeds.contiguous()), dist.get_rank() * len(embeds)


def check_label_smoothing(value: float) -> None:
    """Raise a `LearngeneError` unless a share lies in [0, 1]."""
    if not 0 <= value <= 1:
        raise LearngeneError(f"label_smoothing is {value}: give a share from 0 to 1")


def _check_pairs(**embeds: Tensor) -> None:
    for name, rows in embeds.items():
        if not isinstance(rows, Tensor) or not rows.is_floating_point():
            kind = rows.dtype if isinstance(rows, Tensor) else type(rows).__name__
            raise LearngeneError(f"embeddings must be tensors of a floating type, but {name} is {kind}")
    shapes = {name: tuple(rows.shape) for name, rows in embeds.items()}
    counts = {shape[0] if shape else 0 for shape in shapes.values()}
    if any(len(shape) != 2 for shape in shapes.values()) or len(counts) > 1 or 0 in counts:
        raise LearngeneError(f"embeddings must be [B, D] with one row for each pair, got {_told(embeds)}")


def _check_sizes(image_embeds: Tensor, text_embeds: Tensor) -> None:
    if image_embeds.shape[1] != text_embeds.shape[1]:
        raise LearngeneError(
            "images and texts must be embedded in one space, got "
            f"{_told({'images': image_embeds, 'texts': text_embeds})}"
        )


def _told(tensors: dict[str, Tensor]) -> str:
    return ", ".join(f"{name} {list(rows.shape)}" for name, rows in tensors.items())


def contrastive_loss(
    image_embeds: Tensor, text_embeds: Tensor, logit_scale: Tensor | float, *, label_smoothing: float = 0.0
) -> Tensor:
    """Symmetric InfoNCE of CLIP (Radford et al., 2021, figure 3) with the negatives of all processes.

    1/2 [CE(scale * i t', own pair) + CE(scale * t i', own pair)], where row n of the images belongs to row n of the
    texts, and every other row of every process is a negative. Computed in float32. Embeddings of zero give
    log(processes * B).

    Args:
        image_embeds: normalised rows [B, D].
        text_embeds: normalised rows [B, D].
        logit_scale: the factor itself (for a CLIP model `model.logit_scale.exp()`).
        label_smoothing: the share of the target spread evenly over all rows, in [0, 1].

    Returns:
        The mean over this process's rows, a scalar.

    Raises:
        LearngeneError: if rows do not pair up, are no floating numbers or differ in size, processes hold different
            numbers of rows, or the smoothing lies outside [0, 1].
    """
    check_label_smoothing(label_smoothing)
    _check_pairs(image_embeds=image_embeds, text_embeds=text_embeds)
    _check_sizes(image_embeds, text_embeds)
    all_images, offset = gather_embeddings(image_embeds)
    all_texts, _ = gather_embeddings(text_embeds)
    labels = torch.arange(offset, offset + len(image_embeds), device=image_embeds.device)
    image_loss = _cross_entropy(image_embeds, all_texts, logit_scale, labels, label_smoothing)
    text_loss = _cross_entropy(text_embeds, all_images, logit_scale, labels, label_smoothing)
    return (image_loss + text_loss) / 2


# Logits that are held at once, 64 MiB of them.
LOGITS_AT_ONCE = 2**24


def _mean_over_rows(summed: Callable[..., Tensor], logits: int, *rows: Tensor) -> Tensor:
    """Mean of a loss over own rows, from its sum over some of them.

    Logits beyond `LOGITS_AT_ONCE` are made some rows at a time, and again for the gradient, so that the memory grows
    with the rows and not with their square. Loss and gradients are the same up to rounding.

    Args:
        summed: the loss summed over the rows that it is given.
        logits: how many of them it makes for each row.
        rows: what it is given, each [B, ...].
    """
    count, at_once = len(rows[0]), max(1, LOGITS_AT_ONCE // logits)
    if count <= at_once:
        return summed(*rows) / count
    parts = zip(*(given.split(at_once) for given in rows), strict=True)
    totals = [checkpoint(summed, *part, use_reentrant=False, preserve_rng_state=False) for part in parts]
    return torch.stack(totals).sum() / count


def _similarities(own: Tensor, others: Tensor, scale: Tensor | float) -> Tensor:
    """Scaled similarities in float32 of rows [B, D] to rows [N, D]: [B, N]."""
    # Autocast would take the products in half precision, where a scale of 100 leaves steps of 0.5 between logits.
    with torch.autocast(own.device.type, enabled=False):
        return own.float() @ others.float().T * scale


def _cross_entropy(own: Tensor, others: Tensor, scale: Tensor | float, labels: Tensor, smoothing: float) -> Tensor:
    """Mean cross-entropy of the similarities of own rows [B, D] to all rows [N, D]; the labels are [B] of N."""

    def summed(own: Tensor, labels: Tensor) -> Tensor:
        logits = _similarities(own, others, scale)
        return F.cross_entropy(logits, labels, label_smoothing=smoothing, reduction="sum")

    return _mean_over_rows(summed, len(others), own, labels)


def sigmoid_loss(
    image_embeds: Tensor, text_embeds: Tensor, logit_scale: Tensor | float, logit_bias: Tensor | float
) -> Tensor:
    """Pairwise sigmoid loss of SigLIP (Zhai et al., ICCV 2023, arXiv 2303.15343) over the texts of all processes.

    -1/B sum_i sum_j log sigmoid(z_ij (scale * i_i t_j' + bias)), z_ij being 1 where row i of the images belongs to row
    j of the texts and -1 elsewhere: each image with the texts of all processes. Computed in float32. On one process it
    is the loss inside `SiglipModel`. Embeddings of zero give, without a bias, processes * B * log 2: it is a sum over
    the texts, and so grows with the batch.

    Args:
        image_embeds: normalised rows [B, D].
        text_embeds: normalised rows [B, D].
        logit_scale: the factor itself (for a `SiglipModel` `model.logit_scale.exp()`).
        logit_bias: added to every logit.

    Returns:
        The mean over this process's images, a scalar.

    Raises:
        LearngeneError: if rows do not pair up, are no floating numbers or differ in size, or processes hold different
            numbers of rows.
    """
    _check_pairs(image_embeds=image_embeds, text_embeds=text_embeds)
    _check_sizes(image_embeds, text_embeds)
    all_texts, offset = gather_embeddings(text_embeds)
    labels = torch.arange(offset, offset + len(image_embeds), device=image_embeds.device)

    def summed(own: Tensor, labels: Tensor) -> Tensor:
        logits = _similarities(own, all_texts, logit_scale) + logit_bias
        signs = torch.full_like(logits, -1).scatter(1, labels[:, None], 1)
        return -F.logsigmoid(signs * logits).sum()

    return _mean_over_rows(summed, 2 * len(all_texts), image_embeds, labels)


def affinity_distillation_loss(
    image_embeds: Tensor,
    text_embeds: Tensor,
    ancestor_image_embeds: Tensor,
    ancestor_text_embeds: Tensor,
    *,
    scale: float = 50.0,
) -> Tensor:
    """Affinity mimicking of TinyCLIP (Wu et al., ICCV 2023).

    1/2 [CE(softmax(scale * A_i2t), softmax(scale * S_i2t)) + the same text to image], A and S being the ancestor's and
    our own similarities of each row to the rows of all processes. The smallest value is the entropy of the ancestor's
    affinities, not zero. Computed in float32; no gradient reaches the ancestor.

    Args:
        image_embeds: our normalised rows [B, D].
        text_embeds: our normalised rows [B, D].
        ancestor_image_embeds: the ancestor's normalised rows [B, E]; E may differ from D.
        ancestor_text_embeds: the ancestor's normalised rows [B, E].
        scale: the inverse temperature of both softmaxes.

    Returns:
        The mean over this process's rows, a scalar.

    Raises:
        LearngeneError: if rows do not pair up, or processes hold different numbers of rows.
    """
    _check_pairs(
        image_embeds=image_embeds,
        text_embeds=text_embeds,
        ancestor_image_embeds=ancestor_image_embeds,
        ancestor_text_embeds=ancestor_text_embeds,
    )
    _check_sizes(image_embeds, text_embeds)
    _check_sizes(ancestor_image_embeds, ancestor_text_embeds)
    images, texts = (gather_embeddings(rows)[0] for rows in (image_embeds, text_embeds))
    with torch.no_grad():
        theirs = ancestor_image_embeds, ancestor_text_embeds
        their_images, their_texts = (gather_embeddings(rows)[0] for rows in theirs)
    image_loss = _soft_cross_entropy(image_embeds, texts, ancestor_image_embeds, their_texts, scale)
    text_loss = _soft_cross_entropy(text_embeds, images, ancestor_text_embeds, their_images, scale)
    return (image_loss + text_loss) / 2


def _soft_cross_entropy(own: Tensor, others: Tensor, theirs: Tensor, their_others: Tensor, scale: float) -> Tensor:
    """Mean cross-entropy of the similarities of own rows to all rows, their softmax of the same being the target."""

    def summed(own: Tensor, theirs: Tensor) -> Tensor:
        with torch.no_grad():
            targets = _similarities(theirs, their_others, scale).softmax(dim=-1)
        return F.cross_entropy(_similarities(own, others, scale), targets, reduction="sum")

    return _mean_over_rows(summed, 2 * len(others), own, theirs.detach())


def feature_distillation_loss(embeds: Tensor, ancestor_embeds: Tensor, center: Tensor | None = None) -> Tensor:
    """Feature distillation of CLIP-KD (Yang et al., CVPR 2024), on one modality's embeddings.

    The squared distance ||e/|e| - a/|a|||^2, summed over D, between 0 and 4, so that a weight means the same for every
    embedding size. Computed in float32; no gradient reaches the ancestor.

    Args:
        embeds: our rows [B, D], normalised here.
        ancestor_embeds: the ancestor's rows [B, D], normalised here.
        center: mean of the ancestor's normalised rows [D], taken out of both sides before they are normalised again:
            where all rows share much, what sets them apart would hardly count. None takes nothing out.

    Returns:
        The mean over this process's rows, a scalar.

    Raises:
        LearngeneError: if the two shapes differ.
    """
    _check_pairs(embeds=embeds, ancestor_embeds=ancestor_embeds)
    if embeds.shape != ancestor_embeds.shape:
        raise LearngeneError(
            f"feature distillation needs equal embedding sizes, got {embeds.shape[1]} and the ancestor's "
            f"{ancestor_embeds.shape[1]}: set projection_dim to the ancestor's, or the loss's weight to 0"
        )
    own = F.normalize(embeds.float(), dim=-1)
    ancestor = F.normalize(ancestor_embeds.detach().float(), dim=-1)
    if center is not None:
        own, ancestor = (F.normalize(rows - center.to(rows), dim=-1) for rows in (own, ancestor))
    return (own - ancestor).square().sum(dim=-1).mean()


def soft_distillation_loss(logits: Tensor, ancestor_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Soft distillation of a classifier (Hinton et al., 2015; TLEG, arXiv 2312.05614, with alpha 1 and T 1).

    T^2 * KL(softmax(A / T) || softmax(S / T)), A being the ancestor's logits and S ours. Computed in float32.

    Args:
        logits: ours [B, labels].
        ancestor_logits: the ancestor's [B, labels]; no gradient reaches them.
        temperature: T, above 0.

    Returns:
        The mean over this process's rows, a scalar; 0 where both agree.

    Raises:
        LearngeneError: if the two shapes differ or are not [B, labels], or the temperature is not above 0.
    """
    if logits.shape != ancestor_logits.shape or logits.dim() != 2 or not logits.numel():
        raise LearngeneError(
            f"soft distillation needs the same labels on both sides, [B, labels], got logits {list(logits.shape)} and "
            f"the ancestor's {list(ancestor_logits.shape)}"
        )
    if not temperature > 0:
        raise LearngeneError(f"temperature is {temperature}: give a number above 0")
    own = F.log_softmax(logits.float() / temperature, dim=-1)
    ancestor = F.log_softmax(ancestor_logits.detach().float() / temperature, dim=-1)
    return temperature**2 * F.kl_div(own, ancestor, reduction="batchmean", log_target=True)
