"""The plane as a flow sees it: density, samples, latents, and the grid that it bends.

Derivation: derivations/30-a-plane.md.
"""

from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from snfnp.errors import DivergedError
from snfnp.ops import Ops
from snfnp.training.progress import Record
from snfnp.training.runs.load import LoadedRun, load_run

_SIDE = 128  # places of a density along each axis
_LINES, _REACH, _SHOWN = 11, 2.5, 600  # of the grid: lines each way, and their ends; points shown
_FRAMES = 48  # of a film, at most; half as many at least, once there were more


@dataclass(frozen=True)
class View:
    """A flow's plane. extent: left, right, bottom, top; density: exact, in 1/area, (side, side),
    the lowest row first; data, latents: points of the data and f of these, (n, 2); samples, grid:
    {inverse: g of the same latents}, (n, 2), and of a square grid's lines, (lines, points, 2)."""

    extent: tuple[float, float, float, float]
    density: np.ndarray
    data: np.ndarray
    latents: np.ndarray
    samples: dict[str, np.ndarray]
    grid: dict[str, np.ndarray]

    @classmethod
    def of(cls, run: LoadedRun, data, seed: int = 0, both: bool = True) -> "View":
        """The view of a run with some of `data` (n, 2): through the learned inverse, if there is
        one, and the exact one, or through the first alone. Raises DivergedError if an inverse is
        not finite."""
        ops, likelihood = run.ops, run.likelihood
        data = np.asarray(data[:: max(1, len(data) // _SHOWN)], np.float64)
        low, high = np.quantile(data, (0.01, 0.99), axis=0)
        middle, half = (low + high) / 2, 0.65 * (high - low)
        if half.max() < 4 * half.min():  # in comparable units: shapes are to be seen as they are
            half[:] = half.max()
        (left, bottom), (right, top) = middle - half, middle + half
        x, y = np.linspace(left, right, _SIDE), np.linspace(bottom, top, _SIDE)
        places = np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)
        density = np.exp(likelihood.log_prob(places)).reshape(_SIDE, _SIDE)
        along = np.linspace(-_REACH, _REACH, 101), np.linspace(-_REACH, _REACH, _LINES)
        lines = np.stack(np.meshgrid(*along), axis=-1)
        lines = np.concatenate([lines, lines[..., ::-1]])
        latents = (ops.asarray(lines.reshape(-1, 2)),)
        samples, grid = {}, {}
        inverses = ["learned"] * run.flow.has_learned_inverse + ["exact"]
        for name in inverses if both else inverses[:1]:
            exact = name == "exact"
            samples[name] = likelihood.sample(len(data), seed, exact=exact)
            bent = likelihood.sample(lines.size // 2, latents=latents, exact=exact)
            grid[name] = bent.reshape(lines.shape)
        found = ops.to_host(likelihood.latents(data)[0])
        return cls((left, right, bottom, top), density, data, found, samples, grid)


class Film:
    """Views of a flow while it trains: a callback, which reads the last checkpoint at evaluations.

    data: points (n, 2); frames: (title, view), of a long run those of every second, fourth, …
    evaluation. Each takes some milliseconds.
    """

    def __init__(self, data: np.ndarray, path: Path, ops: Ops):
        self.data, self.frames, self._every, self._seen = data, [], 1, 0
        self._run = partial(load_run, path, "last", ops=ops)

    def __call__(self, record: Record) -> None:
        self._seen += record.nats is not None
        if record.nats is None or (self._seen - 1) % self._every:
            return
        title = f"epoch {record.epoch}: exact validation NLL {record.nats:.3f} nats"
        with suppress(DivergedError):  # training goes on, and so may the inverse
            self.frames.append((title, View.of(self._run(), self.data, both=False)))
        if len(self.frames) > _FRAMES:
            self.frames, self._every = self.frames[::2], 2 * self._every
