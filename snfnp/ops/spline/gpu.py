"""The rational-quadratic spline on the GPU: one launch for the knots, and one each way.

A block of threads of the forward pass takes a sample, and sums its ldj. A block of the backward
pass takes a few pixels of all samples, and sums the gradients of their knots. See
derivations/09-splines.md.
"""

import math

from snfnp.ops.gpu import source
from snfnp.ops.spline.definition import Spline, slope_shift


class GpuSpline(Spline):
    """x, dy and dldj may be strided, all have one dtype."""

    def knots(self, widths, heights, slopes, bound, eps):
        *shape, bins = widths.shape
        pixels = math.prod(shape)
        knots = self.device.empty((3, bins + 1, *shape), widths.dtype)
        factors = self.device.empty((3 * bins - 1, *shape), widths.dtype)
        # 3 threads a pixel, in blocks of 32: large ones would be too few for all of a GPU
        self.device.launch(
            "spline_knots",
            widths.dtype,
            -(-3 * pixels // 32),
            threads=32,
            widths=widths,
            heights=heights,
            slopes=slopes,
            knots=knots,
            factors=factors,
            pixels=pixels,
            bins=bins,
            bound=bound,
            eps=eps,
            shift=slope_shift(eps),
        )
        return knots, factors

    def evaluate(self, x, knots):
        y = self.device.like(x)
        ldj = self.device.empty(len(x), x.dtype)
        self.device.launch(
            "spline", x.dtype, len(x), x=x, y=y, ldj=ldj, **_described(knots)
        )
        return y, ldj

    def inverse(self, y, knots):
        x = self.device.like(y)
        self.device.launch(
            "spline_inverse", y.dtype, len(y), y=y, x=x, **_described(knots)
        )
        return x

    def backward(self, x, knots, factors, scale, dy, dldj, out):
        bins = knots.shape[1] - 1
        # Every thread has 3 (K-1) sums in a block's memory: for more than 43 bins not even a warp
        # of 32 threads fits.
        room = source.constant("spline", "SPLINE_SUMS") // (3 * (bins - 1))
        threads = min(source.THREADS, room // 32 * 32)
        if not threads:
            return super().backward(x, knots, factors, scale, dy, dldj, out)
        g_widths, g_heights, g_slopes = out
        dx = self.device.like(x)
        described = _described(knots)
        self.device.launch(
            "spline_backward",
            x.dtype,
            -(-described["pixels"] // source.constant("spline", "SPLINE_PIXELS")),
            threads=threads,
            x=x,
            factors=factors,
            dy=dy,
            dldj=dldj,
            dx=dx,
            g_widths=g_widths,
            g_heights=g_heights,
            g_slopes=g_slopes,
            scale=scale,
            samples=len(x),
            **described,
        )
        return dx


def _described(knots) -> dict:
    """The arguments of kernels that describe knots (3, K+1, ...): these, P and K."""
    return {
        "knots": knots,
        "pixels": math.prod(knots.shape[2:]),
        "bins": knots.shape[1] - 1,
    }
