"""The contract of a map: the structure T(w) of a linear layer, and what the layer does with it.

Derivation: derivations/16-write-your-own-layer.md.
"""

from collections.abc import Callable
from typing import ClassVar

from snfnp.ops import Array
from snfnp.ops.epilogue import Epilogue, Finished


class Map:
    """A linear map x -> T(w) x whose matrix is linear in a weight w.

    A map is a frozen dataclass. Its own members are those of `Dense`, the plainest example:

        weight_shape, identity(), fans      of w; the w with T(w) = id; (fan-in, fan-out)
        output_shape(shape)                 of T(w) x, per sample
        apply(ops, w, x)                    T(w) x
        adjoint(ops, w, dz)                 T(w)ᵀ δ
        weight_grad(ops, delta, x, out)     Σ_n δ_n ⋆ x_n, written or (add=True) added to `out`
        flip(w), multiple(shape)            T(flip w) = T(w)ᵀ (Eq. 26), and m (Eq. 27)
        fit(w)                              another map's weight at this one's size (Eq. 30)
        log_det, log_det_grad, solve        exact, whatever that costs: O(D³) for `Dense`

    The members below use these. They are overridden for backends that do in one pass what a linear
    layer computes together.
    """

    # A map's own members that the ones below call, declared for type checkers.
    apply: ClassVar[Callable[..., Array]]
    adjoint: ClassVar[Callable[..., Array]]
    weight_grad: ClassVar[Callable[..., Array]]
    flip: ClassVar[Callable[..., Array]]
    fit: ClassVar[Callable[..., Array]]
    multiple: ClassVar[Callable[..., Array]]
    solve: ClassVar[Callable[..., Array]]
    log_det: ClassVar[Callable[..., float]]
    output_shape: ClassVar[Callable[..., tuple[int, ...]]]
    # Whether an element of w may stand in T(w) more than once; if not, T(w) is w itself.
    shares_weights: ClassVar[bool] = True
    # Whether T(w)⁻¹ is T of another weight.
    inverts_in_kind: ClassVar[bool] = False

    def stand_in(self, ops, r, shape):
        """(term, multiple): term ⊙ multiple stands in for ∂log|det T(w)|/∂w: T(r)ᵀ in place of
        T(w)⁻ᵀ, summed over the positions of each weight. flip(r) ⊙ m (Eqs. 15 and 16, the second
        term of Eqs. 10 and 11 for a dense map), of r's centre if r is larger (Eq. 28), of r padded
        with zeros if it is smaller (Eq. 29)."""
        return self.flip(self.fit(r, ops.xp)), self.multiple(shape)

    def apply_then(self, ops, w, x, epilogue: Epilogue) -> Finished:
        """z = T(w) x, and what `epilogue` makes of it."""
        return epilogue.finish(self.apply(ops, w, x), ops.linalg, ops.channels)

    def adjoint_then(self, ops, w, dz, epilogue: Epilogue) -> Finished:
        """z = T(w)ᵀ δ, and what `epilogue` makes of it."""
        return self.apply_then(ops, self.flip(w), dz, epilogue)

    def residual(self, ops, w, z, x, before):
        """E = T(w) z − x, and `before` + ‖E‖²/N in double precision."""
        return self.apply_then(ops, w, z, Epilogue(y=x, b=-1.0, before=before))[1:]

    def deltas(self, ops, f, w, r, dz, error, shares, factor):
        """Δ_W = c δ_z + a T(r)ᵀ E, Δ_R = −c' δ_x + a E, and δ_x = T_f(w)ᵀ δ_z, all (N, ...).

        error: E, which may be overwritten; shares: (c, c'); factor: a, a number or an array of
        shape ().
        """
        delta_w, dx = self.adjoint_both(ops, f, (r, error), (w, dz))
        sums = (shares[0], dz, factor, delta_w), (-shares[1], dx, factor, error)
        ops.linalg.axpby_each(*sums)
        return delta_w, error, dx

    def adjoint_both(self, ops, f, first, second):
        """T(w)ᵀ δ of this map for the pair (w, δ) in `first`, and of the map f for the second."""
        return self.adjoint(ops, *first), f.adjoint(ops, *second)

    def add_weight_grads(self, ops, gradients):
        """Σ_n δ_n ⋆ x_n, added to the `out` of each `WeightGradient`."""
        for gradient in gradients:
            self.weight_grad(ops, gradient.delta, gradient.x, out=gradient.out, add=True)

    def weight_grads(self, ops, gradients, volume, dz=None, db=None) -> None:
        """The gradients of weights of this map and of others of its kind, each into its own `out`,
        and, unless db is None, db ← Σ δ_z over samples and pixels.

        gradients: a sequence of `WeightGradient`; volume: v, a number or an array of shape ().
        """
        ops.linalg.scale_each([(g.out, g.scale, g.term, g.multiple) for g in gradients], volume)
        self.add_weight_grads(ops, gradients)
        if db is not None:
            ops.channels.sum(dz, out=db)
