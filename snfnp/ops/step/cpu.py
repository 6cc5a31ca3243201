"""Adam on the CPU: one pass over the flat buffers; see derivations/06-adam.md."""

import numpy as np
from numba import prange

from snfnp.ops.jit import FLAT_BLOCK, parallel
from snfnp.ops.linalg.cpu import block_sum_squares
from snfnp.ops.step.definition import Step


class CpuStep(Step):
    def adam(self, g, lr, beta1, beta2, eps, step, scale, failed, out):
        if failed:
            return self.linalg.sum_squares(g)
        p, m, v = out
        cast = p.dtype.type
        step_size, second = lr / (1 - beta1**step), 1 / (1 - beta2**step)
        numbers = (step_size, beta1, 1 - beta1, beta2, 1 - beta2, eps, second, scale)
        return float(_adam(g, p, m, v, *(cast(number) for number in numbers)))


@parallel
def _adam(g, p, m, v, step_size, beta1, rest1, beta2, rest2, eps, second_correction, scale):
    """One pass over the flat buffers; returns Σ g². rest1, rest2: 1 - β1, 1 - β2, since rounding
    0.999 to single precision first would put an error of 1e-5 into the difference. (An index that
    could be negative keeps the compiler from vector instructions, hence the slices.)"""
    blocks = (p.size + FLAT_BLOCK - 1) // FLAT_BLOCK
    squares = np.zeros(blocks)
    for block in prange(blocks):
        first, last = block * FLAT_BLOCK, min(p.size, (block + 1) * FLAT_BLOCK)
        pb, gb, mb, vb = p[first:last], g[first:last], m[first:last], v[first:last]
        for i in range(pb.size):
            gradient = gb[i] * scale
            mi = beta1 * mb[i] + rest1 * gradient
            vi = beta2 * vb[i] + rest2 * gradient * gradient
            mb[i] = mi
            vb[i] = vi
            pb[i] += step_size * mi / (np.sqrt(vi * second_correction) + eps)
        squares[block] = block_sum_squares(gb)
    return squares.sum()
