"""The rational-quadratic spline in plain array terms (see derivations/09-splines.md).

Every pixel and channel has its own spline of K bins on [-B, B] and the identity beyond. Its knots
are one array (3, K+1, *shape): positions X_0 = -B, …, X_K = B, values Y_0 = -B, …, Y_K = B and
slopes D_0 = 1, …, D_K = 1. In a bin of width w, height h and mean slope s = h/w, with
t = (x - X_k)/w and u = t(1-t):

    y = Y_k + h N/D,   N = s t² + D_k u,   D = s + (D_k + D_{k+1} - 2s) u
    dy/dx = s² n/D²,   n = D_{k+1} t² + 2 s u + D_k (1-t)²
"""

import math

from snfnp.ops.group import Array, OperationGroup


def slope_shift(eps: float) -> float:
    """c₀ with ε + softplus(c₀) = 1: raw slopes of zero are slopes of one."""
    return math.log(math.expm1(1 - eps))


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
        _, outside, x0, y0, w, h, d0, d1 = self._bin(x, knots, 0)
        s, _, _, r, n, denominator = self._terms(x, outside, x0, w, h, d0, d1)
        y = xp.where(outside, x, y0 + h * r)
        log_slope = xp.where(outside, 0, xp.log(n) + 2 * xp.log(s / denominator))
        return y, log_slope.reshape(len(x), -1).sum(axis=1)

    def inverse(self, y: Array, knots: Array) -> Array:
        """The x with evaluate(x) = y: the root in [0, 1] of a quadratic in t, without cancellation.

        With r = (y - Y_k)/h, b = D_k (1-r) + (2s - D_{k+1}) r and
        q² = (D_k (1-r) - D_{k+1} r)² + 4 s² r(1-r), a sum of terms that are not negative:
        t = 2 s r/(b + q) if b >= 0, else (q - b)/(2(s - b)).
        """
        xp = self.xp
        _, outside, x0, y0, w, h, d0, d1 = self._bin(y, knots, 1)
        s = h / w
        r = xp.where(outside, 0, (y - y0) / h)
        left = d0 * (1 - r)
        right = d1 * r
        linear = left - right + 2 * s * r
        q = xp.sqrt((left - right) ** 2 + 4 * s * s * r * (1 - r))
        stable = linear >= 0
        t = xp.where(stable, 2 * s * r, q - linear) / xp.where(
            stable, linear + q, 2 * (s - linear)
        )
        return xp.where(outside, y, x0 + w * t)

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
        index, outside, x0, _, w, h, d0, d1 = self._bin(x, knots, 0)
        gy = xp.where(outside, 0, dy)
        gl = xp.where(outside, 0, dldj.reshape(-1, *[1] * (x.ndim - 1)))
        s, t, u, r, n, denominator = self._terms(x, outside, x0, w, h, d0, d1)
        m = 1 - t
        bend = d0 + d1 - 2 * s
        slope = (s / denominator) ** 2 * n
        v = u / denominator
        # ∂ℓ/∂t = 2 [(D_{k+1} t + s(1-2t) - D_k (1-t))/n - (D_k + D_{k+1} - 2s)(1-2t)/D]
        log_slope_t = 2 * (
            (d1 * t + s * (m - t) - d0 * m) / n - bend * (m - t) / denominator
        )
        dx = gy * slope + gl * log_slope_t / w
        g_d0 = gy * h * v * (1 - r) + gl * (m * m / n - 2 * v)
        g_d1 = gl * (t * t / n - 2 * v) - gy * h * v * r
        total = d0 * g_d0 + d1 * g_d1 - gl
        g_w = total / w - t * dx
        g_h = gy * r - total / h
        # the left knot of a bin moves its edge and shrinks it, the right one widens it
        sides = (-dx - g_w, g_w), (gy - g_h, g_h), (g_d0, g_d1)
        bins = knots.shape[1] - 1
        inner = xp.empty((3, bins - 1, *x.shape[1:]), dx.dtype)
        for sums, (left, right) in zip(inner, sides, strict=True):
            for k in range(bins - 1):  # a knot between bins k and k + 1
                of_right = xp.where(index == k, right, 0)
                xp.where(index == k + 1, left, of_right).sum(axis=0, out=sums[k])
        # from inner knots to raw parameters: cumulative sums, softmax and softplus backwards
        *softmaxes, sigma = xp.split(factors, (bins, 2 * bins))
        for axis, shares in enumerate(softmaxes):
            # a size moves every knot to its right: Σ_{k > j} ∂L/∂X_k
            g = xp.zeros_like(shares)
            for k in reversed(range(bins - 1)):
                g[k] = inner[axis][k] + g[k + 1]
            g = scale * shares * (g - (g * shares).sum(axis=0))
            out[axis][...] = xp.moveaxis(g, 0, -1)
        out[2][...] = xp.moveaxis(inner[2] * sigma, 0, -1)
        return xp.where(outside, dy, dx)

    def _bin(self, values: Array, knots: Array, axis: int) -> tuple[Array, ...]:
        """The bin of each value (N, *shape) among the positions (axis 0) or the values (axis 1):
        index, whether the value is outside of all bins, left knot, width, height and slopes."""
        xp = self.xp
        edges = knots[axis]
        index = (values >= edges[1:-1, None]).sum(axis=0)  # a NaN compares false: bin 0
        outside = (values <= edges[0]) | (values >= edges[-1])
        x0, y0, d0 = xp.take_along_axis(knots, index[None], axis=1)
        x1, y1, d1 = xp.take_along_axis(knots, index[None] + 1, axis=1)
        return index, outside, x0, y0, x1 - x0, y1 - y0, d0, d1

    def _terms(
        self,
        x: Array,
        outside: Array,
        x0: Array,
        w: Array,
        h: Array,
        d0: Array,
        d1: Array,
    ) -> tuple[Array, ...]:
        """s, t, u, N/D, n and the denominator D of the formulas above, for x and its bin."""
        s = h / w
        t = self.xp.where(outside, 0, (x - x0) / w)
        u = t * (1 - t)
        n = d1 * t * t + 2 * s * u + d0 * (1 - t) * (1 - t)
        denominator = s + (d0 + d1 - 2 * s) * u
        return s, t, u, (s * t * t + d0 * u) / denominator, n, denominator
