"""The rational-quadratic spline on the GPU: one launch for the knots, and one each way.

A block of the forward pass takes a sample, so that it has the whole sum of its ldj. A block of the
backward pass takes a few pixels and all samples: every thread adds to sums of its own in shared
memory, and these are added up in a fixed order. See derivations/09-splines.md.
"""

import math

from snfnp.ops.gpu import source
from snfnp.ops.spline.definition import Spline, slope_shift


class GpuSpline(Spline):
    """x, dy and dldj may be strided, all have one dtype."""

    def knots(self, widths, heights, slopes, bound, eps):
        *shape, bins = widths.shape
        pixels, device = math.prod(shape), self.device
        knots = device.empty((3, bins + 1, *shape), widths.dtype)
        factors = device.empty((3 * bins - 1, *shape), widths.dtype)
        arrays = {"widths": widths, "heights": heights, "slopes": slopes}
        arrays |= {"knots": knots, "factors": factors}
        numbers = {"bound": bound, "eps": eps, "shift": slope_shift(eps)}
        sizes, blocks = {"pixels": pixels, "bins": bins}, -(-3 * pixels // 32)
        # small blocks: there are few pixels for all of a GPU
        device.launch(
            "spline_knots", widths.dtype, blocks, threads=32, **arrays, **numbers, **sizes
        )
        return knots, factors

    def evaluate(self, x, knots):
        device = self.device
        y, ldj = device.empty(x.shape, x.dtype), device.empty((len(x),), x.dtype)
        arrays = {"x": x, "knots": knots, "y": y, "ldj": ldj}
        device.launch("spline", x.dtype, len(x), **arrays, **_sizes(x, knots))
        return y, ldj

    def inverse(self, y, knots):
        device = self.device
        x = device.empty(y.shape, y.dtype)
        device.launch("spline_inverse", y.dtype, len(y), y=y, knots=knots, x=x, **_sizes(y, knots))
        return x

    def backward(self, x, knots, factors, bound, eps, dy, dldj, out):
        device, sizes = self.device, _sizes(x, knots)
        pixels, bins = sizes.values()
        threads = _backward_threads(bins)
        if not threads:
            return super().backward(x, knots, factors, bound, eps, dy, dldj, out)
        dx = device.empty(x.shape, x.dtype)
        arrays = {"x": x, "knots": knots, "factors": factors, "dy": dy, "dldj": dldj, "dx": dx}
        arrays |= dict(zip(("g_widths", "g_heights", "g_slopes"), out, strict=True))
        numbers = {"scale": 2 * bound * (1 - eps * bins), "samples": len(x)}
        blocks = -(-pixels // source.constant("spline", "SPLINE_PIXELS"))
        own = arrays | numbers | sizes
        device.launch("spline_backward", x.dtype, blocks, threads=threads, **own)
        return dx


def _sizes(x, knots) -> dict[str, int]:
    """P and K, by the names of parameters."""
    return {"pixels": math.prod(x.shape[1:]), "bins": knots.shape[1] - 1}


def _backward_threads(bins: int) -> int:
    """Whole warps of a block whose 3 (K-1) sums each find room; 0 beyond 43 bins."""
    room = source.constant("spline", "SPLINE_SUMS") // (3 * (bins - 1))
    return min(source.THREADS, room // 32 * 32)
