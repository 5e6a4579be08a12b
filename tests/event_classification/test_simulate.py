"""The simulator against closed-form physics, and what its events look like."""

from dataclasses import replace

import numpy as np
import pytest
from simulate import (
    BEAM,
    CLASSES,
    REAL_LIKE,
    SIMULATED,
    beam_energy,
    effective_charge,
    momentum,
    recoil_energy,
    simulate_events,
    stopping_power,
    track,
)

from mmlg_hf.errors import LearngeneError

PROTON = 938.272  # MeV/c^2
EMPTY = replace(SIMULATED, pressure=1e-12)  # a chamber without gas, in which nothing is lost


def test_gas_density_is_that_of_an_ideal_gas():
    # 19.2 torr = 2559.8 Pa; 2559.8 * 58.12 g/mol / (8.3145 * 293 K) = 61.07 g/m^3
    assert SIMULATED.density == pytest.approx(61.07e-6, rel=1e-3)


def test_fast_protons_lose_what_bethe_says():
    # At 100 MeV the "1 +" in the logarithm does not matter; gamma = 1 + 100 / 938.272
    beta2, beta2gamma2 = 0.18335, 0.22452
    logarithm = np.log(2 * 0.510999 * beta2gamma2 / 48.3e-6) - beta2
    expected = 0.307075 * 34 / 58.12 / beta2 * logarithm
    assert stopping_power(np.array(100.0), PROTON, 1) == pytest.approx(expected, rel=1e-3)


def test_stopping_power_grows_as_a_particle_slows_and_falls_as_it_stops():
    loss = stopping_power(np.array([0.001, 0.08, 1.0, 10.0]), PROTON, 1)
    assert loss[1] > loss[2] > loss[3]
    assert loss[0] < loss[1]
    assert (loss > 0).all()


def test_a_fast_ion_is_bare_and_a_slow_one_is_dressed():
    charge = effective_charge(np.array([0.1, 1.0, 100.0, 1200.0]), 11174.86, 6)
    assert (np.diff(charge) > 0).all()
    assert charge[-1] == pytest.approx(6, abs=1e-3)


def test_without_gas_a_proton_flies_the_circle_of_radius_p_over_qb():
    detector = replace(EMPTY, radius=1e4)
    energy = np.array([2.0])
    positions, _ = track(np.array([[0.0, 0.0, 500.0]]), np.array([[1.0, 0.0, 0.0]]), energy, PROTON, 1, detector)
    radius = 1000 * momentum(energy, PROTON)[0] / (0.299792458 * effective_charge(energy, PROTON, 1)[0] * 1.68)  # mm
    centre = np.array([0.0, -radius])  # clockwise, as seen from +z
    distance = np.linalg.norm(positions[:, 0, :2] - centre, axis=1)
    np.testing.assert_allclose(distance, radius, rtol=0.02)
    np.testing.assert_allclose(positions[:, 0, 2], 500.0)


def test_without_field_a_particle_flies_straight():
    detector = replace(EMPTY, magnetic_field=0.0)
    direction = np.array([[0.6, 0.0, 0.8]])
    positions, losses = track(np.array([[0.0, 0.0, 100.0]]), direction, np.array([5.0]), PROTON, 1, detector)
    inside = positions[losses[:, 0] > 0, 0]
    np.testing.assert_allclose((inside - [0, 0, 100]) @ direction[0], np.linalg.norm(inside - [0, 0, 100], axis=1))


def test_a_stopping_particle_deposits_all_its_energy():
    dense = replace(SIMULATED, pressure=760.0)
    _, losses = track(np.array([[0.0, 0.0, 500.0]]), np.array([[1.0, 0.0, 0.0]]), np.array([2.0]), PROTON, 1, dense)
    assert losses.sum() == pytest.approx(2.0)


def test_an_elastic_recoil_never_takes_more_than_the_beam_has_and_takes_all_at_equal_mass():
    assert recoil_energy(100.0, 0.0, BEAM[0]) == pytest.approx(100.0)
    assert recoil_energy(100.0, np.pi / 3, BEAM[0]) == pytest.approx(25.0)
    assert recoil_energy(100.0, 0.0, BEAM[0] / 45) == pytest.approx(400 * 45 / 46**2)


def test_the_beam_slows_down_along_the_chamber():
    energy = beam_energy(np.array([0.0, 300.0, 900.0]), SIMULATED)
    assert energy[0] == pytest.approx(4.17 * 46)
    assert (np.diff(energy) < 0).all()


def test_the_same_seed_gives_the_same_events_and_another_seed_others():
    first, second, other = (simulate_events(20, detector=REAL_LIKE, seed=seed) for seed in (5, 5, 6))
    np.testing.assert_array_equal(first[0], second[0])
    np.testing.assert_array_equal(first[1], second[1])
    assert first[0].shape != other[0].shape or (first[0] != other[0]).any()


def test_events_come_in_the_proportions_asked_for():
    clouds, labels = simulate_events(40, seed=1)
    assert np.bincount(labels).tolist() == [10, 6, 24]
    assert clouds.shape[0] == 40
    assert clouds.shape[2] == 4
    assert clouds.dtype == np.float32


@pytest.mark.parametrize("proportions", [(1, 1, 1), (0.25, 0.15, 0.6)])
def test_even_a_few_events_hold_every_class(proportions):
    assert set(simulate_events(3, proportions=proportions, seed=0)[1]) == {0, 1, 2}


def test_hits_lie_on_pads_inside_the_chamber_with_charge_between_threshold_and_saturation():
    clouds, _ = simulate_events(60, detector=REAL_LIKE, seed=2)
    hits = clouds[clouds[..., 3] > 0]
    distance = np.hypot(hits[:, 0], hits[:, 1])
    assert distance.max() < REAL_LIKE.radius
    assert distance.min() > REAL_LIKE.beam_hole
    assert (hits[:, 2] > 0).all()
    assert (hits[:, 2] < REAL_LIKE.length).all()
    assert hits[:, 3].min() >= REAL_LIKE.threshold
    assert hits[:, 3].max() <= REAL_LIKE.saturation


def test_carbon_ionises_far_more_than_a_proton():
    clouds, labels = simulate_events(60, proportions=(1, 1, 0), seed=3)
    charge = [clouds[labels == k][clouds[labels == k][..., 3] > 0][:, 3].mean() for k in (0, 1)]
    assert charge[1] > 4 * charge[0]


def test_dead_pads_are_the_same_in_every_run_and_never_fire_for_a_track():
    detector = replace(SIMULATED, dead_pads=0.5, noise_hits=0.0)
    alive = [simulate_events(30, proportions=(1, 1, 0), detector=detector, seed=s)[0] for s in (0, 1)]
    pads = [{(x, y) for x, y in cloud[cloud[..., 3] > 0][:, :2]} for cloud in alive]
    all_pads = simulate_events(60, proportions=(1, 1, 0), detector=replace(detector, dead_pads=0.0), seed=2)[0]
    fired = {(x, y) for x, y in all_pads[all_pads[..., 3] > 0][:, :2]}
    assert len((pads[0] | pads[1]) & fired) < 0.7 * len(fired)


def test_stray_tracks_join_events_with_a_recoil_and_never_noise():
    piled = replace(SIMULATED, pile_up=1.0)
    hits = {}
    for detector in (SIMULATED, piled):
        clouds, labels = simulate_events(60, proportions=(1, 1, 1), detector=detector, seed=8)
        hits[detector] = [(clouds[labels == k][..., 3] > 0).sum(axis=1).mean() for k in range(3)]
    assert hits[piled][0] > 1.3 * hits[SIMULATED][0]
    assert hits[piled][1] > 1.3 * hits[SIMULATED][1]
    assert hits[piled][2] < 1.3 * hits[SIMULATED][2]


def test_real_like_events_are_noisier_than_simulated_ones():
    only_protons = {"proportions": (1, 0, 0), "seed": 4}
    clean, noisy = (simulate_events(50, detector=d, **only_protons)[0] for d in (SIMULATED, REAL_LIKE))
    scattered = [np.std(c[c[..., 3] > 0][:, :2]) for c in (clean, noisy)]
    assert scattered[1] > scattered[0]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"count": 0}, "count is 0"),
        ({"count": 5, "proportions": (0, 0, 0)}, "proportions are"),
        ({"count": 5, "proportions": (1, -1, 1)}, "proportions are"),
        ({"count": 5, "proportions": (1, 1)}, "proportions are"),
    ],
)
def test_impossible_requests_are_refused(arguments, said):
    with pytest.raises(LearngeneError, match=said):
        simulate_events(**arguments)


def test_the_classes_are_named_in_the_order_of_the_labels():
    assert CLASSES == ("proton", "carbon", "noise")
