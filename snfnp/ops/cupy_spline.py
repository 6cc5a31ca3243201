"""The rational-quadratic spline on the GPU: one launch for the knots, and one each way.

A block of the forward pass takes a sample, so that it has the whole sum of its ldj. A block of the
backward pass takes a few pixels and all samples: every thread adds to sums of its own in shared
memory, and these are added up in a fixed order, so nothing is atomic and two runs agree to the bit.
"""

from __future__ import annotations

import math

from snfnp.ops import cuda
from snfnp.ops.numpy_spline import SplineOps, slope_shift


class CudaSplineOps(SplineOps):
    """SplineOps with fused kernels. x, dy and dldj may be strided, all have one dtype."""

    def spline_knots(self, widths, heights, slopes, bound, eps):
        shape, bins, dtype = widths.shape[:-1], widths.shape[-1], widths.dtype
        pixels = math.prod(shape)
        knots = self.empty((3, bins + 1, *shape), dtype)
        factors = self.empty((3 * bins - 1, *shape), dtype)
        raw = (self.contiguous(a) for a in (widths, heights, slopes))
        numbers = (float(bound), eps, slope_shift(eps))  # a bound may be a whole number
        self.each("spline_knots", dtype, pixels, *raw, *numbers, knots, factors, pixels, bins)
        return knots, factors

    def spline(self, x, knots):
        y, ldj = self.empty(x.shape, x.dtype), self.empty((len(x),), x.dtype)
        arrays = (self.contiguous(x), self.contiguous(knots), y, ldj)
        self.launch("spline", x.dtype, len(x), *arrays, *_sizes(x, knots))
        return y, ldj

    def spline_inverse(self, y, knots):
        x = self.empty(y.shape, y.dtype)
        arrays = (self.contiguous(y), self.contiguous(knots), x)
        self.launch("spline_inverse", y.dtype, len(y), *arrays, *_sizes(y, knots))
        return x

    def spline_backward(self, x, knots, factors, bound, eps, dy, dldj, out):
        pixels, bins = _sizes(x, knots)
        threads = _backward_threads(bins)
        if not threads:
            return super().spline_backward(x, knots, factors, bound, eps, dy, dldj, out)
        dx = self.empty(x.shape, x.dtype)
        scale = 2 * bound * (1 - eps * bins)
        arrays = (self.contiguous(a) for a in (x, knots, factors, dy, dldj))
        each = cuda.constant("spline.cu", "SPLINE_PIXELS")
        sizes, blocks = (len(x), pixels, bins), -(-pixels // each)
        self.launch(
            "spline_backward", x.dtype, blocks, *arrays, scale, dx, *out, *sizes, threads=threads
        )
        return dx


def _sizes(x, knots) -> tuple[int, int]:
    """P and K."""
    return math.prod(x.shape[1:]), knots.shape[1] - 1


def _backward_threads(bins: int) -> int:
    """Whole warps of a block whose 3 (K-1) sums each find room; 0 beyond 43 bins."""
    room = cuda.constant("spline.cu", "SPLINE_SUMS") // (3 * (bins - 1))
    return min(cuda.THREADS, room // 32 * 32)
