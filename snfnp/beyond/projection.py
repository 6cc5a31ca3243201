"""R is projected: the nearest matrix that takes this batch's outputs back to its inputs.

Derivation: derivations/21-learning-the-inverse.md.
"""

from dataclasses import dataclass
from typing import ClassVar

from snfnp.context import Measured
from snfnp.errors import UsageError
from snfnp.rules.base import Rule, forward_gradient


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
