"""Convolutions on the CPU: patches in parallel, and direct kernels if channels are few
(`cpu_planes.py`) or fill a vector register (`cpu_tiles.py`). See derivations/07-convolutions.md.
"""

import numpy as np

from snfnp.ops.conv import cpu_planes, cpu_tiles
from snfnp.ops.conv.definition import Conv
from snfnp.ops.jit import parallel

_TASK = 10  # images per task: their buffer is allocated once
_SHIFTED_MIN_RATIO = 8  # inputs per output from which shifted products are faster than tiles


class CpuConv(Conv):
    """Direct kernels are used up to the I·O at which products of patches overtake them: later for
    the convolution than for its weight gradient."""

    def patches(self, x, kernel):
        n, height, width, channels = x.shape
        kh, kw = kernel
        if kh == kw == 1:
            return super().patches(x, kernel)
        cols = np.empty((n, height, width, kh, kw * channels), x.dtype)
        x = np.ascontiguousarray(x).reshape(n, height, width * channels)
        _patches(-(-n // _TASK), x, kw, cols)
        return cols.reshape(n * height * width, kh * kw * channels)

    def correlate(self, x, k):
        kh, kw, inputs, outputs = k.shape
        if kh == kw == inputs == 1:  # NumPy's product of a column and a row takes ten times as long
            return np.ascontiguousarray(x) * k.reshape(outputs)
        z = np.empty((*x.shape[:3], outputs), x.dtype)
        if inputs < _SHIFTED_MIN_RATIO * outputs and cpu_tiles.fits(k.shape, x.shape[2]):
            cpu_tiles.correlate(x, k, z, (kh // 2, kw // 2))
        elif _few(k.shape, 64):
            cpu_planes.correlate(x, k, z)
        else:
            return super().correlate(x, k)
        return z

    def weight_grad(self, delta, x, out, add=False):
        target = out if out.flags.c_contiguous else out.copy()
        if cpu_tiles.fits(out.shape, x.shape[2]):
            cpu_tiles.weight_grad(delta, x, add, target, (len(out) // 2, out.shape[1] // 2))
        elif _few(out.shape, 16):
            cpu_planes.weight_grad(delta, x, add, target)
        else:
            return super().weight_grad(delta, x, out, add)
        if target is not out:
            out[...] = target
        return out

    def shift_and_add(self, products):
        n, height, width, _, _, outputs = products.shape
        z = np.empty((n, height, width, outputs), products.dtype)
        _shift_and_add(n * height, np.ascontiguousarray(products), z)
        return z


def _few(kernel, most) -> bool:
    """True if a direct kernel is used. Many outputs make the product wide and fast."""
    kh, kw, inputs, outputs = kernel
    return kh * kw > 1 and outputs <= 8 and inputs * outputs <= most


@parallel
def _patches(task, x, kw, cols):
    """x (N, H, W·C) -> cols (N, H, W, kH, kW·C), from one padded image at a time."""
    samples, height, width, kh, run = cols.shape
    channels = run // kw
    row = (width + kw - 1) * channels
    padded = np.zeros((height + kh - 1) * row, x.dtype)
    for n in range(task * _TASK, min(samples, (task + 1) * _TASK)):
        for y in range(height):
            first = (y + kh // 2) * row + kw // 2 * channels
            padded[first : first + width * channels] = x[n, y]
        for y in range(height):
            for column in range(width):
                for h in range(kh):
                    first = (y + h) * row + column * channels
                    source, target = padded[first : first + run], cols[n, y, column, h]
                    for j in range(run):
                        target[j] = source[j]


@parallel
def _shift_and_add(task, products, z):
    """products (N, H, W, kH, kW, O) -> z (N, H, W, O), image rows in parallel."""
    _, height, width, kh, kw, outputs = products.shape
    n, y = task // height, task % height
    row = z[n, y]
    row[:] = row.dtype.type(0)
    for h in range(kh):
        source = y + h - kh // 2
        if source < 0 or source >= height:
            continue
        for w in range(kw):
            shift = w - kw // 2
            for x in range(max(0, -shift), min(width, width - shift)):
                for o in range(outputs):
                    row[x, o] += products[n, source, x + shift, h, w, o]
