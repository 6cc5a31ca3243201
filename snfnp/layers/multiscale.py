"""Squeeze and split prior (Dinh et al. 2016), of flows with several scales.

Derivation: derivations/13-actnorm-and-1x1.md and 15-split-prior-and-recomputation.md.
"""

from dataclasses import dataclass

from snfnp.errors import UsageError
from snfnp.layers.base import Layer


@dataclass(frozen=True)
class Squeeze(Layer):
    """(H, W, C) -> (H/2, W/2, 4C), channel c·4 + dy·2 + dx: a permutation, so ldj is 0. O(N D)."""

    cheap_exact_inverse = True

    def output_shape(self, shape):
        height, width, channels = shape
        if height % 2 or width % 2:
            raise UsageError(f"a squeeze needs an even height and width, found {height} × {width}")
        return height // 2, width // 2, 4 * channels

    def forward(self, ops, p, x):
        self.output_shape(x.shape[1:])
        return ops.channels.squeeze(x), 0, {}

    def inverse(self, ops, p, z):
        return ops.channels.unsqueeze(z)

    def backward(self, ctx, p, cache, dz, grads):
        """The transpose of a permutation is its inverse."""
        return ctx.ops.channels.unsqueeze(dz)


@dataclass(frozen=True)
class SplitPrior(Layer):
    """(z₁, z₂) = coupling(x): z₁, half of the channels, goes on; z₂ leaves the flow as a latent.

    Parameters: the coupling's.

    Args:
        coupling: the layer before the split, usually an `AffineCoupling`: with z₂ ~ N(0, I), x₂ is
            then Gaussian, its mean and variance learned functions of x₁ (Kingma & Dhariwal 2018).
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
        xp = ops.xp
        z, ldj, cache = self.coupling.forward(ops, p, x)
        half = z.shape[-1] // 2
        latent = xp.ascontiguousarray(z[..., half:])
        return xp.ascontiguousarray(z[..., :half]), ldj, {"coupling": cache, "latent": latent}

    def inverse(self, ops, p, z, latent):
        return self.coupling.inverse(ops, p, ops.xp.concatenate([z, latent], axis=-1))

    def backward(self, ctx, p, cache, dz, grads, dlatent):
        """Both halves together are the coupling's δ_z."""
        delta = ctx.ops.xp.concatenate([dz, dlatent], axis=-1)
        return self.coupling.backward(ctx, p, cache["coupling"], delta, grads)
