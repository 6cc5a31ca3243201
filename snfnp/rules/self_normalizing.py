"""The self-normalizing rule: a learned inverse in place of the exact one (paper, section 3.2).

Derivation: derivations/03-self-normalizing.md, 04-dense.md, 07-convolutions.md and
08-asymmetric-kernels.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from snfnp.context import Measured
from snfnp.errors import UsageError
from snfnp.ops import Epilogue, WeightGradient
from snfnp.rules.base import Rule


@dataclass(frozen=True)
class SelfNormalizing(Rule):
    """R (for convolutions flip(r) ⊙ m) in place of the inverse. O(N D²).

    objective: "mixture" is the paper's Eq. 3, ½ log p^f + ½ log p^g − λ Σ E;
    "forward" is log p^f − λ Σ E: R learns from its reconstruction error alone.
    """

    objective: str = "mixture"
    learns_inverse: ClassVar[bool] = True

    def __post_init__(self):
        if self.objective not in ("mixture", "forward"):
            raise UsageError(f"objective is {self.objective!r}: choose mixture or forward")

    def backward(self, ctx, *, f, g, p, cache, dz, grads):
        """Six products instead of nine: the likelihood's and the reconstruction's deltas are
        merged before the weight-gradient products.

            Δ_W = c δ_z − (2λ/N) T(R)ᵀ E        G_W = Δ_W ⋆ X + c flip(R) ⊙ m
            Δ_R = −c' δ_x − (2λ/N) E            G_R = Δ_R ⋆ Z0 − c' flip(W) ⊙ m

        with E = T(R) Z0 − X, and (c, c') = (½, ½) for the mixture, (1, 0) for `forward`.
        """
        ops, shape, w, r = ctx.ops, cache["x"].shape[1:], p["W"], p["R"]
        c_f, c_g = self.shares
        (delta_w, x), (delta_r, z0), dx, measured = self.deltas(ctx, f, g, p, cache, dz)

        # W, dense: ½ (δ_z xᵀ + Rᵀ) − 2λ Rᵀ (RWx − x) xᵀ is Eq. 10 and the gradient of the error,
        # Eq. 17: R stands in place of this layer's W⁻¹ (Eq. 4). For convolutions flip(r) ⊙ m
        # (Eq. 15) is the sum of T(r)ᵀ over each weight's positions (Eq. 14; Eq. 21 is the same),
        # and of r's centre if r is larger (Eq. 28).
        term, multiple = f.stand_in(ops, r, shape)
        of_w = WeightGradient(delta_w, x, c_f, term, multiple, grads["W"])

        # R, dense: −½ (δ_x zᵀ + Wᵀ) − 2λ (RWx − x) zᵀ is Eq. 11 and the gradient of the error,
        # Eq. 20: W and δ_x stand in place of R⁻¹ and its delta (Eq. 5). For convolutions
        # flip(w) ⊙ m (Eq. 16; without it Eq. 22), and w padded with zeros if r is larger
        # (Eq. 29). z is T(W) x without the bias: g(z) = R (z − b) inverts f(x) = W x + b.
        term, multiple = g.stand_in(ops, w, shape)
        of_r = WeightGradient(delta_r, z0, -c_g, term, multiple, grads["R"])

        # both densities contain b: ½ + ½ = 1
        ops.run_async(f.weight_grads, ops, (of_w, of_r), ctx.volume, dz, grads.get("b"))
        return dx, measured

    @property
    def shares(self) -> tuple[float, float]:
        """(c, c'): the weights of the forward and of the inverse density."""
        return (0.5, 0.5) if self.objective == "mixture" else (1.0, 0.0)

    def deltas(self, ctx, f, g, p, cache, dz):
        """(Δ_W, X), (Δ_R, Z0), δ_x, measurements; a subclass may append rows to the pairs."""
        ops, w, r, (c_f, c_g) = ctx.ops, p["W"], p["R"], self.shares
        x, z0 = cache["x"], cache["z0"]
        residual, error = g.residual(ops, r, z0, x, 0.0)  # E of Eq. 3
        of_w = Epilogue(a=ctx.error_factor, y=dz, b=c_f)
        of_r = Epilogue(a=-c_g, y=residual, b=ctx.error_factor, out=residual)
        delta_w = g.adjoint_then(ops, r, residual, of_w).out
        dx = f.adjoint_then(ops, w, dz, of_r).z
        # the residual's array now holds Δ_R
        return (delta_w, x), (residual, z0), dx, Measured(error)

    @property
    def without_penalty(self) -> SelfNormalizing:
        """This rule with Eq. 3 alone, without what a subclass adds to it."""
        return self
