"""Views of a flow of 2-D data: density, samples, latents, and the image of a square grid.

Derivation: derivations/30-a-plane.md.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from snfnp.errors import DivergedError
from snfnp.likelihood import Likelihood
from snfnp.training.progress import Record

_SIDE = 128  # places of a density along each axis
_LINES, _REACH, _SHOWN = 11, 2.5, 600  # of the grid: lines each way, and their ends; points shown
_FRAMES = 48  # of an animation, at most; at least half as many once there were more


@dataclass(frozen=True)
class View:
    """A flow of 2-D data.

    extent: left, right, bottom, top; density: exact, in 1/area, (side, side), the lowest row first;
    data, latents: points of the data and f of these, (n, 2); samples, grid: {inverse: g of the same
    latents}, (n, 2), and of a square grid's lines, (lines, points, 2)."""

    extent: tuple[float, float, float, float]
    density: np.ndarray
    data: np.ndarray
    latents: np.ndarray
    samples: dict[str, np.ndarray]
    grid: dict[str, np.ndarray]

    @classmethod
    def of(cls, likelihood: Likelihood, data, inverses: Sequence[str], seed: int = 0) -> "View":
        """The view of a flow with `data` (n, 2), through these inverses, "learned" or "exact".
        Raises DivergedError if an inverse is not finite."""
        ops = likelihood.ops
        data = np.asarray(data[:: max(1, len(data) // _SHOWN)], np.float64)
        low, high = np.quantile(data, (0.01, 0.99), axis=0)
        middle, half = (low + high) / 2, 0.65 * (high - low)
        half[half == 0] = half.max() or 1.0  # of a single point, or points on a line
        if half.max() < 4 * half.min():  # in comparable units: shapes stay as they are
            half[:] = half.max()
        (left, bottom), (right, top) = middle - half, middle + half
        x, y = np.linspace(left, right, _SIDE), np.linspace(bottom, top, _SIDE)
        places = np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)
        density = np.exp(likelihood.log_prob(places)).reshape(_SIDE, _SIDE)
        sides = (np.linspace(-_REACH, _REACH, count) for count in (101, _LINES))
        along, across = np.meshgrid(*sides)
        lines = np.stack([along, across], axis=-1)
        lines = np.concatenate([lines, lines[..., ::-1]])
        latents = (ops.asarray(lines.reshape(-1, 2)),)
        samples, grid = {}, {}
        for name in inverses:
            exact = name == "exact"
            samples[name] = likelihood.sample(len(data), seed, exact=exact)
            bent = likelihood.sample(lines.size // 2, latents=latents, exact=exact)
            grid[name] = bent.reshape(lines.shape)
        found = ops.to_host(likelihood.latents(data)[0])
        return cls((left, right, bottom, top), density, data, found, samples, grid)


class Animation:
    """Views of a flow while it trains: a callback of `snfnp.train`, which sees each evaluation.

    data: points (n, 2); frames: (title, view), of a long run of every second, fourth, … evaluation.
    """

    def __init__(self, data: np.ndarray):
        self.data, self.frames, self._every, self._seen = data, [], 1, 0

    def __call__(self, record: Record) -> None:
        likelihood = record.likelihood
        self._seen += likelihood is not None  # None: between evaluations
        if likelihood is None or (self._seen - 1) % self._every:
            return
        title = f"epoch {record.epoch}: exact validation NLL {record.nll:.3f} nats"
        inverse = "learned" if likelihood.flow.has_learned_inverse else "exact"
        with suppress(DivergedError):  # training may recover
            self.frames.append((title, View.of(likelihood, self.data, [inverse])))
        if len(self.frames) > _FRAMES:
            self.frames, self._every = self.frames[::2], 2 * self._every
