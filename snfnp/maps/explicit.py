"""T(w) of a convolution written out: the paper's exact baseline. O((HWC)³) time, O((HWC)²) memory.

Kernels w are (kH, kW, I, O), both sizes odd; shape is an image's (H, W, C). All arithmetic is in
double precision.
Derivation: derivations/10-block-tridiagonal.md.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np

from snfnp.maps.base import Shape
from snfnp.ops import Array, Ops


@dataclass(frozen=True)
class Explicit:
    """T(w) for images of this shape. Members raise SingularMatrixError if it is not finite, or
    singular to double precision."""

    ops: Ops
    w: Array
    shape: Shape

    @property
    def log_det(self) -> float:
        """log|det T(w)|."""
        return self._inverted()[1]

    def log_det_grad(self) -> Array:
        """∂ log|det T(w)| / ∂w."""
        inverse, _ = self._inverted()
        height, width, _ = self.shape
        return gather(self.ops, inverse.T, self.w.shape, width, height)

    def solve(self, z: Array) -> Array:
        """The rows x (N, HWC) with T(w) x = z."""
        return self.ops.linalg.solve(matrix(self.ops, self.w, self.shape), z)

    def _inverted(self) -> tuple[Array, float]:
        return self.ops.linalg.checked_inverse(matrix(self.ops, self.w, self.shape))


def matrix(ops: Ops, w: Array, shape: Shape) -> Array:
    """T(w) (HWC, HWC) of Eq. 12: vec(z) = T(w) vec(x)."""
    height, width, channels = shape
    size = height * width * channels
    return strip(ops, w, height, height, width).reshape(size, size)


def strip(ops: Ops, w: Array, rows: int, columns: int, width: int) -> Array:
    """`rows` image rows of T(w) as an array (rows, W, O, columns, W, I).

    columns is `rows` (T of an image that high) or 3 · rows (L, B, U side by side), and column
    row' = 0 is (columns − rows)/2 image rows above row = 0.
    """
    height, breadth, inputs, outputs = w.shape
    down = ops.constant(_shifts(height, rows, columns))
    across = ops.constant(_shifts(breadth, width, width))
    blocks = down.T @ w.astype(np.float64).reshape(height, -1)
    blocks = across.T @ blocks.reshape(rows * columns, breadth, inputs * outputs)
    blocks = blocks.reshape(rows, columns, width, width, inputs, outputs)
    return ops.xp.ascontiguousarray(blocks.transpose(0, 2, 5, 1, 3, 4))


def gather(ops: Ops, strip: Array, kernel: Shape, width: int, rows: int) -> Array:
    """The adjoint of `strip`: each tap's positions in the strip added up, (kH, kW, I, O). It is the
    product with ∂(vec T(w))ᵀ/∂w, whose rows indicate a weight's positions (Eq. 23)."""
    height, breadth, inputs, outputs = kernel
    columns = rows * strip.shape[1] // strip.shape[0]
    down = ops.constant(_shifts(height, rows, columns))
    across = ops.constant(_shifts(breadth, width, width))
    blocks = strip.reshape(rows, width, outputs, columns, width, inputs).transpose(
        0, 3, 1, 4, 5, 2
    )
    blocks = across @ blocks.reshape(rows * columns, width * width, inputs * outputs)
    return (down @ blocks.reshape(rows * columns, -1)).reshape(kernel)


@cache
def _shifts(taps: int, rows: int, columns: int) -> np.ndarray:
    """Indicators (taps, rows · columns): 1 where that tap stands between a row and a column."""
    first = (columns - rows) // 2 - (taps - 1) // 2
    return np.stack([np.eye(rows, columns, first + tap).ravel() for tap in range(taps)])
