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
from snfnp.ops.numpy_activation import ActivationOps
from snfnp.ops.numpy_blocks import BlockOps
from snfnp.ops.numpy_conv import ConvOps
from snfnp.ops.numpy_coupling import CouplingOps
from snfnp.ops.numpy_device import DeviceOps
from snfnp.ops.numpy_emerging import EmergingOps
from snfnp.ops.numpy_images import ImageOps
from snfnp.ops.numpy_spline import SplineOps
from snfnp.ops.numpy_steps import StepOps
from snfnp.ops.philox import RandomKey

_BLOCK = 64  # rows handled at once where a full-size temporary would not fit the memory promise


class NumpyOps(
    ActivationOps,
    BlockOps,
    ConvOps,
    CouplingOps,
    DeviceOps,
    EmergingOps,
    ImageOps,
    SplineOps,
    StepOps,
):
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
        """out = a · out + b · x, elementwise: two deltas become one.

        a and b are numbers, or arrays of shape ().
        """
        out *= a
        out += b * x
        return out

    def scale_into(self, out, scale, a, multiple, volume=1.0):
        """out = scale * volume * a * multiple, where `multiple` broadcasts to a's shape.

        With a = flip(R) and multiple = m this is the term that stands in for the inverse
        (the second summand of Eq. 10 and Eq. 15). volume: a number, or an array of shape ();
        `multiple` depends on shapes alone and is made on the host: 1, or a host array.
        """
        xp = self.xp
        xp.multiply(a, scale * volume, out=out, casting="same_kind")
        if not (isinstance(multiple, int) and multiple == 1):  # 1: no weight is shared
            out *= self.asarray(multiple, out.dtype)
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
