"""Direct convolutions on the CPU for few channels, whose patches would cost more than the products.

One padded image at a time lies by channels in the first-level cache. There a tap is an offset, and
a loop takes the whole image, in vector registers: the last kW − 1 values of each of its rows are
dropped. See derivations/07-convolutions.md.
"""

import numpy as np

from snfnp.ops.jit import inlined, parallel

_IMAGES = 10  # images per task: their buffers are allocated once


def correlate(x: np.ndarray, k: np.ndarray, z: np.ndarray) -> None:
    """See `cpu_tiles.correlate`."""
    tasks = -(-len(x) // _IMAGES)
    _correlate_images(tasks, np.ascontiguousarray(x), np.ascontiguousarray(k), z)


def weight_grad(delta: np.ndarray, x: np.ndarray, add: bool, out: np.ndarray) -> None:
    """See `cpu_tiles.weight_grad`."""
    tasks = -(-len(x) // _IMAGES)
    part = -(-x.shape[1] * (x.shape[2] + out.shape[1] - 1) // 4)
    sums = np.zeros((tasks, *out.shape, part), x.dtype)
    _weight_grad(tasks, np.ascontiguousarray(delta), np.ascontiguousarray(x), sums)
    gradient = sums.sum(axis=(0, -1), dtype=np.float64)
    out[...] = gradient + out if add else gradient


@inlined
def _spread(image, planes, top, left):
    """image (H, W, C) into planes (C, H', W')."""
    height, width, channels = image.shape
    for c in range(channels):
        for y in range(height):
            source = image[y, :, c]
            target = planes[c, y + top, left : left + width]
            for column in range(width):
                target[column] = source[column]


@parallel
def _correlate_images(task, x, k, z):
    """x (N, H, W, I), k (kH, kW, I, O) -> z (N, H, W, O)."""
    samples, height, width, inputs = x.shape
    kh, kw, _, outputs = k.shape
    row = width + kw - 1
    # one row more: the last taps of outputs that are dropped
    planes = np.zeros((inputs, height + kh, row), x.dtype)
    sums = np.empty(height * row, x.dtype)
    for n in range(task * _IMAGES, min(samples, (task + 1) * _IMAGES)):
        _spread(x[n], planes, kh // 2, kw // 2)
        for o in range(outputs):
            sums[:] = 0
            for i in range(inputs):
                plane = planes[i].reshape(-1)
                for h in range(kh):
                    for w in range(0, kw, 2):  # two taps, or one and nothing
                        last = min(w + 1, kw - 1)
                        x0 = plane[h * row + w :]
                        x1 = plane[h * row + last :]
                        k0 = k[h, w, i, o]
                        k1 = k[h, last, i, o] * x.dtype.type(last - w)
                        for j in range(sums.size):
                            sums[j] += k0 * x0[j] + k1 * x1[j]
            for y in range(height):
                source = sums[y * row : y * row + width]
                target = z[n, y, :, o]
                for column in range(width):
                    target[column] = source[column]


@parallel
def _weight_grad(task, delta, x, sums):
    """delta (N, H, W, O), x (N, H, W, I) -> sums (tasks, kH, kW, I, O, part), zeros: the sums over
    the values j, j + part, j + 2 part and j + 3 part of a task's images."""
    samples, height, width, inputs = x.shape
    _, kh, kw, _, outputs, part = sums.shape
    row = width + kw - 1
    planes = np.zeros((inputs, height + kh + 4, row), x.dtype)
    # 0 in the values that are dropped
    deltas = np.zeros((outputs, height + 4, row), x.dtype)
    flat = planes.reshape(inputs, -1)
    flat_deltas = deltas.reshape(outputs, -1)
    for n in range(task * _IMAGES, min(samples, (task + 1) * _IMAGES)):
        _spread(x[n], planes, kh // 2, kw // 2)
        _spread(delta[n], deltas, 0, 0)
        for o in range(outputs):
            d = flat_deltas[o]
            d0 = d[:part]
            d1 = d[part:]
            d2 = d[2 * part :]
            d3 = d[3 * part :]
            for h in range(kh):
                for w in range(kw):
                    for i in range(inputs):
                        target = sums[task, h, w, i, o]
                        x0 = flat[i, h * row + w :]
                        x1 = x0[part:]
                        x2 = x0[2 * part :]
                        x3 = x0[3 * part :]
                        for j in range(part):
                            first = d0[j] * x0[j]
                            second = d2[j] * x2[j]
                            target[j] += (first + d1[j] * x1[j]) + (
                                second + d3[j] * x3[j]
                            )
