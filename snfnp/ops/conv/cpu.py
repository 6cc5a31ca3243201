"""Convolutions on the CPU: patches in parallel, and direct kernels where channels are few
(those whose channels fill a vector register are in `cpu_tiles.py`).

With few channels the matrix product of im2col is thin, and writing the patches costs far more
than the arithmetic. The direct kernels copy one image at a time, channel by channel, into a padded
buffer that stays in the first-level cache. There a tap is just an offset: with rows of
W + kW − 1 values, output j needs input j + offset, so every loop runs over the whole image and is
vectorised, whatever W is. The kW − 1 values at the end of each row are computed and dropped.

Derivation: derivations/07-convolutions.md.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numba import prange

from snfnp.ops.conv import cpu_tiles
from snfnp.ops.conv.definition import Conv
from snfnp.ops.jit import parallel, serial

_TASK = 10  # images per task: their buffers are allocated once, their weight gradients summed
_LANES = 16  # loops over an image are a multiple of this long
_TAPS = 3  # taps that one loop over an image takes (divides the taps of 3×3 kernels)
_FOLD = 4  # parts of an image that share the accumulators of a weight gradient


class CpuConv(Conv):
    """Direct kernels are used up to the I·O at which products of patches overtake them: later for
    the convolution than for its weight gradient."""

    def patches(self, x, kernel):
        n, height, width, channels = x.shape
        kh, kw = kernel
        if kh == kw == 1:
            return super().patches(x, kernel)
        cols = np.empty((n, height, width, kh, kw * channels), x.dtype)
        _patches(np.ascontiguousarray(x).reshape(n, height, width * channels), kw, cols)
        return cols.reshape(n * height * width, kh * kw * channels)

    def forward(self, x, k):
        kh, kw, inputs, outputs = k.shape
        if cpu_tiles.fits(k.shape, x.shape[2]):
            z = np.empty((*x.shape[:3], outputs), x.dtype)
            cpu_tiles.forward(x, k, z)
            return z
        if not _few(k.shape, 64):
            return super().forward(x, k)
        offsets = _offsets(kh, kw, inputs, *x.shape[1:3])
        weights = np.zeros((outputs, offsets.size), x.dtype)
        weights[:, : kh * kw * inputs] = k.reshape(-1, outputs).T
        z = np.empty((*x.shape[:3], outputs), x.dtype)
        _forward(np.ascontiguousarray(x), weights, offsets, kh, kw, z)
        return z

    def weight_grad(self, delta, x, out, add=False):
        kh, kw, inputs, outputs = out.shape
        if cpu_tiles.fits(out.shape, x.shape[2]):
            gradient = cpu_tiles.weight_grad(delta, x, out.shape)
        elif _few(out.shape, 16):
            gradient = self._few_weight_grad(delta, x, out.shape)
        else:
            return super().weight_grad(delta, x, out, add)
        if add:
            gradient += out
        out[...] = gradient
        return out

    @staticmethod
    def _few_weight_grad(delta, x, kernel):
        kh, kw, inputs, outputs = kernel
        taps = kh * kw * inputs
        offsets = _offsets(kh, kw, inputs, *x.shape[1:3])[:taps]
        sums = np.empty((-(-len(x) // _TASK), outputs, taps))
        _weight_grad(np.ascontiguousarray(delta), np.ascontiguousarray(x), offsets, kh, kw, sums)
        return sums.sum(axis=0).T.reshape(kernel)

    def forward_and_bias(self, x, k, b):
        z = self.forward(x, k)
        shifted = np.empty_like(z)
        _add_to_rows(z.reshape(*z.shape[:2], -1), np.tile(b, z.shape[2]), shifted)
        return z, shifted

    def inverse_series(self, r, w, nu, terms):
        if nu.shape[2] < 4:
            return super().inverse_series(r, w, nu, terms)
        return cpu_tiles.inverse_series(r, w, nu, terms)

    def sums_of_pairs(self, matrix, rows, columns, taken, given):
        (p, q), (g, h) = taken, given
        channels = len(matrix) // (p[0] * p[1])
        out = np.zeros((*g, channels, h[0], h[1] * channels), matrix.dtype)
        pairs = np.ascontiguousarray(matrix).reshape(*p, channels, q[0], q[1] * channels)
        along = ((0, rows), (1, columns))
        counts = (np.ascontiguousarray(n).reshape(g[i], h[i], p[i], q[i]) for i, n in along)
        _sums_of_pairs(pairs, *counts, out)
        return out.reshape(g[0] * g[1] * channels, -1)

    def shift_and_add(self, products):
        n, height, width, _, _, outputs = products.shape
        z = np.empty((n, height, width, outputs), products.dtype)
        _shift_and_add(np.ascontiguousarray(products), z)
        return z


def _few(kernel, most) -> bool:
    """Whether a direct kernel is to be used. Many outputs make the product wide and fast."""
    kh, kw, inputs, outputs = kernel
    return kh * kw > 1 and outputs <= 8 and inputs * outputs <= most


@cache
def _offsets(kh, kw, inputs, height, width):
    """Where tap (h, w, i) of output 0 lies in the padded buffer, filled up to whole _TAPS.

    The filling repeats the last tap (with weight 0): what it reads is read anyway, so that a NaN
    reaches no output that it would not have reached.
    """
    row = width + kw - 1
    plane = (height + kh - 1) * row
    h, w, i = np.ogrid[:kh, :kw, :inputs]
    offsets = (h * row + w + i * plane).reshape(-1)
    return np.concatenate([offsets, np.repeat(offsets[-1:], -offsets.size % _TAPS)])


@parallel
def _patches(x, kw, cols):
    """x (N, H, W·C) -> cols (N, H, W, kH, kW·C), from one padded image at a time."""
    samples, height, width, kh, run = cols.shape
    channels = run // kw
    row = (width + kw - 1) * channels
    for task in prange((samples + _TASK - 1) // _TASK):
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
def _add_to_rows(z, b, shifted):
    """z (N, H, W·O) + b (W·O,) -> shifted (N, H, W, O)."""
    samples, height, _ = z.shape
    for n in prange(samples):
        flat = shifted[n].reshape(height, -1)
        for y in range(height):
            source, target = z[n, y], flat[y]
            for j in range(len(b)):
                target[j] = source[j] + b[j]


@parallel
def _sums_of_pairs(pairs, rows, columns, out):
    """pairs (p1, p2, C, q1, q2·C), out (g1, g2, C, h1, h2·C), zeros; rows (g1, h1, p1, q1) and
    columns (g2, h2, p2, q2), most of them 0."""
    channels = pairs.shape[2]
    g1s, h1s, p1s, q1s = rows.shape
    g2s, h2s, p2s, q2s = columns.shape
    for g in prange(g1s * g2s):
        g1, g2 = g // g2s, g % g2s
        for h1, p1, q1 in np.ndindex(h1s, p1s, q1s):
            count = rows[g1, h1, p1, q1]
            if count == 0:
                continue
            for h2, p2, q2 in np.ndindex(h2s, p2s, q2s):
                factor = count * columns[g2, h2, p2, q2]
                if factor == 0:
                    continue
                for c in range(channels):
                    source = pairs[p1, p2, c, q1, q2 * channels : (q2 + 1) * channels]
                    target = out[g1, g2, c, h1, h2 * channels : (h2 + 1) * channels]
                    for i in range(channels):
                        target[i] += factor * source[i]


@parallel
def _shift_and_add(products, z):
    """products (N, H, W, kH, kW, O) -> z (N, H, W, O), image rows in parallel."""
    samples, height, width, kh, kw, outputs = products.shape
    for task in prange(samples * height):
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


@parallel
def _forward(x, weights, offsets, kh, kw, z):
    """x (N, H, W, I), weights (O, taps), offsets (taps,) -> z (N, H, W, O)."""
    samples, height, width, inputs = x.shape
    outputs, row = z.shape[3], width + kw - 1
    plane = (height + kh - 1) * row
    length = (height * row + _LANES - 1) // _LANES * _LANES
    fours = outputs // 4 * 4
    for task in prange((samples + _TASK - 1) // _TASK):
        # beyond the last plane: the last taps of outputs that are computed and dropped
        padded = np.zeros(inputs * plane + _LANES + kw, x.dtype)
        sums = np.empty((outputs, length), x.dtype)
        for n in range(task * _TASK, min(samples, (task + 1) * _TASK)):
            _spread(x[n], padded, kh // 2 * row + kw // 2, row, plane)
            for o in range(0, fours, 4):
                _four_outputs(padded, offsets, weights[o : o + 4], sums[o : o + 4])
            for o in range(fours, outputs):
                _one_output(padded, offsets, weights[o], sums[o])
            for o in range(outputs):
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


@serial
def _four_outputs(padded, offsets, w, z):
    """Four outputs share the loads of the inputs."""
    z[:] = z.dtype.type(0)
    length = z.shape[1]
    z0, z1, z2, z3 = z[0], z[1], z[2], z[3]
    for k in range(0, offsets.size, _TAPS):
        x0 = padded[offsets[k] : offsets[k] + length]
        x1 = padded[offsets[k + 1] : offsets[k + 1] + length]
        x2 = padded[offsets[k + 2] : offsets[k + 2] + length]
        w00, w01, w02 = w[0, k], w[0, k + 1], w[0, k + 2]
        w10, w11, w12 = w[1, k], w[1, k + 1], w[1, k + 2]
        w20, w21, w22 = w[2, k], w[2, k + 1], w[2, k + 2]
        w30, w31, w32 = w[3, k], w[3, k + 1], w[3, k + 2]
        for j in range(length):
            a, b, c = x0[j], x1[j], x2[j]
            z0[j] += w00 * a + w01 * b + w02 * c
            z1[j] += w10 * a + w11 * b + w12 * c
            z2[j] += w20 * a + w21 * b + w22 * c
            z3[j] += w30 * a + w31 * b + w32 * c


@parallel
def _weight_grad(delta, x, offsets, kh, kw, sums):
    """delta (N, H, W, O), x (N, H, W, I), offsets (taps,) -> sums (tasks, O, taps)."""
    samples, height, width, inputs = x.shape
    outputs, taps, row = delta.shape[3], offsets.size, width + kw - 1
    plane = (height + kh - 1) * row
    part = (height * row + _FOLD * _LANES - 1) // (_FOLD * _LANES) * _LANES
    for task in prange(len(sums)):
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
                sums[task, o, k] = _total(lanes[o, k])


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
