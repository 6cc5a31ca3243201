"""Adam, the log and λ's control on the GPU; see derivations/06-adam.md."""

from dataclasses import asdict

import numpy as np

from snfnp.ops.channels.gpu import named_terms
from snfnp.ops.gpu import source
from snfnp.ops.step.definition import Step, StepScalars

_MOST_BLOCKS = 512  # of a pass over a flat buffer, all at work at once on a large GPU


class GpuStepScalars(StepScalars):
    """Arrays of shape () on the device."""

    def __init__(self, device):
        self._launch = device.launch
        self.step, self.first = (device.xp.zeros((), np.uint64) for _ in range(2))
        real = (device.xp.zeros((), np.float64) for _ in range(4))
        self.number, self.lr, self.lam, self._factor = real
        self._samples = 0

    def set(self, step: int, lr: float, lam: float, samples: int = 1, first: int = 0) -> None:
        arrays = {"step": self.step, "number": self.number, "lr": self.lr, "lam": self.lam}
        arrays |= {"first": self.first, "factor": self._factor}
        numbers = {"step_": step, "lr_": lr, "lam_": lam, "factor_": lam * (-2 / samples)}
        own = arrays | numbers | {"first_": first}
        self._launch("set_scalars", np.float64, 1, threads=32, **own)
        self._samples = samples

    def error_factor(self, samples: int):
        known = samples == self._samples
        return self._factor if known else super().error_factor(samples)


class GpuStep(Step):
    """The step's operations as kernels; `adam` changes nothing if Σ g² is not finite."""

    def scalars(self) -> GpuStepScalars:
        return GpuStepScalars(self.device)

    def log_density(self, terms, number, out) -> None:
        own = {"log": out, "number": number, "n": terms[0].size}
        self.device.launch(
            "log_density", terms[0].dtype, 1, **own, **named_terms(self.device, terms)
        )

    def log_step(self, errors, squares, lam, number, out) -> None:
        own = {"log": out, "squares": squares, "lam": lam, "number": number}
        own |= named_terms(self.device, errors or [0.0])
        self.device.launch("log_step", np.float64, 1, threads=32, **own)

    def adam(self, g, lr, beta1, beta2, eps, step, scale, failed, out):
        device, (p, m, v) = self.device, out
        squares = self.linalg.sum_squares(g)
        blocks = min(-(-p.size // source.THREADS), _MOST_BLOCKS)
        arrays = {"p": p, "g": g, "m": m, "v": v, "squares": squares, "n": p.size}
        numbers = {"lr": lr, "beta1": beta1, "beta2": beta2, "eps": eps, "step": step}
        numbers |= {"scale": scale, "failed": failed}
        device.launch("adam", p.dtype, blocks, **arrays, **numbers)
        return squares

    def apply_block_matrices(self, values, matrices, blocks, out, add=False):
        device = self.device
        table = device.constant(np.array(blocks, np.int64), np.int64)
        arrays = {"values": values, "matrices": matrices, "blocks": table, "out": out}
        sizes = {"count": len(blocks), "add": add, "n": values.size}
        device.each("turn", values.dtype, values.size, **arrays, **sizes)

    def control(self, measured, samples, controller, squares, failed, out):
        totals = self.device.empty(2, np.float64)
        arrays = {"state": out, "measured": measured, "totals": totals}
        numbers = {"layers": len(measured), "samples": samples, "squares": squares}
        arguments = arrays | numbers | {"failed": failed} | asdict(controller)
        self.device.launch("control", np.float64, 1, **arguments)
        return totals[0, ...], totals[1, ...]
