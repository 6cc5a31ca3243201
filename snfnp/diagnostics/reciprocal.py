"""g⁻¹ as a flow of its own: the exact gradient of R, with which a rule's is compared.

Derivation: derivations/04-dense.md and 23-monitors-and-certificates.md.
"""

from __future__ import annotations

from dataclasses import dataclass

from snfnp.maps import Map
from snfnp.rules import Rule
from snfnp.rules.base import bias_gradient


@dataclass(frozen=True)
class Reciprocal(Map):
    """T(r)⁻¹, for r a weight of `map`: what a layer of g⁻¹ does. Every use costs a solve."""

    map: Map

    @property
    def weight_shape(self) -> tuple[int, ...]:
        return self.map.weight_shape

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return self.map.output_shape(shape)

    def apply(self, ops, w, x):
        return self.map.solve(ops, w, x)

    def adjoint(self, ops, w, dz):
        return self.map.solve(ops, self.map.flip(w), dz)


@dataclass(frozen=True)
class ExactOfInverse(Rule):
    """The exact gradient of log p^g for a layer whose weight "W" is R, and whose map the
    `Reciprocal` of R's: G = −δ_x ⋆ z − ∂log|det T(R)|/∂R, the bracket of Eq. 9 for dense maps."""

    def backward(self, ctx, *, f, g, p, cache, dz, grads):
        ops, r, x, z0 = ctx.ops, p["W"], cache["x"], cache["z0"]
        # the bracket of Eq. 9, −R⁻ᵀ δ xᵀ R⁻ᵀ − R⁻ᵀ, with δ_x = R⁻ᵀ δ and z0 = R⁻¹ x
        dx = f.adjoint(ops, r, dz)
        log_det_grad = f.map.log_det_grad(ops, r, x.shape[1:])
        ops.linalg.scale_into(grads["W"], -1.0, log_det_grad, 1, ctx.volume)
        f.map.weight_grad(ops, -dx, z0, out=grads["W"], add=True)
        bias_gradient(ops, dz, grads)
        return dx
