"""The exact gradient, the paper's baseline, and the relative one (a row of Table 1).

Derivation: derivations/03-change-of-variables.md and 04-dense.md.
"""

from dataclasses import dataclass

from snfnp.context import BackwardContext
from snfnp.errors import UsageError
from snfnp.maps import Dense, Map
from snfnp.ops import Array
from snfnp.rules.base import Params, Rule


@dataclass(frozen=True)
class Exact(Rule):
    """The exact gradient of the likelihood (Eq. 2): G_W = δ_z ⋆ X + ∂log|det T(W)|/∂W. O(D³)."""

    def backward(
        self,
        ctx: BackwardContext,
        maps: tuple[Map, Map],
        p: Params,
        cache: dict,
        dz: Array,
        grads: Params,
    ) -> Array:
        ops = ctx.ops
        w = p["W"]
        x = cache["x"]
        f, _ = maps
        # Eq. 2 with the Jacobian T(W): δ_z xᵀ + W⁻ᵀ, the bracket of Eq. 8, for a dense map, and
        # summed over each weight's positions, Eq. 13, for a convolution.
        log_det_grad = f.log_det_grad(ops, w, x.shape[1:])
        ops.linalg.scale_into(grads["W"], ctx.log_det_weight, log_det_grad, 1)
        f.weight_grad(ops, dz, x, out=grads["W"], add=True)
        return f.adjoint(ops, w, dz)


@dataclass(frozen=True)
class Relative(Rule):
    """The relative gradient (Gresele et al. 2020): the exact one times WᵀW, dense only. O(N D²).

    (δ xᵀ + W⁻ᵀ) WᵀW = δ (zᵀW) + W, with z = W x, needs no inverse. b has its own gradient, Σ δ.
    """

    def check_maps(self, f: Map, g: Map) -> None:
        if not isinstance(f, Dense):
            raise UsageError(
                "the relative gradient needs a dense layer: choose another rule"
            )

    def backward(
        self,
        ctx: BackwardContext,
        maps: tuple[Map, Map],
        p: Params,
        cache: dict,
        dz: Array,
        grads: Params,
    ) -> Array:
        ops = ctx.ops
        w = p["W"]
        f, _ = maps
        ops.linalg.scale_into(grads["W"], ctx.log_det_weight, w, 1)
        f.weight_grad(ops, dz, f.adjoint(ops, w, cache["z0"]), out=grads["W"], add=True)
        return f.adjoint(ops, w, dz)
