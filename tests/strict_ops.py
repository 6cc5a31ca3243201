"""Operations on strict arrays (`strict.py`): NumPy's definitions, and what must not wait."""

from __future__ import annotations

import math

import numpy as np
import strict
from strict import own_handle

from snfnp.errors import SingularMatrixError
from snfnp.ops import NumpyOps
from snfnp.ops.numpy_steps import COUNT, DENSITY, FAILED, SUMS, Dials


class StrictDials(Dials):
    """Dials whose numbers are arrays of shape () on the device."""

    def __init__(self, xp):
        self.step = xp.zeros((), np.uint64)
        self.number, self.lr, self.lam = (xp.zeros(()) for _ in range(3))

    def set(self, step: int, lr: float, lam: float) -> None:
        numbers = (step, step + 1.0, lr, lam)
        for dial, number in zip((self.step, self.number, self.lr, self.lam), numbers, strict=True):
            dial[...] = number


class StrictOps(NumpyOps):
    """NumPy's definitions on strict arrays, and what a backend that works ahead must override.

    That is what the definitions say with a number or a condition on the host, or with a product
    that no graph can record.
    """

    name = "strict"
    xp = strict.xp
    works_ahead = True

    def __init__(self):
        self._constants = {}

    def asarray(self, host, dtype=None):
        return self.xp.asarray(np.ascontiguousarray(host, dtype=dtype))

    def to_host(self, array) -> np.ndarray:
        return self.xp.asnumpy(array)

    # ------------------------------------------------------------ linear algebra

    def matmul(self, a, b, out=None):
        with own_handle():
            return super().matmul(a, b, out)

    def matmul_add(self, a, b, out):
        with own_handle():
            return super().matmul_add(a, b, out)

    def scale_into(self, out, scale, a, multiple, volume=1.0):
        super().scale_into(out, scale, a, 1, volume)
        if not isinstance(multiple, int):  # it depends on shapes alone, and goes over once
            key = (multiple.shape, multiple.tobytes())
            if key not in self._constants:
                self._constants[key] = self.asarray(multiple)
            out *= self._constants[key]
        return out

    def inverse(self, w):
        return self._finite(super().inverse(w))

    def solve(self, w, z):
        return self._finite(super().solve(w, z))

    def _finite(self, result):
        if not bool(self.xp.isfinite(result).all()):
            raise SingularMatrixError("the weight matrix is singular")
        return result

    def gaussian_log_density(self, z):
        rows = z.reshape(len(z), -1)
        return -0.5 * (rows * rows).sum(axis=1) - 0.5 * rows.shape[1] * math.log(2 * math.pi)

    # ------------------------------------------------------------ the step

    def dials(self) -> StrictDials:
        return StrictDials(self.xp)

    def peek(self, condition) -> None:
        return None

    def watch(self, log, log_density, step) -> None:
        xp = self.xp
        going = log[FAILED] == 0
        density = xp.where(going, log_density.mean(), log[DENSITY])
        log[DENSITY] = density
        log[FAILED] = xp.where(going & ~xp.isfinite(density), step, log[FAILED])

    def record(self, log, reconstruction, squares, lam, step) -> None:
        xp = self.xp
        norm = xp.sqrt(squares)
        log[FAILED] = xp.where((log[FAILED] == 0) & ~xp.isfinite(norm), step, log[FAILED])
        going = log[FAILED] == 0
        figures = xp.zeros(SUMS)
        figures[0] = log[DENSITY] - lam * reconstruction
        figures[1], figures[2] = reconstruction, norm
        log[:SUMS] = xp.where(going, figures, log[:SUMS])
        log[SUMS:COUNT] += xp.where(going, figures, 0)
        log[COUNT] += going

    def sum_squares(self, g):
        wide = g.astype(self.xp.float64)
        return (wide * wide).sum()

    def adam(self, p, g, m, v, lr, beta1, beta2, eps, step, scale, failed=0.0):
        xp = self.xp
        squares = self.sum_squares(g)
        going = xp.isfinite(squares) & (failed == 0)
        g = (g * scale).astype(p.dtype)
        new_m = beta1 * m + (1 - beta1) * g
        new_v = beta2 * v + (1 - beta2) * g * g
        step_size = lr / (1 - beta1**step)
        new_p = p + step_size * new_m / (xp.sqrt(new_v / (1 - beta2**step)) + eps)
        for buffer, new in ((p, new_p), (m, new_m), (v, new_v)):
            buffer[...] = xp.where(going, new, buffer)
        return squares
