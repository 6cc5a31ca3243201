"""The inverse of a causal 2×2 convolution in array terms: substitution along anti-diagonals.

The convolution itself is `ops.conv.forward`: with a kernel of even size it pads kH // 2 rows on
top and kW // 2 columns on the left, and nothing at the other two sides.

Derivation: derivations/11-emerging.md.
"""

from __future__ import annotations

from snfnp.ops.room import Room


class Causal(Room):
    def __init__(self, device, linalg):
        super().__init__(device)
        self.linalg = linalg

    def inverse(self, z, k):
        """The images x with conv.forward(x, k) = z, for a causal kernel k (2, 2, C, C).

        k[1, 1] is upper triangular (I, O): output channel o of a pixel depends on its input
        channels i <= o, and on all channels of the pixels above, on the left and above the left.
        Pixels with equal y + x do not depend on each other: H + W - 1 steps of all samples.
        z (N, H, W, C) -> x (N, H, W, C). O(N H W C²). The diagonal of k[1, 1] has no zero.
        """
        xp = self.xp
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
        return xp.ascontiguousarray(padded[:, 1:, 1:])
