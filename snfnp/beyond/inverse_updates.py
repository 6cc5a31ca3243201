"""Rules that find R from this step alone, without a gradient of it: for convolutions, the best one
of its kernel size for W; for dense layers, the nearest one that takes outputs back to inputs.

Derivation: derivations/21-learning-the-inverse.md.
"""

from dataclasses import dataclass
from typing import ClassVar

from snfnp.beyond.left_inverse import LeftInverse
from snfnp.context import Measured
from snfnp.errors import UsageError
from snfnp.rules.base import Rule, forward_gradient

_LOGGED = 10  # images of a batch whose reconstruction error is logged: nothing is learned from it


@dataclass(frozen=True)
class LeastSquares(Rule):
    """R = argmin ‖T(R) T(W) − I‖²_F (`LeftInverse`), W ascends the likelihood alone. No λ, no data.

    Of the series T(W)⁻¹ = Σ_k Eᵏ T(R) with E = I − T(R) T(W), the gradient of W has the first two
    terms exactly; those up to k = `terms` are estimated with `probes` random images of ±1, drawn
    anew at every step. If ‖E‖²_F / D is above `tolerance`, W is moved down that error too, with the
    weight `stiffness` times the excess: the series converges if E is small.
    For 1×1 convolutions R is W⁻¹, and the gradient is exact.
    """

    probes: int = 2
    terms: int = 12
    tolerance: float = 0.04
    stiffness: float = 10.0
    learns_inverse: ClassVar[bool] = True
    updates: ClassVar[tuple[str, ...]] = ("R",)

    def check_maps(self, f, g) -> None:
        if not (f.has_left_inverse and g.has_left_inverse):
            raise UsageError("a least-squares inverse needs single convolutions")

    def backward(self, ctx, *, f, g, p, cache, dz, grads):
        ops, w, x, part = ctx.ops, p["W"], cache["x"], ctx.part
        shape, error = x.shape[1:], None
        # of the R that the parameters hold, which every slice has: the same however a batch is cut
        few = min(max(_LOGGED - part.first, 0), len(x))
        if few:
            _, error = g.residual(ops, p["R"], cache["z0"][:few], x[:few], 0.0)
            error = error * (few / min(_LOGGED, part.total) * part.total / part.count)
        if not ctx.leads:
            forward_gradient(ctx, f=f, term=None, x=x, dz=dz, grads=grads)
            return f.adjoint(ops, w, dz), Measured(error, updates={"R": 0})
        best = LeftInverse(ops, f, g, w, shape)

        forward_gradient(ctx, f=f, term=best.neumann_term(), x=x, dz=dz, grads=grads, multiple=1)
        if not f.inverts_in_kind:
            nu = ops.random.rademacher(ctx.key, (self.probes, *shape), w.dtype)
            tail = best.rest_of_series(nu, self.terms)
            nu *= ctx.volume / self.probes
            f.weight_grad(ops, nu, tail, out=grads["W"], add=True)
            excess = ops.xp.maximum(best.error - self.tolerance, 0)
            # a device is not waited for: there it may add 0
            if ops.known_on_host(excess) is not False:
                grads["W"] -= (2 * self.stiffness * excess * best.error_grad()).astype(w.dtype)
        return f.adjoint(ops, w, dz), Measured(error, updates={"R": best.r.astype(w.dtype)})


@dataclass(frozen=True)
class Projection(Rule):
    """Dense layers: R is projected on every batch, W ascends the likelihood alone. No λ.

    Block Kaczmarz: R ← R + (X − Z0 Rᵀ)ᵀ (Z0 Z0ᵀ + ε I)⁻¹ Z0 takes the batch's Z0 to its X, up to
    ε, and differs least from R. ε: `ridge` times the mean of Z0 Z0ᵀ's diagonal.
    It needs all samples of a step at once: no batch can be cut.
    O(N D² + N² D + N³), two products of O(N D²); an R with a gradient takes three.
    """

    ridge: float = 1e-3
    learns_inverse: ClassVar[bool] = True
    updates: ClassVar[tuple[str, ...]] = ("R",)

    def check_maps(self, f, g) -> None:
        if f.shares_weights or g.shares_weights:
            raise UsageError("a projected inverse needs a dense layer")

    def backward(self, ctx, *, f, g, p, cache, dz, grads):
        ops, linalg, x, z0 = ctx.ops, ctx.ops.linalg, cache["x"], cache["z0"]
        residual, error = g.residual(ops, p["R"], z0, x, 0.0)
        # N unknowns per row of R, in double precision: their matrix is as ill-conditioned as 1/ε
        gram = linalg.matmul(z0, z0.T).astype("float64")
        diagonal = gram.reshape(-1)[:: len(gram) + 1]
        diagonal += self.ridge * (diagonal.sum() / len(gram))
        inverse = linalg.solve_spd(gram, ops.xp.eye(len(gram)), overwrite=True)
        rows = linalg.matmul((-inverse).astype(z0.dtype), z0)
        projected = p["R"].copy()
        g.weight_grad(ops, residual, rows, out=projected, add=True)
        forward_gradient(ctx, f=f, term=f.flip(projected), x=x, dz=dz, grads=grads)
        return f.adjoint(ops, p["W"], dz), Measured(error, updates={"R": projected})
