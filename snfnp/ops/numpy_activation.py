"""Activations, actnorm and the base density in plain array terms."""

from __future__ import annotations

import math

import numpy as np


class ActivationOps:
    """What is done to values one by one or channel by channel. `self.xp` is the array namespace."""

    xp = np

    # ---------------------------------------------------------------- base density

    def gaussian_log_density(self, z):
        """log N(z; 0, I) per sample: z (N, ...) -> (N,), in nats."""
        rows = _rows(z)
        constant = 0.5 * rows.shape[1] * math.log(2 * math.pi)
        return -0.5 * self.xp.einsum("nd,nd->n", rows, rows) - constant

    # ---------------------------------------------------------------- smooth leaky ReLU

    def smooth_leaky_relu(self, x, alpha):
        """f(x) = αx + (1-α) log(1 + eˣ), elementwise.

        x (N, ...) -> y (N, ...), ldj (N,) = Σ log f'(x), σ(x) (N, ...) for the backward pass.
        """
        xp = self.xp
        e = xp.exp(-xp.abs(x))  # never overflows
        sigma = xp.where(x >= 0, 1, e) / (1 + e)
        softplus = xp.maximum(x, 0) + xp.log1p(e)
        y = alpha * x + (1 - alpha) * softplus
        log_slope = xp.log(alpha + (1 - alpha) * sigma)
        return y, _rows(log_slope).sum(axis=1), sigma

    def smooth_leaky_relu_inverse(self, y, alpha):
        """The x with f(x) = y, elementwise, by Newton's method inside a bracket.

        LReLU(x) <= f(x) <= LReLU(x) + (1-α) log 2 with LReLU(x) = max(x, αx) brackets the root:
        x lies in [LReLU⁻¹(y - (1-α) log 2), LReLU⁻¹(y)]. f is increasing and convex, so Newton
        from the right end falls monotonically to the root; it stops on the residual.
        """
        xp = self.xp

        def leaky_inverse(v):
            return xp.minimum(v, v / alpha)

        left = leaky_inverse(y - (1 - alpha) * math.log(2))
        x = leaky_inverse(y)
        tolerance = 2 * xp.finfo(y.dtype).eps * (xp.abs(y) + 1)
        while True:
            e = xp.exp(-xp.abs(x))
            sigma = xp.where(x >= 0, 1, e) / (1 + e)
            residual = alpha * x + (1 - alpha) * (xp.maximum(x, 0) + xp.log1p(e)) - y
            lower = xp.maximum(x - residual / (alpha + (1 - alpha) * sigma), left)
            # lower < x fails where rounding stopped the fall. NaN (also ∞ - ∞) compares false: it
            # passes through and cannot hold the loop.
            moves = (residual > tolerance) & (lower < x)
            if not xp.any(moves):
                return x
            x = xp.where(moves, lower, x)

    def smooth_leaky_relu_backward(self, sigma, dy, dldj, alpha):
        """δ_x = δ_y f' + ldj's delta · f''/f', with f' = α + (1-α)σ and f'' = (1-α)σ(1-σ).

        sigma, dy (N, ...), dldj (N,) -> dx (N, ...).
        """
        slope = alpha + (1 - alpha) * sigma
        dldj = dldj.reshape((-1,) + (1,) * (sigma.ndim - 1))
        return dy * slope + dldj * ((1 - alpha) * sigma * (1 - sigma) / slope)

    # ---------------------------------------------------------------- channels

    def channel_sum(self, x, out=None):
        """Σ over samples and pixels: x (N, ..., C) -> (C,). O(N D)."""
        # over samples first: long rows, where channels alone would make very short ones
        return x.sum(axis=0).reshape(-1, x.shape[-1]).sum(axis=0, out=out)

    def actnorm(self, x, t, s):
        """z = (x − t) e^{−s}: x (N, ..., C), t and s (C,) -> z, ldj (N,) = −H W Σ s. O(N D)."""
        xp = self.xp
        z = x - t
        z *= xp.exp(-s)
        return z, xp.zeros(len(x), x.dtype) - pixels(x) * s.sum()

    def actnorm_inverse(self, z, t, s):
        """x = z eˢ + t, exact. O(N D)."""
        x = z * self.xp.exp(s)
        x += t
        return x

    def actnorm_backward(self, dz, z, s, dldj, out):
        """δ_x = δ_z e^{−s}; G_t = −Σ δ_x; G_s = −Σ δ_z z − H W Σ ∂L/∂ldj.

        dz, z (N, ..., C), s (C,), dldj (N,), out = (G_t, G_s), both (C,) -> dx. O(N D).
        """
        g_t, g_s = out
        dx = dz * self.xp.exp(-s)
        g_t[...] = -self.channel_sum(dx)
        g_s[...] = -self.channel_sum(dz * z) - pixels(dz) * dldj.sum()
        return dx


def pixels(x) -> int:
    """H W of images (N, H, W, C); 1 of rows (N, C)."""
    return math.prod(x.shape[1:-1])


def _rows(x):
    """(N, ...) as rows (N, D), also where N = 0."""
    return x.reshape(len(x), math.prod(x.shape[1:]))
