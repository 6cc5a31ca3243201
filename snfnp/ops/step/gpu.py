"""Adam, the log and λ's control on the GPU; see derivations/06-adam.md."""

from dataclasses import asdict

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
        arrays = {"step": self.step, "number": self.number, "lr": self.lr, "lam": self.lam}
        numbers = {"step_": step, "lr_": lr, "lam_": lam}
        self._launch("set_scalars", np.float64, 1, threads=32, **arrays, **numbers)


class GpuStep(Step):
    """The step's operations as kernels; `adam` changes nothing if Σ g² is not finite."""

    def scalars(self) -> GpuStepScalars:
        return GpuStepScalars(self.device)

    def log_density(self, log_density, number, out) -> None:
        arguments = {"log": out, "density": log_density, "number": number, "n": log_density.size}
        self.device.launch("log_density", log_density.dtype, 1, **arguments)

    def log_step(self, reconstruction, squares, lam, number, out) -> None:
        numbers = {"reconstruction": reconstruction, "squares": squares, "lam": lam}
        self.device.launch("log_step", np.float64, 1, threads=32, log=out, number=number, **numbers)

    def adam(self, g, lr, beta1, beta2, eps, step, scale, failed, out):
        device, (p, m, v) = self.device, out
        squares = self.linalg.sum_squares(g)
        blocks = min(-(-p.size // source.THREADS), _MOST_BLOCKS)
        arrays = {"p": p, "g": g, "m": m, "v": v, "squares": squares, "n": p.size}
        numbers = {"lr": lr, "beta1": beta1, "beta2": beta2, "eps": eps, "step": step}
        numbers |= {"scale": scale, "failed": failed}
        device.launch("adam", p.dtype, blocks, **arrays, **numbers)
        return squares

    def turn(self, values, matrices, blocks, out, add=False):
        device = self.device
        table = device.constant(np.array(blocks, np.int64), np.int64)
        arrays = {"values": values, "matrices": matrices, "blocks": table, "out": out}
        sizes = {"count": len(blocks), "add": add, "n": values.size}
        device.each("turn", values.dtype, values.size, **arrays, **sizes)

    def control(self, measured, samples, controller, squares, failed, out):
        totals = self.device.empty(2, np.float64)
        arrays = {"state": out, "measured": measured, "totals": totals}
        sizes = {"multipliers": out.shape[1], "layers": len(measured), "samples": samples}
        numbers = {"squares": squares, "failed": failed} | asdict(controller)
        arguments = arrays | sizes | numbers
        self.device.launch("control", np.float64, 1, **arguments)
        return totals[0, ...], totals[1, ...]
