"""The smooth leaky ReLU in array terms; see derivations/06-smooth-leaky-relu.md."""

import math

from snfnp.ops.group import Array, OperationGroup


class Activation(OperationGroup):
    def smooth_leaky_relu(self, x: Array, alpha: float) -> tuple[Array, Array, Array]:
        """f(x) = αx + (1-α) log(1 + eˣ), elementwise.

        x (N, ...) -> y (N, ...), ldj (N,) = Σ log f'(x), σ(x) (N, ...) for the backward pass.
        """
        sigma, softplus = self._sigmoid_and_softplus(x)
        y = alpha * x + (1 - alpha) * softplus
        log_slope = self.xp.log(alpha + (1 - alpha) * sigma)
        return y, log_slope.sum(axis=tuple(range(1, x.ndim))), sigma

    def smooth_leaky_relu_inverse(self, y: Array, alpha: float) -> Array:
        """The x with f(x) = y, elementwise, by Newton's method inside a bracket.

        LReLU(x) <= f(x) <= LReLU(x) + (1-α) log 2 with LReLU(x) = max(x, αx) brackets the root:
        x lies in [LReLU⁻¹(y - (1-α) log 2), LReLU⁻¹(y)]. f is increasing and convex, so Newton
        from the right end decreases monotonically to the root; it stops on the residual.
        """
        xp = self.xp
        below = y - (1 - alpha) * math.log(2)
        left = xp.minimum(below, below / alpha)  # LReLU⁻¹
        x = xp.minimum(y, y / alpha)
        tolerance = 2 * xp.finfo(y.dtype).eps * (xp.abs(y) + 1)
        while True:
            sigma, softplus = self._sigmoid_and_softplus(x)
            residual = alpha * x + (1 - alpha) * softplus - y
            lower = xp.maximum(x - residual / (alpha + (1 - alpha) * sigma), left)
            # lower < x fails if rounding lets it decrease no further. NaN (also ∞ - ∞) compares
            # false: it passes through and cannot keep the loop running.
            moves = (residual > tolerance) & (lower < x)
            if not xp.any(moves):
                return x
            x = xp.where(moves, lower, x)

    def smooth_leaky_relu_backward(
        self, sigma: Array, dy: Array, dldj: Array, alpha: float
    ) -> Array:
        """δ_x = δ_y f' + δ_ldj f''/f', with f' = α + (1-α)σ and f'' = (1-α)σ(1-σ).

        sigma, dy (N, ...), dldj (N,) -> dx (N, ...).
        """
        slope = alpha + (1 - alpha) * sigma
        dldj = dldj.reshape(-1, *[1] * (sigma.ndim - 1))
        return dy * slope + dldj * ((1 - alpha) * sigma * (1 - sigma) / slope)

    def _sigmoid_and_softplus(self, x: Array) -> tuple[Array, Array]:
        """σ(x) and log(1 + eˣ), whose exponential never overflows."""
        xp = self.xp
        e = xp.exp(-xp.abs(x))
        # 1 or e: NumPy computes it again faster than `where` selects it
        numerator = xp.exp(xp.minimum(x, 0))
        return numerator / (1 + e), xp.maximum(x, 0) + xp.log1p(e)
