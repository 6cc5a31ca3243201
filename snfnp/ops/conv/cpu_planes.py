"""Direct convolutions on the CPU for few channels: tiles of neighbouring pixels, without patches.

Writing patches would take far longer than the arithmetic. One image at a time lies in a padded
buffer in the first-level cache, by rows and then by channels: there a tap is an offset, and a
register holds neighbouring pixels. In the weight gradient it holds a kernel row's taps, in the
opposite order, and the loop runs over the pixels. See derivations/07-convolutions.md.
"""

import numpy as np

from snfnp.ops.jit import parallel, serial
from snfnp.ops.simd import lanes_for, tile

_IMAGES = 10  # images per task: their buffers are allocated once


def correlate(x, k, z, before, b=None) -> None:
    """See `cpu_tiles.correlate`."""
    b = np.zeros(k.shape[3], x.dtype) if b is None else np.ascontiguousarray(b)
    size, lanes = ((1,) * n for n in k.shape[:2]), lanes_for(min(x.shape[2], 32))
    k, tasks = np.ascontiguousarray(k.transpose(3, 2, 0, 1)).reshape(-1), -(-len(x) // _IMAGES)
    _correlate_images(tasks, np.ascontiguousarray(x), k, *size, before, b, lanes, z)


def weight_grad(delta, x, add: bool, out, before) -> None:
    """See `cpu_tiles.weight_grad`. Sums of single images are in x's precision, others in double."""
    kh, kw, inputs, outputs = out.shape
    lanes = lanes_for(kw)
    sums = np.zeros((-(-len(x) // _IMAGES), inputs, outputs, kh, len(lanes)))
    images = map(np.ascontiguousarray, (delta, x))
    _weight_grad(len(sums), *images, kw, before, (1,) * kh, lanes, sums)
    gradient = sums.sum(axis=0)[..., ::-1][..., :kw].transpose(2, 3, 0, 1)
    out[...] = gradient + out if add else gradient


@serial
def _spread(image, rows, top, left):
    """image (H, W, C) into rows (H', C, W')."""
    height, width, channels = image.shape
    for y in range(height):
        for c in range(channels):
            source, target = image[y, :, c], rows[y + top, c, left : left + width]
            for column in range(width):
                target[column] = source[column]


@parallel
def _correlate_images(task, x, k, rows, columns, before, b, lanes, z):
    """x (N, H, W, I), k (O, I, kH, kW) flat, rows and columns as long as it is, b (O,) ->
    z (N, H, W, O)."""
    samples, height, width, inputs = x.shape
    kh, kw, outputs = len(rows), len(columns), len(b)
    wide = (width + len(lanes) - 1) // len(lanes) * len(lanes)
    row = wide + kw - 1
    padded, sums = np.zeros((height + kh - 1, inputs, row), x.dtype), np.empty(wide, x.dtype)
    flat = padded.reshape(-1)
    for n in range(task * _IMAGES, min(samples, (task + 1) * _IMAGES)):
        _spread(x[n], padded, before[0], before[1])
        for y in range(height):
            for o in range(outputs):
                for start in range(0, wide, len(lanes)):
                    for i in range(inputs):
                        tile(
                            *(k, (o * inputs + i) * kh * kw, (kw, 1, 0)),
                            *(flat, (y * inputs + i) * row + start, (inputs * row, 1), (kh, kw)),
                            *(sums, start, 0, i > 0),
                            *((1,), lanes),
                        )
                target = z[n, y, :, o]
                for column in range(width):
                    target[column] = sums[column] + b[o]


@parallel
def _weight_grad(task, delta, x, kw, before, taps, lanes, sums):
    """delta (N, H, W, O), x (N, H, W, I) -> sums (tasks, I, O, kH, lanes), zeros."""
    samples, height, width, inputs = x.shape
    outputs, kh, row = delta.shape[3], len(taps), width + kw - 1
    padded = np.zeros((height + kh - 1, inputs, row), x.dtype)
    deltas = np.zeros((height, outputs, row + len(lanes) - 1), x.dtype)
    flat, flat_deltas, delta_row = padded.reshape(-1), deltas.reshape(-1), deltas.shape[2]
    of_image = np.empty(kh * len(lanes), x.dtype)
    for n in range(task * _IMAGES, min(samples, (task + 1) * _IMAGES)):
        _spread(x[n], padded, before[0], before[1])
        _spread(delta[n], deltas, 0, len(lanes) - 1)
        for i in range(inputs):
            for o in range(outputs):
                tile(
                    *(flat, i * row, (inputs * row, 1, inputs * row)),
                    *(flat_deltas, o * delta_row, (outputs * delta_row, 1), (height, row)),
                    *(of_image, 0, len(lanes), False),
                    *(taps, lanes),
                )
                target = sums[task, i, o].reshape(-1)
                for j in range(len(of_image)):
                    target[j] += of_image[j]
