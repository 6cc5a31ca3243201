"""The self-normalizing rule: a learned inverse in place of the exact one (paper, section 3.2).

Derivation: derivations/05-self-normalizing.md, 04-dense.md, 07-convolutions.md.
"""

from dataclasses import dataclass
from typing import ClassVar

from snfnp.context import BackwardContext, Measured
from snfnp.errors import UsageError
from snfnp.maps import Map
from snfnp.ops import Array
from snfnp.rules.base import Params, Rule


@dataclass(frozen=True)
class SelfNormalizing(Rule):
    """R (for convolutions flip(r) ⊙ m) in place of the inverse. O(N D²).

    Args:
        objective: "mixture" is the paper's Eq. 3, ½ log p^f + ½ log p^g − λ Σ E; "forward" is
            log p^f − λ Σ E: R learns from its reconstruction error alone.
    """

    objective: str = "mixture"
    learns_inverse: ClassVar[bool] = True

    def __post_init__(self):
        if self.objective not in ("mixture", "forward"):
            raise UsageError(
                f"objective is {self.objective!r}: choose mixture or forward"
            )

    def backward(
        self,
        ctx: BackwardContext,
        maps: tuple[Map, Map],
        p: Params,
        cache: dict,
        dz: Array,
        grads: Params,
    ) -> tuple[Array, Measured]:
        """Six products instead of nine: the deltas of the likelihood and of the reconstruction
        error are added before the weights' gradients are formed."""
        ops = ctx.ops
        linalg = ops.linalg
        f, g = maps
        w = p["W"]
        r = p["R"]
        x = cache["x"]
        z = cache["z0"]
        a = ctx.error_factor  # −2λ/N
        v = ctx.log_det_weight  # Σ ∂𝓛/∂ldj
        c_f, c_g = (0.5, 0.5) if self.objective == "mixture" else (1.0, 0.0)

        # δ_x = T(W)ᵀ δ_z, also the input's gradient
        dx = f.adjoint(ops, w, dz)
        # E = T(R) z − x of Eq. 3, with z = T(W) x: g(z) = R (z − b) inverts f(x) = W x + b
        e = g.apply(ops, r, z)
        error = linalg.residual(e, x)
        # Δ_W = c δ_z + a T(R)ᵀ E and Δ_R = −c' δ_x + a E
        errors = g.adjoint(ops, r, e), e
        delta_w, delta_r = linalg.axpby_pair((c_f, -c_g), (dz, dx), a, errors)
        # r at w's size and w at r's, if their kernels differ (Eq. 30)
        shape = x.shape[1:]
        r_fit, w_fit = (r, w) if f is g else (f.pad_or_crop(r), g.pad_or_crop(w))
        # G_W = Δ_W xᵀ + c v Rᵀ: Eq. 10 and Eq. 17, with R in place of W⁻¹ (Eq. 4).
        # Convolutions: Δ_W ⋆ x + c v flip(r) ⊙ m, Eq. 15 (flip(r) ⊙ m is T(r)ᵀ of Eq. 14 and
        # Eq. 21 summed over each weight's positions; of r's centre if r is larger, Eq. 28).
        linalg.scale_into(grads["W"], c_f * v, f.flip(r_fit), f.multiplicity(shape))
        f.weight_grad(ops, delta_w, x, out=grads["W"], add=True)
        # G_R = Δ_R zᵀ − c' v Wᵀ: Eq. 11 and Eq. 20, with W in place of R⁻¹ (Eq. 5).
        # Convolutions: Δ_R ⋆ z − c' v flip(w) ⊙ m, Eq. 16 (without m Eq. 22; w padded with
        # zeros if r is larger, Eq. 29).
        if c_g:  # else there is nothing to add to
            linalg.scale_into(
                grads["R"], -c_g * v, g.flip(w_fit), g.multiplicity(shape)
            )
        g.weight_grad(ops, delta_r, z, out=grads["R"], add=c_g > 0)
        return dx, Measured(error, x)
