"""Images of hand-made events, pixel by pixel, and the readers of the public formats."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from projections import charge_at, check_events, read_events, to_images

from mmlg_hf.errors import LearngeneError

EXTENT = np.array([[0.0, 4.0], [0.0, 4.0], [0.0, 4.0]])


def cloud(*points, room=5):
    """One event of the given points, padded with zeros."""
    event = np.zeros((1, room, 4), dtype=np.float32)
    event[0, : len(points)] = points
    return event


def test_the_first_letter_runs_right_and_the_second_up():
    image = to_images(cloud((3.5, 0.5, 1.5, 10.0)), planes=("xy", "zy", "zx"), extent=EXTENT, bins=4)[0]
    dark = [tuple(np.argwhere(image[..., channel] == 0)[0]) for channel in range(3)]
    assert dark == [(3, 3), (3, 1), (0, 1)]  # (row from the top, column)
    assert (image == 255).sum() == 3 * 15


def test_one_plane_fills_all_three_channels():
    image = to_images(cloud((1.5, 2.5, 0.5, 1.0)), planes=("xy",), extent=EXTENT, bins=4)[0]
    np.testing.assert_array_equal(image[..., 0], image[..., 1])
    np.testing.assert_array_equal(image[..., 0], image[..., 2])
    assert image[1, 1, 0] == 0


def test_voxels_and_the_cloud_of_their_centres_give_the_same_image():
    voxels = np.random.default_rng(0).random((3, 4, 4, 4)).astype(np.float32)
    voxels[voxels < 0.7] = 0
    clouds = np.zeros((3, 64, 4), dtype=np.float32)
    for n in range(3):
        where = np.argwhere(voxels[n])
        clouds[n, : len(where)] = np.column_stack([where + 0.5, voxels[n][tuple(where.T)]])
    for planes in (("xy", "zy", "zx"), ("yz",), ("zx", "yx", "xz")):
        drawn = to_images(voxels, planes=planes), to_images(clouds, planes=planes, extent=EXTENT, bins=4)
        np.testing.assert_allclose(drawn[0].astype(int), drawn[1].astype(int), atol=1)


@pytest.mark.parametrize(
    ("scale", "expected"),
    [("linear", 0.25), ("sqrt", 0.5), ("log", np.log(26) / np.log(101))],
)
def test_charge_scales_follow_their_formula(scale, expected):
    image = to_images(
        cloud((1.5, 1.5, 1.5, 25.0)), planes=("xy",), extent=EXTENT, bins=4, charge_scale=scale, full_scale=100.0
    )
    assert image[0, 2, 1, 0] == round(255 * (1 - expected))


def test_charge_of_points_in_line_adds_up_and_beyond_full_scale_is_full():
    event = cloud((1.5, 1.5, 0.5, 30.0), (1.5, 1.5, 2.5, 30.0), (3.5, 3.5, 3.5, 500.0))
    image = to_images(event, planes=("xy",), extent=EXTENT, bins=4, charge_scale="linear", full_scale=100.0)[0]
    assert image[2, 1, 0] == round(255 * 0.4)
    assert image[0, 3, 0] == 0


def test_own_full_scale_hides_the_charge_and_a_common_one_shows_it():
    faint, strong = cloud((1.5, 1.5, 1.5, 1.0)), cloud((1.5, 1.5, 1.5, 50.0))
    both = np.concatenate([faint, strong])
    own = to_images(both, extent=EXTENT, bins=4)
    common = to_images(both, extent=EXTENT, bins=4, full_scale=50.0)
    np.testing.assert_array_equal(own[0], own[1])
    assert common[0].min() > common[1].min() == 0


def test_bright_tracks_are_the_negative_of_dark_ones():
    event = cloud((1.5, 1.5, 1.5, 7.0), (0.5, 3.5, 2.5, 2.0))
    dark = to_images(event, extent=EXTENT, bins=4)
    bright = to_images(event, extent=EXTENT, bins=4, dark_tracks=False)
    np.testing.assert_array_equal(255 - dark, bright)


def test_points_outside_the_extent_are_not_drawn_and_those_on_its_upper_edge_are():
    event = cloud((4.0, 4.0, 4.0, 1.0), (4.1, 1.0, 1.0, 1.0), (-0.1, 1.0, 1.0, 1.0))
    image = to_images(event, planes=("xy",), extent=EXTENT, bins=4)[0, ..., 0]
    assert image[0, 3] == 0
    assert (image == 255).sum() == 15


def test_full_scale_is_the_quantile_of_the_pixels_with_charge():
    event = cloud((0.5, 0.5, 0.5, 10.0), (1.5, 0.5, 0.5, 20.0), (2.5, 0.5, 0.5, 30.0))
    assert charge_at(event, 0.5, planes=("xy",), extent=EXTENT, bins=4) == pytest.approx(20.0)


def test_unequal_voxel_sides_are_centred_in_a_square():
    voxels = np.ones((1, 2, 4, 4), dtype=np.float32)
    image = to_images(voxels, planes=("xy",))[0, ..., 0]
    assert image.shape == (4, 4)
    assert (image[:, 1:3] == 0).all()
    assert (image[:, [0, 3]] == 255).all()


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**16), order=st.permutations(range(6)))
def test_the_order_of_the_points_does_not_matter(seed, order):
    points = np.random.default_rng(seed).random((1, 6, 4)).astype(np.float32) * 4
    images = [to_images(p, extent=EXTENT, bins=8, full_scale=4.0) for p in (points, points[:, order])]
    np.testing.assert_allclose(images[0].astype(int), images[1].astype(int), atol=1)


def test_rows_of_nan_are_padding():
    event = cloud((1.5, 1.5, 1.5, 2.0))
    padded = event.copy()
    padded[0, 1:] = np.nan
    np.testing.assert_array_equal(to_images(event, extent=EXTENT), to_images(padded, extent=EXTENT))


@pytest.mark.parametrize(
    ("events", "said"),
    [
        (np.ones((4, 4)), r"shape \(4, 4\)"),
        (np.ones((2, 5, 3)), r"shape \(2, 5, 3\)"),
        (np.ones((1, 2, 3, 4, 5)), r"shape \(1, 2, 3, 4, 5\)"),
        (np.zeros((0, 5, 4)), "no events"),
        (np.stack([np.ones((5, 4)), np.zeros((5, 4))]), "1 of 2 events have no charge .* event 1"),
        (np.stack([np.zeros((3, 3, 3)), np.ones((3, 3, 3))]), "1 of 2 events have no charge .* event 0"),
        (-np.ones((1, 3, 3, 3)), "event 0 has a negative"),
        (np.full((1, 5, 4), np.inf), "event 0 has a negative or infinite"),
    ],
)
def test_events_that_cannot_be_drawn_are_refused_in_one_sentence(events, said):
    with pytest.raises(LearngeneError, match=said):
        check_events(events)


@pytest.mark.parametrize(
    ("drawing", "said"),
    [
        ({"planes": ("xy", "zy")}, "planes is"),
        ({"planes": "xyz"}, "planes is"),
        ({"planes": ("xx",)}, "planes is"),
        ({"charge_scale": "cubic"}, "allowed are log, sqrt, linear"),
        ({"full_scale": 0.0}, "full_scale is 0.0"),
        ({"extent": np.array([[0, 1], [1, 0], [0, 1]])}, "extent is"),
        ({"extent": np.zeros(3)}, "extent is"),
    ],
)
def test_impossible_drawings_are_refused(drawing, said):
    with pytest.raises(LearngeneError, match=said):
        to_images(cloud((1, 1, 1, 1)), **drawing)


def test_voxel_archives_are_read_by_split(tmp_path):
    charge = np.ones((3, 2, 2, 2), dtype=np.float16)
    np.savez(tmp_path / "v.npz", train_charge=charge, train_label=np.array([0, 1, 1], dtype=np.int8))
    events, labels = read_events(tmp_path / "v.npz")
    assert events.shape == (3, 2, 2, 2)
    assert labels.tolist() == [0, 1, 1]
    with pytest.raises(LearngeneError, match="has no test_charge and no test_label; it has train_charge, train_label"):
        read_events(tmp_path / "v.npz", split="test")


def test_clouds_with_a_label_column_are_read(tmp_path):
    array = np.zeros((2, 3, 6))
    array[0, :2] = [(1, 2, 3, 0, 9, 4), (2, 2, 2, 0, 8, 4)]
    array[1, 0] = (5, 6, 7, 0, 3, 1)
    np.save(tmp_path / "c.npy", array)
    events, labels = read_events(tmp_path / "c.npy", columns=(0, 1, 2, 4), label_column=5)
    assert labels.tolist() == [4, 1]
    np.testing.assert_array_equal(events[1, 0], [5, 6, 7, 3])


def test_clouds_with_a_label_row_lose_the_rows_that_are_no_points(tmp_path):
    array = np.full((2, 5, 4), np.nan)
    array[:, 0] = (1, 2, 3, 4)
    array[:, -2] = [[2] * 4, [0] * 4]
    array[:, -1] = [[17] * 4, [18] * 4]
    np.save(tmp_path / "c.npy", array)
    events, labels = read_events(tmp_path / "c.npy", label_row=-2)
    assert events.shape == (2, 3, 4)
    assert labels.tolist() == [2, 0]


def test_files_that_hold_something_else_are_refused(tmp_path):
    with pytest.raises(LearngeneError, match="there is no file"):
        read_events(tmp_path / "none.npz")
    (tmp_path / "t.csv").write_text("1,2")
    with pytest.raises(LearngeneError, match=r"ends in '\.csv'"):
        read_events(tmp_path / "t.csv")
    (tmp_path / "broken.npy").write_bytes(b"not an array")
    with pytest.raises(LearngeneError, match="cannot be read"):
        read_events(tmp_path / "broken.npy", label_column=-1)
    np.savez(tmp_path / "flat.npz", train_charge=np.ones((3, 8)), train_label=np.zeros(3))
    with pytest.raises(LearngeneError, match=r"train_charge has shape \(3, 8\)"):
        read_events(tmp_path / "flat.npz")


def test_a_cloud_file_that_does_not_fit_its_description_is_refused(tmp_path):
    path = tmp_path / "c.npy"
    np.save(path, np.ones((2, 3, 5)))
    with pytest.raises(LearngeneError, match="either label_column or label_row"):
        read_events(path)
    with pytest.raises(LearngeneError, match=r"columns \[0, 1, 2, 3, 5\]"):
        read_events(path, label_column=5)
    with pytest.raises(LearngeneError, match="label_row is -3"):
        read_events(path, label_row=-3)
    np.save(path, np.ones((6, 5)))
    with pytest.raises(LearngeneError, match=r"shape \(6, 5\)"):
        read_events(path, label_column=4)
    tracks = np.ones((1, 2, 5))
    tracks[0, 1, 4] = 2
    np.save(path, tracks)
    with pytest.raises(LearngeneError, match="labels points"):
        read_events(path, label_column=4)
    np.save(path, np.full((1, 2, 5), 0.5))
    with pytest.raises(LearngeneError, match="not whole numbers"):
        read_events(path, label_column=4)
