"""The contract of a map: the structure T(w) of a linear layer, and what the layer does with it.

Derivation: derivations/16-write-your-own-layer.md.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, NamedTuple

from snfnp.ops import Array


class Map:
    """A linear map x -> T(w) x whose matrix is linear in a weight w.

    A map is a frozen dataclass. Its own members are those of `Dense`, the plainest example:

        weight_shape, identity(), fans      of w; the w with T(w) = id; (inputs, outputs) per weight
        output_shape(shape)                 of T(w) x, per sample
        apply(ops, w, x)                    T(w) x
        adjoint(ops, w, dz)                 T(w)ᵀ δ
        weight_grad(ops, delta, x, out)     Σ_n δ_n ⋆ x_n, written or (add=True) added to `out`
        flip(w), multiple(shape)            T(flip w) = T(w)ᵀ (Eq. 26), and m (Eq. 27)
        fit(w)                              another map's weight at this one's size (Eq. 30)
        log_det, log_det_grad, solve        exact, and as expensive as that is

    The members below are made of these. They name what a linear layer computes together, so that a
    map whose backend can do it in one pass may override them; and what is asked of the map g that
    a learned inverse R is a weight of, which a `Chain` answers in another way.
    """

    # Of a map's own members those that the ones below call, for type checkers.
    apply: ClassVar[Callable[..., Array]]
    adjoint: ClassVar[Callable[..., Array]]
    weight_grad: ClassVar[Callable[..., Array]]
    flip: ClassVar[Callable[..., Array]]
    fit: ClassVar[Callable[..., Array]]
    multiple: ClassVar[Callable[..., Array]]
    # Whether T(w) is not w itself: an element of w stands in it more than once.
    shares_weights: ClassVar[bool] = True
    # Whether T(w)⁻¹ is T of another weight.
    inverts_in_kind: ClassVar[bool] = False
    # Whether `snfnp.maps.left_inverse` finds the weight nearest to another one's inverse.
    has_left_inverse: ClassVar[bool] = False

    def start(self, f, w):
        """The r at which learning starts: T(r) = T_f(w)ᵀ (A.3). Host arrays."""
        return self.fit(f.flip(w)).copy()

    def stand_in(self, ops, f, r, shape):
        """(term, multiple): term ⊙ multiple stands in for ∂log|det T_f(w)|/∂w, at w's size.

        The sum of the entries of T(r)ᵀ, which stands in place of T_f(w)⁻ᵀ, over the positions of
        each weight: flip(r) ⊙ m (Eq. 15, the second term of Eq. 10 for a dense map), of r's centre
        where r is larger (Eq. 28).
        """
        return f.flip(f.fit(r, ops.xp)), f.multiple(shape)

    def gradients(self, ops, f, w, r, delta, z, scale, out) -> tuple[WeightGradient, ...]:
        """What makes the gradient of ⟨δ, T(r) z⟩ + scale · v · log|det T(r)| with respect to r,
        where T_f(w) stands in place of T(r)⁻¹; z: (N, ...), out: r's gradient.

        flip(w) ⊙ m (Eq. 16, the second term of Eq. 11 for a dense map), w padded with zeros where r
        is larger (Eq. 29).
        """
        term, multiple = self.flip(self.fit(w, ops.xp)), self.multiple(z.shape[1:])
        return (WeightGradient(self, delta, z, scale, term, multiple, out),)

    def rows(self, ops, x):
        """What the weights of one output meet in x (N, ...), a row for every output of its kind:
        the samples of a dense map, the receptive fields of a convolution."""
        return x

    def apply_with_bias(self, ops, w, x, b):
        """T(w) x, and T(w) x + b."""
        z0 = self.apply(ops, w, x)
        return z0, z0 + b

    def residual(self, ops, w, z, x, before):
        """E = T(w) z − x, and `before` + ‖E‖²/N in double precision."""
        error = self.apply(ops, w, z)
        return error, ops.linalg.residual(error, x, before)

    def adjoint_axpby(self, ops, w, dz, a, y, b):
        """a y + b T(w)ᵀ δ."""
        return ops.linalg.axpby(a, y, b, self.adjoint(ops, w, dz))

    def adjoint_into(self, ops, w, dz, a, b, out):
        """T(w)ᵀ δ, which is returned, and out ← a T(w)ᵀ δ + b out."""
        dx = self.adjoint(ops, w, dz)
        ops.linalg.axpby(a, dx, b, out)
        return dx

    def weight_grads(self, ops, parts, volume, dz, db) -> None:
        """The gradient of every weight in `parts` (its map is this one or of its kind), and, where
        there is a bias, db ← Σ δ over samples and pixels (db None: there is none)."""
        for part in parts:
            ops.linalg.scale_into(part.out, part.scale, part.term, part.multiple, volume)
            part.map.weight_grad(ops, part.delta, part.x, out=part.out, add=True)
        if db is not None:
            ops.channels.sum(dz, out=db)


class WeightGradient(NamedTuple):
    """out ← δ ⋆ x + scale · v · term ⊙ m, with v the weight of the log-determinant."""

    map: Map
    delta: Array
    x: Array
    scale: float
    term: Array
    multiple: Array
    out: Array
