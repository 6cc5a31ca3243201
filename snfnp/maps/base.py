"""The contract of a map. Derivation: derivations/17-write-your-own-layer.md."""

from typing import Any, ClassVar

import numpy as np

from snfnp.ops import Array, Ops, Shape


class Map:
    """A linear map x -> T(w) x whose matrix is linear in a weight w.

    A map is a frozen dataclass of sizes; `snfnp.maps.Dense` is the plainest example, and
    `snfnp.gradcheck.check_map` checks every member. In all signatures `ops` is the backend,
    x (N, *shape) and z (N, *output_shape(shape)) are batches, and `shape` is one sample's.
    """

    # Whether T(w)⁻¹ is T of another weight.
    inverse_is_same_map: ClassVar[bool] = False

    @property
    def weight_shape(self) -> Shape:
        """The shape of w."""
        raise NotImplementedError

    def output_shape(self, shape: Shape) -> Shape:
        """The shape of T(w) x for one sample. Raises UsageError for other shapes of x."""
        raise NotImplementedError

    def identity(self) -> np.ndarray:
        """The w with T(w) = id, float64 on the host."""
        raise NotImplementedError

    def apply(self, ops: Ops, w: Array, x: Array) -> Array:
        """T(w) x."""
        raise NotImplementedError

    def adjoint(self, ops: Ops, w: Array, dz: Array) -> Array:
        """T(w)ᵀ δ for δ like z."""
        raise NotImplementedError

    def weight_grad(
        self, ops: Ops, delta: Array, x: Array, *, out: Array, add: bool = False
    ) -> Array:
        """Σ_n δ_n ⋆ x_n, the gradient of Σ ⟨δ, T(w) x⟩ with respect to w, written to `out` or, with
        `add`, added to it. Returns `out`."""
        raise NotImplementedError

    def flip(self, w: Array) -> Array:
        """The weight of the transposed map: T(flip w) = T(w)ᵀ (Eq. 26)."""
        raise NotImplementedError

    def multiplicity(self, shape: Shape) -> Any:
        """m, the number of positions of each element of w in T(w) (Eqs. 24 and 27): 1, or a host
        array that broadcasts to w's shape."""
        raise NotImplementedError

    def pad_or_crop(self, w: Array) -> Array:
        """The weight of a map of another size, padded with zeros or cropped to this map's size
        (Eq. 30)."""
        raise NotImplementedError

    def log_det(self, ops: Ops, w: Array, shape: Shape) -> float:
        """log|det T(w)| in nats, exact."""
        raise NotImplementedError

    def log_det_grad(self, ops: Ops, w: Array, shape: Shape) -> Array:
        """∂log|det T(w)|/∂w, exact, like w."""
        raise NotImplementedError

    def solve(self, ops: Ops, w: Array, z: Array) -> Array:
        """T(w)⁻¹ z, exact."""
        raise NotImplementedError
