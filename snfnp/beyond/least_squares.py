"""R of a convolution is the best of its kernel size, found from W alone at every step.

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

    T(W)⁻¹ is the series Σ_k Eᵏ T(R) with E = I − T(R) T(W). In the gradient of W its first two
    terms stand exactly. Those after them, up to k = `terms`, are estimated with `probes` random
    images ν of ±1, since E[(S ν) νᵀ] = S for every matrix S; they are drawn anew at every step.

    Where ‖E‖²_F / D is above `tolerance`, W is moved down that error too, with the weight
    `stiffness` times the excess: the series converges if E is small.

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
                pull = -2 * self.stiffness * excess * best.error_grad()
                grads["W"] += pull.astype(w.dtype)
        return f.adjoint(ops, w, dz), Measured(error, updates={"R": best.r.astype(w.dtype)})
