"""Exact log|det T(w)|, its gradient and T(w)⁻¹ for a zero-padded convolution, by image rows.

T(w) (HWC × HWC) is block-tridiagonal with constant blocks, so elimination by blocks takes
O(H/p (pWC)³) operations for kernels of height 2p + 1 instead of O((HWC)³); W should not be much
larger than H. Where it breaks down, T(w) is written out. Arguments and precision are those of
`snfnp.maps.explicit`.
Derivation: derivations/10-block-tridiagonal.md.
"""

import math
from dataclasses import dataclass

import numpy as np

from snfnp.errors import SingularMatrixError
from snfnp.maps import explicit
from snfnp.maps.base import Shape
from snfnp.ops import Array, Ops

# The largest max(‖D_i‖, ‖(L B U)‖) ‖D_i⁻¹‖ (Frobenius) the recursion accepts: results are exact for
# a matrix within about 2e-10 of T. Beyond it elimination with pivoting decides.
GROWTH_LIMIT = 1e6
# The D_i have converged once ‖D_{i+1} − D_i‖ <= STOP ‖D_i‖: leaving out the rest is then the same
# as perturbing B in each remaining block by that much, about what rounding B once does.
STOP = float(np.finfo(np.float64).eps)


@dataclass(frozen=True)
class BlockLU:
    """Block LU of a block-tridiagonal T with constant blocks (lower, B, upper), without pivoting.

    D_1 = B, D_{i+1} = B − L S_i with S_i = D_i⁻¹ U. inverses[i] = D_i⁻¹ and ratios[i] = S_i; from
    `converged` on, but for a smaller last block, all are the same arrays. The last block of an
    H that p does not divide is the leading part of a full one.
    """

    ops: Ops
    kernel: Shape
    shape: Shape
    lower: Array
    inverses: list
    ratios: list
    converged: int
    log_det: float

    @classmethod
    def of(cls, ops: Ops, w: Array, shape: Shape) -> "BlockLU | None":
        """The factors, or None if elimination without pivoting is not accurate."""
        height, width, channels = shape
        rows = max(1, len(w) // 2)  # p: the image rows of a block
        count = -(-height // rows)
        size = rows * width * channels
        last = (height - (count - 1) * rows) * width * channels
        strip = explicit.strip(ops, w, rows, 3 * rows, width).reshape(size, 3 * size)
        lower, diagonal, upper = (strip[:, k * size : (k + 1) * size] for k in range(3))
        minus_lower = -lower
        (strip_norm,) = ops.linalg.norms(strip)

        inverses = []
        ratios = []
        converged = count
        log_det = 0.0
        d = diagonal
        with ops.linalg.chain_of_products(size):
            while len(inverses) < count:
                left = count - len(inverses)
                copies = 1
                d = d if left > 1 else d[:last, :last]
                try:
                    inverse, log_abs_det = ops.linalg.inverse_and_log_abs_det(d)
                except SingularMatrixError:
                    return None
                measured = [d, inverse]
                if left > 1:
                    ratio = ops.linalg.matmul(inverse, upper)
                    following = ops.linalg.matmul_add(
                        minus_lower, ratio, diagonal.copy()
                    )
                    measured.append(following - d)
                norm, inverse_norm, *change = ops.linalg.norms(*measured)
                # also if it is NaN
                if not max(norm, strip_norm) * inverse_norm <= GROWTH_LIMIT:
                    return None
                if left > 1:
                    if change[0] <= STOP * norm:
                        converged = len(inverses)
                        copies = left if last == size else left - 1
                    d = following
                    ratios += copies * [ratio]
                inverses += copies * [inverse]
                log_det += copies * log_abs_det
        return cls(ops, w.shape, shape, lower, inverses, ratios, converged, log_det)

    def log_det_grad(self) -> Array:
        """T⁻ᵀ summed over each tap's positions (Eq. 13, term 2): the blocks of T⁻¹ beside its
        diagonal, from the last to the first, summed as they come.

        G_{i,i+1} = −S_i G_{i+1}, G_{i+1,i} = −G_{i+1} K_i with K_i = L D_i⁻¹, and
        G_i = D_i⁻¹ + S_i G_{i+1} K_i. They too converge away from the ends.
        """
        xp = self.ops.xp
        size = len(self.lower)
        above, diagonal, below = (xp.zeros((size, size)) for _ in range(3))
        g = self.inverses[-1]
        diagonal[: len(g), : len(g)] = g
        i = len(self.inverses) - 2
        inverse = None
        with self.ops.linalg.chain_of_products(size):
            while i >= 0:
                if inverse is not self.inverses[i]:
                    inverse = self.inverses[i]
                    k = self.lower @ inverse
                part = len(g)  # less than `size` beside a smaller last block
                right = self.ratios[i][:, :part] @ g
                following = self.ops.linalg.matmul_add(
                    right, k[:part], self.inverses[i].copy()
                )
                steps = 1
                if i > self.converged and part == size:
                    change, norm = self.ops.linalg.norms(following - g, following)
                    if change <= STOP * norm:
                        steps = i - self.converged + 1
                above[:, :part] += steps * right
                self.ops.linalg.matmul_add(steps * g, k[:part], below[:part])
                g = following
                diagonal += steps * g
                i -= steps
        # ∂ log|det T| / ∂T_ab = (T⁻¹)_ba: what stands above T's diagonal goes with G's below it
        strip = xp.concatenate((-above.T, diagonal.T, -below.T), axis=1)
        rows = size // math.prod(self.shape[1:])
        return explicit.gather(self.ops, strip, self.kernel, self.shape[1], rows)

    def solve(self, z: Array) -> Array:
        """Forward and back substitution for the rows z (N, HWC), block by block.
        O(N H/p (pWC)²)."""
        x = self.ops.xp.array(z)
        size = len(self.lower)
        count = len(self.inverses)
        blocks = [x[:, i * size : (i + 1) * size] for i in range(count)]  # views
        with self.ops.linalg.chain_of_products(max(size, len(x))):
            for i, block in enumerate(blocks):
                if i > 0:
                    block -= blocks[i - 1] @ self.lower[: block.shape[1]].T
                block[...] = block @ self.inverses[i].T
            for i in reversed(range(count - 1)):
                blocks[i] -= (
                    blocks[i + 1] @ self.ratios[i][:, : blocks[i + 1].shape[1]].T
                )
        return x
