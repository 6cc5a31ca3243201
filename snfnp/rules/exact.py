"""The exact gradient, the paper's baseline. Derivation: derivations/02-change-of-variables.md."""

from dataclasses import dataclass

from snfnp.rules.base import Rule, forward_gradient


@dataclass(frozen=True)
class Exact(Rule):
    """The exact gradient of the likelihood (Eq. 2): G_W = δ_z ⋆ X + ∂log|det T(W)|/∂W. O(D³)."""

    def backward(self, ctx, *, f, g, p, cache, dz, grads):
        ops, w, x, log_det_grad = ctx.ops, p["W"], cache["x"], None
        # Eq. 2 with the Jacobian T(W): δ_z xᵀ + W⁻ᵀ, the bracket of Eq. 8, for a dense map, and
        # summed over each weight's positions, Eq. 13, for a convolution.
        if ctx.owns_shared_terms:
            log_det_grad = f.log_det_grad(ops, w, x.shape[1:])
        forward_gradient(ctx, f=f, term=log_det_grad, x=x, dz=dz, grads=grads, multiple=1)
        return f.adjoint(ops, w, dz)
