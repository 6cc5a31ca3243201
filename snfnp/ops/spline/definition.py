"""The rational-quadratic spline in plain array terms (see derivations/09-splines.md).

Every pixel and channel has its own spline of K bins on [-B, B] and the identity beyond. Its knots
are one array (3, K+1, *shape): positions X_0 = -B, …, X_K = B, values Y_0 = -B, …, Y_K = B and
slopes D_0 = 1, …, D_K = 1. In a bin of width w, height h and mean slope s = h/w, with
t = (x - X_k)/w and u = t(1-t):

    y = Y_k + h N/D,   N = s t² + D_k u,   D = s + (D_k + D_{k+1} - 2s) u
    dy/dx = s² n/D²,   n = D_{k+1} t² + 2 s u + D_k (1-t)²
"""

import math
from typing import NamedTuple

from snfnp.ops.group import Array, OperationGroup


def slope_shift(eps: float) -> float:
    """c₀ with ε + softplus(c₀) = 1: raw slopes of zero are slopes of one."""
    return math.log(math.expm1(1 - eps))


class _Bin(NamedTuple):
    """The bin that each value lies in: index, left knot, width, height and slopes (N, *shape)."""

    index: Array
    outside: Array
    x0: Array
    y0: Array
    w: Array
    h: Array
    d0: Array
    d1: Array


class Spline(OperationGroup):
    def knots(
        self, widths: Array, heights: Array, slopes: Array, bound: float, eps: float
    ) -> tuple[Array, Array]:
        """Raw parameters (*shape, K), (*shape, K), (*shape, K-1) -> knots and factors. O(P K).

        Widths and heights are 2B(ε + (1-εK) softmax(raw)), inner slopes ε + softplus(raw + c₀).
        Returns knots (3, K+1, *shape) and, for the backward pass, factors (3K-1, *shape): both
        softmaxes and σ(raw slopes + c₀). A raw parameter that is not finite makes all knots and
        factors of its pixel NaN.
        """
        xp = self.xp
        *shape, bins = widths.shape
        pixels = math.prod(shape)
        knots = xp.empty((3, bins + 1, pixels), widths.dtype)
        factors = xp.empty((3 * bins - 1, pixels), widths.dtype)
        shares = factors[: 2 * bins].reshape(2, bins, pixels)  # views
        sigma = factors[2 * bins :]
        shares[0] = widths.reshape(pixels, bins).T
        shares[1] = heights.reshape(pixels, bins).T
        sigma[...] = slopes.reshape(pixels, bins - 1).T
        poison = xp.where(xp.isfinite(factors).all(axis=0), 0, xp.nan).astype(
            widths.dtype
        )
        factors += poison
        shares -= shares.max(axis=1, keepdims=True)
        xp.exp(shares, out=shares)
        shares /= shares.sum(axis=1, keepdims=True)
        sizes = 2 * bound * (eps + (1 - eps * bins) * shares[:, :-1])
        knots[:2, 0] = poison - bound
        knots[:2, -1] = poison + bound
        for k in range(1, bins - 1):  # faster than NumPy's cumsum, to the same bits
            sizes[:, k] += sizes[:, k - 1]
        knots[:2, 1:-1] = sizes - bound
        sigma += slope_shift(eps)
        e = xp.exp(-abs(sigma))
        knots[2, [0, -1]] = 1
        knots[2, 1:-1] = eps + xp.maximum(sigma, 0) + xp.log1p(e)
        sigma[...] = xp.where(sigma >= 0, 1, e) / (1 + e)
        return knots.reshape(3, bins + 1, *shape), factors.reshape(-1, *shape)

    def evaluate(self, x: Array, knots: Array) -> tuple[Array, Array]:
        """x (N, *shape), knots -> y (N, *shape), ldj (N,) = Σ log dy/dx. O(N P)."""
        xp = self.xp
        b = self._bin(x, knots, 0)
        s, t, u, n, denominator = self._terms(x, b)
        numerator = s * t * t + b.d0 * u
        y = xp.where(b.outside, x, b.y0 + b.h * (numerator / denominator))
        log_slope = xp.where(b.outside, 0, xp.log(n) + 2 * xp.log(s / denominator))
        return y, log_slope.reshape(len(x), -1).sum(axis=1)

    def inverse(self, y: Array, knots: Array) -> Array:
        """The x with evaluate(x) = y: the root in [0, 1] of a quadratic in t, without cancellation.

        With r = (y - Y_k)/h, b = D_k (1-r) + (2s - D_{k+1}) r and
        q² = (D_k (1-r) - D_{k+1} r)² + 4 s² r(1-r), a sum of terms that are not negative:
        t = 2 s r/(b + q) if b >= 0, else (q - b)/(2(s - b)).
        """
        xp = self.xp
        b = self._bin(y, knots, 1)
        s = b.h / b.w
        r = xp.where(b.outside, 0, (y - b.y0) / b.h)
        left = b.d0 * (1 - r)
        right = b.d1 * r
        linear = left - right + 2 * s * r
        q = xp.sqrt((left - right) ** 2 + 4 * s * s * r * (1 - r))
        stable = linear >= 0
        t = xp.where(stable, 2 * s * r, q - linear) / xp.where(
            stable, linear + q, 2 * (s - linear)
        )
        return xp.where(b.outside, y, b.x0 + b.w * t)

    def backward(
        self,
        x: Array,
        knots: Array,
        factors: Array,
        scale: float,
        dy: Array,
        dldj: Array,
        out: tuple[Array, Array, Array],
    ) -> Array:
        """dy (N, *shape), dldj (N,) -> dx (N, *shape). O(N P).

        scale: 2B(1 - εK). out: the three arrays, shaped like the raw parameters and contiguous,
        that their gradients are written to. With G_• the gradients of a value's contribution,
        Q = D_k G_{D_k} + D_{k+1} G_{D_{k+1}} - dldj, and the two scaling identities of the
        derivation: w G_w = Q - (x - X_k) dx and h G_h = (y - Y_k) dy - Q.
        """
        xp = self.xp
        b = self._bin(x, knots, 0)
        gy = xp.where(b.outside, 0, dy)
        gl = xp.where(b.outside, 0, dldj.reshape(-1, *[1] * (x.ndim - 1)))
        s, t, u, n, denominator = self._terms(x, b)
        m = 1 - t
        bend = b.d0 + b.d1 - 2 * s
        r = (s * t * t + b.d0 * u) / denominator
        slope = (s / denominator) ** 2 * n
        v = u / denominator
        # ∂ℓ/∂t = 2 [(D_{k+1} t + s(1-2t) - D_k (1-t))/n - (D_k + D_{k+1} - 2s)(1-2t)/D]
        log_slope_t = 2 * (
            (b.d1 * t + s * (m - t) - b.d0 * m) / n - bend * (m - t) / denominator
        )
        dx = gy * slope + gl * log_slope_t / b.w
        g_d0 = gy * b.h * v * (1 - r) + gl * (m * m / n - 2 * v)
        g_d1 = gl * (t * t / n - 2 * v) - gy * b.h * v * r
        total = b.d0 * g_d0 + b.d1 * g_d1 - gl
        g_w = total / b.w - t * dx
        g_h = gy * r - total / b.h
        # the left knot of a bin moves its edge and shrinks it, the right one widens it
        inner = xp.empty((3, knots.shape[1] - 2, *x.shape[1:]), dx.dtype)
        self._sum_per_knot(b.index, -dx - g_w, g_w, out=inner[0])
        self._sum_per_knot(b.index, gy - g_h, g_h, out=inner[1])
        self._sum_per_knot(b.index, g_d0, g_d1, out=inner[2])
        self._raw_gradients(inner, factors, scale, out)
        return xp.where(b.outside, dy, dx)

    def _bin(self, values: Array, knots: Array, axis: int) -> _Bin:
        """The bin of each value (N, *shape) among the positions (axis 0) or the values (axis 1)."""
        xp = self.xp
        edges = knots[axis]
        index = (values >= edges[1:-1, None]).sum(axis=0)  # a NaN compares false: bin 0
        outside = (values <= edges[0]) | (values >= edges[-1])
        x0, y0, d0 = xp.take_along_axis(knots, index[None], axis=1)
        x1, y1, d1 = xp.take_along_axis(knots, index[None] + 1, axis=1)
        return _Bin(index, outside, x0, y0, x1 - x0, y1 - y0, d0, d1)

    def _terms(self, x: Array, b: _Bin) -> tuple[Array, Array, Array, Array, Array]:
        """s, t, u, n and the denominator D of the formulas above, for x and its bin."""
        s = b.h / b.w
        t = self.xp.where(b.outside, 0, (x - b.x0) / b.w)
        u = t * (1 - t)
        n = b.d1 * t * t + 2 * s * u + b.d0 * (1 - t) * (1 - t)
        return s, t, u, n, s + (b.d0 + b.d1 - 2 * s) * u

    def _sum_per_knot(
        self, index: Array, left: Array, right: Array, out: Array
    ) -> None:
        """Sum over the batch into the K-1 inner knots: out (K-1, *shape)."""
        where = self.xp.where
        for k in range(len(out)):  # a knot between bins k and k + 1
            where(index == k + 1, left, where(index == k, right, 0)).sum(
                axis=0, out=out[k]
            )

    def _raw_gradients(
        self,
        inner: Array,
        factors: Array,
        scale: float,
        out: tuple[Array, ...],
    ) -> None:
        """From inner knots to raw parameters: cumulative sums, softmax and softplus backwards."""
        xp = self.xp
        bins = out[0].shape[-1]
        for axis in (0, 1):
            shares = factors[axis * bins : (axis + 1) * bins]
            # a size moves every knot to its right: Σ_{k > j} ∂L/∂X_k
            g = xp.zeros_like(shares)
            for k in reversed(range(bins - 1)):
                g[k] = inner[axis][k] + g[k + 1]
            g = scale * shares * (g - (g * shares).sum(axis=0))
            out[axis][...] = xp.moveaxis(g, 0, -1)
        out[2][...] = xp.moveaxis(inner[2] * factors[2 * bins :], 0, -1)
