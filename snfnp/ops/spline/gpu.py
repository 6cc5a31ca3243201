"""The rational-quadratic spline on the GPU: one launch for the knots, and one each way.

A block of the forward pass takes a sample, for the sum of its ldj; one of the backward pass a few
pixels and all samples, for the sums of the knots' gradients. See derivations/09-splines.md.
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
        # small blocks: there are few pixels for all of a GPU
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
        y = self.device.empty(x.shape, x.dtype)
        ldj = self.device.empty(len(x), x.dtype)
        self.device.launch(
            "spline", x.dtype, len(x), x=x, y=y, ldj=ldj, **_of_knots(knots)
        )
        return y, ldj

    def inverse(self, y, knots):
        x = self.device.empty(y.shape, y.dtype)
        self.device.launch(
            "spline_inverse", y.dtype, len(y), y=y, x=x, **_of_knots(knots)
        )
        return x

    def backward(self, x, knots, factors, bound, eps, dy, dldj, out):
        bins = knots.shape[1] - 1
        # whole warps of threads whose 3 (K-1) sums each find room: none beyond 43 bins
        room = source.constant("spline", "SPLINE_SUMS") // (3 * (bins - 1))
        threads = min(source.THREADS, room // 32 * 32)
        if not threads:
            return super().backward(x, knots, factors, bound, eps, dy, dldj, out)
        g_widths, g_heights, g_slopes = out
        dx = self.device.empty(x.shape, x.dtype)
        of_knots = _of_knots(knots)
        self.device.launch(
            "spline_backward",
            x.dtype,
            -(-of_knots["pixels"] // source.constant("spline", "SPLINE_PIXELS")),
            threads=threads,
            x=x,
            factors=factors,
            dy=dy,
            dldj=dldj,
            dx=dx,
            g_widths=g_widths,
            g_heights=g_heights,
            g_slopes=g_slopes,
            scale=2 * bound * (1 - eps * bins),
            samples=len(x),
            **of_knots,
        )
        return dx


def _of_knots(knots) -> dict:
    """The knots (3, K+1, ...), P and K, by the names of parameters."""
    return {
        "knots": knots,
        "pixels": math.prod(knots.shape[2:]),
        "bins": knots.shape[1] - 1,
    }
