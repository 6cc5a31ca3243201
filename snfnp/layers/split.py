"""Split prior: half of the channels leave the flow as a latent of their own (Dinh et al. 2016).

Derivation: derivations/15-split-prior-and-recomputation.md.
"""

from dataclasses import dataclass

from snfnp.errors import UsageError
from snfnp.layers.base import Layer


@dataclass(frozen=True)
class SplitPrior(Layer):
    """(z₁, z₂) = coupling(x): z₁, the first half of the channels, goes on; z₂ is a latent.

    z₂ is not in the output (see `Layer.latent_shape`): the cache holds it as "latent", `inverse`
    takes it, and `backward` takes its gradient, that of its density in the flow. Parameters: the
    coupling's.

    Args:
        coupling: the layer before the split, usually an `AffineCoupling`, which shifts and scales
            its second half as a function of the first: with z₂ ~ N(0, I) this is a Gaussian of x₂
            whose mean and variance are learned functions of x₁ (Kingma & Dhariwal 2018).
    """

    coupling: Layer

    def __post_init__(self):
        if self.coupling.learns_inverse:
            raise UsageError("a split prior's coupling learns its inverse: put it before the split")

    @property
    def cheap_exact_inverse(self) -> bool:
        return self.coupling.cheap_exact_inverse

    def parameter_shapes(self, shape) -> dict:
        return self.coupling.parameter_shapes(shape)

    def init(self, rng, shape) -> dict:
        return self.coupling.init(rng, shape)

    def output_shape(self, shape):
        *pixels, channels = self.coupling.output_shape(shape)
        if channels % 2:
            raise UsageError(f"a split prior halves the channels: {channels} is an odd number")
        return (*pixels, channels // 2)

    latent_shape = output_shape  # halves are alike

    def forward(self, ops, p, x):
        """x (N, ..., C) -> z₁ (N, ..., C/2), the coupling's ldj (N,)."""
        xp = ops.xp
        z, ldj, cache = self.coupling.forward(ops, p, x)
        half = z.shape[-1] // 2
        latent = xp.ascontiguousarray(z[..., half:])
        return xp.ascontiguousarray(z[..., :half]), ldj, {"coupling": cache, "latent": latent}

    def inverse(self, ops, p, z, latent):
        """(z₁, z₂) -> x; exact if the coupling's inverse is."""
        return self.coupling.inverse(ops, p, ops.xp.concatenate([z, latent], axis=-1))

    def backward(self, ctx, p, cache, dz, grads, dlatent):
        """δ_{z₁}, δ_{z₂} -> δ_x: both halves together are the coupling's δ_z."""
        delta = ctx.ops.xp.concatenate([dz, dlatent], axis=-1)
        return self.coupling.backward(ctx, p, cache["coupling"], delta, grads)
