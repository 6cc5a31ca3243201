"""Squeeze (Dinh et al. 2016). Derivation: derivations/13-actnorm-and-1x1.md."""

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
