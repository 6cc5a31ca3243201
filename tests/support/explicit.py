"""Convolutions by their definition, zero outside the image:

z[y, x, o] = Σ k[h, v, i, o] x[y + h − kH // 2, x + v − kW // 2, i].
"""

import numpy as np


def windows(x, kernel):
    """What each output of a kernel (kH, kW) sees of x: (N, H, W, I, kH, kW)."""
    sides = [(size // 2, size - 1 - size // 2) for size in kernel]
    padded = np.pad(x, ((0, 0), *sides, (0, 0)))
    return np.lib.stride_tricks.sliding_window_view(padded, kernel, axis=(1, 2))


def convolve(x, k):
    """z (N, H, W, O) of images x (N, H, W, I) and kernels k (kH, kW, I, O)."""
    return np.einsum("nyxihv,hvio->nyxo", windows(x, k.shape[:2]), k)


def convolve_weight_grad(delta, x, kernel):
    """∂⟨δ, convolve(x, k)⟩ / ∂k for kernels k of this size (kH, kW)."""
    return np.einsum("nyxihv,nyxo->hvio", windows(x, kernel), delta)


def convolution_matrix(w, shape):
    """T(w) (D, D) for images of this shape (H, W, C): a sum of shifts, one for each tap."""
    rows, columns = w.shape[:2]
    height, width = shape[:2]
    t = 0
    for h, v in np.ndindex(rows, columns):
        down = np.eye(height, k=h - rows // 2)
        right = np.eye(width, k=v - columns // 2)
        t = t + np.kron(np.kron(down, right), w[h, v].T)
    return t
