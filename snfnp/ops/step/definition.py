"""Parts of a training step besides layers: numbers that change, a log, Adam, the control of λ.

A device may work asynchronously: numbers that change from step to step are handed to operations as
`StepScalars`, which such a device keeps in arrays, and a step's figures go to a log on it, which
the host reads now and then. See derivations/16-adam.md and derivations/21-lambda-controllers.md.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np

from snfnp.ops.group import Array, OperationGroup, Scalar
from snfnp.ops.linalg.definition import LinearAlgebra

Buffers = tuple[Array, Array, Array]  # flat: the parameters, and Adam's m and v
LARGEST_EXPONENT = 700.0  # e to the 709 is the largest that double precision holds


class LogEntry(IntEnum):
    """The log's entries, float64; `kernels.cu` has the same numbers.

    SURROGATE is Eq. 3 without the terms log|W_k|: DENSITY − λ RECONSTRUCTION. RECONSTRUCTION is
    Σ_k ‖g_k(f_k(h_k)) − h_k‖², NORM the gradient's. These three and DENSITY are of the last step;
    the sums of the three are over COUNT steps. FAILED is the number (1, 2, …) of the first step
    with anything that is not finite, else 0. From then on nothing is updated, neither the log nor
    the parameters.
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


LAST = slice(LogEntry.SURROGATE, LogEntry.SURROGATE_SUM)
SUMS = slice(LogEntry.SURROGATE_SUM, LogEntry.COUNT)
SUMS_AND_COUNT = slice(LogEntry.SURROGATE_SUM, LogEntry.COUNT + 1)


class ControllerRow(IntEnum):
    """The rows of a controller's state (rows, L), float64, a column for each of L layers.

    `Step.control` defines the symbols. LAM: the λ that the next step uses; AVERAGE: ξ, the moving
    average of C − κ; CONSTRAINT: C of the last step; CONSTRAINT_SUM: the sum of C since it was last
    set to 0; COUNTED: the number of its summands; STARTED: 0 until there is an average.
    """

    LAM = 0
    AVERAGE = 1
    CONSTRAINT = 2
    CONSTRAINT_SUM = 3
    COUNTED = 4
    STARTED = 5


@dataclass(frozen=True)
class Controller:
    """Settings by which λ follows the constraint C ≤ κ on a layer's reconstruction error E;
    `Step.control` has the formulas.

    relative: C is E divided by the mean ‖h‖² of the layer's inputs h, instead of E; tolerance: κ;
    rate: η; smoothing: α; lowest, highest: λ stays between them.
    """

    relative: bool
    tolerance: float
    rate: float
    smoothing: float = 0.0
    lowest: float = 0.0
    highest: float = np.inf

    def new_state(self, layers: int, lam: float) -> np.ndarray:
        """The state (rows, L) before the first step, on the host."""
        state = np.zeros((len(ControllerRow), layers))
        state[ControllerRow.LAM] = lam
        return state


class StepScalars:
    """The numbers that change from step to step. Here they are plain numbers; on a device they are
    arrays of shape (). Operations take both.

    Attributes:
        step: the step's index (0, 1, …).
        number: its index + 1, a float: Adam has it as an exponent.
        lr: its learning rate.
        first: the position of its batch in the epoch's order.
    """

    step: Scalar = 0
    number: Scalar = 1.0
    lr: Scalar = 0.0
    first: Scalar = 0

    def set(self, step: int, lr: float, first: int = 0) -> None:
        """Set them for a step."""
        self.step = step
        self.number = step + 1.0
        self.lr = lr
        self.first = first


def clip_scale(squares: float, clip_norm: float) -> float:
    """The factor (at most 1) that brings a gradient of Σ g² = `squares` within `clip_norm`; 1e-6
    keeps it defined for a gradient of 0, as in PyTorch."""
    return min(1.0, clip_norm / (math.sqrt(squares) + 1e-6))


class Step(OperationGroup):
    linalg: LinearAlgebra

    def scalars(self) -> StepScalars:
        """The scalars of a training, which each step sets."""
        return StepScalars()

    def log_density(self, density: Array, number: Scalar, out: Array) -> None:
        """Write the mean of the log-densities (N,) of step `number` (1, 2, …) into out, a log's
        array."""
        if not out[LogEntry.FAILED]:
            out[LogEntry.DENSITY] = density.mean()
            if not math.isfinite(out[LogEntry.DENSITY]):
                out[LogEntry.FAILED] = number

    def log_step(
        self,
        errors: Sequence[Scalar],
        squares: Scalar,
        lam: Scalar,
        number: Scalar,
        out: Array,
    ) -> None:
        """Write the figures of step `number` into out, a log's array, and add them to its sums.

        errors: summands of Σ_k ‖g_k(f_k(h_k)) − h_k‖² in Eq. 3; squares: Σ g²; lam: λ.
        """
        norm = math.sqrt(squares)
        reconstruction = sum(errors)
        if not out[LogEntry.FAILED] and not math.isfinite(norm):
            out[LogEntry.FAILED] = number
        if not out[LogEntry.FAILED]:
            figures = (
                out[LogEntry.DENSITY] - lam * reconstruction,
                reconstruction,
                norm,
            )
            out[LAST] = figures
            out[SUMS] += figures
            out[LogEntry.COUNT] += 1

    def adam(
        self,
        g: Array,
        lr: Scalar,
        beta1: float,
        beta2: float,
        eps: float,
        step: Scalar,
        clip_norm: float,
        failed: Scalar,
        out: Buffers,
    ) -> Scalar:
        """One ascent step of Adam on flat buffers, out = (p, m, v).

        g ← scale·g, see `clip_scale`;  m ← β1 m + (1-β1) g;  v ← β2 v + (1-β2) g²;
        p ← p + lr · m̂ / (√v̂ + ε) with m̂ = m/(1-β1^step), v̂ = v/(1-β2^step). The first
        `step` is 1 (it is `StepScalars.number`).
        Returns Σ g² of the unscaled gradient. If that is not finite, or `failed` is not 0, the
        buffers do not change, so that the step can be examined later.
        """
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
        p += step_size * m / (self.xp.sqrt(v / (1 - beta2**step)) + eps)
        return squares

    def apply_block_matrices(
        self,
        values: Array,
        matrices: Array,
        blocks: Iterable[tuple[int, int, int, int]],
        out: Array,
        add: bool = False,
    ) -> None:
        """Multiply kernels by their matrices U, for an optimiser that steps in other coordinates.

        out ← values, where each block M (K, O) is replaced by U M; with `add`, out += that instead.
        values, out: flat buffers; matrices: all U (K, K), flat and in double precision; blocks: of
        each block M (its start in `values`, K, O, the start of its U in `matrices`). O(Σ K² O).
        """
        products = values.copy()
        for start, size, outputs, u_start in blocks:
            u = (
                matrices[u_start : u_start + size**2]
                .reshape(size, size)
                .astype(values.dtype)
            )
            part = slice(start, start + size * outputs)
            m = values[part].reshape(size, outputs)
            products[part] = self.linalg.matmul(u, m).ravel()
        if add:
            products += out
        out[...] = products

    def control(
        self,
        measured: Array,
        samples: int,
        controller: Controller,
        squares: Scalar,
        failed: Scalar,
        out: Array,
    ) -> tuple[Scalar, Scalar]:
        """λ for the next step, from what this one measured: out (rows, L), see `ControllerRow`.

        measured (L, 2): of each layer its reconstruction error E, averaged over the N = `samples`
        of the batch, and Σ ‖h‖² over them. As in GECO (Rezende & Viola 2018), with C = E, or
        C = N E / Σ ‖h‖² if the controller is `relative`:

            e = C − κ,   ξ ← α ξ + (1 − α) e (in the first step ξ ← e),   λ ← λ exp(η ξ)

        λ is kept between `lowest` and `highest`. A column whose C is not finite does not change,
        and none does if `failed` is not 0 or Σ g² (`squares`) is not finite.
        Returns Σ E, and Σ λ E / Σ E with the λ that the step used (0 if Σ E = 0): the
        reconstruction error and the λ for `log_step`.
        """
        xp = self.xp
        errors, input_squares = measured.T
        used = out[ControllerRow.LAM]
        total = errors.sum()
        weighted = (used * errors).sum()
        constraint = errors
        if controller.relative:
            total_squares = xp.where(input_squares > 0, input_squares, math.nan)
            constraint = errors * samples / total_squares
        valid = xp.isfinite(constraint) & xp.isfinite(squares) & (failed == 0)
        # Columns that stay as they are compute with their last C, so that ∞ causes no warning.
        constraint = xp.where(valid, constraint, out[ControllerRow.CONSTRAINT])
        error = constraint - controller.tolerance
        previous = xp.where(
            out[ControllerRow.STARTED] > 0, out[ControllerRow.AVERAGE], error
        )
        average = controller.smoothing * previous + (1 - controller.smoothing) * error
        exponent = xp.clip(
            controller.rate * average, -LARGEST_EXPONENT, LARGEST_EXPONENT
        )
        lam = xp.clip(used * xp.exp(exponent), controller.lowest, controller.highest)
        positive = total > 0
        mean = xp.where(positive, weighted / xp.where(positive, total, 1), 0)
        constraint_sum = out[ControllerRow.CONSTRAINT_SUM] + constraint
        counted = out[ControllerRow.COUNTED] + 1
        rows = (lam, average, constraint, constraint_sum, counted, 1.0)
        for row, value in zip(ControllerRow, rows, strict=True):
            out[row] = xp.where(valid, value, out[row])
        return total, mean


class StepMetrics(NamedTuple):
    """Figures of steps (before their updates), averaged over the batch.

    surrogate: Eq. 3 without the terms log|W_k|, in nats; reconstruction: Σ_k ‖g_k(f_k(h_k)) − h_k‖²
    of Eq. 3; gradient_norm: before clipping.
    """

    surrogate: float
    reconstruction: float
    gradient_norm: float


class Reading(NamedTuple):
    """A log on the host."""

    last: StepMetrics
    averages: StepMetrics  # since they were cleared; NaN if of no step
    failed: int  # the number of the first failed step, or 0
    density: float  # the mean log-density of the last step, without any log|det W|


class StepLog:
    """A log of steps on a device. array: its entries there, which `Step` writes."""

    def __init__(self, device: Any):
        self._device = device
        self.array: Array = device.asarray(np.zeros(len(LogEntry)))

    @property
    def failed(self) -> Scalar:
        """A number of shape () on the device: not 0 once a step has failed."""
        return self.array[LogEntry.FAILED, ...]

    def read(self) -> Reading:
        """The log after all steps so far. Waits for the device."""
        log = self._device.to_host(self.array)
        averages = log[SUMS] / (log[LogEntry.COUNT] or math.nan)
        return Reading(
            last=StepMetrics(*log[LAST].tolist()),
            averages=StepMetrics(*averages.tolist()),
            failed=int(log[LogEntry.FAILED]),
            density=float(log[LogEntry.DENSITY]),
        )

    @property
    def sums(self) -> tuple[float, ...]:
        """Three sums and the number of steps, of which `read` makes averages. Waits."""
        return tuple(self._device.to_host(self.array)[SUMS_AND_COUNT].tolist())

    @property
    def steps(self) -> float:
        """The number of steps since `clear_averages`, which an evaluation calls. Waits."""
        return self.sums[-1]

    def restore(self, sums: tuple[float, ...]) -> None:
        """Continue the averages of another log, from its `sums`."""
        self.array[SUMS_AND_COUNT] = self._device.asarray(np.array(sums, np.float64))

    def clear_averages(self) -> None:
        """Average over the steps that follow."""
        self.array[SUMS_AND_COUNT] = 0
