"""Shifts of channels on the CPU; see derivations/13-actnorm-and-1x1.md."""

import numpy as np

from snfnp.ops.channels.definition import Channels
from snfnp.ops.group import flat
from snfnp.ops.jit import alike, parallel


class CpuChannels(Channels):
    def shift(self, x, b):
        # in parallel: each core then has the samples of its next kernel
        if x.ndim < 2 or b.shape not in (x.shape[1:], x.shape[-1:]) or not alike(x, b):
            return super().shift(x, b)
        z = np.empty(x.shape, x.dtype)
        _shift(len(x), flat(x), self._broadcast(b, x).ravel(), flat(z))
        return z


@parallel
def _shift(n, x, shifts, out):
    """x, out (N, D), shifts (D,)."""
    source = x[n]
    target = out[n]
    for j in range(source.size):
        target[j] = source[j] + shifts[j]
