"""Cluster-aware upcycling: a dense CLIP -> a mixture whose routers and experts start from what its MLPs read.

Copies of one MLP behind routers drawn at random differ in nothing that a token could be routed by. Here the inputs of
each MLP are clustered, the router tells the clusters apart from the first step on, and each expert may keep of the
dense MLP what its own cluster uses (arXiv 2604.13508).
"""

import math
import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Subset
from transformers import CLIPModel
from transformers.trainer_utils import has_length

from ..data import ImageTextCollator
from ..errors import LearngeneError
from .modeling_clip_moe import CLIPMoEModel
from .rows import check_rows
from .upcycling import SIDES, load_dense_clip, upcycle

# Rows that lie closer to a centroid than this (1 - cosine) are the same direction in float32.
_SAME = 1e-6


def upcycle_by_clusters(
    base: str | os.PathLike | CLIPModel,
    dataset: Any,
    *,
    processor: Any = None,
    data_collator: Any = None,
    num_experts: int = 4,
    num_experts_per_tok: int = 2,
    expert_rank: int | None = None,
    router_scale: float = 10.0,
    vision_layers: Sequence[int] | None = None,
    text_layers: Sequence[int] | None = None,
    router_aux_loss_coef: float = 0.01,
    router_z_loss_coef: float = 0.0,
    num_pairs: int = 1024,
    num_tokens: int = 16384,
    batch_size: int = 64,
    seed: int = 0,
) -> CLIPMoEModel:
    """Make a mixture of a CLIP and pairs, by cluster-aware upcycling (arXiv 2604.13508).

    The inputs of each chosen MLP, over a sample of the pairs, are clustered by their directions. A router's rows are
    the unit centroids c_e times `router_scale` / r, r being the inputs' root mean square length: a token x of that
    length has the logits `router_scale` * cos(x, c_e), whatever the layer's norm multiplies by. Which k experts a
    token goes to does not depend on the scale, how evenly they share it does.

    Args:
        base: a Hub id, a folder or a `CLIPModel`.
        dataset: rows for the collator, with a length; `num_pairs` of them are drawn.
        processor: a `CLIPProcessor`; None if there is a `data_collator`.
        data_collator: None makes an `ImageTextCollator` around the processor.
        num_experts: E, also the clusters of each MLP's inputs.
        num_experts_per_tok: experts that process one token, k.
        expert_rank: rank of both matrices of an expert, each cut to what keeps the dense one's outputs on the
            expert's cluster best (see `truncate`); kept as whole matrices, that training can fill again. An encoder
            that is narrower keeps its experts whole. None makes every expert a copy, so that the mixture computes
            what the base does.
        router_scale: how sharply routers start, above 0; see above.
        vision_layers: image layers that become mixtures, from 0; None takes all, () none.
        text_layers: text layers likewise.
        router_aux_loss_coef: weight of the load-balancing loss, kept in the config.
        router_z_loss_coef: weight of the router z-loss, kept in the config.
        num_pairs: pairs that are embedded.
        num_tokens: the most inputs of each MLP that are kept and clustered, drawn alike from all batches; padding of
            texts is none of them.
        batch_size: pairs embedded at once.
        seed: seeds what is drawn; the global random state is left as it was.

    Returns:
        The mixture in evaluation mode, on the base's device and in its dtype.

    Raises:
        LearngeneError: what `upcycle` raises, fewer than 2 experts, a rank that is no rank of the MLPs', a scale that
            is not above 0, no rows or a stream, neither processor nor collator, or inputs of an MLP of fewer
            directions than experts.
    """
    dense = load_dense_clip(base)
    _check(dense, dataset, num_experts, expert_rank, router_scale)
    if data_collator is None:
        if processor is None:
            raise LearngeneError("upcycle_by_clusters needs a processor (a CLIPProcessor) or a data_collator")
        data_collator = ImageTextCollator(processor)
    mixture = upcycle(
        dense,
        [dense] * (num_experts - 1),
        num_experts_per_tok=num_experts_per_tok,
        vision_layers=vision_layers,
        text_layers=text_layers,
        router_aux_loss_coef=router_aux_loss_coef,
        router_z_loss_coef=router_z_loss_coef,
        seed=seed,
    )
    # The CPU's generator alone is seeded and put back; a collator may draw from it too (one of several captions).
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        chosen: Any = Subset(dataset, torch.randperm(len(dataset))[:num_pairs].tolist())
        batches: Any = DataLoader(chosen, batch_size=batch_size, collate_fn=data_collator)
        for name, inputs in _mlp_inputs(dense, batches, math.ceil(num_tokens / len(batches))).items():
            mixed: Any = mixture.get_submodule(name)
            if hasattr(mixed, "experts"):
                _start_from_clusters(mixed, dense.get_submodule(name), inputs, expert_rank, router_scale)
    return mixture


def _check(dense: CLIPModel, dataset: Any, num_experts: int, rank: int | None, scale: float) -> None:
    check_rows(dataset)
    if not has_length(dataset):
        raise LearngeneError("the dataset is a stream: clusters are found in rows drawn from all, so load it whole")
    if num_experts < 2:
        raise LearngeneError(f"num_experts is {num_experts}: clusters are told apart by at least 2")
    widest = max(getattr(dense.config, f"{side}_config").hidden_size for side in SIDES)
    if rank is not None and not 1 <= rank <= widest:
        raise LearngeneError(
            f"expert_rank is {rank}: it lies between 1 and {widest}, the width of the wider encoder, or is None for "
            "copies"
        )
    if not (math.isfinite(scale) and scale > 0):
        raise LearngeneError(f"router_scale is {scale}: it takes a number above 0")


@torch.no_grad()
def _mlp_inputs(model: CLIPModel, batches: Any, share: int) -> dict[str, Tensor]:
    """What each MLP reads, by its name: float32 [N, H] on the CPU, at most `share` tokens of each batch."""
    found: dict[str, list[Tensor]] = {}
    drawn: dict[str, Tensor] = {}

    def keep(name: str, side: str) -> Any:
        def hook(module: Any, args: tuple[Tensor, ...]) -> None:
            tokens = args[0].reshape(-1, args[0].shape[-1])  # [B * T, H]
            found.setdefault(name, []).append(tokens[drawn[side].to(tokens.device)].float().cpu())

        return hook

    hooks = []
    for side in SIDES:
        for name, module in model.get_submodule(f"{side}_model").named_modules(prefix=f"{side}_model"):
            if name.endswith(".mlp"):
                hooks.append(module.register_forward_pre_hook(keep(name, side)))
    training = model.training
    try:
        for batch in batches:
            inputs = {key: batch[key].to(model.device) for key in ("input_ids", "pixel_values")}
            mask = batch["attention_mask"] if "attention_mask" in batch else torch.ones_like(batch["input_ids"])
            patches = len(mask) * model.vision_model.embeddings.num_positions
            places = {"vision": torch.arange(patches), "text": mask.reshape(-1).nonzero()[:, 0].cpu()}
            for side, rows in places.items():
                drawn[side] = rows[torch.randperm(len(rows))[:share]]
            pixels = inputs["pixel_values"].to(model.dtype)
            model.eval()(inputs["input_ids"], pixels, mask.to(model.device))
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    return {name: torch.cat(parts) for name, parts in found.items()}


def spherical_kmeans(rows: Tensor, num_clusters: int, iterations: int = 50) -> tuple[Tensor, Tensor]:
    """Cluster rows by their directions: each row belongs to the unit centroid of the largest cosine.

    Started as k-means++ is, with 1 - cosine for the squared distance; drawn from torch's own generator.

    Args:
        rows: [N, D], of any lengths.
        num_clusters: K.
        iterations: at most so many; it ends when no row moves.

    Returns:
        Unit centroids [K, D] and the cluster of each row [N].

    Raises:
        LearngeneError: if the rows have fewer than K directions.
    """
    unit = F.normalize(rows.float(), dim=-1)
    centroids = unit[torch.randint(len(unit), (1,))]
    while len(centroids) < num_clusters:
        far = 1 - (unit @ centroids.T).amax(dim=-1)  # [N]
        far = torch.where(far < _SAME, 0.0, far)
        if not far.any():
            raise LearngeneError(
                f"the {len(rows)} inputs of an MLP have {len(centroids)} directions for {num_clusters} experts: give "
                "more pairs or fewer experts"
            )
        centroids = torch.cat([centroids, unit[torch.multinomial(far, 1)]])
    labels = (unit @ centroids.T).argmax(dim=-1)
    for _ in range(iterations):
        sums = torch.zeros_like(centroids).index_add_(0, labels, unit)
        # A cluster that has lost all its rows stays where it was.
        centroids = torch.where(sums.any(dim=-1, keepdim=True), F.normalize(sums, dim=-1), centroids)
        before, labels = labels, (unit @ centroids.T).argmax(dim=-1)
        if torch.equal(before, labels):
            break
    return centroids, labels


def truncate(weight: Tensor, bias: Tensor, inputs: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Cut a linear layer to a rank so that its outputs on given inputs change least, in the sum of squares.

    With U the `rank` leading right singular vectors of the centred outputs (X - mean) W^T: W' = U U^T W, which by
    Eckart and Young no other matrix of this rank betters, and b' = b + (W - W') mean, which keeps the mean output.

    Args:
        weight: W [out, in].
        bias: b [out].
        inputs: X [N, in].
        rank: 1 or more; with min(out, in) or more W' is W.

    Returns:
        W' and b', of the shapes of W and b.
    """
    mean = inputs.mean(dim=0)
    frame, small = torch.linalg.qr(weight)  # [out, m], [m, in]: all outputs lie in the frame, m of them suffice
    outputs = (inputs - mean) @ small.T  # [N, m]
    _, vectors = torch.linalg.eigh(outputs.T @ outputs)  # in rising order
    basis = frame @ vectors[:, -rank:]  # [out, rank]
    cut = basis @ (basis.T @ weight)
    return cut, bias + (weight - cut) @ mean


@torch.no_grad()
def _start_from_clusters(mixed: Any, mlp: Any, inputs: Tensor, rank: int | None, scale: float) -> None:
    """Set a router to the centroids of the inputs [N, H], and cut each expert to a rank for its cluster's."""
    centroids, labels = spherical_kmeans(inputs, mixed.experts.num_experts)
    mixed.router.weight.copy_(centroids * scale / inputs.square().sum(dim=-1).mean().sqrt())
    if rank is None:
        return
    up, up_bias, down, down_bias = (
        value.float().cpu() for value in (mlp.fc1.weight, mlp.fc1.bias, mlp.fc2.weight, mlp.fc2.bias)
    )
    for expert in labels.unique().tolist():  # one that has lost its inputs stays a copy
        own = inputs[labels == expert]
        inner = mlp.activation_fn(F.linear(own, up, up_bias))  # [n, inner width]: what the dense fc2 reads
        cut = (*truncate(up, up_bias, own, rank), *truncate(down, down_bias, inner, rank))
        for name, value in zip(("up_proj", "up_proj_bias", "down_proj", "down_proj_bias"), cut, strict=True):
            getattr(mixed.experts, name)[expert].copy_(value)
