"""Self-normalizing rules that look at a layer along a few random directions, the probes.

Probes are rows of signs ν with E[ννᵀ] = I, the same on every backend. They are appended to the
batch's rows, so that one product takes both.
Derivation: derivations/18-jacobian-vector-products.md.
"""

import math
from dataclasses import dataclass

from snfnp.beyond.chain import Chain
from snfnp.context import Measured
from snfnp.errors import UsageError
from snfnp.ops import Epilogue, RandomKey
from snfnp.rules.base import bias_gradient
from snfnp.rules.self_normalizing import SelfNormalizing


def draw_probes(ops, key: RandomKey, count: int, x):
    """Probes (count, ...), each like a sample of the batch x (N, ...); key: of a layer and step."""
    return ops.random.rademacher(key, (count, *x.shape[1:]), x.dtype)


def _check_count(count) -> None:
    if count < 1:
        raise UsageError(f"probes is {count}: at least 1 is needed")


@dataclass(frozen=True)
class JacobianPenalty(SelfNormalizing):
    """The self-normalizing rule, and Eq. 31 times `weight` (μ), over `probes` (n) probes.

    For a linear layer both Jacobians are matrices: −(μ/n) Σ ‖e‖², e = T(R) T(W) ν − ν, with the
    expectation −μ ‖T(R) T(W) − I‖²_F. One product of n rows more than the plain rule has, and n
    rows more in four of its six. O((N + n) D²).
    """

    weight: float = 0.2
    probes: int = 4

    def __post_init__(self):
        super().__post_init__()
        _check_count(self.probes)
        if not 0 <= self.weight < math.inf:
            raise UsageError(f"the Jacobian's penalty is {self.weight}: it must be 0 or more")

    @property
    def without_penalty(self) -> SelfNormalizing:
        return SelfNormalizing(self.objective)

    def deltas(self, ctx, f, g, p, cache, dz):
        """The plain rule's deltas, and below them the rows of the probes:

        Δ_W = −(2μ/n) T(R)ᵀ e, beside ν        Δ_R = −(2μ/n) e, beside T(W) ν
        """
        if not ctx.leads:
            return super().deltas(ctx, f, g, p, cache, dz)
        ops, linalg, w, r, (c_f, c_g) = ctx.ops, ctx.ops.linalg, p["W"], p["R"], self.shares
        x, n = cache["x"], len(cache["x"])
        probes = draw_probes(ops, ctx.key, self.probes, x)
        z0 = ops.xp.concatenate((cache["z0"], f.apply(ops, w, probes)))
        delta_r = g.apply(ops, r, z0)
        residual, of_probes = delta_r[:n], delta_r[n:]
        error = linalg.residual(residual, x)
        # e of Eq. 31, whose square has the gradients 2 e (Wν)ᵀ and 2 Rᵀe νᵀ if maps are dense
        jacobian_error = linalg.residual(of_probes, probes)
        of_probes *= -2 * self.weight / self.probes

        delta_w = g.adjoint(ops, r, delta_r)
        linalg.axpby(c_f, dz, ctx.error_factor, delta_w[:n])
        of_r = Epilogue(a=-c_g, y=residual, b=ctx.error_factor, out=residual)
        dx = f.adjoint_then(ops, w, dz, of_r).z
        x = ops.xp.concatenate((x, probes))
        return (delta_w, x), (delta_r, z0), dx, Measured(error, jacobian_error)


@dataclass(frozen=True)
class Probe(SelfNormalizing):
    """flip(R) ⊙ m from `probes` (n) probes: the estimator of free-form flows (Draxler et al. 2024).

    The entries of ν (T(R)ν)ᵀ over the positions of each weight, ν ⋆ T(R)ν, in place of those of
    T(R)ᵀ, which is its expectation; and T(W)ᵀν ⋆ ν in place of T(W)ᵀ. Of rank n, unbiased for the
    self-normalizing gradient, and n rows more in four of its six products. O((N + n) D²).
    """

    probes: int = 1

    def __post_init__(self):
        super().__post_init__()
        _check_count(self.probes)

    def check_maps(self, f, g) -> None:
        if isinstance(g, Chain):
            raise UsageError("probes need an inverse of one layer: choose another rule")

    def backward(self, ctx, *, f, g, p, cache, dz, grads):
        """Δ_W and Δ_R as in the plain rule, and below them the rows of the probes:

        Δ_W = (c v/n) ν, beside T(R) ν        Δ_R = −(c' v/n) T(W)ᵀ ν, beside ν
        """
        if not ctx.leads:  # what the probes estimate has the weight 0
            return super().backward(ctx, f=f, g=g, p=p, cache=cache, dz=dz, grads=grads)
        ops, linalg, concatenate = ctx.ops, ctx.ops.linalg, ctx.ops.xp.concatenate
        w, r, (c_f, c_g), count = p["W"], p["R"], self.shares, self.probes
        x, n = cache["x"], len(cache["x"])
        probes = draw_probes(ops, ctx.key, self.probes, x)
        z0, delta_w = concatenate((cache["z0"], probes)), concatenate((dz, probes))
        delta_r, dx = g.apply(ops, r, z0), f.adjoint(ops, w, delta_w)
        x_and_back = concatenate((x, delta_r[n:]))
        error = linalg.residual(delta_r[:n], x)
        of_error = g.adjoint(ops, r, delta_r[:n])

        linalg.axpby(ctx.error_factor, of_error, c_f, delta_w[:n])
        linalg.scale_into(delta_w[n:], c_f / count, probes, 1, ctx.volume)
        linalg.axpby(-c_g, dx[:n], ctx.error_factor, delta_r[:n])
        linalg.scale_into(delta_r[n:], -c_g / count, dx[n:], 1, ctx.volume)
        ops.run_async(f.weight_grad, ops, delta_w, x_and_back, out=grads["W"])
        ops.run_async(g.weight_grad, ops, delta_r, z0, out=grads["R"])
        ops.run_async(bias_gradient, ops, dz, grads)
        return dx[:n], Measured(error)
