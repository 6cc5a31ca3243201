"""What a training step needs beside its layers, on the device."""

from __future__ import annotations

import numpy as np

from snfnp.ops import cuda
from snfnp.ops.cupy_graph import Graph
from snfnp.ops.cupy_measure import count_kernels
from snfnp.ops.numpy_steps import Dials

# Of a pass over a flat buffer, all at work at once on a large GPU; and as many partial sums, added
# in one order.
_BLOCKS = 512


class DeviceDials(Dials):
    """Dials whose numbers are arrays of shape () on the device."""

    def __init__(self, ops):
        self._launch = ops.launch
        self.step = ops.xp.zeros((), np.uint64)
        self.number, self.lr, self.lam = (ops.xp.zeros((), np.float64) for _ in range(3))

    def set(self, step: int, lr: float, lam: float) -> None:
        arrays = (self.step, self.number, self.lr, self.lam)
        self._launch("set_dials", np.float64, 1, *arrays, step, float(lr), float(lam), threads=32)


class CudaStepOps:
    """Mixed into `CupyOps`; overrides `StepOps`."""

    works_ahead = True

    def dials(self) -> DeviceDials:
        return DeviceDials(self)

    def repeatable(self, function, say=print) -> Graph:
        return Graph(self.xp, function, say)

    def peek(self, condition) -> None:
        return None

    def watch(self, log, log_density, step) -> None:
        density = self.contiguous(log_density)
        self.launch("watch", density.dtype, 1, log, density, *self.scalar(step), density.size)

    def record(self, log, reconstruction, squares, lam, step) -> None:
        numbers = (reconstruction, squares, lam, step)
        arguments = (argument for number in numbers for argument in self.scalar(number))
        self.launch("record", np.float64, 1, log, *arguments, threads=32)

    def sum_squares(self, g):
        """Σ g² (), float64, on the device."""
        g = self.contiguous(g)
        total = self.empty((), np.float64)
        blocks, partial = self._partial_sums(g.size)
        self.launch("sum_squares", g.dtype, blocks, g, partial, total, self.counter(), g.size)
        return total

    def residual(self, error, x, before=0.0):
        rows, total = self.contiguous(error), self.empty((), np.float64)
        blocks, partial = self._partial_sums(error.size)
        arguments = (rows, self.contiguous(x), *self.scalar(before), partial, total)
        sizes = (len(x), error.size)
        self.launch("residual", error.dtype, blocks, *arguments, self.counter(), *sizes)
        if rows is not error:
            error[...] = rows
        return total

    def _partial_sums(self, size):
        """Blocks for a sum over so many numbers, and where each of them puts its own."""
        blocks = max(1, min(_BLOCKS, -(-size // 1024)))
        return blocks, self.empty(blocks, np.float64)

    def adam(self, p, g, m, v, lr, beta1, beta2, eps, step, scale, failed=0.0):
        squares = self.sum_squares(g)
        self.launch(
            "adam",
            p.dtype,
            min(-(-p.size // cuda.THREADS), _BLOCKS),
            *(p, self.contiguous(g), m, v),
            *self.scalar(lr),
            *(beta1, beta2, eps),
            *self.scalar(step),
            *self.scalar(scale),
            *self.scalar(failed),
            *(squares, p.size),
        )
        return squares

    def synchronise(self) -> None:
        self.xp.cuda.runtime.deviceSynchronize()

    def launches(self, function) -> int | None:
        return count_kernels(self.xp, function)

    def memory_rate(self) -> float | None:
        attributes = self.xp.cuda.Device().attributes
        clock, bits = attributes.get("MemoryClockRate"), attributes.get("GlobalMemoryBusWidth")
        if not clock or not bits:  # newer drivers keep the clock to themselves
            return None
        return 2 * 1e3 * clock * bits / 8  # kHz, and both edges of the clock carry data
