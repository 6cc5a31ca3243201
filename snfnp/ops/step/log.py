"""The log of training steps: an array on the device, which the host reads now and then."""

import math
from dataclasses import dataclass
from enum import IntEnum

import numpy as np


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


SIZE = len(Entry)
LAST = slice(Entry.SURROGATE, Entry.SURROGATE_SUM)
SUMS = slice(Entry.SURROGATE_SUM, Entry.COUNT)
SUMS_AND_COUNT = slice(Entry.SURROGATE_SUM, Entry.COUNT + 1)


@dataclass(frozen=True)
class Reading:
    """A log on the host: figures are (surrogate, reconstruction, gradient norm)."""

    last: tuple[float, float, float]
    averages: tuple[float, float, float]  # of the steps since they were cleared; NaN: none
    failed: int  # the number of the first failed step, or 0
    density: float  # the mean log-density of the last step, without any log|det W|


class StepLog:
    """A log of steps on the device of `step`, a group of operations. array: its entries, there."""

    def __init__(self, step):
        self._step, self.array = step, step.device.asarray(np.zeros(SIZE))

    def density(self, terms, number) -> None:
        """Log the mean of the log-densities (N,), sums of `terms`, of step `number` (1, 2, …)."""
        self._step.log_density(terms, number, self.array)

    def step(self, errors, squares, lam, number) -> None:
        """Log step `number`: the terms of Σ_k of Eq. 3, Σ g² of its gradient, and its λ."""
        self._step.log_step(errors, squares, lam, number, self.array)

    @property
    def failed(self):
        """A number of shape () on the device: not 0 once a step has failed."""
        return self.array[Entry.FAILED, ...]

    def read(self) -> Reading:
        """The log after all steps so far. Waits for the device."""
        log = self._step.device.to_host(self.array)
        averages = log[SUMS] / log[Entry.COUNT] if log[Entry.COUNT] else np.full(3, math.nan)
        failed, density = int(log[Entry.FAILED]), float(log[Entry.DENSITY])
        return Reading(tuple(log[LAST].tolist()), tuple(averages.tolist()), failed, density)

    @property
    def sums(self) -> tuple[float, ...]:
        """The sums of the averages: three, and the number of steps. Waits."""
        return tuple(self._step.device.to_host(self.array)[SUMS_AND_COUNT].tolist())

    def restore(self, sums: tuple[float, ...]) -> None:
        """Continue the averages of another log, from its `sums`."""
        self.array[SUMS_AND_COUNT] = self._step.device.asarray(np.array(sums, np.float64))

    def clear_averages(self) -> None:
        """Average over the steps that follow."""
        self.array[SUMS_AND_COUNT] = 0
