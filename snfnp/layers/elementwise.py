"""Activations: smooth leaky ReLU (Gresele et al. 2020), rational-quadratic splines (Durkan et al.
2019). Derivation: derivations/06-smooth-leaky-relu.md and 09-splines.md.
"""

import math
from dataclasses import dataclass

import numpy as np

from snfnp.context import BackwardContext
from snfnp.errors import require_real, require_whole
from snfnp.layers.base import Forward, Layer, Params, Shape
from snfnp.ops import Array, Ops


@dataclass(frozen=True)
class SmoothLeakyReLU(Layer):
    """f(x) = αx + (1-α) log(1 + eˣ), elementwise. O(N D).

    Args:
        alpha: α, the slope on the left, in (0, 1).
    """

    alpha: float = 0.3

    def __post_init__(self):
        require_real(self, 1, alpha=self.alpha)

    def forward(self, ops: Ops, p: Params, x: Array) -> Forward:
        """f(x), and ldj (N,) = Σ log f'(x): the layer's log|Σ_k(x)| of Eq. 7."""
        y, ldj, sigma = ops.activation.smooth_leaky_relu(x, self.alpha)
        return y, ldj, {"sigma": sigma}

    def inverse(self, ops: Ops, p: Params, z: Array) -> Array:
        """Newton's method inside a bracket, to a residual of a few roundings of |z| + 1."""
        return ops.activation.smooth_leaky_relu_inverse(z, self.alpha)

    def backward(
        self, ctx: BackwardContext, p: Params, cache: dict, dz: Array, grads: Params
    ) -> Array:
        """δ_x = δ_z f'(x) + (∂𝓛/∂ldj) f''(x)/f'(x)."""
        return ctx.ops.activation.smooth_leaky_relu_backward(
            cache["sigma"], dz, ctx.dldj, self.alpha
        )


@dataclass(frozen=True)
class RationalQuadraticSpline(Layer):
    """An increasing spline on [-B, B] per pixel and channel, the identity beyond. O(N D).

    Parameters (raw): widths and heights (*shape, K), slopes (*shape, K-1). The slopes at ±B are 1.
    A parameter that is not finite makes the outputs and gradients of its pixel NaN.

    Args:
        bins: K. A.3 says "5-knots": the authors' code has 5 bins, with 4 inner knots.
        bound: B (10 in the authors' code, the paper does not say).
        eps: ε. A bin is at least 2Bε wide and 2Bε high, and the slope at an inner knot is at
            least ε.
        gain: the standard deviation of the initial raw parameters; 0 is the identity.
    """

    bins: int = 5
    bound: float = 10.0
    eps: float = 1e-3
    gain: float = 0.01
    cheap_exact_inverse = True

    def __post_init__(self):
        require_whole(self, 2, bins=self.bins)
        require_real(self, math.inf, bound=self.bound)
        require_real(self, 1 / self.bins, eps=self.eps)
        require_real(self, math.inf, or_zero=True, gain=self.gain)

    def parameter_shapes(self, shape: Shape) -> dict:
        sizes = {"widths": self.bins, "heights": self.bins, "slopes": self.bins - 1}
        return {name: (*shape, size) for name, size in sizes.items()}

    def init(self, rng: np.random.Generator, shape: Shape) -> dict:
        return {
            name: rng.normal(scale=self.gain, size=size)
            for name, size in self.parameter_shapes(shape).items()
        }

    def forward(self, ops: Ops, p: Params, x: Array) -> Forward:
        """y, and ldj (N,) = Σ log dy/dx: the layer's log|Σ_k(x)| of Eq. 7."""
        knots, factors = self._knots(ops, p)
        y, ldj = ops.spline.evaluate(x, knots)
        return y, ldj, {"x": x, "knots": knots, "factors": factors}

    def inverse(self, ops: Ops, p: Params, z: Array) -> Array:
        """Exact: x solves a quadratic equation."""
        return ops.spline.inverse(z, self._knots(ops, p)[0])

    def backward(
        self, ctx: BackwardContext, p: Params, cache: dict, dz: Array, grads: Params
    ) -> Array:
        """δ_x = δ_z dy/dx + (∂𝓛/∂ldj) ∂(log dy/dx)/∂x; all three parameter gradients."""
        out = (grads["widths"], grads["heights"], grads["slopes"])
        scale = 2 * self.bound * (1 - self.eps * self.bins)
        return ctx.ops.spline.backward(
            cache["x"], cache["knots"], cache["factors"], scale, dz, ctx.dldj, out
        )

    def _knots(self, ops: Ops, p: Params) -> tuple:
        """The knots, and the factors of their derivatives for the backward pass."""
        return ops.spline.knots(
            p["widths"], p["heights"], p["slopes"], self.bound, self.eps
        )
