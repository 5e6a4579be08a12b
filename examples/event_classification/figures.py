"""Figures of events, of a confusion matrix and of the events a classifier got wrong."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def draw_events(images: np.ndarray, labels: np.ndarray, classes: Sequence[str], path: Path, each: int = 6) -> None:
    """`each` events of every class in a row, uint8 [N, H, W, 3], to a PNG at `path`."""
    figure, axes = plt.subplots(len(classes), each, figsize=(1.5 * each, 1.6 * len(classes)), squeeze=False)
    for row, name in zip(range(len(classes)), classes, strict=True):
        for axis, index in zip(axes[row], np.flatnonzero(labels == row)[:each], strict=False):
            axis.imshow(images[index], interpolation="nearest")
        axes[row, 0].set_ylabel(name)
    _finish(figure, axes, path, "Events, one colour per projection")


def draw_errors(
    images: np.ndarray, logits: np.ndarray, labels: np.ndarray, classes: Sequence[str], path: Path, most: int = 18
) -> None:
    """The up to `most` wrong events the classifier was surest of, each with its true and its predicted class."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    sureness = np.exp(shifted) / np.exp(shifted).sum(axis=-1, keepdims=True)
    guesses = logits.argmax(axis=-1)
    wrong = np.flatnonzero(guesses != labels)
    shown = wrong[np.argsort(-sureness[wrong, guesses[wrong]])][:most]
    rows = max(int(np.ceil(len(shown) / 6)), 1)
    figure, axes = plt.subplots(rows, 6, figsize=(9, 1.9 * rows), squeeze=False)
    for axis, index in zip(axes.flat, shown, strict=False):
        axis.imshow(images[index], interpolation="nearest")
        sure = f"{sureness[index, guesses[index]]:.0%}"
        axis.set_title(f"{classes[labels[index]]},\nseen as {classes[guesses[index]]} ({sure})", fontsize=7)
    for axis in axes.flat[len(shown) :]:
        axis.set_frame_on(False)
    _finish(figure, axes, path, f"{len(wrong)} of {len(labels)} events wrong; the surest first")


def draw_confusion(confusion: Sequence[Sequence[int]], classes: Sequence[str], path: Path, title: str) -> None:
    """A confusion matrix with counts, true classes in rows, shaded by the share of the true class."""
    counts = np.asarray(confusion)
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    figure, axis = plt.subplots(figsize=(1.2 * len(classes) + 1.8, 1.1 * len(classes) + 1.4))
    axis.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for (row, column), number in np.ndenumerate(counts):
        colour = "white" if share[row, column] > 0.5 else "black"
        axis.text(column, row, f"{number}\n{share[row, column]:.0%}", ha="center", va="center", color=colour)
    axis.set_xticks(range(len(classes)), classes)
    axis.set_yticks(range(len(classes)), classes)
    axis.set_xlabel("predicted")
    axis.set_ylabel("true")
    axis.set_title(title, fontsize=10)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _finish(figure, axes: np.ndarray, path: Path, title: str) -> None:
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
    figure.suptitle(title, fontsize=10)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)
