"""Squeeze: space to depth, 2 × 2 (Dinh et al. 2016).

Derivation: derivations/13-actnorm-and-1x1.md.
"""

from __future__ import annotations

from dataclasses import dataclass

from snfnp.errors import UsageError
from snfnp.layers.base import Parameterless


@dataclass(frozen=True)
class Squeeze(Parameterless):
    """(H, W, C) -> (H/2, W/2, 4C), channel c·4 + dy·2 + dx. A permutation: ldj is 0. O(N D)."""

    cheap_exact_inverse = True

    def output_shape(self, shape):
        height, width, channels = shape
        if height % 2 or width % 2:
            raise UsageError(
                f"images of {height} × {width} pixels do not survive a squeeze: it needs an even "
                "height and width"
            )
        return height // 2, width // 2, 4 * channels

    def forward(self, ops, p, x):
        height, width, channels = self.output_shape(x.shape[1:])
        cells = x.reshape(len(x), height, 2, width, 2, channels // 4)  # n, y, dy, x, dx, c
        z = ops.xp.ascontiguousarray(cells.transpose(0, 1, 3, 5, 2, 4))
        return z.reshape(len(x), height, width, channels), 0, {}

    def inverse(self, ops, p, z):
        _, height, width, channels = z.shape
        cells = z.reshape(len(z), height, width, channels // 4, 2, 2)  # n, y, x, c, dy, dx
        x = ops.xp.ascontiguousarray(cells.transpose(0, 1, 4, 2, 5, 3))
        return x.reshape(len(z), 2 * height, 2 * width, channels // 4)

    def backward(self, ctx, p, cache, dz, grads):
        """The transpose of a permutation is its inverse."""
        return self.inverse(ctx.ops, p, dz)

    def jvp(self, ops, p, cache, dx):
        return self.forward(ops, p, dx)[0]

    def jvp_backward(self, ops, p, cache, dx, delta, grads):
        return 0, self.inverse(ops, p, delta)

    def jvp_solve(self, ops, p, cache, dz, transposed=False):
        """The inverse permutation; transposed, the permutation itself."""
        return self.forward(ops, p, dz)[0] if transposed else self.inverse(ops, p, dz)
