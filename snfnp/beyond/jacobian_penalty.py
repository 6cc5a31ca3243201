"""Eq. 31 of a linear layer: what g(f(x)) leaves over along a few random directions, the probes.

Probes are rows of signs ν with E[ννᵀ] = I, the same on every backend. They are appended to the
batch's rows, so that one product takes both.
Derivation: derivations/18-jacobian-vector-products.md.
"""

import math
from dataclasses import dataclass

import numpy as np

from snfnp.context import Measured
from snfnp.errors import UsageError
from snfnp.ops import Epilogue, RandomKey
from snfnp.rules.self_normalizing import SelfNormalizing
from snfnp.training.state import TrainingState


def draw_probes(ops, key: RandomKey, count: int, x):
    """Probes (count, ...), each like a sample of the batch x (N, ...); key: of a layer and step."""
    return ops.random.rademacher(key, (count, *x.shape[1:]), x.dtype)


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
        if self.probes < 1:
            raise UsageError(f"probes is {self.probes}: at least 1 is needed")
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


class JacobianMean(TrainingState):
    """The average of Eq. 31 over steps, as two numbers: their sum and their number."""

    key, initial, terms = ("jacobian", "sum_and_count"), np.zeros(2), 1

    def __init__(self, ops):
        self.ops = ops

    def collect(self, measured, share) -> None:
        """Each layer's is measured in one slice alone."""
        errors = [m.jacobian_error for m in measured.values() if m.jacobian_error is not None]
        self.sums[...] = self.ops.channels.total(errors) if errors else 0.0

    def update(self, figures, samples, squares, failed) -> tuple:
        self.values[:1] += self.sums
        self.values[1:] += 1
        return figures

    def figures(self) -> dict[str, float]:
        total, count = self.ops.to_host(self.values).tolist()
        self.values[...] = 0
        return {"jacobian_error": total / count if count else 0.0}
