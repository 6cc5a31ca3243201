"""T(w) of a convolution written out: the paper's exact baseline. O((HWC)³) time, O((HWC)²) memory.

Kernels w are (kH, kW, I, O), both sizes odd; shape is an image's (H, W, C). All arithmetic is in
double precision: gradients come back in w's, solutions in z's.
Derivation: derivations/10-block-tridiagonal.md.
"""

import numpy as np


def log_det(ops, w, shape) -> float:
    """log|det T(w)|."""
    return ops.linalg.log_abs_det(matrix(ops, w, shape))


def log_det_grad(ops, w, shape):
    """∂ log|det T(w)| / ∂w."""
    inverse, _ = ops.linalg.inverse_and_log_abs_det(matrix(ops, w, shape))
    return gather(ops, inverse.T, w.shape, shape[1], shape[0]).astype(w.dtype)


def solve(ops, w, z):
    """x (N, H, W, C) with T(w) x = z."""
    rows = z.reshape(len(z), -1).astype(np.float64)
    return ops.linalg.solve(matrix(ops, w, z.shape[1:]), rows).reshape(z.shape).astype(z.dtype)


def matrix(ops, w, shape):
    """T(w) (HWC, HWC) of Eq. 12: vec(z) = T(w) vec(x)."""
    height, width, channels = shape
    size = height * width * channels
    return strip(ops, w, height, height, width).reshape(size, size)


def strip(ops, w, rows, columns, width):
    """`rows` image rows of T(w) as an array (rows, W, O, columns, W, I).

    columns is `rows` (T of an image that high) or 3 · rows (L, B, U side by side), and column
    row' = 0 is (columns − rows)/2 image rows above row = 0. Entry ((row, x, o), (row', x', i)) is
    w[row' − row + above, x' − x + across, i, o]: every row of T is a window of one kernel in zeros.
    """
    height, breadth, inputs, outputs = w.shape
    above, across = (height - 1) // 2 - (columns - rows) // 2, (breadth - 1) // 2
    padded = ops.xp.zeros((rows + columns - 1, 2 * width - 1, inputs, outputs))
    # padded[rows − 1, W − 1] is for row' = row, x' = x: where w[above, across] stands
    taps, place = _overlap(height, len(padded), rows - 1 - above)
    taps_across, place_across = _overlap(breadth, 2 * width - 1, width - 1 - across)
    padded[place, place_across] = w[taps, taps_across]
    down, right, i, o = padded.strides
    sizes = (rows, width, outputs, columns, width, inputs)
    seen, steps = padded[rows - 1 :, width - 1 :], (-down, -right, o, down, right, i)
    windows = ops.xp.lib.stride_tricks.as_strided(seen, sizes, steps)
    return ops.xp.ascontiguousarray(windows)


def gather(ops, strip, kernel, width, rows):
    """The adjoint of `strip`: each tap's positions in the strip added up, (kH, kW, I, O). It is the
    product with ∂(vec T(w))ᵀ/∂w, whose rows indicate a weight's positions (Eq. 23)."""
    height, breadth, inputs, outputs = kernel
    columns = rows * strip.shape[1] // strip.shape[0]
    above, across = (height - 1) // 2 - (columns - rows) // 2, (breadth - 1) // 2
    # with zeros around the columns, every row has a place for every tap
    before, after = max(above, 0), max(rows - 1 + height - 1 - above - (columns - 1), 0)
    sides = before + columns + after, width + breadth - 1
    padded = ops.xp.zeros((rows, width, outputs, *sides, inputs))
    strip = strip.reshape(rows, width, outputs, columns, width, inputs)
    padded[:, :, :, before : before + columns, across : across + width] = strip
    row, x, o, down, right, i = padded.strides
    sizes = (rows, width, outputs, height, breadth, inputs)
    seen, steps = padded[:, :, :, before - above :], (row + down, x + right, o, down, right, i)
    positions = ops.xp.lib.stride_tricks.as_strided(seen, sizes, steps)
    return ops.xp.ascontiguousarray(positions.sum(axis=(0, 1)).transpose(1, 2, 3, 0))


def _overlap(count, length, start) -> tuple[slice, slice]:
    """Slices of `count` items put at `start` of an array: those that fit, and their places."""
    first, stop = max(0, -start), min(count, length - start)
    return slice(first, stop), slice(start + first, start + stop)
