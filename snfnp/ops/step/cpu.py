"""Adam on the CPU: a pass over the gradient, then one over all flat buffers.

See derivations/16-adam.md.
"""

import math

import numpy as np

from snfnp.ops.jit import alike, parallel
from snfnp.ops.step.definition import Step, clip_scale

_BLOCK = 16384  # elements of a flat buffer that one task takes: 64 KB, inside the second cache
_LANES = 64  # independent partial sums: four vector registers or more


class CpuStep(Step):
    def adam(self, g, lr, beta1, beta2, eps, step, clip_norm, failed, out):
        p, m, v = out
        flat = p.ndim == 1 and p.shape == g.shape == m.shape == v.shape
        if failed or not (flat and alike(g, *out)):
            return super().adam(g, lr, beta1, beta2, eps, step, clip_norm, failed, out)
        sums = np.empty(-(-p.size // _BLOCK))
        _squares(len(sums), g, sums)
        squares = float(sums.sum())
        if math.isfinite(squares):
            numbers = (
                lr / (1 - beta1**step),  # in the order of `_adam`'s
                beta1,
                1 - beta1,
                beta2,
                1 - beta2,
                eps,
                1 / (1 - beta2**step),
                clip_scale(squares, clip_norm),
            )
            _adam(len(sums), g, p, m, v, *map(p.dtype.type, numbers))
        return squares


@parallel
def _squares(task, g, sums):
    """Σ g² of each task's block in _LANES partial sums of g's precision, added up in double."""
    block = g[task * _BLOCK :][:_BLOCK]
    lanes = np.zeros(_LANES, g.dtype)
    for start in range(block.size // _LANES):
        part = block[start * _LANES : (start + 1) * _LANES]
        for lane in range(_LANES):
            lanes[lane] += part[lane] * part[lane]
    total = 0.0
    for lane in range(_LANES):
        total += lanes[lane]
    for value in block[block.size // _LANES * _LANES :]:
        total += np.float64(value) * value
    sums[task] = total


@parallel
def _adam(
    task, g, p, m, v, step_size, beta1, rest1, beta2, rest2, eps, correction, scale
):
    """One pass over the flat buffers. rest1, rest2: 1 - β1, 1 - β2, since rounding 0.999 to single
    precision first would put an error of 1e-5 into the difference. (An index that could be negative
    keeps the compiler from vector instructions, hence the slices.)"""
    pb = p[task * _BLOCK :][:_BLOCK]
    gb = g[task * _BLOCK :][:_BLOCK]
    mb = m[task * _BLOCK :][:_BLOCK]
    vb = v[task * _BLOCK :][:_BLOCK]
    for i in range(pb.size):
        gradient = gb[i] * scale
        mi = beta1 * mb[i] + rest1 * gradient
        vi = beta2 * vb[i] + rest2 * gradient * gradient
        mb[i] = mi
        vb[i] = vi
        pb[i] += step_size * mi / (np.sqrt(vi * correction) + eps)
