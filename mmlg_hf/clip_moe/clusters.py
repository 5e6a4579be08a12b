"""Clusters of image-text pairs: finding them, accumulating them over stages, drawing batches from one at a time."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch.utils.data import DataLoader, Sampler, Subset

from ..errors import LearngeneError, require

MiniBatchKMeans = require("sklearn.cluster", "demo").MiniBatchKMeans


def embed_pairs(
    model: Any, dataset: Any, data_collator: Any, *, batch_size: int = 256, num_workers: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Return the normalised embeddings of all images and all texts, two float32 arrays [N, D].

    Each process embeds its share of the rows and returns all of them. The model is left in evaluation mode.

    Args:
        num_workers: processes that make the batches, beside each of these.
    """
    state = PartialState()
    model.eval()
    with state.split_between_processes(list(range(len(dataset)))) as own:
        part = Subset(dataset, own)
        loader = DataLoader(part, batch_size=batch_size, collate_fn=data_collator, num_workers=num_workers)
        parts: list[tuple[np.ndarray, np.ndarray]] = []
        for batch in loader:
            inputs = {key: value.to(model.device) for key, value in batch.items() if isinstance(value, torch.Tensor)}
            with torch.no_grad():
                outputs = model(**inputs)
            parts.append(tuple(rows.float().cpu().numpy() for rows in (outputs.image_embeds, outputs.text_embeds)))
    parts = gather_object(parts)  # in the order of the processes, so in the order of the rows
    return np.concatenate([images for images, _ in parts]), np.concatenate([texts for _, texts in parts])


def cluster_pairs(image_embeds: np.ndarray, text_embeds: np.ndarray, num_clusters: int, seed: int = 0) -> np.ndarray:
    """Cluster images and texts separately and label each pair K * text cluster + image cluster [N].

    Args:
        image_embeds: normalised rows [N, D].
        text_embeds: normalised rows [N, D].
        num_clusters: K, for each of the two.

    Raises:
        LearngeneError: if there are fewer pairs than clusters.
    """
    if len(image_embeds) < num_clusters:
        raise LearngeneError(
            f"there are {len(image_embeds)} pairs for {num_clusters} clusters: give more data or fewer clusters"
        )
    images, texts = (
        MiniBatchKMeans(num_clusters, random_state=seed, n_init=3).fit_predict(embeds).astype(np.int64)
        for embeds in (image_embeds, text_embeds)
    )
    return num_clusters * texts + images


def accumulate(earlier: np.ndarray | None, labels: np.ndarray) -> np.ndarray:
    """Split every earlier cluster by the new labels, so that one cluster's pairs share all assignments so far.

    Returns:
        Labels 0, 1, ... without gaps [N]: y <- K^2 y + c, numbered anew so that no number grows with the stages.
    """
    combined = labels if earlier is None else earlier * (labels.max() + 1) + labels
    return np.unique(combined, return_inverse=True)[1].reshape(-1)


@dataclass
class ClusterReport:
    """How many pairs a stage's clusters hold and how many of them fill no batch.

    Args:
        stage: the stage that trains on these clusters, from 1.
        sizes: pairs in each cluster, largest first.
        batch_size: pairs in one batch, over all processes.
        dropped: pairs that are left over in each epoch, since their cluster does not fill a further batch.
        too_small: clusters that do not fill one batch.
    """

    stage: int
    sizes: list[int]
    batch_size: int
    dropped: int
    too_small: int

    @property
    def dropped_share(self) -> float:
        """The share of all pairs that is dropped in each epoch."""
        return self.dropped / sum(self.sizes)

    def as_dict(self) -> dict[str, Any]:
        """Return the numbers for JSON."""
        return asdict(self) | {"dropped_share": self.dropped_share}


def report_clusters(labels: np.ndarray, batch_size: int, stage: int, max_dropped: float) -> ClusterReport:
    """Count a stage's clusters, and refuse them if batches drawn from one cluster would leave out too many pairs.

    Raises:
        LearngeneError: if more than `max_dropped` of the pairs are in no batch, or there is no batch at all.
    """
    sizes = sorted(np.bincount(labels).tolist(), reverse=True)
    dropped = sum(size % batch_size for size in sizes)
    report = ClusterReport(stage, sizes, batch_size, dropped, sum(size < batch_size for size in sizes))
    if report.dropped_share > max_dropped or report.dropped == len(labels):
        raise LearngeneError(
            f"stage {stage} would leave out {report.dropped_share:.0%} of the {len(labels)} pairs (at most "
            f"{max_dropped:.0%}): {report.too_small} of its {len(sizes)} clusters are too small for a batch of "
            f"{batch_size}, the smallest has {sizes[-1]} pairs. Take a smaller batch, fewer clusters or fewer "
            "experts, or raise max_dropped"
        )
    return report


class ClusterSampler(Sampler[int]):
    """Row numbers such that every run of `batch_size` of them comes from one cluster.

    In each epoch every cluster is shuffled and cut into full batches, whose remainder is dropped; then the clusters
    take turns, in an order drawn anew for each round, until all their batches are used. The order depends on `seed`
    and the epoch alone, so all processes agree on it: with `batch_size` the sum over the processes, the parts that
    `accelerate` hands to them make up one batch of one cluster.

    Args:
        labels: the cluster of each row [N].
        batch_size: rows in one batch, over all processes.
        seed: seeds the order.
    """

    def __init__(self, labels: Sequence[int] | np.ndarray, batch_size: int, seed: int = 0) -> None:
        labels = np.asarray(labels)
        order = np.argsort(labels, kind="stable")
        self.clusters = np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order comes next."""
        self.epoch = epoch

    def __len__(self) -> int:
        return sum(len(rows) // self.batch_size for rows in self.clusters) * self.batch_size

    def __iter__(self) -> Iterator[int]:
        generator = np.random.default_rng([self.seed, self.epoch])
        batches = []
        for rows in self.clusters:
            full = len(rows) // self.batch_size
            batches.append(list(generator.permutation(rows)[: full * self.batch_size].reshape(full, self.batch_size)))
        while any(batches):
            for cluster in generator.permutation(len(batches)):
                if batches[cluster]:
                    yield from batches[cluster].pop().tolist()
