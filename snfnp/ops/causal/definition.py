"""Causal 2×2 convolutions in array terms, and their inverse: substitution along anti-diagonals.

A convolution itself is `ops.conv.correlate`: with a kernel of even size it pads kH // 2 rows on top
and kW // 2 columns on the left, and nothing at the other two sides. The opposite direction is the
same convolution between two turns of the image by 180 degrees.

Of a kernel k (2, 2, C, C) k[1, 1] is the pixel itself, and its output channel o sees the input
channels i <= o alone: the values below the diagonal are never read. `reverse`: the pixel sees those
below and on the right of it instead. See derivations/11-emerging.md.
"""

from snfnp.ops.conv.definition import Conv
from snfnp.ops.group import OperationGroup
from snfnp.ops.linalg.definition import LinearAlgebra


class Causal(OperationGroup):
    linalg: LinearAlgebra
    conv: Conv

    def correlate(self, x, k, b=None, reverse=False):
        """T(k) x + b, x (N, H, W, C), b (C,) or None. O(N H W C²)."""
        k = self._masked(k)
        z = self._turned(self.conv.correlate(self._turned(x, reverse), k), reverse)
        if b is not None:
            z += b
        return z

    def adjoint(self, dz, k, reverse=False):
        """T(k)ᵀ δ: the convolution in the other direction with swapped channels."""
        swapped = self.xp.ascontiguousarray(self._masked(k).swapaxes(2, 3))
        back = not reverse
        return self._turned(self.conv.correlate(self._turned(dz, back), swapped), back)

    def weight_grad(self, delta, x, k, volume, out, reverse=False):
        """The gradient of ⟨δ, T(k) x⟩ + volume · log|det k[1, 1]| with respect to k, into `out`: 0
        for what is never read of k. volume: a number, or an array of shape ()."""
        self.conv.weight_grad(self._turned(delta, reverse), self._turned(x, reverse), out)
        of_log_det = (volume / k[1, 1].diagonal()).astype(out.dtype)
        out[1, 1] = self.xp.triu(out[1, 1]) + self.xp.diag(of_log_det)
        return out

    def inverse(self, z, k, reverse=False):
        """The images x with correlate(x, k) = z. The diagonal of k[1, 1] has no zero.

        Pixels with equal y + x do not depend on each other: H + W - 1 steps of all samples.
        z (N, H, W, C) -> x (N, H, W, C). O(N H W C²).
        """
        xp, k, z = self.xp, self._masked(k), self._turned(z, reverse)
        n, height, width, channels = z.shape
        # x with a row of zeros on top and a column of zeros on the left
        padded = xp.zeros((n, height + 1, width + 1, channels), z.dtype)
        for diagonal in range(height + width - 1):
            row = xp.arange(max(0, diagonal - width + 1), min(height, diagonal + 1))
            column = diagonal - row
            rest = z[:, row, column] - padded[:, row, column] @ k[0, 0]
            rest -= padded[:, row, column + 1] @ k[0, 1]
            rest -= padded[:, row + 1, column] @ k[1, 0]
            pixels = self.linalg.solve(k[1, 1].T, rest.reshape(-1, channels))
            padded[:, row + 1, column + 1] = pixels.reshape(rest.shape)
        return xp.ascontiguousarray(self._turned(padded[:, 1:, 1:], reverse))

    def _masked(self, k):
        k = k.copy()
        k[1, 1] = self.xp.triu(k[1, 1])
        return k

    def _turned(self, images, turn: bool):
        """The images, with rows and columns in the opposite order if `turn` is True."""
        return self.xp.ascontiguousarray(images[:, ::-1, ::-1]) if turn else images
