"""Adam on the CPU: one pass over the flat buffers; see derivations/06-adam.md."""

import numpy as np

from snfnp.ops.jit import FLAT_BLOCK, parallel, total
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
        squares = np.empty(-(-p.size // FLAT_BLOCK))
        _adam(len(squares), g, p, m, v, *map(cast, numbers), squares)
        return float(total(squares))


@parallel
def _adam(task, g, p, m, v, step_size, beta1, rest1, beta2, rest2, eps, correction, scale, squares):
    """One pass over the flat buffers; squares: of g, summed over each task's part. rest1, rest2:
    1 - β1, 1 - β2, since rounding 0.999 to single precision first would put an error of 1e-5 into
    the difference. (An index that could be negative keeps the compiler from vector instructions,
    hence the slices.)"""
    first, last = task * FLAT_BLOCK, min(p.size, (task + 1) * FLAT_BLOCK)
    pb, gb, mb, vb = p[first:last], g[first:last], m[first:last], v[first:last]
    for i in range(pb.size):
        gradient = gb[i] * scale
        mi = beta1 * mb[i] + rest1 * gradient
        vi = beta2 * vb[i] + rest2 * gradient * gradient
        mb[i] = mi
        vb[i] = vi
        pb[i] += step_size * mi / (np.sqrt(vi * correction) + eps)
    squares[task] = block_sum_squares(gb)
