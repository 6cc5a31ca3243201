"""Sums over channels, shifts and scales, squeezes and log-densities in array terms.

See derivations/13-actnorm-and-1x1.md and derivations/02-notation.md.
"""

import math

from snfnp.ops.group import OperationGroup


class Channels(OperationGroup):
    def sum(self, x, out=None):
        """Σ over samples and pixels: x (N, ..., C) -> (C,). O(N D)."""
        # over samples first: long rows: channels alone would make very short ones
        return x.sum(axis=0).reshape(-1, x.shape[-1]).sum(axis=0, out=out)

    def squeeze(self, x):
        """Space to depth: x (N, 2H, 2W, C) -> (N, H, W, 4C), channel c·4 + dy·2 + dx. O(N D)."""
        n, height, width, channels = x.shape
        z = self.xp.stack([x[:, dy::2, dx::2] for dy in (0, 1) for dx in (0, 1)], axis=-1)
        return z.reshape(n, height // 2, width // 2, 4 * channels)

    def unsqueeze(self, z):
        """The inverse permutation: z (N, H, W, 4C) -> (N, 2H, 2W, C). O(N D)."""
        n, height, width, channels = z.shape
        x = self.xp.empty((n, 2 * height, 2 * width, channels // 4), z.dtype)
        for place in range(4):
            x[:, place // 2 :: 2, place % 2 :: 2] = z[..., place::4]
        return x

    def shift(self, x, b):
        """x + b with one b for every value of a sample, or for every channel: x (N, ..., C), b
        (..., C) or (C,). O(N D)."""
        return x + b

    def shift_scale(self, x, sign, b, factor, s, out=None):
        """y = (x + sign · b) exp(factor · s): x (N, ..., C), b and s (C,) -> y, and
        ldj (N,) = factor · H W Σ s. O(N D)."""
        xp = self.xp
        y = xp.add(x, per_value(xp, sign * b, x), out=out)
        y *= per_value(xp, xp.exp(factor * s), x)
        return y, xp.zeros(len(x), x.dtype) + factor * pixels(x) * s.sum()

    def scale_shift(self, z, s, t):
        """x = z eˢ + t, exact. O(N D)."""
        x = z * per_value(self.xp, self.xp.exp(s), z)
        x += per_value(self.xp, t, z)
        return x

    def shift_scale_backward(self, dy, y, sign, factor, s, dldj, out):
        """δ_x = δ_y exp(factor · s); G_b = sign Σ δ_x; G_s = factor (Σ δ_y y + H W Σ ∂L/∂ldj).

        dy, y (N, ..., C), s (C,), dldj (N,) or None, out = (G_b, G_s), both (C,) -> dx. O(N D).
        """
        g_b, g_s = out
        dx = dy * per_value(self.xp, self.xp.exp(factor * s), dy)
        g_b[...] = sign * self.sum(dx)
        volume = 0 if dldj is None else pixels(dy) * dldj.sum()
        g_s[...] = factor * (self.sum(dy * y) + volume)
        return dx

    def gaussian_log_density(self, z):
        """log N(z; 0, I) per sample: z (N, ...) -> (N,), in nats. O(N D)."""
        z = z.reshape(len(z), math.prod(z.shape[1:]))
        constant = 0.5 * z.shape[1] * math.log(2 * math.pi)
        return -0.5 * self.xp.einsum("nd,nd->n", z, z) - constant

    def is_finite(self, x) -> bool:
        """True if every value of an array is finite. Waits for the device."""
        return bool(self.xp.isfinite(x).all())

    def total(self, terms):
        """The sum of one or more arrays (N,), in their order: the log-densities of a chain."""
        first, *rest = terms
        return sum(rest, start=first)


def per_value(xp, values, x):
    """Values (C,) for all values (..., C) of a sample of x (N, ..., C): with rows as long as x's
    NumPy computes several times as fast as with those of a few channels."""
    return xp.ascontiguousarray(xp.broadcast_to(values, x.shape[1:]))


def pixels(x) -> int:
    """H W of images (N, H, W, C); 1 of rows (N, C)."""
    return math.prod(x.shape[1:-1])
