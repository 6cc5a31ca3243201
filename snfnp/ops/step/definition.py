"""The rest of a training step, beside its layers: numbers that change, a log, Adam, λ's control.

A device may work asynchronously: numbers that change from step to step are handed to operations as
`StepScalars`, which such a device keeps in arrays, and a step's figures go to a log on it, which
the host reads now and then. See derivations/16-adam.md and derivations/21-lambda-controllers.md.
"""

import math
from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from snfnp.ops.group import OperationGroup
from snfnp.ops.linalg.definition import LinearAlgebra

LARGEST_EXPONENT = 700.0  # e to the 709 is the largest that double precision holds


class Entry(IntEnum):
    """The log's entries, float64; `kernels.cu` has the same numbers.

    Figures of the last step, their sums over COUNT steps, the last density, and what went wrong:
    FAILED is the number (1, 2, …) of the first step with anything that is not finite, else 0. From
    then on nothing is updated, neither the log nor the parameters.
    """

    SURROGATE = 0
    RECONSTRUCTION = 1
    NORM = 2
    SURROGATE_SUM = 3
    RECONSTRUCTION_SUM = 4
    NORM_SUM = 5
    COUNT = 6
    DENSITY = 7
    FAILED = 8


LAST = slice(Entry.SURROGATE, Entry.SURROGATE_SUM)
SUMS = slice(Entry.SURROGATE_SUM, Entry.COUNT)
SUMS_AND_COUNT = slice(Entry.SURROGATE_SUM, Entry.COUNT + 1)


class Row(IntEnum):
    """The rows of a controller's state (rows, L), float64, a column for each of L layers.

    LAM: the λ that the next step uses; AVERAGE: ξ, the average of C − κ; CONSTRAINT: C of the last
    step; CONSTRAINT_SUM, COUNTED: its sum over the steps since that was cleared, and their number;
    STARTED: 0 until there is an average.
    """

    LAM = 0
    AVERAGE = 1
    CONSTRAINT = 2
    CONSTRAINT_SUM = 3
    COUNTED = 4
    STARTED = 5


@dataclass(frozen=True)
class Controller:
    """Settings by which λ follows the constraint C ≤ κ; `Step.control` has the formulas.

    relative: C is E/‖h‖² instead of E; tolerance: κ; rate: η; smoothing: α; lowest, highest: λ
    stays between them.
    """

    relative: bool
    tolerance: float
    rate: float
    smoothing: float = 0.0
    lowest: float = 0.0
    highest: float = np.inf

    def new_state(self, layers: int, lam: float) -> np.ndarray:
        """The state (rows, L) before the first step, on the host."""
        state = np.zeros((len(Row), layers))
        state[Row.LAM] = lam
        return state


class StepScalars:
    """A step's index (0, 1, …), its number (index + 1), its learning rate, and the place of its
    batch in the epoch's order (first).

    Here plain numbers; on a device they are arrays of shape (). Operations take both.
    """

    step = first = 0
    number = 1.0
    lr = 0.0

    def set(self, step: int, lr: float, first: int = 0) -> None:
        """Set them for a step."""
        self.step = step
        self.number = step + 1.0
        self.lr = lr
        self.first = first


def clip_scale(squares: float, clip_norm: float) -> float:
    """The factor (at most 1) that brings a gradient of Σ g² = `squares` within `clip_norm`."""
    return min(1.0, clip_norm / (math.sqrt(squares) + 1e-6))


class Step(OperationGroup):
    linalg: LinearAlgebra

    def scalars(self) -> StepScalars:
        return StepScalars()

    def log_density(self, terms, number, out) -> None:
        """Note the mean of the log-densities (N,), sums of `terms`, of step `number` (1, 2, …) in a
        log's array."""
        if not out[Entry.FAILED]:
            first, *rest = terms
            out[Entry.DENSITY] = sum(rest, start=first).mean()
            if not math.isfinite(out[Entry.DENSITY]):
                out[Entry.FAILED] = number

    def log_step(self, errors, squares, lam, number, out) -> None:
        """Note Σ_k of Eq. 3, which is the sum of `errors`, and Σ g² of step `number` in a log's
        array, and add up its figures."""
        norm, reconstruction = math.sqrt(squares), sum(errors)
        if not out[Entry.FAILED] and not math.isfinite(norm):
            out[Entry.FAILED] = number
        if not out[Entry.FAILED]:
            figures = (out[Entry.DENSITY] - lam * reconstruction, reconstruction, norm)
            out[LAST] = figures
            out[SUMS] += figures
            out[Entry.COUNT] += 1

    def adam(self, g, lr, beta1, beta2, eps, step, clip_norm, failed, out):
        """One ascent step of Adam on flat buffers, out = (p, m, v).

        g ← scale·g, see `clip_scale`;  m ← β1 m + (1-β1) g;  v ← β2 v + (1-β2) g²;
        p ← p + lr · m̂ / (√v̂ + ε) with m̂ = m/(1-β1^step), v̂ = v/(1-β2^step), step = 1, 2, …
        Returns Σ g² of the unscaled gradient. If that is not finite, or `failed` is not 0, the
        buffers do not change, so that the step can be examined later.
        """
        xp = self.xp
        p, m, v = out
        squares = self.linalg.sum_squares(g)
        if failed or not math.isfinite(squares):
            return squares
        g = g * p.dtype.type(clip_scale(squares, clip_norm))
        m *= beta1
        m += (1 - beta1) * g
        v *= beta2
        v += (1 - beta2) * g * g
        step_size = lr / (1 - beta1**step)
        p += step_size * m / (xp.sqrt(v / (1 - beta2**step)) + eps)
        return squares

    def apply_block_matrices(self, values, matrices, blocks, out, add=False):
        """out ← values, flat buffers, in which each block M (K, O) becomes U M; `add`: out += that.

        matrices: all U (K, K), flat and in double precision; blocks: (its start in `values`, K, O,
        the start of its U) of each block. O(Σ K² O).
        """
        turned = values.copy()
        for start, size, outputs, place in blocks:
            u = matrices[place : place + size**2].reshape(size, size).astype(values.dtype)
            part = slice(start, start + size * outputs)
            turned[part] = self.linalg.matmul(u, values[part].reshape(size, outputs)).reshape(-1)
        if add:
            turned += out
        out[...] = turned

    def control(self, measured, samples, controller: Controller, squares, failed, out):
        """λ for the next step, from what this one measured: out (rows, L), see `Row`.

        measured (L, 2): of each layer its reconstruction error E, averaged over the batch, and
        Σ ‖h‖² over its samples. With C = E, or E/‖h‖² if the controller is `relative`, e = C − κ,
        and ξ ← α ξ + (1 − α) e, which the first step starts at e (GECO):

            λ ← λ exp(η ξ)

        λ is kept between `lowest` and `highest`. A column whose C is not finite does not change,
        and none does if `failed` is not 0 or Σ g² (`squares`) is not finite.
        Returns Σ E, and Σ λ E / Σ E with the λ that the step used (0 if Σ E = 0): the
        reconstruction error and the λ for `log_step`.
        """
        xp = self.xp
        errors, inputs, used = measured[:, 0], measured[:, 1], out[Row.LAM]
        total, weighted = errors.sum(), (used * errors).sum()
        constraint = errors
        if controller.relative:
            constraint = errors * samples / xp.where(inputs > 0, inputs, math.nan)
        going = xp.isfinite(constraint) & xp.isfinite(squares) & (failed == 0)
        constraint = xp.where(going, constraint, out[Row.CONSTRAINT])
        error = constraint - controller.tolerance
        before = xp.where(out[Row.STARTED] > 0, out[Row.AVERAGE], error)
        average = controller.smoothing * before + (1 - controller.smoothing) * error
        exponent = controller.rate * average
        exponent = xp.maximum(-LARGEST_EXPONENT, xp.minimum(exponent, LARGEST_EXPONENT))
        lam = xp.minimum(used * xp.exp(exponent), controller.highest)
        lam = xp.maximum(controller.lowest, lam)
        there = total > 0
        mean = xp.where(there, weighted / xp.where(there, total, 1), 0)
        sums, counted = out[Row.CONSTRAINT_SUM] + constraint, out[Row.COUNTED] + 1
        after = (lam, average, constraint, sums, counted, xp.ones_like(lam))
        for row, value in zip(Row, after, strict=True):
            out[row] = xp.where(going, value, out[row])
        return total, mean


@dataclass(frozen=True)
class Reading:
    """A log on the host: figures are (surrogate, reconstruction, gradient norm)."""

    last: tuple[float, float, float]
    averages: tuple[float, float, float]  # of the steps since they were cleared; NaN: none
    failed: int  # the number of the first failed step, or 0
    density: float  # the mean log-density of the last step, without any log|det W|


class StepLog:
    """A log of steps on a device. array: its entries there, which `Step` writes."""

    def __init__(self, device):
        self._device, self.array = device, device.asarray(np.zeros(len(Entry)))

    @property
    def failed(self):
        """A number of shape () on the device: not 0 once a step has failed."""
        return self.array[Entry.FAILED, ...]

    def read(self) -> Reading:
        """The log after all steps so far. Waits for the device."""
        log = self._device.to_host(self.array)
        averages = log[SUMS] / log[Entry.COUNT] if log[Entry.COUNT] else np.full(3, math.nan)
        failed, density = int(log[Entry.FAILED]), float(log[Entry.DENSITY])
        return Reading(tuple(log[LAST].tolist()), tuple(averages.tolist()), failed, density)

    @property
    def sums(self) -> tuple[float, ...]:
        """The sums of the averages: three, and the number of steps. Waits."""
        return tuple(self._device.to_host(self.array)[SUMS_AND_COUNT].tolist())

    def restore(self, sums: tuple[float, ...]) -> None:
        """Continue the averages of another log, from its `sums`."""
        self.array[SUMS_AND_COUNT] = self._device.asarray(np.array(sums, np.float64))

    def clear_averages(self) -> None:
        """Average over the steps that follow."""
        self.array[SUMS_AND_COUNT] = 0
