"""Rational-quadratic spline activation (Durkan et al. 2019), the nonlinearity of the conv flow."""

from __future__ import annotations

import math
from dataclasses import dataclass

from snfnp.errors import UsageError


@dataclass(frozen=True)
class RationalQuadraticSpline:
    """An increasing spline on [-B, B] per pixel and channel, the identity beyond. O(N D).

    bins: K (the "5 knots" of A.3); bound: B; eps: ε, the smallest share of a bin in the width and
    the height of the square, and the smallest slope at an inner knot; gain: the standard deviation
    of the initial raw parameters, at which the spline is close to the identity.
    Parameters (raw): widths and heights (*shape, K), slopes (*shape, K-1). The slopes at ±B are 1.
    A parameter that is not finite makes the outputs and gradients of its pixel NaN.
    """

    bins: int = 5
    bound: float = 10.0
    eps: float = 1e-3
    gain: float = 0.01
    cheap_exact_inverse = True

    def __post_init__(self):
        if self.bins < 2:
            raise UsageError(f"a spline of {self.bins} bins: it needs at least 2")
        if not 0 < self.bound < math.inf:
            raise UsageError(f"bound of a spline is {self.bound}: it must be positive")
        if not 0 < self.eps * self.bins < 1:
            raise UsageError(
                f"eps of a spline is {self.eps}: it must be in (0, 1/bins) = (0, {1 / self.bins:g})"
            )

    def init(self, rng, shape) -> dict:
        """Raw parameters from N(0, gain²) (float64, host), from a NumPy generator."""
        sizes = {"widths": self.bins, "heights": self.bins, "slopes": self.bins - 1}
        return {k: rng.normal(scale=self.gain, size=(*shape, size)) for k, size in sizes.items()}

    def output_shape(self, shape):
        return shape

    def forward(self, ops, p, x):
        """x (N, ...) -> y, ldj (N,) = Σ log dy/dx: the Σ_k(x) terms of Eq. 7."""
        knots, factors = self._knots(ops, p)
        y, ldj = ops.spline(x, knots)
        return y, ldj, {"x": x, "knots": knots, "factors": factors}

    def inverse(self, ops, p, z):
        """Exact: in each bin x solves a quadratic equation."""
        knots, _ = self._knots(ops, p)
        return ops.spline_inverse(z, knots)

    def backward(self, ops, p, cache, dz, dldj, g, recon=None):
        """δ_x = δ_z dy/dx + (∂L/∂ldj) ∂(log dy/dx)/∂x; all three parameter gradients."""
        out = (g["widths"], g["heights"], g["slopes"])
        x, knots, factors = cache["x"], cache["knots"], cache["factors"]
        return ops.spline_backward(x, knots, factors, self.bound, self.eps, dz, dldj, out)

    def _knots(self, ops, p):
        return ops.spline_knots(p["widths"], p["heights"], p["slopes"], self.bound, self.eps)
