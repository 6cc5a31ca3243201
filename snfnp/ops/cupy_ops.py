"""The GPU backend: NumPy's definitions on CuPy arrays, and kernels where they are hot.

The definitions use nothing but an array namespace, so they hold on the device as they stand. What
is hot is overridden by kernels of our own (`snfnp.ops.cuda`), here and in the files `cupy_*.py`.
Nothing that a self-normalizing training step does makes the host wait: what NumPy's operations
return as a number is here an array of shape (), and what they take as a number may be one. This
module imports without CuPy; making a `CupyOps` needs it, a driver and a device, and says what is
missing.
"""

from __future__ import annotations

import math

import numpy as np

from snfnp.errors import BackendError
from snfnp.ops import cuda
from snfnp.ops.cublas import Products
from snfnp.ops.cupy_activation import CudaActivationOps
from snfnp.ops.cupy_blocks import CudaBlockOps
from snfnp.ops.cupy_conv import CudaConvOps
from snfnp.ops.cupy_coupling import CudaCouplingOps
from snfnp.ops.cupy_device import describe, explain_out_of_memory, require_cupy
from snfnp.ops.cupy_images import CudaImageOps
from snfnp.ops.cupy_launch import Launcher, Strided, strides
from snfnp.ops.cupy_spline import CudaSplineOps
from snfnp.ops.cupy_steps import CudaStepOps
from snfnp.ops.numpy_device import Shortage
from snfnp.ops.numpy_ops import NumpyOps
from snfnp.ops.philox import RandomKey

_MOST_BLOCKS = 1024  # of a kernel over items; each of its threads then takes several


class CupyOps(
    CudaActivationOps,
    CudaBlockOps,
    CudaConvOps,
    CudaCouplingOps,
    CudaImageOps,
    CudaSplineOps,
    CudaStepOps,
    NumpyOps,
):
    """Operations on the current CUDA device.

    tf32: let tensor cores round the factors of single-precision products to 10 bits.
    """

    name = "cupy"
    start_note = "the first steps compile the kernels; later runs load them from CuPy's cache"

    def __init__(self, tf32: bool = False):
        self.xp = require_cupy()
        self.tf32 = tf32
        self.launch = Launcher(self.xp)
        try:
            self._products = Products(self.xp, tf32)
        except Exception as error:
            shortage = self.shortage(error)
            if shortage is None:
                raise
            raise BackendError(
                f"the GPU's memory is full ({shortage.found}): see with nvidia-smi what holds it"
            ) from None
        self._counter = self.xp.zeros(1, np.uint32)
        self._constants: dict = {}

    def describe_device(self) -> dict:
        return describe(self.xp) | {"tf32": self.tf32}

    def shortage(self, error: Exception) -> Shortage | None:
        return explain_out_of_memory(error, self.xp)

    # ---------------------------------------------------------------- what kernels need

    def empty(self, shape, dtype):
        """A new array that a kernel will fill."""
        return self.xp.empty(shape, dtype)

    def each(self, kernel: str, dtype, items: int, *arguments) -> None:
        """Launch a kernel that goes over so many items, one or more to a thread."""
        self.launch(kernel, dtype, min(-(-items // cuda.THREADS), _MOST_BLOCKS), *arguments)

    def contiguous(self, array):
        return self.xp.ascontiguousarray(array)

    def counter(self):
        """The counter of a reduction's `last_block`, 0 between launches."""
        return self._counter

    def scalar(self, number) -> tuple:
        """A number as the two arguments of a kernel's `value`: where it is, or what it is."""
        if isinstance(number, (int, float, np.generic)):
            return None, float(number)
        return number.astype(np.float64, copy=False), 0.0

    def constant(self, host: np.ndarray):
        """A small host array that depends on shapes alone, float64, on the device for good."""
        key = (host.shape, host.tobytes())
        if key not in self._constants:
            self._constants[key] = self.asarray(host, np.float64)
        return self._constants[key]

    def key_words(self, key: RandomKey) -> tuple:
        """A key as the arguments of a kernel: step (where it is, or what it is), stream, seed."""
        known = isinstance(key.step, (int, np.integer))
        step = (None, _signed(key.step)) if known else (key.step, 0)
        return (*step, key.stream, _signed(key.seed))

    # ---------------------------------------------------------------- host and device

    def asarray(self, host, dtype=None):
        return self.xp.asarray(np.ascontiguousarray(host, dtype=dtype))

    def to_host(self, array) -> np.ndarray:
        return self.xp.asnumpy(array)

    # ---------------------------------------------------------------- random numbers

    def uniform(self, key: RandomKey, shape, dtype):
        return self._random("uniform", key, shape, dtype)

    def normal(self, key: RandomKey, shape, dtype):
        return self._random("normal", key, shape, dtype)

    def _random(self, kernel, key, shape, dtype):
        out = self.empty(shape, dtype)
        self.each(kernel, dtype, -(-out.size // 4), out, *self.key_words(key), out.size)
        return out

    def preprocess(self, images, key: RandomKey, alpha, levels, dtype):
        if images.dtype != np.uint8:
            return super().preprocess(images, key, alpha, levels, dtype)
        images = self.contiguous(images)
        x, ldj = self.empty(images.shape, dtype), self.empty(len(images), dtype)
        constant = math.log1p(-2 * alpha) - math.log(levels)
        numbers = (alpha, float(levels), constant, math.prod(images.shape[1:]))
        arguments = (images, x, ldj, *self.key_words(key), *numbers)
        self.launch("preprocess", dtype, len(images), *arguments)
        return x, ldj

    # ---------------------------------------------------------------- linear algebra

    def matmul(self, a, b, out=None):
        if a.ndim != 2 or b.ndim != 2 or a.dtype != b.dtype:
            return super().matmul(a, b, out)
        product = out
        if out is None or not out.flags.c_contiguous:
            product = self.empty((len(a), b.shape[1]), a.dtype)
        self._products.gemm(a, b, product)
        if out is not None and product is not out:
            out[...] = product
        return product if out is None else out

    def matmul_add(self, a, b, out):
        if not out.flags.c_contiguous or not a.dtype == b.dtype == out.dtype:
            out += self.matmul(a, b)
        else:
            self._products.gemm(a, b, out, beta=1.0)
        return out

    def blend(self, out, a, x, b):
        if not out.flags.c_contiguous:
            return super().blend(out, a, x, b)
        arguments = (out, *self.scalar(a), self.contiguous(x), *self.scalar(b), out.size)
        self.each("blend", out.dtype, out.size, *arguments)
        return out

    def scale_into(self, out, scale, a, multiple, volume=1.0):
        if not out.flags.c_contiguous or a.dtype != out.dtype:
            return super().scale_into(out, scale, a, multiple, volume)
        if isinstance(multiple, int):
            scale, multiple = scale * multiple, None
            if a.ndim == 2 and a.T.flags.c_contiguous:
                rows, columns = out.shape
                tiles = -(-rows // 32) * -(-columns // 32)
                arguments = (out, scale, *self.scalar(volume), a.T, rows, columns)
                self.launch("scaled_transpose", out.dtype, tiles, *arguments)
                return out
        if a.ndim != 4:
            return super().scale_into(out, scale, a, 1 if multiple is None else multiple, volume)
        constant = None if multiple is None else self.constant(multiple)
        self.each(
            "scaled_kernel",
            out.dtype,
            out.size,
            *(out, scale, *self.scalar(volume), Strided(a), *strides(a)),
            *(constant, *out.shape[1:], out.size),
        )
        return out


def _signed(number: int) -> int:
    """The low 64 bits of a number as a signed integer."""
    return (number + 2**63) % 2**64 - 2**63
