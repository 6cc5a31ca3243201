"""Convolutions written out by their definition, one tap at a time."""

import numpy as np


def taps(kernel, image):
    """(h, v, the pixels of the output that the tap reaches, the pixels of the input that it reads)
    of a kernel (kH, kW) on images (H, W): z[y, x] takes x[y + h − kH // 2, x + v − kW // 2]."""
    for h, v in np.ndindex(*kernel):
        sides = []
        for tap, taps_, size in zip((h, v), kernel, image, strict=True):
            shift = tap - taps_ // 2
            first, last = max(0, -shift), max(0, min(size, size - shift))
            sides.append((slice(first, last), slice(first + shift, max(last + shift, 0))))
        outputs, inputs = zip(*sides, strict=True)
        if all(side.stop > side.start for side in outputs):
            yield h, v, outputs, inputs


def convolve(x, k):
    """z[n, y, x, o] = Σ k[h, v, i, o] x[n, y + h − kH // 2, x + v − kW // 2, i], zero outside."""
    z = np.zeros((*x.shape[:3], k.shape[3]))
    for h, v, (rows, columns), (y, c) in taps(k.shape[:2], x.shape[1:3]):
        z[:, rows, columns] += np.einsum("nyxi,io->nyxo", x[:, y, c], k[h, v])
    return z


def convolve_weight_grad(delta, x, shape):
    """∂⟨δ, convolve(x, k)⟩ / ∂k for kernels k of this shape."""
    gradient = np.zeros(shape)
    for h, v, (rows, columns), (y, c) in taps(shape[:2], x.shape[1:3]):
        gradient[h, v] = np.einsum("nyxi,nyxo->io", x[:, y, c], delta[:, rows, columns])
    return gradient


def convolution_matrix(w, shape):
    """T(w) (D, D) for images of this shape (H, W, C)."""
    t = np.zeros((*shape[:2], w.shape[3], *shape))
    for h, v, (rows, columns), (y, c) in taps(w.shape[:2], shape[:2]):
        places = (np.r_[s] for s in (rows, columns, y, c))
        out_rows, out_columns, in_rows, in_columns = places
        for row, in_row in zip(out_rows, in_rows, strict=True):
            for column, in_column in zip(out_columns, in_columns, strict=True):
                t[row, column, :, in_row, in_column] = w[h, v].T
    return t.reshape(-1, np.prod(shape))


def units(shape, image):
    """T(e_i) of every element i of a kernel of this shape: (*shape, D, D) (Eq. 23)."""
    flat = np.eye(np.prod(shape)).reshape(-1, *shape)
    matrices = np.array([convolution_matrix(e, image) for e in flat])
    return matrices.reshape(*shape, *matrices.shape[1:])
