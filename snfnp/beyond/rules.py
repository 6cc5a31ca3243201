"""Rules for Eq. 31, the error of g(f(x)) along a few random directions, the probes; and for f and g
as encoder and decoder of a small Gaussian noise (paper, A.4).

Derivation: derivations/19-jacobian-vector-products.md and 20-variational.md.
"""

import math
from dataclasses import dataclass
from functools import cache
from typing import ClassVar, NamedTuple

import numpy as np

from snfnp.errors import UsageError
from snfnp.flow import layer_key
from snfnp.models import LARGEST_SIGMA, SMALLEST_SIGMA
from snfnp.ops import RandomKey
from snfnp.rules import Rule, SelfNormalizing
from snfnp.training.update import TrainingState

_FORWARD = SelfNormalizing("forward")


def draw_probes(ops, key: RandomKey, count: int, x):
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
        f.weight_grad(ops, delta, probes, out=grads["W"], add=True)
        g.weight_grad(ops, e, moved, out=grads["R"], add=True)
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


class Drawn(NamedTuple):
    """ν (P, ...), T(W) ν, and the place in the batch of the first sample, which determines the
    samples' shares."""

    nu: object
    moved: object
    first: int = 0


@dataclass(frozen=True)
class Variational(Rule):
    """q(z|x) = N(f(x), σ² T(W) T(W)ᵀ) and p(x|z) = N(g(z), σ² I) in every linear layer. O(N D²).

    A training step passes on z = f(x + σε), and ascends

        log p^f − Σ_n ‖T(R) T(W) x_n − x_n‖² / (2σ²N) − ½ ‖T(R) T(W)‖²_F

    which is the `forward` objective at λ = 1/(2σ²) = `lam` and one more term. Samples share P draws
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
    objective: ClassVar[str] = "variational"

    def __post_init__(self):
        if not SMALLEST_SIGMA <= self.sigma <= LARGEST_SIGMA:
            bounds = f"from {SMALLEST_SIGMA:g} to {LARGEST_SIGMA:g}"
            raise UsageError(f"sigma is {self.sigma:g}: it must be positive, {bounds}")
        if self.vectors < 1:
            raise UsageError(f"noise_vectors is {self.vectors}: it must be at least 1")

    @property
    def lam(self) -> float:
        """1/(2σ²): the weight of the reconstruction error."""
        return 1 / (2 * self.sigma**2)

    def perturb(self, ops, *, f, p, z, cache, key, first=0):
        """z + σ T(W) ε = f(x + σε), for z = f(x); the noise goes into the cache, as "noise". first:
        the place of x[0] in the batch."""
        x = cache["x"]
        nu = ops.random.normal(key, (self.vectors, *x.shape[1:]), x.dtype)
        moved = f.apply(ops, p["W"], nu)
        shares = ops.constant(_shares(len(x), self.vectors, self.sigma, first), x.dtype)
        step = ops.linalg.matmul(shares, moved.reshape(self.vectors, -1))
        cache["noise"] = Drawn(nu, moved, first)
        return z + step.reshape(z.shape)

    def backward(self, ctx, *, f, g, p, cache, dz, grads):
        """The rule of `forward`, and, if the forward pass had noise, with E = T(R) T(W) ν:

            G_W += (Sᵀ δ_z − T(R)ᵀ E / P) ⋆ ν        G_R += −E / P ⋆ T(W) ν

        S are the shares: Sᵀ δ_z ⋆ ν = Σ_n δ_z,n ⋆ σε_n, what the noise in x adds to δ_z ⋆ x.
        """
        result = _FORWARD.backward(ctx, f=f, g=g, p=p, cache=cache, dz=dz, grads=grads)
        if "noise" not in cache:
            return result
        ops, r, (nu, moved, first) = ctx.ops, p["R"], cache["noise"]
        each = -1 / self.vectors
        shares = ops.constant(_shares(len(dz), self.vectors, self.sigma, first).T, dz.dtype)
        taken = ops.linalg.matmul(shares, dz.reshape(len(dz), -1)).reshape(moved.shape)
        if not ctx.owns_shared_terms:  # Sᵀ δ_z is of this slice's samples, E of none
            f.weight_grad(ops, taken, nu, out=grads["W"], add=True)
            return result
        error = g.apply(ops, r, moved)
        delta = ops.linalg.axpby(1.0, taken, each, g.adjoint(ops, r, error))
        f.weight_grad(ops, delta, nu, out=grads["W"], add=True)
        g.weight_grad(ops, each * error, moved, out=grads["R"], add=True)
        return result


class Noise:
    """Noise of a training step in the outputs of layers with this rule: noise(place, z, cache).
    key: of the step; its `first` is the place in the batch of the first sample."""

    def __init__(self, ops, flow, params, key):
        self._ops, self._layers, self._params, self._key = ops, flow.layers, params, key

    def __call__(self, place: int, z, cache):
        name, layer = self._layers[place]
        if not (layer.learns_inverse and isinstance(layer.rule, Variational)):
            return z
        p, how = self._params[name], {"key": layer_key(self._key, place), "first": self._key.first}
        return layer.rule.perturb(self._ops, f=layer.map, p=p, z=z, cache=cache, **how)


@cache
def _shares(samples: int, vectors: int, sigma: float, first: int) -> np.ndarray:
    """σ (N, P): the noise of sample n = first, first + 1, … is Σ_j σ_nj ν_j. ±σ in one place of a
    row, 0 elsewhere."""
    shares, n = np.zeros((samples, vectors)), np.arange(first, first + samples)
    shares[n - first, n // 2 % vectors] = sigma * (1 - 2 * (n % 2))
    shares.flags.writeable = False
    return shares
