"""Convolutions on the CPU whose outputs fill a vector register: products of tiles, without patches.

Channels-last, the values that one kernel row needs for a pixel are contiguous in a padded image,
which stays in the first-level cache. The sums of a tile (neighbouring pixels times some outputs)
stay in registers while the loop runs over the taps; every tap costs one load of a row of the
kernel, which all pixels of the tile share. In the weight gradient the sums of neighbouring taps
stay in registers, and the loop runs over the pixels. See derivations/07-convolutions.md.
"""

from functools import cache

import numpy as np

from snfnp.ops import simd
from snfnp.ops.jit import parallel, serial
from snfnp.ops.simd import tile

_IMAGES = 10  # images per task: their buffer is allocated once, their weight gradients summed
_MOST = 64 * 64  # I·O up to which products of patches are slower


@cache
def fits(kernel, width: int) -> bool:
    """True if tiles are for the kernel (kH, kW, I, O) on images of this width."""
    kh, kw, inputs, outputs = kernel
    fours = inputs % 4 == outputs % 4 == 0 and width >= min(simd.PIXELS)
    return kh * kw > 1 and fours and inputs * outputs <= _MOST


def correlate(x, k, z, before, b=None) -> None:
    """z (N, H, W, O) = the cross-correlation of x (N, H, W, I) with k (kH, kW, I, O), + b (O,);
    before: the rows of zeros on top, and the columns on the left."""
    b = np.empty(0, x.dtype) if b is None else b
    tile_size = simd.of_pixels(x.shape[2], k.shape[3], x.dtype.itemsize)
    x, flat, tasks = np.ascontiguousarray(x), np.ascontiguousarray(k).reshape(-1), _tasks(x)
    _correlate_images(tasks, x, flat, k.shape[:2], before, b, *tile_size, z)


def weight_grad(delta, x, add: bool, out, before) -> None:
    """Σ over samples and pixels of δ ⋆ x into out (kH, kW, I, O), or added to it; before: as in
    `correlate`."""
    kh, kw, inputs, outputs = out.shape
    tile_size = simd.of_taps(kw * inputs, outputs, x.dtype.itemsize)
    sums = np.zeros((_tasks(x), kh, kw * inputs * outputs), x.dtype)
    images = map(np.ascontiguousarray, (delta, x))
    _weight_grad(len(sums), *images, kw, before, *tile_size, sums)
    gradient = sums.sum(axis=0).reshape(out.shape)
    out[...] = gradient + out if add else gradient


def _tasks(x) -> int:
    return -(-len(x) // _IMAGES)


@serial
def pad(image, top, left, row, padded):
    """image (H, W, C) into the flat `padded`, whose rows are `row` values long."""
    height, width, channels = image.shape
    values, length = image.reshape(-1), width * channels
    for y in range(height):
        first = (y + top) * row + left * channels
        source, target = values[y * length : (y + 1) * length], padded[first : first + length]
        for j in range(length):
            target[j] = source[j]


@serial
def _convolve(padded, k, size, shape, pixels, lanes, z):
    """The padded image and the flat kernel k of this size -> flat z; shape: (H, W, I, O). The last
    tile of a row may overlap the one before: it computes the same values again."""
    kh, kw = size
    height, width, inputs, outputs = shape
    run, row = kw * inputs, (width + kw - 1) * inputs
    for o in range(0, outputs, len(lanes)):
        for y in range(height):
            for left in range(0, width, len(pixels)):
                first = min(left, width - len(pixels))
                tile(
                    *(padded, y * row + first * inputs, (row, 1, inputs)),
                    *(k, o, (run * outputs, outputs), (kh, run)),
                    *(z, (y * width + first) * outputs + o, outputs, False),
                    *(pixels, lanes),
                )


@parallel
def _correlate_images(task, x, k, size, before, b, pixels, lanes, z):
    """x (N, H, W, I), k flat, b (O,) or without values -> z (N, H, W, O)."""
    samples, height, width, inputs = x.shape
    (kh, kw), outputs = size, z.shape[3]
    shape, row = (height, width, inputs, outputs), (width + kw - 1) * inputs
    padded = np.zeros((height + kh - 1) * row, x.dtype)
    shift = np.zeros(width * outputs, x.dtype)  # b for a row of pixels
    for j in range(shift.size if b.size else 0):
        shift[j] = b[j % outputs]
    for n in range(task * _IMAGES, min(samples, (task + 1) * _IMAGES)):
        pad(x[n], before[0], before[1], row, padded)
        flat = z[n].reshape(-1)
        _convolve(padded, k, size, shape, pixels, lanes, flat)
        if b.size:
            for y in range(height):
                target = flat[y * len(shift) : (y + 1) * len(shift)]
                for j in range(len(shift)):
                    target[j] += shift[j]


@parallel
def _weight_grad(task, delta, x, kw, before, taps, lanes, sums):
    """delta (N, H, W, O), x (N, H, W, I) -> sums (tasks, kH, kW·I·O), zeros."""
    samples, height, width, inputs = x.shape
    outputs, run, kh = delta.shape[3], kw * inputs, sums.shape[1]
    row = (width + kw - 1) * inputs
    padded = np.zeros((height + kh - 1) * row, x.dtype)
    for n in range(task * _IMAGES, min(samples, (task + 1) * _IMAGES)):
        pad(x[n], before[0], before[1], row, padded)
        flat = delta[n].reshape(-1)
        for o in range(0, outputs, len(lanes)):
            for h in range(kh):
                for tap in range(0, run, len(taps)):
                    tile(
                        *(padded, h * row + tap, (row, inputs, 1)),
                        *(flat, o, (width * outputs, outputs), (height, width)),
                        *(sums[task, h], tap * outputs + o, outputs, True),
                        *(taps, lanes),
                    )
