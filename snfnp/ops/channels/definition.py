"""Sums over channels, shifts and scales, squeezes and log-densities in array terms.

See derivations/13-actnorm-and-1x1.md and derivations/02-notation.md.
"""

import math
from collections.abc import Sequence

from snfnp.ops.group import Array, OperationGroup


class Channels(OperationGroup):
    def sum(self, x: Array, out: Array | None = None) -> Array:
        """Σ over samples and pixels: x (N, ..., C) -> (C,). O(N D)."""
        # samples first: rows are then long enough to vectorise
        return x.sum(axis=0).reshape(-1, x.shape[-1]).sum(axis=0, out=out)

    def squeeze(self, x: Array) -> Array:
        """Space to depth: x (N, 2H, 2W, C) -> (N, H, W, 4C), channel c·4 + dy·2 + dx. O(N D)."""
        n, height, width, channels = x.shape
        z = self.xp.stack(
            [x[:, dy::2, dx::2] for dy in (0, 1) for dx in (0, 1)], axis=-1
        )
        return z.reshape(n, height // 2, width // 2, 4 * channels)

    def unsqueeze(self, z: Array) -> Array:
        """The inverse permutation: z (N, H, W, 4C) -> (N, 2H, 2W, C). O(N D)."""
        n, height, width, channels = z.shape
        x = self.xp.empty((n, 2 * height, 2 * width, channels // 4), z.dtype)
        for dy in (0, 1):
            for dx in (0, 1):
                x[:, dy::2, dx::2] = z[..., 2 * dy + dx :: 4]
        return x

    def shift(self, x: Array, b: Array) -> Array:
        """x + b: x (N, ..., C); b (..., C), which is added to each sample, or (C,), to each pixel.
        O(N D)."""
        return x + b

    def shift_scale(
        self,
        x: Array,
        sign: float,
        b: Array,
        factor: float,
        s: Array,
        out: Array | None = None,
    ) -> tuple[Array, Array]:
        """y = (x + sign · b) exp(factor · s): x (N, ..., C), b and s (C,) -> y, and
        ldj (N,) = factor · H W Σ s. O(N D)."""
        xp = self.xp
        y = xp.add(x, self._broadcast(sign * b, x), out=out)
        y *= self._broadcast(xp.exp(factor * s), x)
        return y, xp.zeros(len(x), x.dtype) + factor * pixels(x) * s.sum()

    def scale_shift(self, z: Array, s: Array, t: Array) -> Array:
        """x = z eˢ + t: z (N, ..., C), s and t (C,). O(N D)."""
        x = z * self._broadcast(self.xp.exp(s), z)
        x += self._broadcast(t, z)
        return x

    def shift_scale_backward(
        self,
        dy: Array,
        y: Array,
        sign: float,
        factor: float,
        s: Array,
        dldj: Array | None,
        out: tuple[Array, Array],
    ) -> Array:
        """δ_x = δ_y exp(factor · s); G_b = sign Σ δ_x; G_s = factor (Σ δ_y y + H W Σ ∂L/∂ldj).

        dy, y (N, ..., C), s (C,), dldj (N,) or None, out = (G_b, G_s), both (C,) -> dx. O(N D).
        """
        g_b, g_s = out
        dx = dy * self._broadcast(self.xp.exp(factor * s), dy)
        g_b[...] = sign * self.sum(dx)
        of_ldj = 0 if dldj is None else pixels(dy) * dldj.sum()
        g_s[...] = factor * (self.sum(dy * y) + of_ldj)
        return dx

    def gaussian_log_density(self, z: Array) -> Array:
        """log N(z; 0, I) per sample: z (N, ...) -> (N,), in nats. O(N D)."""
        z = z.reshape(len(z), math.prod(z.shape[1:]))
        squares = self.xp.einsum("nd,nd->n", z, z)
        return -0.5 * (squares + z.shape[1] * math.log(2 * math.pi))

    def is_finite(self, x: Array) -> bool:
        """True if every value of an array is finite. Waits for the device."""
        return bool(self.xp.isfinite(x).all())

    def total(self, terms: Sequence[Array]) -> Array:
        """The sum of one or more arrays (N,), in their order: the log-densities of a chain."""
        return sum(terms[1:], start=terms[0])

    def _broadcast(self, values: Array, x: Array) -> Array:
        """`values` (C,) or (..., C), broadcast to a whole sample (..., C) of x and contiguous.

        NumPy's inner loop then takes all of a sample, not a few channels: several times as fast."""
        if values.shape == x.shape[1:]:
            return self.xp.ascontiguousarray(values)
        sample = self.xp.empty(x.shape[1:], values.dtype)
        sample[...] = values  # `broadcast_to` takes ten times as long
        return sample


def pixels(x: Array) -> int:
    """H W of images (N, H, W, C); 1 of rows (N, C)."""
    return math.prod(x.shape[1:-1])
