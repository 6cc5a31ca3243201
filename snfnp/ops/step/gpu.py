"""What a training step needs beside its layers, on the GPU.

Derivation: derivations/06-adam.md and derivations/20-lambda-controllers.md.
"""

from __future__ import annotations

import numpy as np

from snfnp.ops.gpu import source
from snfnp.ops.step.definition import Step, StepScalars

_MOST_BLOCKS = 512  # of a pass over a flat buffer, all at work at once on a large GPU


class GpuStepScalars(StepScalars):
    """Arrays of shape () on the device."""

    def __init__(self, device):
        self._launch = device.launch
        self.step = device.xp.zeros((), np.uint64)
        self.number, self.lr, self.lam = (device.xp.zeros((), np.float64) for _ in range(3))

    def set(self, step: int, lr: float, lam: float) -> None:
        arrays = (self.step, self.number, self.lr, self.lam)
        numbers = (step, float(lr), float(lam))
        self._launch("set_scalars", np.float64, 1, *arrays, *numbers, threads=32)


class GpuStep(Step):
    """Where Σ g² is not finite, `adam` leaves its buffers as they are."""

    def scalars(self) -> GpuStepScalars:
        return GpuStepScalars(self.device)

    def log_density(self, log_density, number, out) -> None:
        device, density = self.device, self.device.contiguous(log_density)
        arguments = (out, density, *device.scalar(number), density.size)
        device.launch("log_density", density.dtype, 1, *arguments)

    def log_step(self, reconstruction, squares, lam, number, out) -> None:
        numbers = (reconstruction, squares, lam, number)
        arguments = (argument for each in numbers for argument in self.device.scalar(each))
        self.device.launch("log_step", np.float64, 1, out, *arguments, threads=32)

    def adam(self, g, lr, beta1, beta2, eps, step, scale, failed, out):
        device, (p, m, v) = self.device, out
        squares = self.linalg.sum_squares(g)
        device.launch(
            "adam",
            p.dtype,
            min(-(-p.size // source.THREADS), _MOST_BLOCKS),
            *(p, device.contiguous(g), m, v),
            *device.scalar(lr),
            *(beta1, beta2, eps),
            *device.scalar(step),
            *device.scalar(scale),
            *device.scalar(failed),
            *(squares, p.size),
        )
        return squares

    def control(self, found, samples, controller, squares, failed, out):
        device, own = self.device, controller
        totals = device.empty(2, np.float64)
        numbers = (own.tolerance, own.rate, own.smoothing, own.damping, own.lowest, own.highest)
        device.launch(
            "control",
            np.float64,
            1,
            *(out, device.contiguous(found), totals, out.shape[1], len(found), samples),
            *(own.kind == "geco", own.relative, *numbers),
            *device.scalar(squares),
            *device.scalar(failed),
        )
        return totals[0, ...], totals[1, ...]
