"""The convolution that comes nearest to another one's inverse, in closed form.

For kernels w and r the error ‖T(r) T(w) − I‖²_F is quadratic in r, and all that it needs of w are
the products of its taps, each times the number of pixels at which it occurs. So the best r solves
normal equations of size kH kW C, the same ones for every output channel, border and all.

Offsets are from a kernel's centre: u, v of w's taps, a, b of r's. Counts in two dimensions are
products: every sum here takes a small matrix of counts for an image's rows and one for its columns.
Kernels are (kH, kW, C, C) in the order (kH, kW, I, O); shape is an image's (H, W, C). Arithmetic
is in double precision whatever w's, since normal equations square the condition number.
Derivation: derivations/21-learning-the-inverse.md.
"""

import math
from functools import cache
from itertools import product

import numpy as np


class LeftInverse:
    """R = argmin ‖T(R) T(w) − I‖²_F, and what a learning rule makes of it.

    f, g: the convolutions that w and R are kernels of; shape: an image's.
    r: R, like g's kernel, in double precision; not finite if w allows no single best one.
    """

    def __init__(self, ops, f, g, w, shape):
        self._ops, self._f, self._g = ops, f, g
        self._shape, channels = tuple(shape), shape[2]
        self._w = w.astype(np.float64)
        # Σ over positions of T(w)ᵀ on r's taps: flip(w) ⊙ m, the term of Eq. 16
        right = g.flip(g.fit(self._w, ops.xp)) * ops.constant(g.multiple(shape))
        self._right = ops.xp.ascontiguousarray(right).reshape(-1, channels)
        normal = self._normal()
        unused = g.multiple(shape).reshape(-1) == 0  # taps that never stand in T(r) become 0
        if unused.any():
            diagonal = normal.reshape(-1)[:: len(normal) + 1]
            diagonal += ops.constant(np.repeat(unused, channels).astype(np.float64))
        self._rows = ops.linalg.solve_spd(normal, self._right, overwrite=True)
        self.r = self._rows.reshape(g.weight_shape)

    @property
    def error(self):
        """‖T(R) T(w) − I‖²_F / D, of shape (). At the minimum, 1 − ⟨R, right side⟩ / D."""
        return 1 - (self._rows * self._right).sum() / math.prod(self._shape)

    def error_grad(self):
        """∂ (‖T(R) T(w) − I‖²_F / 2) / ∂w, like w. R moves with w, but at its minimum the error
        does not care."""
        # ½ Σ_o r_oᵀ A r_o is linear in A, A in the products of taps, and those are w's squares
        outer = self._ops.linalg.matmul(self._rows, self._rows.T)
        f, g = self._f.kernel, self._g.kernel
        of_gram = self._sums(outer, (g, g), "normal", (f, f), transpose=True)
        rows = self._ops.linalg.matmul(of_gram, self._taps())  # of_gram is symmetric
        return rows.reshape(self._w.swapaxes(2, 3).shape).swapaxes(2, 3) - self._flipped()

    def neumann_term(self):
        """∂⟨T(v), Mᵀ⟩/∂v, like w, with M = 2 T(R) − T(R) T(w) T(R), the first two terms of the
        series T(w)⁻¹ = Σ_k (I − T(R) T(w))ᵏ T(R): M on v's taps, summed over the positions of
        each."""
        matmul, f, g = self._ops.linalg.matmul, self._f.kernel, self._g.kernel
        # a round trip from p by u, a, v and b is one where b = −t, with t = u + a + v
        products = matmul(self._taps(), self._across(self.r[::-1, ::-1]))
        met = self._sums(products, (f, g), "band", (g, f))
        cubic = matmul(self._across(self.r), met)
        channels = self._shape[2]
        cubic = cubic.reshape(channels, *f, channels).transpose(1, 2, 0, 3)
        return 2 * self._flipped() - cubic

    def rest_of_series(self, nu, terms: int):
        """Σ_k Eᵏ T(R) ν over k = 2 … terms, E = I − T(R) T(w), for images nu (N, H, W, C): what the
        series has after its first two terms. In the precision of nu."""
        r, w = (kernel.astype(nu.dtype) for kernel in (self.r, self._w))
        return self._ops.conv.inverse_series(r, w, nu, terms)

    def _normal(self):
        """A[(a, c), (b, c')] = Σ_{u + a = v + b} count(a, b, u + a) Σ_i w[u, i, c] w[v, i, c']."""
        f, g, taps = self._f.kernel, self._g.kernel, self._taps()
        return self._sums(self._ops.linalg.matmul(taps, taps.T), (f, f), "normal", (g, g))

    def _flipped(self):
        """flip(R) ⊙ m on w's taps: the term of Eq. 15."""
        fitted = self._f.fit(self.r, self._ops.xp)
        return self._f.flip(fitted) * self._ops.constant(self._f.multiple(self._shape))

    def _taps(self):
        """w as rows (tap, output) of its inputs: (kH kW C, C)."""
        return self._ops.xp.ascontiguousarray(self._w.swapaxes(2, 3)).reshape(-1, self._shape[2])

    def _across(self, kernel):
        """A kernel as rows of outputs, with columns (tap, input): (C, kH kW C)."""
        rows = self._ops.xp.ascontiguousarray(kernel.transpose(3, 0, 1, 2))
        return rows.reshape(self._shape[2], -1)

    def _sums(self, matrix, taken, which, given, transpose=False):
        """Sums over pairs of taps, times counts: `Conv.sums_of_pairs`."""
        sides = zip(self._f.kernel, self._g.kernel, self._shape, strict=False)
        along = (_counts(which, *side) for side in sides)
        rows, columns = (each.T if transpose else each for each in along)
        return self._ops.conv.sums_of_pairs(matrix, rows, columns, taken, given)


@cache
def _counts(which: str, taps: int, inverse_taps: int, length: int) -> np.ndarray:
    """Counts along one side of the image, a matrix from pairs of offsets to pairs of offsets.

    "normal": ((a, b), (u, v)) where u + a = v + b, of pixels p with p + a, p + b, p + u + a;
    "band": ((a, u), (v, t)) where u + a = t − v, of pixels p with p + u, p + u + a, p + t.
    """
    w = range(-(taps // 2), taps // 2 + 1)
    r = range(-(inverse_taps // 2), inverse_taps // 2 + 1)
    normal = which == "normal"
    rows = list(product(r, r) if normal else product(r, w))
    columns = list(product(w, w) if normal else product(w, r))
    counts = np.zeros((len(rows), len(columns)))
    for i, (a, x) in enumerate(rows):
        for j, (v, y) in enumerate(columns):
            if normal and v + a == y + x:
                counts[i, j] = _common(length, a, x, v + a)
            elif not normal and x + a == y - v:
                counts[i, j] = _common(length, x, x + a, y)
    counts.flags.writeable = False
    return counts


def _common(length: int, *offsets: int) -> int:
    """The number of p in 0 … length − 1 whose p + offset is in that range for every offset."""
    return max(0, length - max(0, *offsets) + min(0, *offsets))
