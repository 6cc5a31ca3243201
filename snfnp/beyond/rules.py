"""Rules for Eq. 31, the error of g(f(x)) along a few random directions, the probes; and for f and g
as encoder and decoder of a small Gaussian noise (paper, A.4).

Derivation: derivations/19-jacobian-vector-products.md and 20-variational.md.
"""

import math
from dataclasses import dataclass
from functools import cache as cached
from typing import ClassVar

import numpy as np

from snfnp.context import BackwardContext, Measured
from snfnp.errors import require_real, require_whole
from snfnp.maps import Map
from snfnp.ops import Array, Ops, RandomKey
from snfnp.rules import Rule, SelfNormalizing
from snfnp.rules.base import Params

_FORWARD = SelfNormalizing("forward")


def draw_probes(ops: Ops, key: RandomKey, count: int, x: Array) -> Array:
    """Probes (count, ...), each like a sample of the batch x (N, ...): rows of signs ν with
    E[ννᵀ] = I, the same on every backend."""
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
        require_whole(self, 1, probes=self.probes)
        require_real(self, math.inf, or_zero=True, weight=self.weight)

    def backward(
        self,
        ctx: BackwardContext,
        maps: tuple[Map, Map],
        p: Params,
        cache: dict,
        dz: Array,
        grads: Params,
    ) -> tuple[Array, Measured]:
        """The plain rule, and with the probes ν and e = T(R) T(W) ν − ν:

        G_W += −(2μ/n) T(R)ᵀ e ⋆ ν        G_R += −(2μ/n) e ⋆ T(W) ν

        Without a key there are no probes: the gradient is the plain rule's.
        """
        dx, measured = super().backward(ctx, maps, p, cache, dz, grads)
        if ctx.key is None:
            return dx, measured
        ops = ctx.ops
        f, g = maps
        r = p["R"]
        probes = draw_probes(ops, ctx.key, self.probes, cache["x"])
        moved = f.apply(ops, p["W"], probes)
        # e of Eq. 31, whose square has the gradients 2 e (Wν)ᵀ and 2 Rᵀe νᵀ if maps are dense
        e = g.apply(ops, r, moved)
        measured.jacobian_error = ops.linalg.residual(e, probes)
        e *= -2 * self.weight / self.probes
        f.weight_grad(ops, g.adjoint(ops, r, e), probes, out=grads["W"], add=True)
        g.weight_grad(ops, e, moved, out=grads["R"], add=True)
        return dx, measured


@dataclass(frozen=True)
class Variational(Rule):
    """q(z|x) = N(f(x), σ² T(W) T(W)ᵀ) and p(x|z) = N(g(z), σ² I) in every linear layer. O(N D²).

    A training step passes on z = f(x + σε), and ascends

        log p^f − Σ_n ‖T(R) T(W) x_n − x_n‖² / (2σ²N) − ½ ‖T(R) T(W)‖²_F

    which is the `forward` objective at λ = 1/(2σ²) and one more term. Samples share P draws
    cyclically, the first of each pair ε, the second −ε, so that the products with them cost P rows
    and not N; the last term is the expectation of ½ ‖T(R) T(W) ν‖², averaged over the same P.

    Args:
        sigma: σ.
        vectors: P.

    Raises:
        UsageError: if a setting is out of range.
    """

    sigma: float
    vectors: int = 8
    learns_inverse: ClassVar[bool] = True
    adds_noise: ClassVar[bool] = True
    objective: ClassVar[str] = "variational"

    def __post_init__(self):
        require_real(self, math.inf, sigma=self.sigma)
        require_whole(self, 1, vectors=self.vectors)

    @property
    def lam(self) -> float:
        """λ = 1/(2σ²), the weight of the reconstruction error."""
        return 1 / (2 * self.sigma**2)

    def perturb(
        self,
        ops: Ops,
        f: Map,
        p: Params,
        z: Array,
        cache: dict,
        key: RandomKey,
    ) -> Array:
        """Add noise to a forward pass.

        Args:
            z: f(x) (N, ...).
            cache: the layer's, with x; gets the noise as "noise".
            key: of the noise in this layer and step.

        Returns:
            z + σ T(W) ε = f(x + σε) (N, ...).
        """
        x = cache["x"]
        nu = ops.random.normal(key, (self.vectors, *x.shape[1:]), x.dtype)
        moved = f.apply(ops, p["W"], nu)
        cache["noise"] = nu, moved
        factors = ops.constant(_factors(len(x), self.vectors, self.sigma), x.dtype)
        return z + ops.linalg.matmul(factors, moved.reshape(self.vectors, -1)).reshape(
            z.shape
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
        """The rule of `forward`, and, if the forward pass had noise, with E = T(R) T(W) ν:

            G_W += (Sᵀ δ_z − T(R)ᵀ E / P) ⋆ ν        G_R += −E / P ⋆ T(W) ν

        S are the factors: Sᵀ δ_z ⋆ ν = Σ_n δ_z,n ⋆ σε_n, what the noise in x adds to δ_z ⋆ x.
        """
        result = _FORWARD.backward(ctx, maps, p, cache, dz, grads)
        if "noise" not in cache:
            return result
        ops = ctx.ops
        f, g = maps
        nu, moved = cache["noise"]
        factors = ops.constant(_factors(len(dz), self.vectors, self.sigma).T, dz.dtype)
        delta = ops.linalg.matmul(factors, dz.reshape(len(dz), -1)).reshape(moved.shape)
        r = p["R"]
        weight = -1 / self.vectors
        error = g.apply(ops, r, moved)
        delta = ops.linalg.axpby(1.0, delta, weight, g.adjoint(ops, r, error))
        g.weight_grad(ops, weight * error, moved, out=grads["R"], add=True)
        f.weight_grad(ops, delta, nu, out=grads["W"], add=True)
        return result


@cached
def _factors(samples: int, vectors: int, sigma: float) -> np.ndarray:
    """σ (N, P): the noise of sample n is Σ_j σ_nj ν_j. ±σ in one column of a row, 0 elsewhere."""
    n = np.arange(samples)
    factors = np.zeros((samples, vectors))
    factors[n, n // 2 % vectors] = sigma * (1 - 2 * (n % 2))
    factors.flags.writeable = False
    return factors
