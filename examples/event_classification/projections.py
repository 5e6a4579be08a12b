"""Turn detector events, voxel arrays or point clouds, into images, and read the files they come in."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mmlg_hf.errors import LearngeneError

AXES = "xyz"


def to_images(
    events: np.ndarray,
    *,
    planes: Sequence[str] = ("xy", "zy", "zx"),
    extent: np.ndarray | None = None,
    bins: int = 48,
    charge_scale: str = "log",
    full_scale: float | None = None,
    decades: float = 2.0,
    dark_tracks: bool = True,
) -> np.ndarray:
    """Project events onto planes and give them as RGB images, the one place where charge becomes brightness.

    The charge in every column of space along the projection is summed. The sum Q becomes a brightness between 0 and 1,
    min(1, s(Q) / s(full_scale)) with s(Q) = Q ("linear"), sqrt(Q) ("sqrt") or log(1 + 10^decades Q / full_scale)
    ("log"), so that one `full_scale` for all events keeps the energy loss visible, and None, each image's own largest
    sum, shows the shape alone. Each plane fills one colour channel; a single plane fills all three.

    Args:
        events: voxels [N, X, Y, Z] of charge, or point clouds [N, points, 4 or more] with x, y, z, charge in front;
            rows with charge 0 or NaN are padding.
        planes: one or three of two letters out of "xyz": the first runs to the right, the second upwards.
        extent: [3, 2], smallest and largest x, y, z shown, in the units of the cloud; points outside are not drawn.
            None takes the range of the points with charge. Voxels are always shown whole.
        bins: pixels per side for point clouds. Voxels are drawn one pixel each, in a square as wide as their longest
            side; the model's image processor resizes either.
        charge_scale: "log", "sqrt" or "linear".
        full_scale: summed charge, in the events' unit, that is drawn in full; see `charge_at`.
        decades: of charge below `full_scale` that "log" tells apart; more show the shape better, fewer the charge.
        dark_tracks: True draws tracks dark on white, as in photographs of things; False bright on black.

    Returns:
        uint8 [N, height, width, 3].

    Raises:
        LearngeneError: another rank or number of columns, no events, an event without charge, negative or infinite
            charge, an unknown plane or scale, an extent that is empty.
    """
    _check_planes(planes)
    scales = {"log": lambda q: np.log1p(10.0**decades * q), "sqrt": np.sqrt, "linear": lambda q: q}
    if charge_scale not in scales:
        raise LearngeneError(f"charge_scale is {charge_scale!r}; allowed are {', '.join(scales)}")
    if full_scale is not None and not full_scale > 0:
        raise LearngeneError(f"full_scale is {full_scale}; it must be above zero, or None for each image's own")
    sums = _projections(events, planes, extent, bins)
    top = sums.max(axis=(1, 2), keepdims=True) if full_scale is None else full_scale
    scale = scales[charge_scale]
    brightness = np.minimum(scale(sums / np.maximum(top, 1e-30)) / scale(np.float64(1.0)), 1.0)
    if brightness.shape[-1] == 1:
        brightness = np.repeat(brightness, 3, axis=-1)
    return np.round(255 * (1 - brightness if dark_tracks else brightness)).astype(np.uint8)


def charge_at(
    events: np.ndarray,
    quantile: float = 0.99,
    *,
    planes: Sequence[str] = ("xy", "zy", "zx"),
    extent: np.ndarray | None = None,
    bins: int = 48,
) -> float:
    """The summed charge per pixel below which the share `quantile` of the pixels with charge lies.

    Take it from the training events and pass it as `full_scale` for all others.
    """
    _check_planes(planes)
    sums = _projections(events, planes, extent, bins)
    return float(np.quantile(sums[sums > 0], quantile))


def check_events(events: np.ndarray) -> np.ndarray:
    """The events with NaN rows turned to padding, or a `LearngeneError` that says why they cannot be classified."""
    events = np.asarray(events)
    if events.ndim not in (3, 4) or (events.ndim == 3 and events.shape[-1] < 4):
        raise LearngeneError(
            f"the events have shape {events.shape}; allowed are voxels [N, X, Y, Z] and point clouds "
            "[N, points, 4 or more] with the columns x, y, z, charge"
        )
    if events.size == 0:
        raise LearngeneError(f"there are no events: the array has shape {events.shape}")
    events = events.astype(np.float32)
    if events.ndim == 3:
        events = np.where(np.isnan(events).any(axis=-1, keepdims=True), np.float32(0), events)
    charge = events[..., 3] if events.ndim == 3 else events
    if not np.isfinite(events).all() or (charge < 0).any():
        bad = np.flatnonzero(
            ~np.isfinite(events).reshape(len(events), -1).all(1) | (charge < 0).reshape(len(events), -1).any(1)
        )
        raise LearngeneError(f"event {bad[0]} has a negative or infinite value; charge must be finite and at least 0")
    empty = np.flatnonzero(charge.reshape(len(charge), -1).sum(axis=1) == 0)
    if len(empty):
        raise LearngeneError(
            f"{len(empty)} of {len(events)} events have no charge (the first is event {empty[0]}); remove them, there "
            "is nothing to classify"
        )
    return events


def _check_planes(planes: Sequence[str]) -> None:
    good = [len(p) == 2 and p[0] != p[1] and set(p) <= set(AXES) for p in planes]
    if isinstance(planes, str) or len(planes) not in (1, 3) or not all(good):
        raise LearngeneError(f"planes is {planes!r}; it must be one or three pairs of letters, as ('xy', 'zy', 'zx')")


def _projections(events: np.ndarray, planes: Sequence[str], extent: np.ndarray | None, bins: int) -> np.ndarray:
    """Charge summed along the axis that each plane lacks: float64 [N, height, width, planes], row 0 at the top."""
    events = check_events(events)
    if events.ndim == 4:
        return _voxel_projections(events, planes)
    charge = events[..., 3]
    if extent is None:
        hit = events[charge > 0]
        extent = np.stack([hit[:, :3].min(axis=0), hit[:, :3].max(axis=0)], axis=1)
    extent = np.asarray(extent, dtype=float)
    if extent.shape != (3, 2) or (extent[:, 1] < extent[:, 0]).any():
        raise LearngeneError(f"extent is {extent.tolist()}; it must be three pairs (smallest, largest) for x, y, z")
    width = np.maximum(extent[:, 1] - extent[:, 0], 1e-9)
    index = np.floor((events[..., :3] - extent[:, 0]) / width * bins).astype(np.int64)
    index[events[..., :3] == extent[:, 1]] = bins - 1  # the upper edge belongs to the last pixel
    drawn = (charge > 0) & ((index >= 0) & (index < bins)).all(axis=-1)
    which = np.nonzero(drawn)[0]
    sums = np.zeros((len(events), bins, bins, len(planes)))
    for channel, plane in enumerate(planes):
        right, up = (index[..., AXES.index(letter)][drawn] for letter in plane)
        np.add.at(sums[..., channel], (which, bins - 1 - up, right), charge[drawn])
    return sums


def _voxel_projections(events: np.ndarray, planes: Sequence[str]) -> np.ndarray:
    side = max(events.shape[1:])
    sums = np.zeros((len(events), side, side, len(planes)))
    for channel, plane in enumerate(planes):
        lacking = next(axis for axis in range(3) if AXES[axis] not in plane)
        flat = events.sum(axis=lacking + 1, dtype=np.float64)  # its axes are now in the order of "xyz"
        flat = flat if plane[0] > plane[1] else flat.swapaxes(1, 2)  # rows: the second letter, columns: the first
        height, width = flat.shape[1:]
        top, left = (side - height) // 2, (side - width) // 2
        sums[:, top : top + height, left : left + width, channel] = flat[:, ::-1]
    return sums


def read_events(
    path: str | Path,
    *,
    split: str = "train",
    columns: Sequence[int] = (0, 1, 2, 3),
    label_column: int | None = None,
    label_row: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Read labelled events from a voxel archive or from a public point-cloud release.

    Args:
        path: `.npz` with `<split>_charge` [N, X, Y, Z] and `<split>_label` [N]; or `.npy` with point clouds
            [N, points, columns], padded with zeros or NaN.
        split: of an `.npz`: the prefix of its arrays.
        columns: of a `.npy`: where x, y, z and charge stand. The releases differ: some have the amplitude in column 4.
        label_column: of a `.npy` that repeats the event's label in every row: that column (-1 is the last).
        label_row: of a `.npy` that keeps the label as the first number of one extra row after the points: that row
            (-2 in releases that end with a row for the label and a row for the event's number). The rows from there on
            are not points.

    Returns:
        events, float32 voxels or clouds [N, points, 4]; labels, int64 [N].

    Raises:
        LearngeneError: a missing file, another ending, missing arrays, another rank, labels that are not whole numbers
            or differ within one event, neither or both of `label_column` and `label_row`.
    """
    path = Path(path)
    if not path.is_file():
        raise LearngeneError(f"there is no file {path}")
    if path.suffix == ".npz":
        events, labels = _read_voxels(path, split)
    elif path.suffix == ".npy":
        events, labels = _read_clouds(_load(path), columns, label_column, label_row)
    else:
        raise LearngeneError(
            f"{path.name} ends in {path.suffix!r}; events are read from .npz (voxels) or .npy (clouds)"
        )
    if not np.isfinite(labels).all() or (labels != np.round(labels)).any() or (labels < 0).any():
        raise LearngeneError(f"the labels of {path.name} are not whole numbers from 0; check the label column or row")
    return check_events(events), labels.astype(np.int64)


def _load(path: Path):
    try:
        return np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise LearngeneError(f"{path.name} cannot be read as a NumPy file: {error}") from error


def _read_voxels(path: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    with _load(path) as archive:
        names = f"{split}_charge", f"{split}_label"
        missing = [name for name in names if name not in archive]
        if missing:
            raise LearngeneError(f"{path.name} has no {' and no '.join(missing)}; it has {', '.join(archive)}")
        charge, labels = (archive[name] for name in names)
    if charge.ndim != 4 or labels.shape != charge.shape[:1]:
        raise LearngeneError(
            f"{names[0]} has shape {charge.shape} and {names[1]} {labels.shape}; allowed are [N, X, Y, Z] and [N]"
        )
    return charge, labels.astype(float)


def _read_clouds(
    array: np.ndarray, columns: Sequence[int], label_column: int | None, label_row: int | None
) -> tuple[np.ndarray, np.ndarray]:
    if (label_column is None) == (label_row is None):
        raise LearngeneError("a .npy of point clouds needs either label_column or label_row, to know where labels are")
    wanted = [*columns, *([] if label_column is None else [label_column])]
    if array.ndim != 3 or len(columns) != 4 or not all(-array.shape[2] <= c < array.shape[2] for c in wanted):
        raise LearngeneError(
            f"the point clouds have shape {array.shape}, where columns {wanted} were asked for; allowed is "
            "[N, points, columns] with four columns x, y, z, charge and, where asked for, the label column"
        )
    if label_row is not None:
        if not 0 > label_row > -array.shape[1]:
            raise LearngeneError(f"label_row is {label_row}; it counts from the end, -1 to {1 - array.shape[1]}")
        return array[:, :label_row][:, :, list(columns)], array[:, label_row, 0]
    clouds, labels = array[:, :, list(columns)], array[:, :, label_column]
    real = np.isfinite(clouds).all(axis=-1) & (clouds[..., 3] > 0)
    first = np.take_along_axis(labels, real.argmax(axis=1)[:, None], axis=1)
    mixed = np.flatnonzero((real & (labels != first)).any(axis=1))
    if len(mixed):
        raise LearngeneError(
            f"event {mixed[0]} has points of several labels in column {label_column}: that column labels points (such "
            "as tracks), not events"
        )
    return clouds, first[:, 0]
