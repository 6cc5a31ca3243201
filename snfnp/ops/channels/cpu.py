"""Shifts and scales of channels on the CPU; see derivations/13-actnorm-and-1x1.md."""

import numpy as np

from snfnp.ops.channels.definition import Channels, pixels
from snfnp.ops.jit import parallel, rows

_TASK = 10  # samples per task: their rows are added up first, in a buffer that stays in the cache


class CpuChannels(Channels):
    def shift(self, x, b):
        z, b = np.empty(x.shape, x.dtype), np.ascontiguousarray(b).reshape(-1)
        shift_and_scale(x, b, np.ones_like(b), z)
        return z

    def actnorm(self, x, t, s):
        z = np.empty(x.shape, x.dtype)
        shift_and_scale(x, -t, np.exp(-s), z)
        return z, np.zeros(len(x), x.dtype) - pixels(x) * s.sum()

    def actnorm_backward(self, dz, z, s, dldj, out):
        g_t, g_s = out
        dx, sums = scale_backward(dz, z, np.exp(-s))
        g_t[...] = -sums[0]
        g_s[...] = -sums[1] - pixels(dz) * dldj.sum()
        return dx

    def squeeze(self, x):  # faster than a copy of one transposed view, which is one launch on a GPU
        n, height, width, channels = x.shape
        z = np.stack([x[:, dy::2, dx::2] for dy in (0, 1) for dx in (0, 1)], axis=-1)
        return z.reshape(n, height // 2, width // 2, 4 * channels)

    def unsqueeze(self, z):
        n, height, width, channels = z.shape
        x = np.empty((n, 2 * height, 2 * width, channels // 4), z.dtype)
        for place in range(4):
            x[:, place // 2 :: 2, place % 2 :: 2] = z[..., place::4]
        return x


def shift_and_scale(x, shift, factor, out) -> None:
    """out = (x + shift) factor: x (N, ..., C), shift and factor (C,), out contiguous."""
    x = rows(x)
    values = (_along(each, x) for each in (shift, factor))
    _shift_and_scale(len(x), x, *values, rows(out))


def scale_backward(delta, x, factor):
    """δ factor, and Σ δ factor and Σ δ x over samples and pixels in one array (2, C), in double
    precision: delta, x (N, ..., C), factor (C,)."""
    scaled, tasks = np.empty(delta.shape, delta.dtype), -(-len(x) // _TASK)
    sums = np.zeros((tasks, 2, delta.shape[-1]))
    deltas, others = rows(delta), rows(x)
    _scale_backward(tasks, deltas, others, _along(factor, deltas), rows(scaled), sums)
    return scaled, sums.sum(axis=0)


def _along(values, x):
    """values (C,) for every pixel: (P C,), like a row of x (N, P C)."""
    along = np.empty((x.shape[1] // len(values), len(values)), x.dtype)
    along[...] = values
    return along.reshape(-1)


@parallel
def _shift_and_scale(n, x, shifts, factors, out):
    """x, out (N, P C), shifts, factors (P C,)."""
    source, target = x[n], out[n]
    for j in range(source.size):
        target[j] = (source[j] + shifts[j]) * factors[j]


@parallel
def _scale_backward(task, delta, x, factors, scaled, sums):
    """delta, x, scaled (N, P C), factors (P C,), sums (tasks, 2, C), zeros: over a task's samples
    in their precision, in double from there."""
    samples, length = delta.shape
    channels = sums.shape[2]
    first, second = np.zeros(length, delta.dtype), np.zeros(length, delta.dtype)
    for n in range(task * _TASK, min(samples, (task + 1) * _TASK)):
        deltas, others, target = delta[n], x[n], scaled[n]
        for j in range(length):
            target[j] = deltas[j] * factors[j]
            first[j] += target[j]
            second[j] += deltas[j] * others[j]
    for j in range(length):
        sums[task, 0, j % channels] += first[j]
        sums[task, 1, j % channels] += second[j]
