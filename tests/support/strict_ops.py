"""Operations on strict arrays: NumPy's definitions, and overrides of what makes a host wait."""

from __future__ import annotations

import math

import numpy as np

from snfnp.errors import SingularMatrixError
from snfnp.ops import Ops
from snfnp.ops.backends import DEFINITIONS, assemble
from snfnp.ops.channels.definition import Channels
from snfnp.ops.host import HostDevice
from snfnp.ops.linalg.definition import LinearAlgebra
from snfnp.ops.step.definition import Step, StepScalars
from snfnp.ops.step.log import LAST, SUMS, Entry
from support import strict_arrays
from support.strict_arrays import own_handle


class StrictDevice(HostDevice):
    """A device of strict arrays, which the host may run ahead of."""

    xp = strict_arrays.xp
    asynchronous = True

    def __init__(self):
        super().__init__("strict")
        self._constants = {}

    def asarray(self, host, dtype=None):
        return self.xp.asarray(np.ascontiguousarray(host, dtype=dtype))

    def to_host(self, array) -> np.ndarray:
        return self.xp.asnumpy(array)

    def known_on_host(self, condition) -> None:
        return None

    def constant(self, host: np.ndarray, dtype=np.float64):
        """A host array that depends on shapes alone: it is copied once."""
        key = (host.shape, host.tobytes(), np.dtype(dtype).char)
        if key not in self._constants:
            self._constants[key] = self.asarray(host, dtype)
        return self._constants[key]


class StrictLinearAlgebra(LinearAlgebra):
    def matmul(self, a, b, out=None):
        with own_handle():
            return super().matmul(a, b, out)

    def matmul_add(self, a, b, out):
        with own_handle():
            return super().matmul_add(a, b, out)

    def scale_into(self, out, scale, a, multiple, volume=1.0):
        super().scale_into(out, scale, a, 1, volume)
        if not isinstance(multiple, int):
            out *= self.device.constant(multiple)
        return out

    def inverse(self, w):
        return self._finite(super().inverse(w))

    def solve(self, w, z):
        return self._finite(super().solve(w, z))

    def _finite(self, result):
        if not bool(self.xp.isfinite(result).all()):
            raise SingularMatrixError("the weight matrix is singular")
        return result

    def sum_squares(self, x):
        wide = x.astype(self.xp.float64)
        return (wide * wide).sum()


class StrictChannels(Channels):
    def gaussian_log_density(self, z):
        rows = z.reshape(len(z), -1)
        return -0.5 * (rows * rows).sum(axis=1) - 0.5 * rows.shape[1] * math.log(2 * math.pi)


class StrictStepScalars(StepScalars):
    """Arrays of shape () on the device."""

    def __init__(self, xp):
        self.step = xp.zeros((), np.uint64)
        self.number, self.lr, self.lam = (xp.zeros(()) for _ in range(3))

    def set(self, step: int, lr: float, lam: float) -> None:
        numbers = (step, step + 1.0, lr, lam)
        arrays = (self.step, self.number, self.lr, self.lam)
        for array, number in zip(arrays, numbers, strict=True):
            array[...] = number


class StrictStep(Step):
    def scalars(self) -> StrictStepScalars:
        return StrictStepScalars(self.xp)

    def log_density(self, log_density, number, out) -> None:
        xp, log = self.xp, out
        failed = log[Entry.FAILED]
        going = failed == 0
        density = xp.where(going, log_density.mean(), log[Entry.DENSITY])
        log[Entry.DENSITY] = density
        log[Entry.FAILED] = xp.where(going & ~xp.isfinite(density), number, failed)

    def log_step(self, reconstruction, squares, lam, number, out) -> None:
        xp, log = self.xp, out
        norm = xp.sqrt(squares)
        fails = (log[Entry.FAILED] == 0) & ~xp.isfinite(norm)
        log[Entry.FAILED] = xp.where(fails, number, log[Entry.FAILED])
        going = log[Entry.FAILED] == 0
        figures = xp.zeros(LAST.stop)
        figures[Entry.SURROGATE] = log[Entry.DENSITY] - lam * reconstruction
        figures[Entry.RECONSTRUCTION], figures[Entry.NORM] = reconstruction, norm
        log[LAST] = xp.where(going, figures, log[LAST])
        log[SUMS] += xp.where(going, figures, 0)
        log[Entry.COUNT] += going

    def adam(self, g, lr, beta1, beta2, eps, step, scale, failed, out):
        xp, (p, m, v) = self.xp, out
        squares = self.linalg.sum_squares(g)
        going = xp.isfinite(squares) & (failed == 0)
        g = (g * scale).astype(p.dtype)
        new_m = beta1 * m + (1 - beta1) * g
        new_v = beta2 * v + (1 - beta2) * g * g
        step_size = lr / (1 - beta1**step)
        new_p = p + step_size * new_m / (xp.sqrt(new_v / (1 - beta2**step)) + eps)
        for buffer, new in ((p, new_p), (m, new_m), (v, new_v)):
            buffer[...] = xp.where(going, new, buffer)
        return squares


def strict_ops() -> Ops:
    """Operations on strict arrays: the definitions, as far as these are in array terms.

    Overridden are operations whose definitions use a number or a condition on the host, or a
    product that no graph can capture.
    """
    groups = {"linalg": StrictLinearAlgebra, "channels": StrictChannels, "step": StrictStep}
    return assemble(StrictDevice(), DEFINITIONS | groups)
