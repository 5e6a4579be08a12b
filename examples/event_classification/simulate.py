"""Simulate what an active-target time projection chamber records: proton, carbon and noise events as point clouds.

The setting follows the 46Ar(p,p) experiment of arXiv 1810.10350: a cylinder of isobutane in a solenoid, a beam of
46Ar along z, charged recoils that curl in the field and ionise the gas, electrons that drift to a plane of pads.

    geometry   x, y in mm from the centre of the pad plane, z in mm from the entrance window, 0 to `length`
    recoil     elastic, non-relativistic two-body kinematics: T = 4 m M / (m + M)^2 * T_beam * cos^2(theta)
    motion     helix around B along z: d(phi)/ds = 0.299792458 * q * B / p, with s in m, B in T, p in GeV/c, q in e
    loss       Bethe's formula without shell and density corrections, with a logarithm that stays positive as the
               particle stops and Barkas' effective charge q = z * (1 - exp(-125 beta z^(-2/3)))
    ionisation dE / W electrons a step, Gaussian fluctuation with Fano factor 0.2
    drift      Gaussian diffusion, sigma = D * sqrt(drift length), across and along the field
    readout    square pads and time buckets; charge in ADC counts with gain fluctuation, threshold and saturation

Left out, because an image of 10 mm pixels does not show them: multiple scattering, range straggling, the shaping of
the amplifier and the electric field's part in the motion. One seed draws everything; all is vectorised over events.
"""

from dataclasses import dataclass, replace

import numpy as np

from mmlg_hf.errors import LearngeneError

CLASSES = ("proton", "carbon", "noise")
ELECTRON_MASS = 0.51099895  # MeV/c^2
BEAM = (42810.0, 18, 4.17 * 46)  # mass in MeV/c^2, charge and kinetic energy in MeV of 46Ar at the entrance window
RECOILS = {"proton": (938.272, 1), "carbon": (11174.86, 6)}  # mass in MeV/c^2, charge
# Isobutane, C4H10: molar mass in g/mol, electrons per atomic mass unit, mean excitation energy in MeV
MOLAR_MASS, Z_OVER_A, EXCITATION = 58.12, 34 / 58.12, 48.3e-6
STEP = 4.0  # mm of path per step
MAX_STEPS = 400  # 1.6 m of path; a recoil that still moves then has crossed the chamber


@dataclass(frozen=True)
class Detector:
    """The chamber and its readout; the defaults are the clean chamber that classifiers are trained on.

    Args:
        magnetic_field: T, along z.
        pressure: torr of isobutane at 293 K.
        work_function: eV per electron-ion pair.
        radius, length: mm, of the active volume.
        beam_hole: mm; pads closer to the axis are off, as the beam would blind them.
        pad: mm, side of the square pads.
        bucket: mm of drift per time bucket (5.2 cm/us sampled at 12.5 MHz).
        diffusion: mm per sqrt(mm of drift), the same across and along the field.
        gain: ADC counts per primary electron.
        gain_spread: relative width of the avalanche fluctuation per signal.
        pad_spread: relative width of the gain over the pads.
        threshold, saturation: ADC counts.
        noise_hits: mean number of uncorrelated hits added to every event.
        bursts: mean number of correlated bursts per event (neighbouring pads that fire in the same bucket).
        efficiency: probability that a signal above threshold is recorded.
        dead_pads: share of pads that never fire.
        tilt: degrees between the beam and the field, in the y-z plane.
        pile_up: probability that a stray proton of another reaction is recorded with a proton's or carbon's event.
        map_seed: seed of the maps of dead pads and pad gains, which belong to the chamber and not to an event.
    """

    magnetic_field: float = 1.68
    pressure: float = 19.2
    work_function: float = 23.0
    radius: float = 250.0
    length: float = 1000.0
    beam_hole: float = 20.0
    pad: float = 5.0
    bucket: float = 4.16
    diffusion: float = 0.06
    gain: float = 2.7
    gain_spread: float = 0.1
    pad_spread: float = 0.0
    threshold: float = 60.0
    saturation: float = 4095.0
    noise_hits: float = 2.0
    bursts: float = 0.0
    efficiency: float = 1.0
    dead_pads: float = 0.0
    tilt: float = 0.0
    pile_up: float = 0.0
    map_seed: int = 46

    @property
    def density(self) -> float:
        """Density of the gas in g/cm^3, as an ideal gas at 293 K."""
        pascal = self.pressure * 133.322
        return pascal * MOLAR_MASS / (8.314462 * 293.0) * 1e-6


SIMULATED = Detector()
# What the simulation does not know about a real run: a tilted and noisier chamber of another gain, with dead and
# uneven pads, lost hits, correlated bursts and stray tracks.
REAL_LIKE = replace(
    SIMULATED,
    magnetic_field=1.75,
    pressure=20.5,
    diffusion=0.12,
    gain=2.0,
    gain_spread=0.35,
    pad_spread=0.25,
    threshold=75.0,
    noise_hits=40.0,
    bursts=1.0,
    efficiency=0.8,
    dead_pads=0.06,
    tilt=6.2,
    pile_up=0.15,
)


def stopping_power(energy: np.ndarray, mass: float, charge: int) -> np.ndarray:
    """Mass stopping power of isobutane in MeV cm^2/g.

    Bethe: S = 0.307075 * Z/A * q^2 / beta^2 * [ln(1 + 2 m_e beta^2 gamma^2 / I) - beta^2]. The "1 +" is ours: it keeps
    the logarithm positive below the energies that Bethe's formula is for, so that S falls to 0 with the effective
    charge as the particle stops.

    Args:
        energy: kinetic energy in MeV, any shape; values at or below zero count as 1 eV.
        mass, charge: of the particle, in MeV/c^2 and in e.
    """
    beta2, gamma = _beta_squared(energy, mass)
    logarithm = np.log1p(2 * ELECTRON_MASS * beta2 * gamma**2 / EXCITATION) - beta2
    return 0.307075 * Z_OVER_A * effective_charge(energy, mass, charge) ** 2 / beta2 * logarithm


def effective_charge(energy: np.ndarray, mass: float, charge: int) -> np.ndarray:
    """Mean charge in e of an ion of kinetic energy `energy` (MeV) in matter: z * (1 - exp(-125 beta z^(-2/3)))."""
    beta = np.sqrt(_beta_squared(energy, mass)[0])
    return charge * -np.expm1(-125.0 * beta * charge ** (-2.0 / 3.0))


def momentum(energy: np.ndarray, mass: float) -> np.ndarray:
    """Momentum in GeV/c of a particle of kinetic energy `energy` in MeV."""
    return np.sqrt(energy * (energy + 2 * mass)) * 1e-3


def _beta_squared(energy: np.ndarray, mass: float) -> tuple[np.ndarray, np.ndarray]:
    gamma = 1.0 + np.maximum(energy, 1e-6) / mass
    return 1.0 - gamma**-2, gamma


def beam_energy(depth: np.ndarray, detector: Detector) -> np.ndarray:
    """Kinetic energy in MeV of the beam after `depth` mm of gas, by steps of 1 mm through `stopping_power`."""
    mass, charge, energy = BEAM
    table = [energy]
    for _ in range(int(detector.length)):
        table.append(max(table[-1] - float(stopping_power(table[-1], mass, charge)) * detector.density * 0.1, 0.0))
    return np.interp(depth, np.arange(len(table)), table)


def recoil_energy(beam: np.ndarray, theta: np.ndarray, mass: float) -> np.ndarray:
    """Kinetic energy (MeV) of a target nucleus knocked out elastically at the laboratory angle `theta` (rad)."""
    share = 4.0 * mass * BEAM[0] / (mass + BEAM[0]) ** 2
    return share * beam * np.cos(theta) ** 2


def track(
    start: np.ndarray, direction: np.ndarray, energy: np.ndarray, mass: float, charge: int, detector: Detector
) -> tuple[np.ndarray, np.ndarray]:
    """Follow particles through the gas until they stop or leave the chamber.

    Args:
        start: [N, 3] mm. direction: [N, 3], unit vectors. energy: [N] MeV.

    Returns:
        positions [S, N, 3] in mm, at the middle of each step, and the energy deposited there, [S, N] in MeV, 0 once
        the particle has stopped or left.
    """
    position, direction, energy = start.astype(float), direction.astype(float), energy.astype(float)
    positions, losses = [], []
    for _ in range(MAX_STEPS):
        alive = energy > 0
        if not alive.any():
            break
        loss = np.minimum(stopping_power(energy, mass, charge) * detector.density * STEP * 0.1, energy)
        middle = position + direction * STEP / 2
        inside = (np.hypot(middle[:, 0], middle[:, 1]) < detector.radius) & (middle[:, 2] > 0)
        inside &= middle[:, 2] < detector.length
        positions.append(middle)
        losses.append(np.where(alive & inside, loss, 0.0))
        turn = 0.299792458e-3 * effective_charge(energy, mass, charge) * detector.magnetic_field * STEP
        turn = turn / np.maximum(momentum(energy, mass), 1e-9)
        cos, sin = np.cos(turn), np.sin(turn)
        x, y, z = direction.T
        # A positive charge in a field along +z turns clockwise when seen from +z.
        direction = np.stack([x * cos + y * sin, y * cos - x * sin, z], axis=1)
        position = position + direction * STEP
        energy = np.where(inside, energy - loss, 0.0)
    steps, number = len(losses), len(energy)
    return np.reshape(positions, (steps, number, 3)), np.reshape(losses, (steps, number))


def simulate_events(
    count: int,
    *,
    detector: Detector = SIMULATED,
    proportions: tuple[float, float, float] = (0.25, 0.15, 0.60),
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Simulate `count` events.

    Args:
        detector: `SIMULATED`, `REAL_LIKE` or your own.
        proportions: of protons, carbons and noise events; they need not sum to one. At least one event of every class
            with a proportion above zero is made when `count` allows.
        seed: the same seed gives the same events.

    Returns:
        clouds, float32 [count, points, 4], columns x, y, z in mm and charge in ADC counts, padded with rows of zeros;
        labels, int64 [count], indices into `CLASSES`.

    Raises:
        LearngeneError: `count` below 1, or proportions that are negative, all zero or not three.
    """
    shares = np.asarray(proportions, dtype=float)
    if count < 1:
        raise LearngeneError(f"count is {count}; at least one event must be simulated")
    if shares.shape != (3,) or (shares < 0).any() or shares.sum() <= 0:
        raise LearngeneError(
            f"proportions are {proportions}; they must be three numbers >= 0, {CLASSES}, not all zero"
        )
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(3), _quotas(count, shares / shares.sum()))
    labels = rng.permutation(labels)
    signals = [_recoils(np.flatnonzero(labels == k), name, detector, rng) for k, name in enumerate(CLASSES[:2])]
    # Not in noise events: a hand that labels events would call them by the track.
    stray = np.flatnonzero((rng.random(count) < detector.pile_up) & (labels != CLASSES.index("noise")))
    signals.append(_recoils(stray, "proton", detector, rng, on_axis=False))
    event, position, electrons = (np.concatenate(parts) for parts in zip(*signals, strict=True))
    event, cell, charge = _read_out(event, position, electrons, detector, rng)
    noise = _noise(labels, detector, rng)
    event, cell, charge = (np.concatenate(pair) for pair in zip((event, cell, charge), noise, strict=True))
    return _clouds(count, event, cell, charge, detector), labels


def _quotas(count: int, shares: np.ndarray) -> np.ndarray:
    """Whole numbers that sum to `count`, proportional to `shares` by largest remainder, none of the wanted empty."""
    quotas = np.floor(count * shares).astype(int)
    for index in np.argsort(quotas - count * shares, kind="stable")[: count - quotas.sum()]:
        quotas[index] += 1
    for index in np.flatnonzero((shares > 0) & (quotas == 0)):
        if quotas.max() > 1:
            quotas[quotas.argmax()] -= 1
            quotas[index] += 1
    return quotas


def _recoils(
    events: np.ndarray, name: str, detector: Detector, rng: np.random.Generator, on_axis: bool = True
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Electrons freed by one recoil per entry of `events`: event [E], position [E, 3] in mm, electrons [E]."""
    mass, charge = RECOILS[name]
    number = len(events)
    depth = rng.uniform(0.1, 0.8, number) * detector.length
    beam = beam_energy(depth, detector)
    # Protons below 0.5 MeV and carbons below 2 MeV hardly leave the beam hole: they are not drawn.
    least = 0.5 if name == "proton" else 2.0
    steepest = np.arccos(np.sqrt(np.minimum(least / np.maximum(recoil_energy(beam, 0.0, mass), least), 1.0)))
    theta = np.radians(30) + rng.random(number) * np.maximum(steepest - np.radians(30), 0.0)
    phi = rng.uniform(0, 2 * np.pi, number)
    direction = np.stack([np.sin(theta) * np.cos(phi), np.sin(theta) * np.sin(phi), np.cos(theta)], axis=1)
    spot = rng.normal(0, 3.0 if on_axis else 80.0, (number, 2))
    tilt = np.radians(detector.tilt)
    start = np.column_stack([spot[:, 0], spot[:, 1] + np.tan(tilt) * (depth - detector.length / 2), depth])
    y, z = direction[:, 1], direction[:, 2]
    direction[:, 1], direction[:, 2] = y * np.cos(tilt) + z * np.sin(tilt), z * np.cos(tilt) - y * np.sin(tilt)
    energy = recoil_energy(beam, theta, mass)
    positions, losses = track(start, direction, energy, mass, charge, detector)
    steps, which = np.nonzero(losses)
    mean = losses[steps, which] * 1e6 / detector.work_function
    electrons = np.maximum(rng.normal(mean, np.sqrt(0.2 * mean)), 0.0)
    return events[which], positions[steps, which], electrons


def _read_out(
    event: np.ndarray, position: np.ndarray, electrons: np.ndarray, detector: Detector, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Drift, diffuse, collect: electrons to (event, cell [C, 3] of pad column, pad row and bucket, ADC charge)."""
    clusters = 8  # equal shares of the electrons of a step, each diffused by itself
    event, electrons = np.repeat(event, clusters), np.repeat(electrons / clusters, clusters)
    position = np.repeat(position, clusters, axis=0)
    drift = np.clip(detector.length - position[:, 2:], 0.0, None)
    position = position + rng.normal(size=position.shape) * detector.diffusion * np.sqrt(drift)
    sides = np.array([detector.pad, detector.pad, detector.bucket])
    cell = np.floor(position / sides).astype(np.int64)
    # One sortable key per (event, pad, bucket); the shift keeps negative pad indices apart.
    key = ((event * 4096 + cell[:, 0] + 2048) * 4096 + cell[:, 1] + 2048) * 4096 + cell[:, 2] + 2048
    key, inverse = np.unique(key, return_inverse=True)
    charge = np.bincount(inverse, weights=electrons, minlength=len(key)) * detector.gain
    cell = np.stack([key // 4096**2 % 4096, key // 4096 % 4096, key % 4096], axis=1) - 2048
    event = key // 4096**3
    spread = detector.gain_spread
    if spread > 0:
        charge = charge * rng.gamma(1 / spread**2, spread**2, len(charge))
    dead, gains = _pad_maps(detector)
    column, row = (np.clip(cell[:, axis] + len(dead) // 2, 0, len(dead) - 1) for axis in (0, 1))
    charge = np.minimum(charge * gains[column, row], detector.saturation)
    kept = (charge > detector.threshold) & ~dead[column, row] & (rng.random(len(charge)) < detector.efficiency)
    kept &= _on_pads(cell, detector)
    return event[kept], cell[kept], charge[kept]


def _pad_maps(detector: Detector) -> tuple[np.ndarray, np.ndarray]:
    """Dead pads and relative gains, [columns, rows] with the axis in the middle: the same for every event."""
    rng = np.random.default_rng(detector.map_seed)
    side = 2 * int(np.ceil(detector.radius / detector.pad)) + 2
    dead = rng.random((side, side)) < detector.dead_pads
    return dead, np.maximum(rng.normal(1.0, detector.pad_spread, (side, side)), 0.1)


def _on_pads(cell: np.ndarray, detector: Detector) -> np.ndarray:
    distance = np.hypot(*((cell[:, :2] + 0.5) * detector.pad).T)
    depth = (cell[:, 2] + 0.5) * detector.bucket
    return (distance < detector.radius) & (distance > detector.beam_hole) & (depth > 0) & (depth < detector.length)


def _noise(
    labels: np.ndarray, detector: Detector, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Hits that no particle made: few in every event, many in the events of class noise.

    A noise event has as many hits as a track (log-uniform between 10 and 400), scattered over the chamber, and one
    burst; so neither the number of hits nor their presence gives it away, only that they form no track.
    """
    is_noise = labels == CLASSES.index("noise")
    hits = rng.poisson(detector.noise_hits, len(labels))
    hits = hits + np.where(is_noise, np.exp(rng.uniform(np.log(10), np.log(400), len(labels))), 0).astype(int)
    event = np.repeat(np.arange(len(labels)), hits)
    half = detector.radius / detector.pad
    cell = np.floor(rng.uniform([-half, -half, 0], [half, half, detector.length / detector.bucket], (len(event), 3)))
    bursts = rng.poisson(detector.bursts, len(labels)) + is_noise
    burst_event = np.repeat(np.arange(len(labels)), bursts)
    corner = np.floor(
        rng.uniform([-half, -half, 0], [half, half, detector.length / detector.bucket], (len(burst_event), 3))
    )
    offsets = np.stack(np.meshgrid(np.arange(4), np.arange(4), [0], indexing="ij"), axis=-1).reshape(-1, 3)
    event = np.concatenate([event, np.repeat(burst_event, len(offsets))])
    cell = np.concatenate([cell, (corner[:, None] + offsets).reshape(-1, 3)]).astype(np.int64)
    charge = np.minimum(detector.threshold + rng.exponential(4 * detector.threshold, len(event)), detector.saturation)
    kept = _on_pads(cell, detector)
    return event[kept], cell[kept], charge[kept]


def _clouds(count: int, event: np.ndarray, cell: np.ndarray, charge: np.ndarray, detector: Detector) -> np.ndarray:
    """Rows grouped by event, padded with zeros: [count, points, 4]."""
    order = np.argsort(event, kind="stable")
    event = event[order]
    number = np.bincount(event, minlength=count)
    first = np.cumsum(number) - number
    clouds = np.zeros((count, max(int(number.max(initial=0)), 1), 4), dtype=np.float32)
    sides = np.array([detector.pad, detector.pad, detector.bucket])
    rows = np.column_stack([(cell[order] + 0.5) * sides, charge[order]])
    clouds[event, np.arange(len(event)) - first[event]] = rows
    return clouds
