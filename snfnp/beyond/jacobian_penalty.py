"""Eq. 31 of a linear layer: the error of g(f(x)) along a few random directions, the probes.

Probes are rows of signs ν with E[ννᵀ] = I, the same on every backend.
Derivation: derivations/18-jacobian-vector-products.md.
"""

import math
from dataclasses import dataclass

import numpy as np

from snfnp.errors import UsageError
from snfnp.ops import RandomKey
from snfnp.rules.self_normalizing import SelfNormalizing
from snfnp.training.update import TrainingState


def draw_probes(ops, key: RandomKey, count: int, x):
    """Probes (count, ...), each like a sample of the batch x (N, ...)."""
    return ops.random.rademacher(key, (count, *x.shape[1:]), x.dtype)


@dataclass(frozen=True)
class JacobianPenalty(SelfNormalizing):
    """The self-normalizing rule, and Eq. 31 times μ, over n probes.

    For a linear layer both Jacobians are matrices: −(μ/n) Σ ‖e‖², e = T(R) T(W) ν − ν, with the
    expectation −μ ‖T(R) T(W) − I‖²_F. Five more products, of n rows, than the plain rule.
    O((N + n) D²).

    Args:
        objective: as in `SelfNormalizing`.
        weight: μ.
        probes: n.

    Raises:
        UsageError: if a setting is out of range.
    """

    weight: float = 0.2
    probes: int = 4

    def __post_init__(self):
        super().__post_init__()
        if self.probes < 1:
            raise UsageError(f"probes is {self.probes}: at least 1 is needed")
        if not 0 <= self.weight < math.inf:
            raise UsageError(f"the Jacobian's penalty is {self.weight}: it must be 0 or more")

    def backward(self, ctx, *, f, g, p, cache, dz, grads):
        """The plain rule, and with the probes ν and e = T(R) T(W) ν − ν:

        G_W += −(2μ/n) T(R)ᵀ e ⋆ ν        G_R += −(2μ/n) e ⋆ T(W) ν

        Without a key there are no probes: the gradient is the plain rule's.
        """
        dx, measured = super().backward(ctx, f=f, g=g, p=p, cache=cache, dz=dz, grads=grads)
        if not ctx.owns_shared_terms or ctx.key is None:
            return dx, measured
        ops, w, r = ctx.ops, p["W"], p["R"]
        probes = draw_probes(ops, ctx.key, self.probes, cache["x"])
        moved = f.apply(ops, w, probes)
        # e of Eq. 31, whose square has the gradients 2 e (Wν)ᵀ and 2 Rᵀe νᵀ if maps are dense
        e = g.apply(ops, r, moved)
        jacobian_error = ops.linalg.residual(e, probes)
        e *= -2 * self.weight / self.probes
        delta = g.adjoint(ops, r, e)
        ops.defer(grads, f.weight_grad, ops, delta, probes, out=grads["W"], add=True)
        ops.defer(grads, g.weight_grad, ops, e, moved, out=grads["R"], add=True)
        measured.jacobian_error = jacobian_error
        return dx, measured


class JacobianMean(TrainingState):
    """The average of Eq. 31 over steps, kept as a sum and a count."""

    key, terms = "jacobian.sum_and_count", 1

    def __init__(self, ops):
        self.ops, self.values = ops, ops.asarray(np.zeros(2))

    def collect(self, measured, share) -> None:
        """Each layer is measured in only one slice."""
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
