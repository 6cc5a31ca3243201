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
    rank: with k, U = I − Pᵀ P with P (k, D) brings only the k directions of largest variance to the
    median one. Two products of O(N D k).
    """

    features: int
    rank: int | None = None

    def parameter_shapes(self, shape) -> dict:
        return {name: value.shape for name, value in self.init(None, shape).items()}

    def init(self, rng, shape) -> dict:
        size, rank = self.features, self.rank
        turn = {"U": np.eye(size)} if rank is None else {"P": np.zeros((rank, size))}
        return {**turn, "b": np.zeros(size)}

    def matrix(self, ops, p):
        """U (D, D)."""
        return self._times(ops, p, ops.xp.eye(self.features, dtype=p["b"].dtype), transposed=True)

    def forward(self, ops, p, x):
        """z = U x + b. ldj is 0: see `log_det`."""
        return ops.channels.shift(self._times(ops, p, x), p["b"]), 0, {}

    def inverse(self, ops, p, z):
        """x = U⁻¹ (z − b), exact. O(D³ + N D²)."""
        return ops.linalg.solve(self.matrix(ops, p), z - p["b"])

    def log_det(self, ops, p, shape) -> float:
        """log|det U| of the numbers as they are kept: of a whole U −½ Σ log of C's eigenvalues, but
        for their rounding to the precision of training. O(D³)."""
        return ops.linalg.log_abs_det(self.matrix(ops, p))

    def backward(self, ctx, p, cache, dz, grads):
        """δ_x = Uᵀ δ_z."""
        return self._times(ctx.ops, p, dz, transposed=True)

    def _times(self, ops, p, x, transposed=False):
        """U x or Uᵀ x of rows x."""
        matmul = ops.linalg.matmul
        if self.rank is None:
            return matmul(x, p["U"] if transposed else p["U"].T)
        return x - matmul(matmul(x, p["P"].T), p["P"])


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

    def whitening(self, rank: int | None = None) -> dict[str, np.ndarray]:
        """The numbers of a `Whiten` layer of this rank, float64 on the host.

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
        if rank is not None:
            # I − (1 − f) q qᵀ has the factor f along q
            factors = np.minimum(1, np.median(values) / values[-rank:]) ** 0.5
            turn = (vectors[:, -rank:] * (1 - factors) ** 0.5).T
            return {"P": turn, "b": turn.T @ (turn @ mean) - mean}
        values = np.maximum(values, _FLOOR * values[-1])
        u = (vectors * values**-0.5) @ vectors.T
        return {"U": (u + u.T) / 2, "b": -u @ mean}
