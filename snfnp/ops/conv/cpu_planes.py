"""Direct convolutions on the CPU for few channels.

Writing patches would cost far more than the arithmetic. The kernels here copy one image at a time,
by channels, into a padded buffer in the first-level cache. There a tap is an offset: with rows of
W + kW − 1 values, output j needs input j + offset, so every loop runs over the whole image and is
vectorised; the last kW − 1 values of a row are dropped. See derivations/07-convolutions.md.
"""

import math
from functools import cache

import numpy as np

from snfnp.ops.jit import parallel, serial, total

_TASK = 10  # images per task: their buffers are allocated once, their weight gradients summed
_LANES = 16  # loops over an image are a multiple of this long
_TAPS = 3  # taps that one loop over an image takes (divides the taps of 3×3 kernels)
_FOLD = 4  # parts of an image that share the accumulators of a weight gradient


def correlate(x, k, z) -> None:
    """z (N, H, W, O) = the cross-correlation of x (N, H, W, I) with k (kH, kW, I, O)."""
    kh, kw, inputs, outputs = k.shape
    offsets = _offsets(kh, kw, inputs, *x.shape[1:3])
    weights = np.zeros((outputs, offsets.size), x.dtype)
    weights[:, : kh * kw * inputs] = k.reshape(-1, outputs).T
    _correlate_images(-(-len(x) // _TASK), np.ascontiguousarray(x), (kh, kw), weights, offsets, z)


def weight_grad(delta, x, add: bool, out) -> None:
    """Σ over samples and pixels of δ ⋆ x into out (kH, kW, I, O), contiguous, or added to it; the
    sums of _TASK images are in x's precision, all others in double."""
    offsets = _offsets(*out.shape[:3], *x.shape[1:3])[: math.prod(out.shape[:3])]
    sums = np.empty((-(-len(x) // _TASK), offsets.size, out.shape[3]))
    images = map(np.ascontiguousarray, (delta, x))
    _weight_grad(len(sums), *images, out.shape[:2], offsets, sums)
    flat = out.reshape(sums.shape[1:])
    flat[...] = total(sums, flat if add else 0.0)


@cache
def _offsets(kh, kw, inputs, height, width):
    """The places of output 0's taps (h, w, i) in the padded buffer, filled up to whole _TAPS with
    the last one (of weight 0): a NaN reaches no output that it would not have reached."""
    row = width + kw - 1
    plane = (height + kh - 1) * row
    h, w, i = np.ogrid[:kh, :kw, :inputs]
    offsets = (h * row + w + i * plane).reshape(-1)
    return np.concatenate([offsets, np.repeat(offsets[-1:], -offsets.size % _TAPS)])


@parallel
def _correlate_images(task, x, size, weights, offsets, z):
    """x (N, H, W, I), size (kH, kW), weights (O, taps), offsets (taps,) -> z (N, H, W, O)."""
    samples, height, width, inputs = x.shape
    (kh, kw), outputs = size, len(weights)
    row = width + kw - 1
    plane = (height + kh - 1) * row
    length = (height * row + _LANES - 1) // _LANES * _LANES
    # beyond the last plane: the last taps of outputs that are computed and dropped
    padded = np.zeros(inputs * plane + _LANES + kw, x.dtype)
    sums = np.empty((outputs, length), x.dtype)
    for n in range(task * _TASK, min(samples, (task + 1) * _TASK)):
        _spread(x[n], padded, kh // 2 * row + kw // 2, row, plane)
        for o in range(outputs):
            _one_output(padded, offsets, weights[o], sums[o])
            for y in range(height):
                source, target = sums[o, y * row : y * row + width], z[n, y, :, o]
                for column in range(width):
                    target[column] = source[column]


@serial
def _spread(image, planes, start, row, plane):
    """image (H, W, C) into flat planes, one per channel, with `row` values to a row."""
    height, width, channels = image.shape
    for c in range(channels):
        for y in range(height):
            first = c * plane + start + y * row
            source, target = image[y, :, c], planes[first : first + width]
            for column in range(width):
                target[column] = source[column]


@serial
def _one_output(padded, offsets, w, z):
    z[:] = z.dtype.type(0)
    length = z.size
    for k in range(0, offsets.size, _TAPS):
        x0 = padded[offsets[k] : offsets[k] + length]
        x1 = padded[offsets[k + 1] : offsets[k + 1] + length]
        x2 = padded[offsets[k + 2] : offsets[k + 2] + length]
        w0, w1, w2 = w[k], w[k + 1], w[k + 2]
        for j in range(length):
            z[j] += w0 * x0[j] + w1 * x1[j] + w2 * x2[j]


@parallel
def _weight_grad(task, delta, x, size, offsets, sums):
    """delta (N, H, W, O), x (N, H, W, I), offsets (taps,) -> sums (tasks, taps, O)."""
    samples, height, width, inputs = x.shape
    (kh, kw), (taps, outputs) = size, sums.shape[1:]
    row = width + kw - 1
    plane = (height + kh - 1) * row
    part = (height * row + _FOLD * _LANES - 1) // (_FOLD * _LANES) * _LANES
    padded = np.zeros(inputs * plane + _FOLD * _LANES + kw, x.dtype)
    # δ is zero in the values at the ends of rows, so that they count for nothing
    deltas = np.zeros((outputs, _FOLD * part), x.dtype)
    lanes = np.zeros((outputs, taps, part), x.dtype)
    for n in range(task * _TASK, min(samples, (task + 1) * _TASK)):
        _spread(x[n], padded, kh // 2 * row + kw // 2, row, plane)
        _spread(delta[n], deltas.reshape(-1), 0, row, _FOLD * part)
        for o in range(outputs):
            _correlate(padded, offsets, deltas[o], lanes[o])
    for o in range(outputs):
        for k in range(taps):
            sums[task, k, o] = _total(lanes[o, k])


@serial
def _correlate(padded, offsets, delta, lanes):
    """lanes[k, j] += Σ δ · input at tap k over the _FOLD outputs j, j + part, j + 2 part, …"""
    part = lanes.shape[1]
    d0, d1 = delta[:part], delta[part : 2 * part]
    d2, d3 = delta[2 * part : 3 * part], delta[3 * part : 4 * part]
    for k in range(offsets.size):
        x = padded[offsets[k] : offsets[k] + _FOLD * part]
        x0, x1 = x[:part], x[part : 2 * part]
        x2, x3 = x[2 * part : 3 * part], x[3 * part : 4 * part]
        sums = lanes[k]
        for j in range(part):
            sums[j] += (d0[j] * x0[j] + d1[j] * x1[j]) + (d2[j] * x2[j] + d3[j] * x3[j])


@serial
def _total(lanes):
    """Σ of an array whose length is a multiple of _LANES (which it overwrites), in double."""
    first = lanes[:_LANES]
    for start in range(_LANES, lanes.size, _LANES):
        following = lanes[start : start + _LANES]
        for lane in range(_LANES):
            first[lane] += following[lane]
    total = 0.0
    for lane in range(0, _LANES, 4):  # adding one by one would wait for each sum
        total += (first[lane] + first[lane + 1]) + (first[lane + 2] + first[lane + 3])
    return total
