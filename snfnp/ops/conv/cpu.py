"""Convolutions on the CPU: patches in parallel, and direct kernels if channels are few
(`cpu_planes.py`) or fill a vector register (`cpu_tiles.py`). See derivations/07-convolutions.md.
"""

import numpy as np

from snfnp.ops.conv import cpu_planes, cpu_tiles
from snfnp.ops.conv.cpu_tiles import pad
from snfnp.ops.conv.definition import Conv
from snfnp.ops.jit import alike, parallel

_TASK = 10  # images per task: their buffer is allocated once


def direct(kernel: tuple[int, int, int, int], width: int, limit: int = 64):
    """The module of direct kernels for the kernel (kH, kW, I, O) on images of this width.

    None if a matrix product of patches is faster: for 1×1 kernels, and for kernels without tiles
    that have more than 8 outputs or I·O > limit."""
    kh, kw, inputs, outputs = kernel
    if cpu_tiles.fits(kernel, width):
        return cpu_tiles
    few_channels = outputs <= 8 and inputs * outputs <= limit
    return cpu_planes if kh * kw > 1 and few_channels else None


class CpuConv(Conv):
    """Direct kernels are used up to the I·O at which products of patches overtake them, which is
    larger for the convolution than for its weight gradient."""

    def patches(self, x, kernel):
        n, height, width, channels = x.shape
        kh, kw = kernel
        if kh * kw <= 1 or not alike(x):  # `alike`: in single or double precision
            return super().patches(x, kernel)
        cols = np.empty((n, height, width, kh, kw * channels), x.dtype)
        _patches(-(-n // _TASK), np.ascontiguousarray(x), kw, cols)
        return cols.reshape(n * height * width, kh * kw * channels)

    def correlate(self, x, k):
        kh, kw, inputs, outputs = k.shape
        if x.ndim != 4 or x.shape[3] != inputs or not alike(x, k):
            return super().correlate(x, k)
        if kh == kw == inputs == 1:
            # NumPy's product of a column and a row takes ten times as long
            return np.ascontiguousarray(x) * k.reshape(outputs)
        kernels = direct(k.shape, x.shape[2])
        if kernels is None:
            return super().correlate(x, k)
        z = np.empty((*x.shape[:3], outputs), x.dtype)
        kernels.correlate(np.ascontiguousarray(x), np.ascontiguousarray(k), z)
        return z

    def weight_grad(self, delta, x, out, add=False):
        agree = (
            x.ndim == out.ndim == 4
            and x.shape[3] == out.shape[2]
            and delta.shape == (*x.shape[:3], out.shape[3])
            and alike(x, delta, out)
        )
        kernels = direct(out.shape, x.shape[2], limit=16) if agree else None
        if kernels is None:
            return super().weight_grad(delta, x, out, add)
        gradient = kernels.weight_grad(
            np.ascontiguousarray(delta), np.ascontiguousarray(x), out.shape
        )
        out[...] = gradient + out if add else gradient
        return out


@parallel
def _patches(task, x, kw, cols):
    """x (N, H, W, C) -> cols (N, H, W, kH, kW·C), from one padded image at a time."""
    samples, height, width, kh, run = cols.shape
    channels = run // kw
    row = (width + kw - 1) * channels
    padded = np.zeros((height + kh - 1) * row, x.dtype)
    for n in range(task * _TASK, min(samples, (task + 1) * _TASK)):
        pad(x[n], kh // 2, kw // 2, row, padded)
        for y in range(height):
            for column in range(width):
                for h in range(kh):
                    first = (y + h) * row + column * channels
                    source = padded[first : first + run]
                    target = cols[n, y, column, h]
                    for j in range(run):
                        target[j] = source[j]
