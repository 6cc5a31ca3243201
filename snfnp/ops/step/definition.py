"""What a training step needs beside its layers: numbers that change, a log, the optimiser.

A device may work asynchronously: the host then lines up steps and looks at their figures now and
then. So what changes from step to step is handed to operations as `StepScalars`, which such a
device keeps in arrays, and what a step has to tell goes to a log (`log.py`).

Derivation: derivations/06-adam.md.
"""

from __future__ import annotations

import math

from snfnp.ops.room import Room
from snfnp.ops.step.log import LAST, SUMS, Entry, StepLog


class StepScalars:
    """A step's index (0, 1, …), its number (index + 1), its learning rate and λ.

    Here plain numbers; on a device they are arrays of shape (). Operations take both.
    """

    step = 0
    number = 1.0
    lr = lam = 0.0

    def set(self, step: int, lr: float, lam: float) -> None:
        self.step, self.number, self.lr, self.lam = step, step + 1.0, lr, lam


class Step(Room):
    def __init__(self, device, linalg):
        super().__init__(device)
        self.linalg = linalg

    def scalars(self) -> StepScalars:
        return StepScalars()

    def new_log(self) -> StepLog:
        """An empty log."""
        return StepLog(self)

    def log_density(self, log_density, number, out) -> None:
        """Note the mean of the log-densities (N,) of step `number` (1, 2, …) in a log's array."""
        if not out[Entry.FAILED]:
            out[Entry.DENSITY] = log_density.mean()
            if not math.isfinite(out[Entry.DENSITY]):
                out[Entry.FAILED] = number

    def log_step(self, reconstruction, squares, lam, number, out) -> None:
        """Note Σ_k of Eq. 3 and Σ g² of step `number` in a log's array, and add up its figures."""
        norm = math.sqrt(squares)
        if not out[Entry.FAILED] and not math.isfinite(norm):
            out[Entry.FAILED] = number
        if not out[Entry.FAILED]:
            figures = (out[Entry.DENSITY] - lam * reconstruction, reconstruction, norm)
            out[LAST] = figures
            out[SUMS] += figures
            out[Entry.COUNT] += 1

    def adam(self, g, lr, beta1, beta2, eps, step, scale, failed, out):
        """One ascent step of Adam on flat buffers, out = (p, m, v).

        g ← scale·g;  m ← β1 m + (1-β1) g;  v ← β2 v + (1-β2) g²;
        p ← p + lr · m̂ / (√v̂ + ε) with m̂ = m/(1-β1^step), v̂ = v/(1-β2^step), step = 1, 2, …
        Returns Σ g² of the unscaled gradient, which the pass computes anyway. Where `failed` is
        not 0 the buffers stay as they are; on an asynchronous device they also do where Σ g² is
        not finite, so that the step can be looked at later. Elsewhere NaN spoils them.
        """
        xp = self.xp
        p, m, v = out
        squares = self.linalg.sum_squares(g)
        if failed:
            return squares
        g = g * p.dtype.type(scale)
        m *= beta1
        m += (1 - beta1) * g
        v *= beta2
        v += (1 - beta2) * g * g
        step_size = lr / (1 - beta1**step)
        p += step_size * m / (xp.sqrt(v / (1 - beta2**step)) + eps)
        return squares
