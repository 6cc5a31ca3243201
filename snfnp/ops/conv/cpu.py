"""Convolutions on the CPU: patches in parallel, and direct kernels if channels are few
(`cpu_planes.py`) or fill a vector register (`cpu_tiles.py`). See derivations/07-convolutions.md.
"""

import numpy as np

from snfnp.ops.conv import cpu_planes, cpu_tiles
from snfnp.ops.conv.definition import Conv, zeros_before
from snfnp.ops.jit import alike, parallel

_TASK = 10  # images per task: their buffer is allocated once


def direct(kernel, width: int, most: int = 64):
    """The module of direct kernels for the kernel (kH, kW, I, O) on images of this width; None for
    many channels, whose product is wide and fast, and 1×1 kernels. most: I·O of few channels."""
    kh, kw, inputs, outputs = kernel
    if cpu_tiles.fits(kernel, width):
        return cpu_tiles
    return cpu_planes if kh * kw > 1 and outputs <= 8 and inputs * outputs <= most else None


def _inside(kernel, before) -> bool:
    """True if the zeros of `zeros_before` are at most those of a "same" convolution."""
    pairs = zip(zeros_before(kernel, before), kernel, strict=False)
    return all(0 <= count < size for count, size in pairs)


class CpuConv(Conv):
    """Direct kernels are used up to the I·O at which products of patches overtake them: later for
    the convolution than for its weight gradient."""

    def patches(self, x, kernel, before=None):
        n, height, width, channels = x.shape
        kh, kw = kernel
        if kh == kw == 1 or not (alike(x) and _inside(kernel, before)):
            return super().patches(x, kernel, before)
        cols = np.empty((n, height, width, kh, kw * channels), x.dtype)
        x = np.ascontiguousarray(x).reshape(n, height, width * channels)
        _patches(-(-n // _TASK), x, kw, zeros_before(kernel, before), cols)
        return cols.reshape(n * height * width, kh * kw * channels)

    def correlate(self, x, k, before=None, b=None):
        kh, kw, inputs, outputs = k.shape
        agree = x.ndim == 4 and x.shape[3] == inputs and alike(x, k) and _inside(k.shape, before)
        if b is not None:
            agree = agree and b.shape == (outputs,) and alike(x, b)
        if not agree:
            return super().correlate(x, k, before, b)
        if kh == kw == inputs == 1 and b is None:
            # NumPy's product of a column and a row takes ten times as long
            return np.ascontiguousarray(x) * k.reshape(outputs)
        kernels = direct(k.shape, x.shape[2])
        if kernels is None:
            return super().correlate(x, k, before, b)
        z = np.empty((*x.shape[:3], outputs), x.dtype)
        kernels.correlate(x, k, z, zeros_before(k.shape, before), b)
        return z

    def weight_grad(self, delta, x, out, add=False, before=None):
        agree = x.ndim == out.ndim == 4 and x.shape[3] == out.shape[2] and alike(x, delta, out)
        agree = agree and delta.shape == (*x.shape[:3], out.shape[3]) and _inside(out.shape, before)
        kernels = direct(out.shape, x.shape[2], most=16) if agree else None
        if kernels is None:
            return super().weight_grad(delta, x, out, add, before)
        kernels.weight_grad(delta, x, add, out, zeros_before(out.shape, before))
        return out


@parallel
def _patches(task, x, kw, before, cols):
    """x (N, H, W·C) -> cols (N, H, W, kH, kW·C), from one padded image at a time."""
    samples, height, width, kh, run = cols.shape
    channels = run // kw
    row = (width + kw - 1) * channels
    padded = np.zeros((height + kh - 1) * row, x.dtype)
    for n in range(task * _TASK, min(samples, (task + 1) * _TASK)):
        for y in range(height):
            first = (y + before[0]) * row + before[1] * channels
            padded[first : first + width * channels] = x[n, y]
        for y in range(height):
            for column in range(width):
                for h in range(kh):
                    first = (y + h) * row + column * channels
                    source, target = padded[first : first + run], cols[n, y, column, h]
                    for j in range(run):
                        target[j] = source[j]
