"""Smooth leaky ReLU, the activation of the fully connected flow (Gresele et al. 2020)."""

from __future__ import annotations

from dataclasses import dataclass

from snfnp.errors import UsageError


@dataclass(frozen=True)
class SmoothLeakyReLU:
    """f(x) = αx + (1-α) log(1 + eˣ), elementwise, α in (0, 1). No parameters. O(N D)."""

    alpha: float = 0.3

    def __post_init__(self):
        if not 0 < self.alpha < 1:
            raise UsageError(f"alpha of a smooth leaky ReLU is {self.alpha}: it must be in (0, 1)")

    def init(self, rng, shape) -> dict:
        return {}

    def output_shape(self, shape):
        return shape

    def forward(self, ops, p, x):
        """x (N, ...) -> f(x), ldj (N,) = Σ log f'(x): the Σ_k(x) terms of Eq. 7."""
        y, ldj, sigma = ops.smooth_leaky_relu(x, self.alpha)
        return y, ldj, {"sigma": sigma}

    def inverse(self, ops, p, z):
        """Newton's method inside a bracket, to the residual that the precision allows."""
        return ops.smooth_leaky_relu_inverse(z, self.alpha)

    def backward(self, ops, p, cache, dz, dldj, g, recon=None):
        """δ_x = δ_z f'(x) + (∂L/∂ldj) f''(x)/f'(x)."""
        return ops.smooth_leaky_relu_backward(cache["sigma"], dz, dldj, self.alpha)
