"""R is refined: one step of Newton's iteration for the inverse, at every step of training.

Derivation: derivations/21-learning-the-inverse.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from snfnp.errors import UsageError
from snfnp.rules.base import Rule, forward_gradient


@dataclass(frozen=True)
class Newton(Rule):
    """R ← 2 R − R W R (Schulz 1933), W climbs the likelihood alone. No λ, no data. O(D³).

    I − R W becomes its own square, so R follows a W that moves slowly, and is lost where ‖I − R W‖
    comes to 1. For maps whose inverse is of their own kind: dense ones and 1×1 convolutions.
    """

    learns_inverse: ClassVar[bool] = True
    assigns: ClassVar[tuple[str, ...]] = ("R",)

    def refuse(self, f, g) -> None:
        if not (f.inverts_in_kind and g.inverts_in_kind):
            raise UsageError(
                "Newton's iteration needs dense layers or 1x1 convolutions: the inverse of another "
                "convolution is no convolution"
            )

    def backward(self, ctx, *, f, g, p, x, z0, dz, grads):
        ops, linalg, refined = ctx.ops, ctx.ops.linalg, grads["R"]
        _, ctx.reconstruction = g.residual(ops, p["R"], z0, x, ctx.reconstruction)
        term = None
        if ctx.leads:
            # R W R reads the same backwards: kernels, which hold transposes, need no other formula
            w, r = (p[name].reshape(p[name].shape[-2:]) for name in ("W", "R"))
            linalg.matmul(linalg.matmul(r, w), r, out=refined.reshape(r.shape))
            linalg.axpby(2.0, p["R"], -1.0, refined)
            term = f.flip(refined)
        else:
            refined[...] = 0
        forward_gradient(ctx, f=f, term=term, x=x, dz=dz, grads=grads)
        return f.adjoint(ops, p["W"], dz)
