"""Whitening of a linear layer's input. Derivation: derivations/24-natural-coordinates.md."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from snfnp.context import BackwardContext
from snfnp.errors import DivergedError, UsageError, require_whole
from snfnp.layers.base import Forward, Layer, Params, Shape
from snfnp.maps import Dense
from snfnp.ops import Array, Ops
from snfnp.ops.linalg.definition import inverse_root

_FLOOR = 1e-6  # times the mean variance: U's condition number of 1e3 is safe in float32


@dataclass(frozen=True)
class Whiten(Layer):
    """z = U (x − μ), with U = C^{-1/2} of the covariance C of x, for rows x (N, D).

    Parameters: U (D, D) and b = −U μ (D,). They are the identity until `from_sums` estimates them
    from data; no gradient moves them. One product, O(N D²).

    Args:
        features: D.
        shrink: OAS shrinkage of C towards a multiple of I (`_shrunk`): C may be singular.
        diagonal: take the variances of C alone: z has unit variances, and stays correlated.
        renewed: re-estimated during training, for inputs that training changes; otherwise
            once, before the first step.
    """

    features: int
    shrink: bool = False
    diagonal: bool = False
    renewed: bool = False

    def __post_init__(self):
        require_whole(self, 1, features=self.features)

    def output_shape(self, shape: Shape) -> Shape:
        return Dense(self.features).output_shape(shape)

    def parameter_shapes(self, shape: Shape) -> dict:
        return {"U": (self.features,) * 2, "b": (self.features,)}

    def init(self, rng: np.random.Generator, shape: Shape) -> dict:
        return super().init(rng, shape) | {"U": np.eye(self.features)}

    def forward(self, ops: Ops, p: Params, x: Array) -> Forward:
        """ldj is 0: see `log_det`."""
        return ops.channels.shift(ops.linalg.matmul(x, p["U"].T), p["b"]), 0, {}

    def inverse(self, ops: Ops, p: Params, z: Array) -> Array:
        """x = U⁻¹ (z − b), exact. O(D³ + N D²)."""
        return ops.linalg.solve(p["U"], z - p["b"])

    def log_det(self, ops: Ops, p: Params, shape: Shape) -> float:
        """log|det U|. O(D³)."""
        return ops.linalg.log_abs_det(p["U"])

    def backward(
        self, ctx: BackwardContext, p: Params, cache: dict, dz: Array, grads: Params
    ) -> Array:
        """δ_x = Uᵀ δ_z."""
        return ctx.ops.linalg.matmul(dz, p["U"])

    def needs_shift(self, count: int, total: Array, products: Array) -> bool:
        """True if the difference of the mean squares in these sums and the squared means has too
        few digits: take the sums of x − Σ x / count. (For logits of noisy images the mean squares
        are at most some hundred times the variance.)"""
        squares = np.diagonal(products) / count
        mean = total / count
        variance = (squares - mean**2).mean()
        return bool(np.finfo(float).eps * squares.max() > 1e-2 * _FLOOR * variance)

    def from_sums(
        self,
        count: int,
        total: Array,
        products: Array,
        shift: Array | float = 0.0,
        root: Callable = inverse_root,
    ) -> dict:
        """U and b for `count` rows x with the sums Σ y (D,) and Σ y yᵀ of y = x − shift, float64.
        root: `inverse_root`, or the operation of the arrays' device. O(D³).

        Raises UsageError if `count` leaves directions without variance or x does not vary,
        DivergedError if it is not finite.
        """
        features = self.features
        if count <= features and not (self.shrink or self.diagonal):
            raise UsageError(
                f"{count} samples have no covariance in {features} dimensions: "
                "give more, Whiten(…, shrink=True), or `coordinates=plain`"
            )
        mean = total / count
        second = products / count
        covariance = second - np.outer(mean, mean)
        if not np.isfinite(covariance).all():
            raise DivergedError("the inputs of a whitening layer are not finite")
        if self.shrink:
            covariance = _shrunk(covariance, count)
        if self.diagonal:
            covariance = covariance * np.identity(features, like=covariance)
        variance = np.diag(covariance).mean()
        if variance <= features**2 * np.finfo(float).eps * np.abs(second).max():
            raise UsageError(
                "all samples are alike, or there is one: there is nothing to whiten"
            )
        u = root(covariance, _FLOOR * variance)
        return {"U": (u + u.T) / 2, "b": -u @ (shift + mean)}


def _shrunk(covariance: np.ndarray, count: int) -> np.ndarray:
    """(1 − ρ) C + ρ m I, m the mean of C's eigenvalues, with the ρ of Chen et al. 2010 ("OAS") for
    `count` Gaussian rows: about 1/count for correlated columns, 1 for few independent ones."""
    features = len(covariance)
    mean = np.trace(covariance) / features
    squares = np.vdot(covariance, covariance)
    square = (features * mean) ** 2
    spread = (count + 1 - 2 / features) * (squares - square / features)
    known = (1 - 2 / features) * squares + square
    share = 1.0 if spread <= known else known / spread
    return (1 - share) * covariance + share * mean * np.identity(
        features, like=covariance
    )
