"""R of a convolution is the best of its kernel size, found from W alone at every step.

Derivation: derivations/21-learning-the-inverse.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from snfnp.errors import UsageError
from snfnp.maps.left_inverse import LeftInverse
from snfnp.rules.base import Rule, forward_gradient


@dataclass(frozen=True)
class LeastSquares(Rule):
    """R = argmin ‖T(R) T(W) − I‖²_F (`LeftInverse`), W climbs the likelihood alone. No λ, no data.

    T(W)⁻¹ is the series Σ_k Eᵏ T(R) with E = I − T(R) T(W). In the gradient of W its first two
    terms stand exactly. Those after them, up to k = `terms`, are estimated with `probes` random
    images ν of ±1, since E[(S ν) νᵀ] = S for every matrix S; they are drawn anew at every step.

    Where ‖E‖²_F / D is above `tolerance`, W is moved down that error too, with the weight
    `stiffness` times the excess: the series converges where E is small.

    For 1×1 convolutions R is W⁻¹, and the gradient is exact.
    """

    probes: int = 4
    terms: int = 6
    tolerance: float = 0.04
    stiffness: float = 10.0
    learns_inverse: ClassVar[bool] = True
    assigns: ClassVar[tuple[str, ...]] = ("R",)

    def refuse(self, f, g) -> None:
        if not (f.has_left_inverse and g.has_left_inverse):
            raise UsageError("a least-squares inverse needs single convolutions")

    def backward(self, ctx, *, f, g, p, x, z0, dz, grads):
        ops, w, shape = ctx.ops, p["W"], x.shape[1:]
        best = LeftInverse(ops, f, g, w, shape)
        r = grads["R"]
        r[...] = best.r
        _, ctx.reconstruction = g.residual(ops, r, z0, x, ctx.reconstruction)

        forward_gradient(ctx, f=f, term=best.neumann_term(), x=x, dz=dz, grads=grads, multiple=1)
        if not f.inverts_in_kind:
            nu, tail = self.tail(ctx, f, g, w, r, shape)
            nu *= ctx.volume / self.probes
            f.weight_grad(ops, nu, tail, out=grads["W"], add=True)
            excess = ops.xp.maximum(best.error - self.tolerance, 0)
            if ops.peek(excess) is not False:  # a device is not waited for: there it may add 0
                pull = -2 * self.stiffness * excess * best.error_grad()
                grads["W"] += pull.astype(w.dtype)
        return f.adjoint(ops, w, dz)

    def tail(self, ctx, f, g, w, r, shape):
        """ν (probes, H, W, C), and Σ_k Eᵏ T(R) ν over k = 2 … terms."""
        ops = ctx.ops
        nu = ops.random.rademacher(ctx.key(), (self.probes, *shape), w.dtype)
        first = g.apply(ops, r, nu)
        y = first + g.apply(ops, r, nu - f.apply(ops, w, first))
        tail = ops.xp.zeros_like(nu)
        for _ in range(1, self.terms):
            step = g.apply(ops, r, nu - f.apply(ops, w, y))
            y, tail = y + step, tail + step
        return nu, tail
