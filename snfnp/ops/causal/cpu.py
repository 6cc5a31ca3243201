"""Causal 2×2 convolutions on the CPU, in both directions without turning an image: what is padded
moves to the other two sides. Their inverse: raster order, samples in parallel. See
derivations/11-emerging.md.
"""

import numpy as np

from snfnp.ops.causal.definition import Causal
from snfnp.ops.conv import cpu_tiles
from snfnp.ops.conv.cpu_tiles import pad
from snfnp.ops.jit import parallel, serial, total

_TASK = 10  # images per task: their buffers are allocated once, their weight gradients summed

# Rows of padding on top and columns on the left: where the neighbours are that a pixel sees. The
# opposite direction has them below and on the right.
_BEFORE = {False: (1, 1), True: (0, 0)}


class CpuCausal(Causal):
    """Direct kernels if channels fill a vector register, or if there is only one."""

    def correlate(self, x, k, b=None, reverse=False):
        if not _direct(x.shape):
            return super().correlate(x, k, b, reverse)
        return _convolve(x, self._masked(k), b, reverse)

    def adjoint(self, dz, k, reverse=False):
        if not _direct(dz.shape):
            return super().adjoint(dz, k, reverse)
        return _convolve(dz, self._masked(k).swapaxes(2, 3), None, not reverse)

    def weight_grad(self, delta, x, k, volume, out, reverse=False):
        if not _direct(x.shape):
            return super().weight_grad(delta, x, k, volume, out, reverse)
        before, gradient = _BEFORE[reverse], np.empty(out.shape, out.dtype)
        if x.shape[3] == 1:
            planes = map(np.ascontiguousarray, (delta, x))
            sums = np.empty((-(-len(x) // _TASK), 4))
            _plane_weight_grad(len(sums), *planes, before, sums)
            gradient.reshape(4)[...] = total(sums)
        else:
            cpu_tiles.weight_grad(delta, x, False, gradient, before)
        out[...] = self._masked(gradient[::-1, ::-1] if reverse else gradient)
        diagonal = np.einsum("cc->c", out[1, 1])  # a view
        diagonal += float(volume) / k[1, 1].diagonal().astype(np.float64)
        return out

    def inverse(self, z, k, reverse=False):
        x = np.empty(z.shape, z.dtype)
        turned = np.ascontiguousarray(self._turned(z, reverse))
        _inverse(len(x), turned, np.ascontiguousarray(k), x)
        return self._turned(x, reverse)


def _direct(shape) -> bool:
    channels = shape[3]
    return channels == 1 or cpu_tiles.fits((2, 2, channels, channels), shape[2])


def _convolve(x, taps, b, turn):
    z, taps = np.empty(x.shape, x.dtype), np.ascontiguousarray(taps[::-1, ::-1] if turn else taps)
    b = np.zeros(x.shape[3], x.dtype) if b is None else np.ascontiguousarray(b)
    if x.shape[3] == 1:
        x, tasks = np.ascontiguousarray(x), -(-len(x) // _TASK)
        _plane(tasks, x, taps.reshape(4), b, _BEFORE[turn], z.reshape(x.shape[:3]))
    else:
        cpu_tiles.correlate(x, taps, z, _BEFORE[turn], b)
    return z


@serial
def _seen(padded, row, length):
    """The view of four taps of a whole image with `row` values to a row: flat views."""
    lower = padded[row:]
    return padded[:length], padded[1:][:length], lower[:length], lower[1:][:length]


@parallel
def _plane(task, x, k, b, before, z):
    """x (N, H, W, 1), k (4,), b (1,) -> z (N, H, W). The loop runs over a whole image: the last
    value of a row, which is padding, is dropped."""
    samples, height, width, _ = x.shape
    row = width + 1
    k0, k1, k2, k3, shift = k[0], k[1], k[2], k[3], b[0]
    padded, sums = np.zeros((height + 1) * row + 1, x.dtype), np.empty(height * row, x.dtype)
    x0, x1, x2, x3 = _seen(padded, row, sums.size)
    for n in range(task * _TASK, min(samples, (task + 1) * _TASK)):
        pad(x[n], before[0], before[1], row, padded)
        for j in range(sums.size):
            sums[j] = k0 * x0[j] + k1 * x1[j] + k2 * x2[j] + k3 * x3[j] + shift
        for y in range(height):
            source, target = sums[y * row : y * row + width], z[n, y]
            for j in range(width):
                target[j] = source[j]


@parallel
def _plane_weight_grad(task, delta, x, before, sums):
    """delta, x (N, H, W, 1) -> sums (tasks, 4): over a task's images in x's precision, all others
    in double. δ is 0 in the value that pads a row."""
    samples, height, width, _ = x.shape
    row = width + 1
    padded, deltas = np.zeros((height + 1) * row + 1, x.dtype), np.zeros(height * row, x.dtype)
    pixels = np.zeros((4, deltas.size), x.dtype)
    s0, s1, s2, s3 = pixels[0], pixels[1], pixels[2], pixels[3]
    x0, x1, x2, x3 = _seen(padded, row, deltas.size)
    for n in range(task * _TASK, min(samples, (task + 1) * _TASK)):
        pad(x[n], before[0], before[1], row, padded)
        pad(delta[n], 0, 0, row, deltas)
        for j in range(deltas.size):
            s0[j] += deltas[j] * x0[j]
            s1[j] += deltas[j] * x1[j]
        for j in range(deltas.size):
            s2[j] += deltas[j] * x2[j]
            s3[j] += deltas[j] * x3[j]
    for tap in range(4):  # adding one by one would wait for each sum: rows first
        columns, pixel_sum = pixels[tap, :row], 0.0
        for y in range(1, height):
            source = pixels[tap, y * row : (y + 1) * row]
            for j in range(row):
                columns[j] += source[j]
        for j in range(row):
            pixel_sum += columns[j]
        sums[task, tap] = pixel_sum


@parallel
def _inverse(n, z, k, x):
    """z (N, H, W, C), k (2, 2, C, C) -> x (N, H, W, C)."""
    _, height, width, channels = z.shape
    rest = np.empty(channels, z.dtype)
    for row in range(height):
        for column in range(width):
            for o in range(channels):
                rest[o] = z[n, row, column, o]
            if row and column:
                _subtract(x[n, row - 1, column - 1], k[0, 0], rest)
            if row:
                _subtract(x[n, row - 1, column], k[0, 1], rest)
            if column:
                _subtract(x[n, row, column - 1], k[1, 0], rest)
            for c in range(channels):
                solved = rest[c] / k[1, 1, c, c]
                x[n, row, column, c] = solved
                for o in range(c + 1, channels):
                    rest[o] -= solved * k[1, 1, c, o]


@serial
def _subtract(pixel, tap, rest):
    """rest -= tapᵀ pixel, a column of the loop over outputs at a time."""
    for i in range(pixel.size):
        value = pixel[i]
        for o in range(rest.size):
            rest[o] -= value * tap[i, o]
