"""What to learn and to be tested on: events, labels, class names and how to draw them, simulated or from a file."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from projections import charge_at, read_events, to_images
from simulate import CLASSES, REAL_LIKE, SIMULATED, Detector, simulate_events

from mmlg_hf.errors import LearngeneError

# Bright tracks of few, large pixels on black, charge as its square root: of the drawings tried with the bundled gene
# the one whose features carried over best from simulated to noisier events.
DRAWING = {"charge_scale": "sqrt", "bins": 12, "dark_tracks": False}


@dataclass(frozen=True)
class Task:
    """Events to train on and named sets to test on.

    Args:
        train: events and labels.
        tests: name to events and labels.
        classes: names, in the order of the labels.
        positive: the class whose precision, recall and F1 are reported; None reports the mean over the classes.
        drawing: keyword arguments of `to_images`, the same for every set.
    """

    train: tuple[np.ndarray, np.ndarray]
    tests: dict[str, tuple[np.ndarray, np.ndarray]]
    classes: tuple[str, ...]
    positive: int | None
    drawing: dict

    def images(self, events: np.ndarray) -> np.ndarray:
        """The events' images as the classifier gets them, uint8 [N, H, W, 3]."""
        return to_images(events, **self.drawing)

    def pictures(self, events: np.ndarray) -> np.ndarray:
        """The events for people: finer, dark on white, each at its own full scale; uint8 [N, H, W, 3]."""
        return to_images(events, **self.drawing | {"bins": 96, "full_scale": None, "dark_tracks": True})


def simulated_task(train_events: int = 400, test_events: int = 600, seed: int = 0, **drawing) -> Task:
    """Train on simulated events; test on others of the same simulation and on real-like ones, as in the paper.

    `drawing` overrides `DRAWING` and any other keyword argument of `to_images`; the extent is the chamber's, and full
    scale is measured on the training events.
    """
    train = simulate_events(train_events, seed=3 * seed)
    tests = {
        "simulated": simulate_events(test_events, seed=3 * seed + 1),
        "real_like": simulate_events(test_events, detector=REAL_LIKE, seed=3 * seed + 2),
    }
    return _with_full_scale(
        Task(train, tests, CLASSES, None, DRAWING | {"extent": chamber_extent(SIMULATED)} | drawing)
    )


def chamber_extent(detector: Detector) -> np.ndarray:
    """[3, 2]: what to show of the chamber, in mm."""
    return np.array([[-detector.radius, detector.radius], [-detector.radius, detector.radius], [0.0, detector.length]])


def file_task(
    path: str | Path,
    *,
    classes: Sequence[str] | None = None,
    train_events: int | None = None,
    test_share: float = 0.2,
    seed: int = 0,
    columns: Sequence[int] = (0, 1, 2, 3),
    label_column: int | None = None,
    label_row: int | None = None,
    **drawing,
) -> Task:
    """Train and test on a file's events: an `.npz` by its own splits, a `.npy` split at random, class by class.

    Args:
        classes: names in the order of the labels; None names them by number.
        train_events: how many of the training events are used, drawn at random; None uses all.
        test_share: of a `.npy`, the share of each class that is held out.
        seed: of the split and the draw.
        columns, label_column, label_row: as in `read_events`.
        drawing: overrides `DRAWING` and any other keyword argument of `to_images`.
    """
    rng = np.random.default_rng(seed)
    if Path(path).suffix == ".npz":
        train, test = (read_events(path, split=split) for split in ("train", "test"))
    else:
        events, labels = read_events(path, columns=columns, label_column=label_column, label_row=label_row)
        held_out = _held_out(labels, test_share, rng)
        train, test = (events[~held_out], labels[~held_out]), (events[held_out], labels[held_out])
        hit = train[0][train[0][..., 3] > 0]
        drawing = {"extent": np.stack([hit[:, :3].min(axis=0), hit[:, :3].max(axis=0)], axis=1), **drawing}
    number = int(max(train[1].max(), test[1].max())) + 1
    classes = tuple(classes) if classes else tuple(f"class {k}" for k in range(number))
    if number > len(classes):
        raise LearngeneError(f"{Path(path).name} has labels up to {number - 1}, but {len(classes)} names were given")
    if train_events is not None:
        if not 1 <= train_events <= len(train[1]):
            raise LearngeneError(f"train_events is {train_events}; the file has {len(train[1])} training events")
        chosen = rng.permutation(len(train[1]))[:train_events]
        train = train[0][chosen], train[1][chosen]
    positive = 1 if len(classes) == 2 else None
    return _with_full_scale(Task(train, {"test": test}, classes, positive, DRAWING | drawing))


def one_against_rest(task: Task, name: str) -> Task:
    """The binary task "is it `name`?": the paper's question for its protons."""
    if name not in task.classes:
        raise LearngeneError(f"there is no class {name!r}; the classes are {', '.join(task.classes)}")
    wanted = task.classes.index(name)

    def binary(events_labels: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        return events_labels[0], (events_labels[1] == wanted).astype(np.int64)

    tests = {key: binary(value) for key, value in task.tests.items()}
    return replace(task, train=binary(task.train), tests=tests, classes=("other", name), positive=1)


def _with_full_scale(task: Task) -> Task:
    """Draw the brightest hundredth of the training events' pixels in full, unless the caller has said otherwise."""
    measured = {key: task.drawing[key] for key in ("planes", "extent", "bins") if key in task.drawing}
    return replace(task, drawing={"full_scale": charge_at(task.train[0], **measured), **task.drawing})


def _held_out(labels: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    if not 0 < share < 1:
        raise LearngeneError(f"test_share is {share}; it must lie between 0 and 1")
    held_out = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        held_out[members[: int(np.ceil(share * len(members)))]] = True
    if held_out.all():
        raise LearngeneError(f"{len(labels)} events are too few to hold out {share:.0%} of each class")
    return held_out
