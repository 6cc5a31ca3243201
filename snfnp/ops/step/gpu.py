"""The step's scalars, its log and Adam as kernels of the GPU; see derivations/16-adam.md."""

import numpy as np

from snfnp.ops.channels.definition import Channels
from snfnp.ops.gpu import source
from snfnp.ops.step.definition import Step, StepScalars

_MOST_BLOCKS = 512  # for a pass over flat buffers: a large GPU runs this many at once


class GpuStepScalars(StepScalars):
    """Arrays of shape () on the device."""

    def __init__(self, device):
        self._launch = device.launch
        self.step = device.xp.zeros((), np.uint64)
        self.first = device.xp.zeros((), np.uint64)
        self.number = device.xp.zeros((), np.float64)
        self.lr = device.xp.zeros((), np.float64)

    def set(self, step, lr, first=0):
        # The kernel writes step_, lr_ and first_ into the arrays step, lr and first, and
        # step_ + 1 into number.
        self._launch(
            "set_scalars",
            np.float64,
            1,
            threads=32,
            step=self.step,
            number=self.number,
            lr=self.lr,
            first=self.first,
            step_=step,
            lr_=lr,
            first_=first,
        )


class GpuStep(Step):
    """The step's operations as kernels; `adam` changes nothing if Σ g² is not finite."""

    channels: Channels

    def scalars(self):
        return GpuStepScalars(self.device)

    def log_density(self, density, number, out):
        self.device.launch(
            "log_density",
            density.dtype,
            1,
            log=out,
            density=density,
            number=number,
            n=density.size,
        )

    def log_step(self, errors, squares, lam, number, out):
        error = self.channels.total(errors) if errors else 0.0
        self.device.launch(
            "log_step",
            np.float64,
            1,
            threads=32,
            log=out,
            error=error,
            squares=squares,
            lam=lam,
            number=number,
        )

    def adam(self, g, lr, beta1, beta2, eps, step, clip_norm, failed, out):
        p, m, v = out
        squares = self.linalg.sum_squares(g)
        self.device.launch(
            "adam",
            p.dtype,
            min(-(-p.size // source.THREADS), _MOST_BLOCKS),
            p=p,
            g=g,
            m=m,
            v=v,
            squares=squares,
            n=p.size,
            lr=lr,
            beta1=beta1,
            beta2=beta2,
            eps=eps,
            step=step,
            clip_norm=clip_norm,
            failed=failed,
        )
        return squares

    def apply_block_matrices(self, values, matrices, blocks, out, add=False):
        self.device.each(
            "apply_block_matrices",
            values.dtype,
            values.size,
            values=values,
            matrices=matrices,
            blocks=self.device.constant(np.array(blocks, np.int64), np.int64),
            out=out,
            count=len(blocks),
            add=add,
            n=values.size,
        )
