"""T(w) of a convolution written out: the paper's exact baseline. O((HWC)³) time, O((HWC)²) memory.

Kernels w are (kH, kW, I, O), both sizes odd; shape is an image's (H, W, C). All arithmetic is in
double precision: gradients come back in w's, solutions in z's. All functions raise
SingularMatrixError if T(w) is singular to double precision, or not finite.
Derivation: derivations/10-block-tridiagonal.md.
"""

import numpy as np

from snfnp.errors import SingularMatrixError


def log_det(ops, w, shape) -> float:
    """log|det T(w)|."""
    return _inverted(ops, w, shape)[2]


def log_det_grad(ops, w, shape):
    """∂ log|det T(w)| / ∂w."""
    _, inverse, _ = _inverted(ops, w, shape)
    return gather(ops, inverse.T, w.shape, shape[1], shape[0]).astype(w.dtype, order="C")


def solve(ops, w, z):
    """x (N, H, W, C) with T(w) x = z."""
    t, *_ = _inverted(ops, w, z.shape[1:])
    rows = z.reshape(len(z), -1).astype(np.float64)
    return ops.linalg.solve(t, rows).reshape(z.shape).astype(z.dtype)


def _inverted(ops, w, shape):
    """T(w), its inverse, and log|det T(w)|."""
    t = matrix(ops, w, shape)
    inverse, log_det = ops.linalg.inverse_and_log_abs_det(t)
    norm, inverse_norm = ops.linalg.norms(t, inverse)
    if not np.finfo(np.float64).eps * norm * inverse_norm < 1:  # also if it is NaN
        raise SingularMatrixError("the convolution is singular or not finite")
    return t, inverse, log_det


def matrix(ops, w, shape):
    """T(w) (HWC, HWC) of Eq. 12: vec(z) = T(w) vec(x)."""
    height, width, channels = shape
    size = height * width * channels
    return strip(ops, w, height, height, width).reshape(size, size)


def strip(ops, w, rows, columns, width):
    """`rows` image rows of T(w) as an array (rows, W, O, columns, W, I).

    columns is `rows` (T of an image that high) or 3 · rows (L, B, U side by side), and column
    row' = 0 is (columns − rows)/2 image rows above row = 0.
    """
    down, across = _shifts(ops, len(w), rows, columns), _shifts(ops, w.shape[1], width, width)
    wide = w.astype(np.float64)
    found = ops.xp.einsum("arc,bxy,abio->rxocyi", down, across, wide, optimize=True)
    return ops.xp.ascontiguousarray(found)


def gather(ops, strip, kernel, width, rows):
    """The adjoint of `strip`: each tap's positions in the strip added up, (kH, kW, I, O). It is the
    product with ∂(vec T(w))ᵀ/∂w, whose rows indicate a weight's positions (Eq. 23)."""
    height, breadth, inputs, outputs = kernel
    columns = rows * strip.shape[1] // strip.shape[0]
    down, across = _shifts(ops, height, rows, columns), _shifts(ops, breadth, width, width)
    strip = strip.reshape(rows, width, outputs, columns, width, inputs)
    return ops.xp.einsum("arc,bxy,rxocyi->abio", down, across, strip, optimize=True)


def _shifts(ops, taps, rows, columns):
    """Indicators (taps, rows, columns): 1 where that tap stands between a row and a column."""
    first = (columns - rows) // 2 - (taps - 1) // 2
    return ops.xp.stack([ops.xp.eye(rows, columns, first + tap) for tap in range(taps)])
