"""The exact gradient, the paper's baseline, and the relative one (a row of Table 1).

Derivation: derivations/03-change-of-variables.md and 04-dense.md.
"""

from dataclasses import dataclass

from snfnp.errors import UsageError
from snfnp.maps import Dense
from snfnp.rules.base import Rule, bias_gradient


@dataclass(frozen=True)
class Exact(Rule):
    """The exact gradient of the likelihood (Eq. 2): G_W = δ_z ⋆ X + ∂log|det T(W)|/∂W. O(D³)."""

    def backward(self, ctx, *, f, g, p, cache, dz, grads):
        ops, w, x = ctx.ops, p["W"], cache["x"]
        # Eq. 2 with the Jacobian T(W): δ_z xᵀ + W⁻ᵀ, the bracket of Eq. 8, for a dense map, and
        # summed over each weight's positions, Eq. 13, for a convolution.
        if ctx.owns_shared_terms:
            log_det_grad = f.log_det_grad(ops, w, x.shape[1:])
            ops.linalg.scale_into(grads["W"], ctx.log_det_weight, log_det_grad, 1)
        f.weight_grad(ops, dz, x, out=grads["W"], add=ctx.owns_shared_terms)
        bias_gradient(ops, dz, grads)
        return f.adjoint(ops, w, dz)


@dataclass(frozen=True)
class Relative(Rule):
    """The relative gradient (Gresele et al. 2020): the exact one times WᵀW, dense only. O(N D²).

    (δ xᵀ + W⁻ᵀ) WᵀW = δ (zᵀW) + W needs no inverse.

    Args:
        bias: the gradient of b. "plain": Σ δ, and z = W x. "full": W and b are one augmented
            matrix, so that ΔW = δ (zᵀW) + W and Δb = δ (1 + bᵀz) + b with z = W x + b. "gresele":
            the same without the last "+ b", as in the authors' code.
    """

    bias: str = "plain"

    def __post_init__(self):
        if self.bias not in ("plain", "gresele", "full"):
            found = f"bias of the relative gradient is {self.bias!r}"
            raise UsageError(f"{found}: choose plain, gresele or full")

    def check_maps(self, f, g) -> None:
        if not isinstance(f, Dense):
            raise UsageError("the relative gradient needs a dense layer: choose another rule")

    def backward(self, ctx, *, f, g, p, cache, dz, grads):
        ops, linalg, w = ctx.ops, ctx.ops.linalg, p["W"]
        b = None if self.bias == "plain" else p.get("b")  # the last column of an augmented W
        z = cache["z0"] if b is None else cache["z0"] + b
        linalg.scale_into(grads["W"], ctx.log_det_weight, w, 1)
        f.weight_grad(ops, dz, f.adjoint(ops, w, z), out=grads["W"], add=True)
        if b is not None:
            # Σ_n δ_n (1 + bᵀ z_n)
            linalg.matmul(1 + linalg.matmul(b[None, :], z.T), dz, out=grads["b"][None, :])
            if self.bias == "full":
                grads["b"] += ctx.log_det_weight * b
        else:
            bias_gradient(ops, dz, grads)
        return f.adjoint(ops, w, dz)
