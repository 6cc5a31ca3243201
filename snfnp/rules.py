"""What stands in for ∂ log|det T(w)| / ∂w: one rule per way of training, written once for all maps.

Gradients are of the objective that training ascends, averaged over the batch. A linear layer has
computed Z0 = T(W) X in its forward pass, without the bias. A rule's `backward` gets δ_z = ∂𝓛/∂z,
writes the gradients of W, R and b into `grads`, and returns δ_x = T(W)ᵀ δ_z:

    f, g: the maps (`snfnp.maps`) that W and R are weights of    x, z0, dz: X, Z0 and δ_z
    p, grads: the parameters and their gradients, by name        ctx: the step's BackwardContext

`ctx.volume`, Σ_n ∂𝓛/∂ldj_n, is the weight of the log-determinant (1 in training).
Derivations: derivations/03-self-normalizing.md, 04-dense.md, 07-convolutions.md and
08-asymmetric-kernels.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from snfnp.errors import UsageError
from snfnp.maps import WeightGradient


@dataclass(frozen=True)
class SelfNormalizing:
    """R (for convolutions flip(r) ⊙ m) in place of the inverse. O(N D²).

    objective: "mixture" is the paper's Eq. 3, ½ log p^f + ½ log p^g − λ Σ E;
    "forward" is log p^f − λ Σ E, where R learns from its reconstruction error alone.
    """

    objective: str = "mixture"
    learns_inverse: ClassVar[bool] = True

    def __post_init__(self):
        if self.objective not in ("mixture", "forward"):
            raise UsageError(f"objective is {self.objective!r}: choose mixture or forward")

    def backward(self, ctx, *, f, g, p, x, z0, dz, grads):
        """Six products instead of nine: the likelihood's and the reconstruction's deltas are
        merged before the weight-gradient products.

            Δ_W = c δ_z − (2λ/N) T(R)ᵀ E        G_W = Δ_W ⋆ X + c flip(R) ⊙ m
            Δ_R = −c' δ_x − (2λ/N) E            G_R = Δ_R ⋆ Z0 − c' flip(W) ⊙ m

        with E = T(R) Z0 − X, and (c, c') = (½, ½) for the mixture, (1, 0) for `forward`.
        """
        ops, shape, w, r = ctx.ops, x.shape[1:], p["W"], p["R"]
        c_f, c_g = (0.5, 0.5) if self.objective == "mixture" else (1.0, 0.0)

        error, ctx.reconstruction = g.residual(ops, r, z0, x, ctx.reconstruction)  # E of Eq. 3
        delta_w = g.adjoint_axpby(ops, r, error, c_f, dz, ctx.error_factor)
        dx = f.adjoint_into(ops, w, dz, -c_g, ctx.error_factor, out=error)
        delta_r = error  # the same array, which now holds Δ_R

        # W, dense: ½ (δ_z xᵀ + Rᵀ) − 2λ Rᵀ (RWx − x) xᵀ is Eq. 10 and the gradient of the error,
        # Eq. 17: R stands in place of this layer's W⁻¹ (Eq. 4). For convolutions flip(r) ⊙ m
        # (Eq. 15) is the sum of T(r)ᵀ over each weight's positions (Eq. 14; Eq. 21 is the same),
        # and of r's centre where r is larger: `fit`, Eq. 28.
        flipped_r = f.flip(f.fit(r, ops.xp))
        of_w = WeightGradient(f, delta_w, x, c_f, flipped_r, f.multiple(shape), grads["W"])

        # R, dense: −½ (δ_x zᵀ + Wᵀ) − 2λ (RWx − x) zᵀ is Eq. 11 and the gradient of the error,
        # Eq. 20: W and δ_x stand in place of R⁻¹ and its delta (Eq. 5). For convolutions
        # flip(w) ⊙ m (Eq. 16; without it Eq. 22), and w padded with zeros where r is larger:
        # `fit`, Eq. 29. z is T(W) x without the bias: g(z) = R (z − b) inverts f(x) = W x + b.
        flipped_w = g.flip(g.fit(w, ops.xp))
        of_r = WeightGradient(g, delta_r, z0, -c_g, flipped_w, g.multiple(shape), grads["R"])

        # both densities contain b: ½ + ½ = 1
        f.weight_grads(ops, (of_w, of_r), ctx.volume, dz, grads.get("b"))
        return dx


@dataclass(frozen=True)
class Exact:
    """The exact gradient of the likelihood (Eq. 2): G_W = δ_z ⋆ X + ∂log|det T(W)|/∂W. O(D³)."""

    learns_inverse: ClassVar[bool] = False

    def backward(self, ctx, *, f, g, p, x, z0, dz, grads):
        ops, w = ctx.ops, p["W"]
        # Eq. 2 with the Jacobian T(W): δ_z xᵀ + W⁻ᵀ, the bracket of Eq. 8, for a dense map, and
        # summed over each weight's positions, Eq. 13, for a convolution.
        log_det_grad = f.log_det_grad(ops, w, x.shape[1:])
        ops.linalg.scale_into(grads["W"], 1.0, log_det_grad, 1, ctx.volume)
        f.weight_grad(ops, dz, x, out=grads["W"], add=True)
        _bias_gradient(ops, dz, grads)
        return f.adjoint(ops, w, dz)


@dataclass(frozen=True)
class Relative:
    """The relative gradient (Gresele et al. 2020): the exact one times WᵀW, dense only. O(N D²).

    (δ xᵀ + W⁻ᵀ) WᵀW = δ (zᵀW) + W needs no inverse. What becomes of a bias depends on `bias`:
    "plain": Σ δ, and z = W x. "full": W and b as one augmented matrix, so that
    ΔW = δ (zᵀW) + W and Δb = δ (1 + bᵀz) + b with z = W x + b. "gresele": the same without
    the last "+ b", as in the authors' code.
    """

    bias: str = "plain"
    learns_inverse: ClassVar[bool] = False

    def __post_init__(self):
        if self.bias not in ("plain", "gresele", "full"):
            raise UsageError(
                f"bias of the relative gradient is {self.bias!r}: choose plain, gresele or full"
            )

    def backward(self, ctx, *, f, g, p, x, z0, dz, grads):
        ops, linalg, w, b = ctx.ops, ctx.ops.linalg, p["W"], p.get("b")
        augmented = b is not None and self.bias != "plain"
        z = z0 + b if augmented else z0
        linalg.scale_into(grads["W"], 1.0, w, 1, ctx.volume)
        f.weight_grad(ops, dz, f.adjoint(ops, w, z), out=grads["W"], add=True)
        if augmented:
            # Σ_n δ_n (1 + bᵀ z_n)
            linalg.matmul(1 + linalg.matmul(b[None, :], z.T), dz, out=grads["b"][None, :])
            if self.bias == "full":
                grads["b"] += ctx.volume * b
        else:
            _bias_gradient(ops, dz, grads)
        return f.adjoint(ops, w, dz)


Rule = SelfNormalizing | Exact | Relative


def _bias_gradient(ops, dz, grads) -> None:
    """G_b = Σ δ_z over samples and pixels, where the layer has a bias."""
    if "b" in grads:
        ops.channels.sum(dz, out=grads["b"])
