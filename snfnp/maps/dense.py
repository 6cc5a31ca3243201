"""The dense linear map T(W) = W: z = W x for every row x (paper, section 4.1).

Derivation: derivations/01-notation.md.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from snfnp.maps.base import Map


@dataclass(frozen=True)
class Dense(Map):
    """A D × D matrix. Rows are samples: X (N, D) -> Z = X Wᵀ (N, D).

    Args:
        features: D.
    """

    features: int
    inverse_is_same_map: ClassVar[bool] = True

    @property
    def weight_shape(self) -> tuple[int, int]:
        return (self.features, self.features)

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        if shape != (self.features,):
            raise ValueError(f"Dense({self.features}) takes rows of that length, found {shape}")
        return shape

    def identity(self) -> np.ndarray:
        """The W with T(W) = id."""
        return np.eye(self.features)

    def apply(self, ops, w, x):
        """T(w) x for the rows x. O(N D²)."""
        return ops.linalg.matmul(x, w.T)

    def adjoint(self, ops, w, dz):
        """T(w)ᵀ δ for the rows δ. O(N D²)."""
        return ops.linalg.matmul(dz, w)

    def weight_grad(self, ops, delta, x, out, add=False):
        """Σ_n δ_n x_nᵀ into `out`, or added to what `out` holds. O(N D²)."""
        if add:
            return ops.linalg.matmul_add(delta.T, x, out)
        return ops.linalg.matmul(delta.T, x, out=out)

    def flip(self, w):
        """The weight of the transposed map, T(flip w) = T(w)ᵀ: here wᵀ (a view)."""
        return w.T

    def multiple(self, shape) -> int:
        """m: each weight occurs once in T(w)."""
        return 1

    def fit(self, w, xp=np):
        """w itself: all D × D weights have this map's size."""
        return w

    def log_det(self, ops, w, shape) -> float:
        """log|det T(w)|, exact. O(D³)."""
        return ops.linalg.log_abs_det(w)

    def log_det_grad(self, ops, w, shape):
        """∂ log|det T(w)| / ∂w = w⁻ᵀ (used in Eq. 2). O(D³)."""
        return ops.linalg.inverse(w).T

    def solve(self, ops, w, z):
        """T(w)⁻¹ z for the rows z. O(D³ + N D²)."""
        return ops.linalg.solve(w, z)
