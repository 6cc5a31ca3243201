"""Every operation in plain array terms: the definition that all other backends must reproduce.

Arrays are C-contiguous, rows are samples. An operation allocates its result unless it has an
`out` argument, and never changes an argument that is not named `out` (Adam, which updates its
buffers, says so).
"""

from __future__ import annotations

import math

import numpy as np

from snfnp.errors import SingularMatrixError
from snfnp.ops import philox
from snfnp.ops.numpy_blocks import BlockOps
from snfnp.ops.numpy_conv import ConvOps
from snfnp.ops.numpy_coupling import CouplingOps
from snfnp.ops.numpy_emerging import EmergingOps
from snfnp.ops.numpy_spline import SplineOps
from snfnp.ops.philox import RandomKey

_BLOCK = 64  # rows handled at once where a full-size temporary would not fit the memory promise


class NumpyOps(BlockOps, ConvOps, CouplingOps, EmergingOps, SplineOps):
    """Operations on NumPy arrays. Subclasses override what profiling says is hot."""

    name = "numpy"
    start_note = ""  # what a person should know while a first run seems to stand still
    xp = np  # the array namespace; definitions below use nothing else

    # ---------------------------------------------------------------- host and device

    def asarray(self, host, dtype=None):
        """A host array on this device (here: the same array, cast where `dtype` asks for it)."""
        return self.xp.ascontiguousarray(host, dtype=dtype)

    def to_host(self, array) -> np.ndarray:
        """A device array as a NumPy array on the host."""
        return np.asarray(array)

    # ---------------------------------------------------------------- random numbers

    def uniform(self, key: RandomKey, shape, dtype):
        """Uniform numbers on [0, 1) from (seed, stream, step). See `snfnp.ops.philox`.

        In single precision the 32 bits would round to 1.0 at the top: 24 of them are kept.
        """
        bits = philox.words(self.xp, key, math.prod(shape))
        if np.dtype(dtype) == np.float32:
            return ((bits >> np.uint64(8)) * 2.0**-24).astype(np.float32).reshape(shape)
        return (bits * 2.0**-32).astype(dtype).reshape(shape)

    def normal(self, key: RandomKey, shape, dtype):
        """Standard normal numbers from (seed, stream, step). See `snfnp.ops.philox`."""
        return philox.normal(self.xp, key, shape).astype(dtype)

    # ---------------------------------------------------------------- linear algebra

    def matmul(self, a, b, out=None):
        """a b, shapes (M, K) and (K, N); transposed views are welcome. O(M K N)."""
        xp = self.xp
        return xp.matmul(a, b, out=out)

    def matmul_add(self, a, b, out):
        """out += a b, without an (M, N) temporary. O(M K N)."""
        for start in range(0, len(out), _BLOCK):
            out[start : start + _BLOCK] += a[start : start + _BLOCK] @ b
        return out

    def blend(self, out, a, x, b):
        """out = a · out + b · x, elementwise, for scalars a and b: two deltas become one."""
        out *= a
        out += b * x
        return out

    def scale_into(self, out, scale, a, multiple):
        """out = scale * a * multiple, where `multiple` broadcasts to a's shape.

        With a = flip(R) and multiple = m this is the term that stands in for the inverse
        (the second summand of Eq. 10 and Eq. 15).
        """
        xp = self.xp
        xp.multiply(a, scale, out=out, casting="same_kind")
        if not (isinstance(multiple, int) and multiple == 1):  # 1: no weight is shared
            out *= self.asarray(multiple, out.dtype)  # m depends on shapes alone: made on the host
        return out

    def inverse(self, w):
        """w⁻¹ of a square matrix. O(D³). Raises SingularMatrixError."""
        xp = self.xp
        try:
            return xp.linalg.inv(w)
        except np.linalg.LinAlgError:
            raise SingularMatrixError("the weight matrix is singular") from None

    def log_abs_det(self, w) -> float:
        """log|det w| of a square matrix, by an LU decomposition. O(D³)."""
        xp = self.xp
        log_abs_det = float(xp.linalg.slogdet(w)[1])
        if not math.isfinite(log_abs_det):
            raise SingularMatrixError("the weight matrix is singular or not finite")
        return log_abs_det

    def solve(self, w, z):
        """The rows x with w x = z for the rows z (N, D). O(D³ + N D²)."""
        xp = self.xp
        try:
            return xp.ascontiguousarray(xp.linalg.solve(w, z.T).T)
        except np.linalg.LinAlgError:
            raise SingularMatrixError("the weight matrix is singular") from None

    # ---------------------------------------------------------------- base density

    def gaussian_log_density(self, z):
        """log N(z; 0, I) per sample: z (N, ...) -> (N,), in nats."""
        xp = self.xp
        rows = z.reshape(len(z), -1)
        dimension = rows.shape[1]
        return -0.5 * xp.einsum("nd,nd->n", rows, rows) - 0.5 * dimension * math.log(2 * math.pi)

    # ---------------------------------------------------------------- smooth leaky ReLU

    def smooth_leaky_relu(self, x, alpha):
        """f(x) = αx + (1-α) log(1 + eˣ), elementwise.

        x (N, ...) -> y (N, ...), ldj (N,) = Σ log f'(x), σ(x) (N, ...) for the backward pass.
        """
        xp = self.xp
        e = xp.exp(-xp.abs(x))  # never overflows
        sigma = xp.where(x >= 0, 1, e) / (1 + e)
        softplus = xp.maximum(x, 0) + xp.log1p(e)
        y = alpha * x + (1 - alpha) * softplus
        log_slope = xp.log(alpha + (1 - alpha) * sigma)
        return y, log_slope.reshape(len(x), -1).sum(axis=1), sigma

    def smooth_leaky_relu_inverse(self, y, alpha):
        """The x with f(x) = y, elementwise, by Newton's method inside a bracket.

        LReLU(x) <= f(x) <= LReLU(x) + (1-α) log 2 with LReLU(x) = max(x, αx) brackets the root:
        x lies in [LReLU⁻¹(y - (1-α) log 2), LReLU⁻¹(y)]. f is increasing and convex, so Newton
        from the right end falls monotonically to the root; it stops on the residual.
        """
        xp = self.xp

        def leaky_inverse(v):
            return xp.minimum(v, v / alpha)

        left = leaky_inverse(y - (1 - alpha) * math.log(2))
        x = leaky_inverse(y)
        tolerance = 2 * xp.finfo(y.dtype).eps * (xp.abs(y) + 1)
        while True:
            e = xp.exp(-xp.abs(x))
            sigma = xp.where(x >= 0, 1, e) / (1 + e)
            residual = alpha * x + (1 - alpha) * (xp.maximum(x, 0) + xp.log1p(e)) - y
            lower = xp.maximum(x - residual / (alpha + (1 - alpha) * sigma), left)
            # lower < x fails where rounding stopped the fall. NaN (also ∞ - ∞) compares false: it
            # passes through and cannot hold the loop.
            moves = (residual > tolerance) & (lower < x)
            if not xp.any(moves):
                return x
            x = xp.where(moves, lower, x)

    def smooth_leaky_relu_backward(self, sigma, dy, dldj, alpha):
        """δ_x = δ_y f' + ldj's delta · f''/f', with f' = α + (1-α)σ and f'' = (1-α)σ(1-σ).

        sigma, dy (N, ...), dldj (N,) -> dx (N, ...).
        """
        slope = alpha + (1 - alpha) * sigma
        dldj = dldj.reshape((-1,) + (1,) * (sigma.ndim - 1))
        return dy * slope + dldj * ((1 - alpha) * sigma * (1 - sigma) / slope)

    # ---------------------------------------------------------------- preprocessing

    def preprocess(self, images, key: RandomKey, alpha, levels, dtype):
        """Dequantise, scale, logit: images (N, ...) in [0, levels) -> x (N, ...), ldj (N,).

        v = (image + u) / levels with u ~ U[0, 1);  s = α + (1-2α)v;  x = log s - log(1-s).
        ldj = Σ [log(1-2α) - log levels - log s - log(1-s)]. All of it in double precision, since
        255 + u rounds to 256 in single precision for about 7 draws in a million.
        """
        xp = self.xp
        noisy = images + philox.uniform(xp, key, images.shape)
        s = alpha + (1 - 2 * alpha) * (noisy / levels)
        one_minus_s = alpha + (1 - 2 * alpha) * ((levels - noisy) / levels)  # no cancellation
        log_s, log_1_s = xp.log(s), xp.log(one_minus_s)
        constant = math.log1p(-2 * alpha) - math.log(levels)
        ldj = (constant - log_s - log_1_s).reshape(len(images), -1).sum(axis=1)
        return (log_s - log_1_s).astype(dtype), ldj.astype(dtype)

    # ---------------------------------------------------------------- optimiser

    def sum_squares(self, g) -> float:
        """Σ g², in double precision."""
        xp = self.xp
        wide = g.astype(xp.float64).reshape(-1)
        return float(wide @ wide)

    def adam(self, p, g, m, v, lr, beta1, beta2, eps, step, scale) -> float:
        """One ascent step of Adam on flat buffers; p, m and v are updated in place.

        g ← scale·g;  m ← β1 m + (1-β1) g;  v ← β2 v + (1-β2) g²;
        p ← p + lr · m̂ / (√v̂ + ε) with m̂ = m/(1-β1^step), v̂ = v/(1-β2^step), step = 1, 2, …
        Returns Σ g² of the unscaled gradient, which the pass gets for nothing.
        """
        xp = self.xp
        squares = self.sum_squares(g)
        g = g * p.dtype.type(scale)
        m *= beta1
        m += (1 - beta1) * g
        v *= beta2
        v += (1 - beta2) * g * g
        step_size = lr / (1 - beta1**step)
        p += step_size * m / (xp.sqrt(v / (1 - beta2**step)) + eps)
        return squares
