"""Densities of the plane that one can see: points (N, 2), drawn when they are asked for."""

from collections.abc import Callable

import numpy as np

from snfnp.data.files import Dataset
from snfnp.errors import UsageError

COUNTS = (10_000, 2_000, 5_000)  # points to train on, to validate on, and to test on


def moons(rng: np.random.Generator, count: int) -> np.ndarray:
    """Two interleaved half circles of radius 1, with noise of 0.1 in both coordinates."""
    angle, lower = rng.uniform(0, np.pi, count), rng.integers(2, size=count)
    sign = 1 - 2 * lower
    points = np.stack([sign * np.cos(angle) + lower - 0.5, sign * (np.sin(angle) - 0.25)], axis=1)
    return points + 0.1 * rng.standard_normal((count, 2))


def rings(rng: np.random.Generator, count: int) -> np.ndarray:
    """Circles of radius 1, 2 and 3, equally dense, with noise of 0.1 in the radius."""
    radius = rng.choice(3, count, p=np.array([1, 2, 3]) / 6) + 1
    return _polar(radius + 0.1 * rng.standard_normal(count), rng.uniform(0, 2 * np.pi, count))


def pinwheel(rng: np.random.Generator, count: int) -> np.ndarray:
    """Five arms, Gaussians that are bent more the farther out they are."""
    out, across = rng.standard_normal((2, count)) * [[0.3], [0.1]] + [[1.0], [0.0]]
    angle = 2 * np.pi / 5 * rng.integers(5, size=count) + 0.25 * np.exp(out)
    return 2 * _polar(np.hypot(out, across), angle + np.arctan2(across, out))


def checkerboard(rng: np.random.Generator, count: int) -> np.ndarray:
    """Eight squares of side 1, uniformly: its entropy is log 8 nats, which no model can beat."""
    first, rest = rng.uniform(-2, 2, count), rng.uniform(0, 1, count)
    column, pair = np.floor(first), 2 * rng.integers(2, size=count) - 2
    return np.stack([first, rest + pair + column % 2], axis=1)


def spirals(rng: np.random.Generator, count: int) -> np.ndarray:
    """Two arms of one and a half turns, with noise of 0.1 in both coordinates."""
    angle = 3 * np.pi * np.sqrt(rng.uniform(0.01, 1, count))
    points = _polar(angle / 3, angle + np.pi * rng.integers(2, size=count))
    return points + 0.1 * rng.standard_normal((count, 2))


def gaussians(rng: np.random.Generator, count: int) -> np.ndarray:
    """Eight Gaussians of standard deviation 0.2 on a circle of radius 2."""
    centres = _polar(2.0, np.pi / 4 * rng.integers(8, size=count))
    return centres + 0.2 * rng.standard_normal((count, 2))


DENSITIES: dict[str, Callable] = {
    each.__name__: each for each in (moons, rings, pinwheel, checkerboard, spirals, gaussians)
}


def draw(name: str, count: int, seed: int) -> np.ndarray:
    """`count` points (count, 2) of one of DENSITIES, to 6 decimals: the same on every machine."""
    return DENSITIES[name](np.random.default_rng(seed), count).round(6)


def load(name: str, data_dir=None) -> Dataset:
    """The points of seed 0, whatever the seed of a run is: so runs compare. Raises UsageError if a
    folder is given."""
    if data_dir is not None:
        raise UsageError(f"{name} is drawn, not read: leave --data-dir {data_dir} out")
    splits = np.split(draw(name, sum(COUNTS), 0), np.cumsum(COUNTS[:-1]))
    return Dataset(name, *splits, source="a density of the plane, drawn with seed 0")


def _polar(radius, angle: np.ndarray) -> np.ndarray:
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
