"""Direct convolutions on the CPU for few channels, whose patches would cost more than the products.

Each image is copied to padded planes (C, H', W'), one for each channel, which stay in the
first-level cache. A tap is an offset in a flattened plane: one loop, in vector registers, takes it
for all pixels of the image. The loop also computes values for the kW − 1 columns of padding, which
are dropped. See derivations/07-convolutions.md.
"""

import numpy as np

from snfnp.ops.group import Shape
from snfnp.ops.jit import inlined, parallel

_IMAGES = 10  # images per task: their buffers are allocated once


def correlate(x: np.ndarray, k: np.ndarray, z: np.ndarray) -> None:
    """See `cpu_tiles.correlate`."""
    _correlate_images(-(-len(x) // _IMAGES), x, k, z)


def weight_grad(delta: np.ndarray, x: np.ndarray, kernel: Shape) -> np.ndarray:
    """See `cpu_tiles.weight_grad`."""
    row = x.shape[2] + kernel[1] - 1  # of a padded plane
    quarter = -(-x.shape[1] * row // 4)
    sums = np.zeros((-(-len(x) // _IMAGES), *kernel, quarter), x.dtype)
    _weight_grad(len(sums), delta, x, sums)
    return sums.sum(axis=(0, -1), dtype=np.float64)


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
    # one row more: taps of dropped values in the last row reach into it
    planes = np.zeros((inputs, height + kh, row), x.dtype)
    sums = np.empty(height * row, x.dtype)
    for n in range(task * _IMAGES, min(samples, (task + 1) * _IMAGES)):
        _spread(x[n], planes, kh // 2, kw // 2)
        for o in range(outputs):
            sums[:] = 0
            for i in range(inputs):
                plane = planes[i].reshape(-1)
                for h in range(kh):
                    for w in range(0, kw, 2):  # two taps at once
                        second = min(w + 1, kw - 1)
                        x0 = plane[h * row + w :]
                        x1 = plane[h * row + second :]
                        k0 = k[h, w, i, o]
                        # times 0 if there is no second tap: w is the last of an odd kW
                        k1 = k[h, second, i, o] * x.dtype.type(second - w)
                        for j in range(sums.size):
                            sums[j] += k0 * x0[j] + k1 * x1[j]
            for y in range(height):
                source = sums[y * row : y * row + width]
                target = z[n, y, :, o]
                for column in range(width):
                    target[column] = source[column]


@parallel
def _weight_grad(task, delta, x, sums):
    """delta (N, H, W, O), x (N, H, W, I) -> sums (tasks, kH, kW, I, O, quarter), zeros before.

    The last axis is a position j in a quarter of a flattened plane. Each sum is over the products
    at j in the four quarters, of all images of a task."""
    samples, height, width, inputs = x.shape
    _, kh, kw, _, outputs, quarter = sums.shape
    row = width + kw - 1
    # four rows more, of zeros: the last quarter may go up to 3 values beyond the image
    planes = np.zeros((inputs, height + kh + 4, row), x.dtype)
    # 0 in the columns that are dropped
    deltas = np.zeros((outputs, height + 4, row), x.dtype)
    flat = planes.reshape(inputs, -1)
    flat_deltas = deltas.reshape(outputs, -1)
    for n in range(task * _IMAGES, min(samples, (task + 1) * _IMAGES)):
        _spread(x[n], planes, kh // 2, kw // 2)
        _spread(delta[n], deltas, 0, 0)
        for o in range(outputs):
            d = flat_deltas[o]
            d0 = d[:quarter]
            d1 = d[quarter:]
            d2 = d[2 * quarter :]
            d3 = d[3 * quarter :]
            for h in range(kh):
                for w in range(kw):
                    for i in range(inputs):
                        target = sums[task, h, w, i, o]
                        x0 = flat[i, h * row + w :]
                        x1 = x0[quarter:]
                        x2 = x0[2 * quarter :]
                        x3 = x0[3 * quarter :]
                        for j in range(quarter):
                            first_half = d0[j] * x0[j] + d1[j] * x1[j]
                            second_half = d2[j] * x2[j] + d3[j] * x3[j]
                            target[j] += first_half + second_half
