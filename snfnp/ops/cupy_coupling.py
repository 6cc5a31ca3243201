"""The coupling's elementwise operations on the GPU: each one pass over its arrays."""

from __future__ import annotations

import math

from snfnp.ops.cupy_activation import channel_blocks
from snfnp.ops.numpy_coupling import CouplingOps


class CudaCouplingOps(CouplingOps):
    """CouplingOps with kernels; those of actnorm add the bias and the scale."""

    # Large products fill a GPU: usually all rows at once. A hidden layer of 512 takes 268 MB.
    network_rows = 1 << 17

    def bias_relu(self, out, b):
        rows, channels = self.contiguous(out), out.shape[1]
        blocks, _ = channel_blocks(out.size, channels, 4)
        self.launch("bias_relu", out.dtype, blocks, rows, self.contiguous(b), out.size, channels)
        return _written(rows, out)

    def bias_relu_backward(self, out, a):
        rows, channels = self.contiguous(out), out.shape[1]
        blocks, groups = channel_blocks(out.size, channels, 4)
        sums = self.empty((groups, channels), out.dtype)
        arguments = (rows, self.contiguous(a), sums, out.size, channels)
        self.launch("bias_relu_backward", out.dtype, blocks, *arguments)
        _written(rows, out)
        return self.channel_sum(sums) if groups > 1 else sums[0]

    def bias_scale(self, v, b, k, logs, out):
        self._shift_scale(v, 1.0, b, float(k), logs, None, out)
        return out

    def bias_scale_backward(self, dh, h, k, logs, out):
        return self._shift_scale_backward(dh, h, 1.0, float(k), logs, None, out)

    def affine_coupling(self, x, h):
        z, s = self.empty(x.shape, x.dtype), self.empty((*x.shape[:3], x.shape[3] // 2), x.dtype)
        ldj = self.empty(len(x), x.dtype)
        arrays = (self.contiguous(x), self.contiguous(h), z, ldj, s)
        self.launch("affine_coupling", x.dtype, len(x), *arrays, *_sizes(x))
        return z, ldj, s

    def affine_coupling_inverse(self, z, h):
        x = self.empty(z.shape, z.dtype)
        arrays = (self.contiguous(z), self.contiguous(h), x)
        self.launch("affine_coupling_inverse", z.dtype, len(z), *arrays, *_sizes(z))
        return x

    def affine_coupling_backward(self, x, s, dz, dldj):
        dx, dh = self.empty(x.shape, x.dtype), self.empty(x.shape, x.dtype)
        arrays = (self.contiguous(array) for array in (x, s, dz, dldj))
        self.launch("affine_coupling_backward", x.dtype, len(x), *arrays, dx, dh, *_sizes(x))
        return dx, dh


def _sizes(x) -> tuple[int, int]:
    """Half the channels of images (N, H, W, C), and how many values half a sample has."""
    half = x.shape[3] // 2
    return half, math.prod(x.shape[1:3]) * half


def _written(rows, out):
    """`out`, after a kernel has written a copy of it where it is not contiguous."""
    if rows is not out:
        out[...] = rows
    return out
