"""Whitening: coordinates in which the input of a linear layer has mean 0 and covariance I.

Derivation: derivations/24-stability.md.
"""

from dataclasses import dataclass

import numpy as np

from snfnp.errors import DivergedError, UsageError
from snfnp.layers.base import Layer

_FLOOR = 1e-6  # times the largest variance: U's condition is at most 1e3, which float32 bears


@dataclass(frozen=True)
class Whiten(Layer):
    """z = U (x − μ), with U = C^{-1/2} of the covariance C of x, for rows x (N, D).

    Its numbers are found from data, and no gradient moves them. Parameters: U (D, D) and b = −U μ
    (D,), the identity until those of `Moments` are put in their place. One product, O(N D²).
    """

    features: int

    def parameter_shapes(self, shape) -> dict:
        return {"U": (self.features, self.features), "b": (self.features,)}

    def init(self, rng, shape) -> dict:
        return {"U": np.eye(self.features), "b": np.zeros(self.features)}

    def forward(self, ops, p, x):
        """z = U x + b. ldj is 0: see `log_det`."""
        return ops.channels.shift(ops.linalg.matmul(x, p["U"].T), p["b"]), 0, {}

    def inverse(self, ops, p, z):
        """x = U⁻¹ (z − b), exact. O(D³ + N D²)."""
        return ops.linalg.solve(p["U"], z - p["b"])

    def log_det(self, ops, p, shape) -> float:
        """log|det U| of the numbers as they are kept: −½ Σ log of C's eigenvalues but for their
        rounding to the precision of training. O(D³)."""
        return ops.linalg.log_abs_det(p["U"])

    def backward(self, ctx, p, cache, dz, grads):
        """δ_x = Uᵀ δ_z."""
        return ctx.ops.linalg.matmul(dz, p["U"])


class Moments:
    """Sums over rows x (n, D) that come part by part, in double precision: how many, Σ x, Σ x xᵀ.

    No shift is needed: of logits of images that have noise, the mean square is at most some hundred
    times the variance. `add` costs O(n D²), `whitening` O(D³).
    """

    def __init__(self, ops, features: int):
        self._ops, self.count = ops, 0
        self.total, self.products = ops.xp.zeros(features), ops.xp.zeros((features, features))

    def add(self, x) -> None:
        self.count += len(x)
        self.total += x.sum(axis=0)
        self._ops.linalg.matmul_add(x.T, x, self.products)

    def whitening(self) -> dict[str, np.ndarray]:
        """U and b of a `Whiten` layer, float64 on the host.

        U is the symmetric root: of all U with U C Uᵀ = I it turns x least. Directions with less
        than 1e-6 of the largest variance count as having so much. Raises UsageError for a count
        that leaves directions without variance, or if x does not vary at all, DivergedError if it
        is not finite.
        """
        features = len(self.total)
        if self.count <= features:
            found = f"{self.count} images have no covariance in {features} dimensions"
            raise UsageError(f"{found}: give more than {features}, or leave --whiten out")
        mean, second = (self._ops.to_host(a) / self.count for a in (self.total, self.products))
        covariance = second - np.outer(mean, mean)
        if not np.isfinite(covariance).all():
            raise DivergedError("the inputs that are to be whitened are not finite")
        values, vectors = np.linalg.eigh(covariance)
        if values[-1] <= len(mean) * np.finfo(float).eps * np.trace(second):
            raise UsageError("all images are alike: there is nothing to whiten")
        values = np.maximum(values, _FLOOR * values[-1])
        u = (vectors * values**-0.5) @ vectors.T
        return {"U": (u + u.T) / 2, "b": -u @ mean}
