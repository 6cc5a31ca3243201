"""The coupling's elementwise operations on the CPU; see derivations/14-coupling.md."""

import math

import numpy as np

from snfnp.ops.coupling.definition import Coupling
from snfnp.ops.group import Array
from snfnp.ops.jit import alike, parallel

_TASK = 64  # rows per task: the task's rows and its sums stay in the second cache


class CpuCoupling(Coupling):
    def bias_relu(self, out, b):
        if out.ndim != 2 or b.shape != out.shape[1:] or not alike(out, b):
            return super().bias_relu(out, b)
        _bias_relu(-(-len(out) // _TASK), out, np.ascontiguousarray(b))
        return out

    def bias_relu_backward(self, out, a, g_b, add=False):
        if out.ndim != 2 or a.shape != out.shape or not alike(out, a):
            super().bias_relu_backward(out, a, g_b, add)
            return
        sums = np.zeros((-(-len(out) // _TASK), out.shape[1]), out.dtype)
        _bias_relu_backward(len(sums), out, a, sums)
        self._add_up(sums, g_b, add)

    def backward(self, x, s, dz, dldj):
        *pixels, channels = x.shape
        agree = (
            x.ndim == 4
            and channels % 2 == 0
            and dz.shape == x.shape
            and s.shape == (*pixels, channels // 2)
            and dldj.shape == x.shape[:1]
            and alike(x, s, dz, dldj)
        )
        if not agree:
            return super().backward(x, s, dz, dldj)
        dx = np.empty(x.shape, x.dtype)
        dh = np.empty(x.shape, x.dtype)
        dldj = np.ascontiguousarray(dldj)
        _backward(
            len(x), _pixels(x), _pixels(s), _pixels(dz), dldj, _pixels(dx), _pixels(dh)
        )
        return dx, dh


def _pixels(images: Array) -> Array:
    """(N, H, W, C) as C-contiguous (N, H W, C)."""
    n, height, width, channels = images.shape
    return np.ascontiguousarray(images).reshape(n, height * width, channels)


@parallel
def _bias_relu(task, out, b):
    """out (M, F), b (F,). A NaN is not below zero, and stays."""
    zero = out.dtype.type(0)
    for m in range(task * _TASK, min(len(out), (task + 1) * _TASK)):
        row = out[m]
        for f in range(row.size):
            value = row[f] + b[f]
            row[f] = zero if value < zero else value


@parallel
def _bias_relu_backward(task, out, a, sums):
    """out, a (M, F) -> sums (tasks, F), at first zero."""
    one = out.dtype.type(1)
    zero = out.dtype.type(0)
    totals = sums[task]
    for m in range(task * _TASK, min(len(out), (task + 1) * _TASK)):
        row = out[m]
        active = a[m]
        for f in range(row.size):
            value = row[f] * (zero if active[f] <= zero else one)
            row[f] = value
            totals[f] += value


@parallel
def _backward(n, x, s, dz, dldj, dx, dh):
    """x, dz, dx, dh (N, P, C), s (N, P, C/2), dldj (N,)."""
    _, pixels, half = s.shape
    one = x.dtype.type(1)
    quarter = x.dtype.type(0.25)
    for p in range(pixels):
        for c in range(half):
            scale = s[n, p, c]
            delta = dz[n, p, half + c]
            through = delta * math.exp(scale)
            dx[n, p, c] = dz[n, p, c]
            dx[n, p, half + c] = through
            d_scale = through * x[n, p, half + c] + dldj[n]
            dh[n, p, 2 * c] = d_scale * (one - quarter * scale * scale)
            dh[n, p, 2 * c + 1] = delta
