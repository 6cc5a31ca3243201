"""Activations, actnorm, sums over channels and the base density on the GPU: one launch each."""

from __future__ import annotations

import math

import numpy as np

from snfnp.ops import cuda
from snfnp.ops.numpy_activation import ActivationOps, pixels

_MOST_BLOCKS = 1024  # of the kernels over rows of channels
# Of those that sum over rows: the last of their blocks adds up what the others found.
_MOST_SUMMING = 128


class CudaActivationOps(ActivationOps):
    """ActivationOps with fused kernels. Arrays may be strided, all of a call have one dtype."""

    # ---------------------------------------------------------------- base density

    def gaussian_log_density(self, z):
        density, dimension = self.empty(len(z), z.dtype), math.prod(z.shape[1:])
        constant = 0.5 * dimension * math.log(2 * math.pi)
        arguments = (self.contiguous(z), constant, density, dimension)
        self.launch("gaussian_log_density", z.dtype, len(z), *arguments)
        return density

    # ---------------------------------------------------------------- smooth leaky ReLU

    def smooth_leaky_relu(self, x, alpha):
        y, sigma = self.empty(x.shape, x.dtype), self.empty(x.shape, x.dtype)
        ldj = self.empty(len(x), x.dtype)
        arguments = (self.contiguous(x), alpha, y, ldj, sigma, math.prod(x.shape[1:]))
        self.launch("smooth_leaky_relu", x.dtype, len(x), *arguments)
        return y, ldj, sigma

    def smooth_leaky_relu_inverse(self, y, alpha):
        x = self.empty(y.shape, y.dtype)
        numbers = (alpha, (1 - alpha) * math.log(2), np.finfo(y.dtype).eps)
        arguments = (self.contiguous(y), *numbers, x, y.size)
        self.each("smooth_leaky_relu_inverse", y.dtype, y.size, *arguments)
        return x

    def smooth_leaky_relu_backward(self, sigma, dy, dldj, alpha):
        dx = self.empty(sigma.shape, sigma.dtype)
        arrays = (self.contiguous(array) for array in (sigma, dy, dldj))
        arguments = (*arrays, alpha, dx, math.prod(sigma.shape[1:]))
        self.launch("smooth_leaky_relu_backward", sigma.dtype, len(sigma), *arguments)
        return dx

    # ---------------------------------------------------------------- channels

    def channel_sum(self, x, out=None):
        channels = x.shape[-1]
        out = self.empty(channels, x.dtype) if out is None else out
        blocks, partial = self._summing(x, 1)
        arguments = (self.contiguous(x), out, partial, self.counter(), x.size, channels)
        self.launch("channel_sum", x.dtype, blocks, *arguments)
        return out

    def actnorm(self, x, t, s):
        z, ldj = self.empty(x.shape, x.dtype), self.empty(len(x), x.dtype)
        self._shift_scale(x, -1.0, t, -1.0, s, None, z, ldj)
        return z, ldj

    def actnorm_inverse(self, z, t, s):
        x = self.empty(z.shape, z.dtype)
        self._shift_scale(z, 0.0, None, 1.0, s, t, x)
        return x

    def actnorm_backward(self, dz, z, s, dldj, out):
        return self._shift_scale_backward(dz, z, -1.0, -1.0, s, dldj, out)

    # ---------------------------------------------------------------- what they are made of

    def _shift_scale(self, x, sign, before, factor, s, after, y, ldj=None):
        """y = (x + sign · before) exp(factor · s) + after, per channel; None is zero.

        x, y (N, ..., C), s, before and after (C,). ldj (N,), if given: factor · H W · Σ s.
        """
        parameters = (None if a is None else self.contiguous(a) for a in (before, s, after))
        before, s, after = parameters
        blocks, _ = channel_blocks(x.size, x.shape[-1], 4)
        arguments = (self.contiguous(x), sign, before, factor, s, after, y, ldj)
        sizes = (pixels(x), len(x), x.size, x.shape[-1])
        self.launch("shift_scale", x.dtype, blocks, *arguments, *sizes)

    def _shift_scale_backward(self, dy, y, sign, factor, s, dldj, out):
        """For y = (x + sign · b) exp(factor · s) and the ldj that goes with it -> dx.

        out = (G_b, G_s): G_b = sign Σ δ_x and G_s = factor (Σ δ_y y + H W Σ ∂L/∂ldj); dldj (N,)
        or None.
        """
        dx = self.empty(dy.shape, dy.dtype)
        blocks, partial = self._summing(dy, 2)
        arrays = (self.contiguous(dy), self.contiguous(y), sign, factor, self.contiguous(s))
        dldj, samples = (None, 0) if dldj is None else (self.contiguous(dldj), len(dy))
        sizes = (pixels(dy), samples, dy.size, dy.shape[-1])
        arguments = (*arrays, dldj, dx, *out, partial, self.counter(), *sizes)
        self.launch("shift_scale_backward", dy.dtype, blocks, *arguments)
        return dx

    def _summing(self, x, sums):
        """Blocks for so many sums over all rows of x, and where each block puts its own."""
        channels = x.shape[-1]
        tiles = -(-channels // cuda.constant("channels.cu", "TILE"))
        each = 8 * tiles  # the last block takes one tile after the other
        blocks, groups = channel_blocks(x.size, channels, each, _MOST_SUMMING)
        return blocks, self.empty((groups, sums, channels), x.dtype)


def channel_blocks(size, channels, each, most=_MOST_BLOCKS) -> tuple[int, int]:
    """How many blocks rows of channels take, and how many of these share the rows of a tile.

    A thread takes `each` values, or more where that would make more than `most` blocks; every
    tile has a block. See cuda/channels.cu.
    """
    tiles = -(-channels // cuda.constant("channels.cu", "TILE"))
    lanes = cuda.THREADS // -(-channels // tiles)
    groups = max(1, min(-(-size // (channels * lanes * each)), most // tiles))
    return tiles * groups, groups
