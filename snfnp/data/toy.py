"""2-D toy densities. A point is a complex number x + iy until the points become rows.

Derivation: derivations/01-a-plane.md.
"""

from typing import Any

import numpy as np
from numpy.random import Generator

from snfnp.data.dataset import Dataset

COUNTS = (10_000, 2_000, 5_000)  # points to train on, to validate on, and to test on
# The NLL of the test points under the densities themselves, in nats per point; tests/test_plane.py
# computes them, in closed form or by quadrature.
TRUE_NLL = {
    "moons": 1.006372,
    "rings": 2.745324,
    "pinwheel": 2.323988,
    "checkerboard": 2.079442,
    "spirals": 2.522250,
    "gaussians": 1.726970,
}


def moons(rng: Generator, count: int) -> np.ndarray:
    """Two interleaved half circles of radius 1, with noise of 0.1 in both coordinates."""
    upper = np.exp(1j * rng.uniform(0, np.pi, count)) - 0.5 - 0.25j
    return rng.choice((-1, 1), count) * upper + rng.standard_normal((count, 2)) @ (
        0.1,
        0.1j,
    )


def rings(rng: Generator, count: int) -> np.ndarray:
    """Circles of radius 1, 2 and 3, equally dense, with noise of 0.1 in the radius."""
    radius = rng.choice((1, 2, 2, 3, 3, 3), count) + 0.1 * rng.standard_normal(count)
    return radius * np.exp(1j * rng.uniform(0, 2 * np.pi, count))


def pinwheel(rng: Generator, count: int) -> np.ndarray:
    """Five arms: Gaussians that bend more with the distance from the centre."""
    point = 1 + rng.standard_normal((count, 2)) @ (0.3, 0.1j)
    arm = rng.integers(5, size=count)
    return 2 * point * np.exp(1j * (2 * np.pi / 5 * arm + 0.25 * np.exp(point.real)))


def checkerboard(rng: Generator, count: int) -> np.ndarray:
    """Uniform on eight squares of side 1: no model can beat its entropy of log 8 nats."""
    x, y = rng.uniform(-2, 2, count), rng.uniform(0, 1, count)
    return x + 1j * (y + rng.choice((-2, 0), count) + np.floor(x) % 2)


def spirals(rng: Generator, count: int) -> np.ndarray:
    """Two arms of one and a half turns, with noise of 0.1 in both coordinates."""
    radius = np.pi * np.sqrt(rng.uniform(0.01, 1, count))
    arm = rng.choice((-1, 1), count)
    return arm * radius * np.exp(3j * radius) + rng.standard_normal((count, 2)) @ (
        0.1,
        0.1j,
    )


def gaussians(rng: Generator, count: int) -> np.ndarray:
    """Eight Gaussians of standard deviation 0.2 on a circle of radius 2."""
    centre = 2 * np.exp(1j * np.pi / 4 * rng.integers(8, size=count))
    return centre + rng.standard_normal((count, 2)) @ (0.2, 0.2j)


DENSITIES = {
    d.__name__: d for d in (moons, rings, pinwheel, checkerboard, spirals, gaussians)
}


def draw(name: str, count: int, seed: int) -> np.ndarray:
    """Points (count, 2) of one of DENSITIES, to 6 decimals: the same on every machine."""
    points: Any = DENSITIES[name](np.random.default_rng(seed), count)
    return np.stack([points.real, points.imag], axis=1).round(6)


def load(name: str, data_dir: object, report: object) -> Dataset:
    """The points of seed 0, for any seed of a run, so that runs compare."""
    splits = np.split(draw(name, sum(COUNTS), 0), np.cumsum(COUNTS[:-1]))
    source = "2-D toy data, drawn with seed 0"
    return Dataset(name, *splits, source=source, true_nll=TRUE_NLL[name])
