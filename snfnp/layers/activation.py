"""Smooth leaky ReLU (Gresele et al. 2020). Derivation: derivations/05-smooth-leaky-relu.md."""

from dataclasses import dataclass

from snfnp.errors import UsageError
from snfnp.layers.base import Layer


@dataclass(frozen=True)
class SmoothLeakyReLU(Layer):
    """f(x) = αx + (1-α) log(1 + eˣ), elementwise. O(N D).

    Args:
        alpha: α, the slope on the left, in (0, 1).
    """

    alpha: float = 0.3

    def __post_init__(self):
        if not 0 < self.alpha < 1:
            raise UsageError(f"alpha of a smooth leaky ReLU is {self.alpha}: it must be in (0, 1)")

    def forward(self, ops, p, x):
        """f(x), and ldj (N,) = Σ log f'(x): the Σ_k(x) terms of Eq. 7."""
        y, ldj, sigma = ops.activation.smooth_leaky_relu(x, self.alpha)
        return y, ldj, {"sigma": sigma}

    def inverse(self, ops, p, z):
        """Newton's method inside a bracket, to the residual that the precision allows."""
        return ops.activation.smooth_leaky_relu_inverse(z, self.alpha)

    def backward(self, ctx, p, cache, dz, grads):
        """δ_x = δ_z f'(x) + (∂𝓛/∂ldj) f''(x)/f'(x)."""
        activation = ctx.ops.activation
        return activation.smooth_leaky_relu_backward(cache["sigma"], dz, ctx.dldj, self.alpha)
