"""What a training step needs beside its layers: numbers that change, a log, the optimiser.

A backend may work ahead of the host: the host then lines up steps and looks at their figures now
and then. So what changes from step to step is handed to operations as `Dials`, which such a
backend keeps on its device, and what a step has to tell goes to a log there.
"""

from __future__ import annotations

import math

import numpy as np

# The step log, float64: figures of the last step, sums since the log was last emptied, and what
# went wrong. FAILED is the number (1, 2, …) of the first step with anything that is not finite;
# from then on nothing is updated, neither the log nor the parameters.
SURROGATE, RECONSTRUCTION, NORM = 0, 1, 2
SUMS = 3  # of the three above
COUNT, DENSITY, FAILED = 6, 7, 8
LOG_SIZE = 9


class Dials:
    """What a step is told: its index (0, 1, …) and its number (index + 1), lr and λ.

    Here plain numbers; on a device they are arrays of shape () that operations take alike.
    """

    step = 0
    number = 1.0
    lr = lam = 0.0

    def set(self, step: int, lr: float, lam: float) -> None:
        self.step, self.number, self.lr, self.lam = step, step + 1.0, lr, lam


class StepOps:
    """Mixed into `NumpyOps`, whose `xp` it uses."""

    works_ahead = False  # whether operations may return before they are done

    def dials(self) -> Dials:
        return Dials()

    def repeatable(self, function, say=print):
        """`function(images)`, to be called again and again with arrays of the same shape.

        It must put its results into arrays that outlive it and launch the same operations every
        time. A backend may record the first calls and replay them; where it cannot, `say` gets
        one line that says why.
        """
        return function

    def peek(self, condition) -> bool | None:
        """Whether a condition or number of shape () is not 0; None where the host would wait."""
        return bool(condition)

    def watch(self, log, log_density, step) -> None:
        """Note the mean of the densities (N,) of a step (its number, 1, 2, …) in the log."""
        if not log[FAILED]:
            log[DENSITY] = log_density.mean()
            if not math.isfinite(log[DENSITY]):
                log[FAILED] = step

    def record(self, log, reconstruction, squares, lam, step) -> None:
        """Note Σ_k of Eq. 3 and Σ g² in the log, and add up what a person will want to see."""
        norm = math.sqrt(squares)
        if not log[FAILED] and not math.isfinite(norm):
            log[FAILED] = step
        if not log[FAILED]:
            figures = (log[DENSITY] - lam * reconstruction, reconstruction, norm)
            log[:SUMS] = figures
            log[SUMS:COUNT] += figures
            log[COUNT] += 1

    def sum_squares(self, g) -> float:
        """Σ g², in double precision."""
        xp = self.xp
        wide = g.astype(xp.float64).reshape(-1)
        return float(wide @ wide)

    def residual(self, error, x, before=0.0):
        """error ← error − x (N, ...). Returns `before` + ‖error‖²/N, in double precision."""
        error -= x
        return before + self.sum_squares(error) / len(x)

    def adam(self, p, g, m, v, lr, beta1, beta2, eps, step, scale, failed=0.0):
        """One ascent step of Adam on flat buffers; p, m and v are updated in place.

        g ← scale·g;  m ← β1 m + (1-β1) g;  v ← β2 v + (1-β2) g²;
        p ← p + lr · m̂ / (√v̂ + ε) with m̂ = m/(1-β1^step), v̂ = v/(1-β2^step), step = 1, 2, …
        Returns Σ g² of the unscaled gradient, which the pass gets for nothing. Where `failed` is
        not 0 the buffers stay as they are, and so they do on a backend that works ahead where
        Σ g² is not finite: the step can then be looked at later. Elsewhere NaN spoils them.
        """
        xp = self.xp
        squares = self.sum_squares(g)
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

    # ---------------------------------------------------------------- what a measurement asks

    def synchronise(self) -> None:
        """Wait until everything on the device is done, whoever started it."""

    def launches(self, function) -> int | None:
        """How many kernels a call of `function()` starts, found without running them.

        None where that cannot be known. `function` must have run before with the same shapes.
        """
        return None

    def memory_rate(self) -> float | None:
        """Bytes per second of the device's memory as its driver states them, or None."""
        return None


def new_log() -> np.ndarray:
    """An empty step log, on the host."""
    return np.zeros(LOG_SIZE)
