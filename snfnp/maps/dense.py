"""The dense map T(W) = W (paper, section 4.1). Derivation: derivations/02-notation.md."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from snfnp.errors import UsageError, require_whole
from snfnp.maps.base import Map, Shape
from snfnp.ops import Array, Ops


@dataclass(frozen=True)
class Dense(Map):
    """A D × D matrix. Rows are samples: X (N, D) -> Z = X Wᵀ (N, D).

    Args:
        features: D.
    """

    features: int
    inverse_is_same_map: ClassVar[bool] = True

    def __post_init__(self):
        require_whole(self, 1, features=self.features)

    @property
    def weight_shape(self) -> tuple[int, int]:
        return (self.features, self.features)

    def output_shape(self, shape: Shape) -> Shape:
        if shape != (self.features,):
            raise UsageError(
                f"a dense map of {self.features} features cannot take {shape}: "
                f"give it rows of {self.features} numbers"
            )
        return shape

    def identity(self) -> np.ndarray:
        return np.eye(self.features)

    def apply(self, ops: Ops, w: Array, x: Array) -> Array:
        """W x for every row x. O(N D²)."""
        return ops.linalg.matmul(x, w.T)

    def adjoint(self, ops: Ops, w: Array, dz: Array) -> Array:
        """Wᵀ δ for every row δ. O(N D²)."""
        return ops.linalg.matmul(dz, w)

    def weight_grad(
        self, ops: Ops, delta: Array, x: Array, out: Array, add: bool = False
    ) -> Array:
        """Σ_n δ_n x_nᵀ. O(N D²)."""
        if add:
            return ops.linalg.matmul_add(delta.T, x, out)
        return ops.linalg.matmul(delta.T, x, out=out)

    def flip(self, w: Array) -> Array:
        """wᵀ, a view."""
        return w.T

    def multiplicity(self, shape: Shape) -> int:
        return 1

    def pad_or_crop(self, w: Array) -> Array:
        return w

    def log_det(self, ops: Ops, w: Array, shape: Shape) -> float:
        """log|det W|. O(D³)."""
        return ops.linalg.log_abs_det(w)

    def log_det_grad(self, ops: Ops, w: Array, shape: Shape) -> Array:
        """W⁻ᵀ (used in Eq. 2). O(D³)."""
        return ops.linalg.inverse(w).T

    def solve(self, ops: Ops, w: Array, z: Array) -> Array:
        """W⁻¹ z for every row z. O(D³ + N D²)."""
        return ops.linalg.solve(w, z)
