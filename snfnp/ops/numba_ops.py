"""The CPU backend: NumPy's definitions with the hot ones replaced by fused Numba kernels."""

from __future__ import annotations

import math

import numpy as np
from scipy.linalg.blas import dgemm, sgemm

from snfnp import threads
from snfnp.ops import numba_kernels as kernels
from snfnp.ops.numba_blocks import NumbaBlockOps
from snfnp.ops.numba_conv import NumbaConvOps
from snfnp.ops.numba_coupling import NumbaCouplingOps
from snfnp.ops.numba_emerging import NumbaEmergingOps
from snfnp.ops.numba_spline import NumbaSplineOps
from snfnp.ops.numpy_ops import NumpyOps
from snfnp.ops.philox import RandomKey

threads.settle_numba()

_GEMM = {np.dtype(np.float32): sgemm, np.dtype(np.float64): dgemm}

_FEW = 1 << 17  # values that one thread squares and sums in about 25 µs


class NumbaOps(
    NumbaBlockOps, NumbaConvOps, NumbaCouplingOps, NumbaEmergingOps, NumbaSplineOps, NumpyOps
):
    """NumpyOps with fused kernels. The default on the CPU."""

    name = "numba"
    start_note = "the first run on a machine compiles its kernels: up to a minute before it moves"

    # ---------------------------------------------------------------- random numbers

    def uniform(self, key: RandomKey, shape, dtype):
        out = np.empty(math.prod(shape), dtype)
        drop = 8 if out.dtype == np.float32 else 0
        kernels.uniform(_key_words(key), np.uint64(drop), 2.0 ** (drop - 32), out)
        return out.reshape(shape)

    def normal(self, key: RandomKey, shape, dtype):
        out = np.empty(math.prod(shape), dtype)
        kernels.normal(_key_words(key), out)
        return out.reshape(shape)

    # ---------------------------------------------------------------- linear algebra

    def matmul_add(self, a, b, out):
        # BLAS itself can add to its output (beta = 1), NumPy's matmul cannot. BLAS is column-major:
        # outᵀ += bᵀ aᵀ, and a C-contiguous array is the column-major array of its transpose.
        gemm = _GEMM[out.dtype]
        (left, transpose_left), (right, transpose_right) = _column_major(b), _column_major(a)
        result = gemm(1.0, left, right, 1.0, out.T, transpose_left, transpose_right, overwrite_c=1)
        if not np.shares_memory(result, out, max_work=1):  # BLAS had to copy: out was strided
            out[...] = result.T
        return out

    def blend(self, out, a, x, b):
        if not out.flags.c_contiguous:
            return super().blend(out, a, x, b)
        cast = out.dtype.type
        kernels.blend(out.reshape(-1), cast(a), np.ascontiguousarray(x).reshape(-1), cast(b))
        return out

    def scale_into(self, out, scale, a, multiple, volume=1.0):
        if a.ndim == 2 and a.T.flags.c_contiguous and isinstance(multiple, int):
            kernels.scaled_transpose(a.T, out.dtype.type(scale * volume * multiple), out)
            return out
        return super().scale_into(out, scale, a, multiple, volume)

    # ---------------------------------------------------------------- smooth leaky ReLU

    def smooth_leaky_relu(self, x, alpha):
        rows = _rows(x)
        y, sigma = np.empty_like(rows), np.empty_like(rows)
        ldj = np.empty(len(rows), x.dtype)
        e = np.abs(rows)
        np.exp(np.negative(e, out=e), out=e)
        # log1p would save digits of a softplus that is about to be added to αx: none is lost
        log_1_e = e + 1
        np.log(log_1_e, out=log_1_e)
        kernels.smooth_leaky_relu(rows, e, log_1_e, x.dtype.type(alpha), y, ldj, sigma)
        return y.reshape(x.shape), ldj, sigma.reshape(x.shape)

    def smooth_leaky_relu_inverse(self, y, alpha):
        flat = np.ascontiguousarray(y).reshape(-1)
        x = np.empty_like(flat)
        dtype = flat.dtype.type
        kernels.smooth_leaky_relu_inverse(flat, dtype(alpha), np.finfo(dtype).eps, x)
        return x.reshape(y.shape)

    def smooth_leaky_relu_backward(self, sigma, dy, dldj, alpha):
        rows = _rows(sigma)
        dx = np.empty_like(rows)
        kernels.smooth_leaky_relu_backward(rows, _rows(dy), dldj, sigma.dtype.type(alpha), dx)
        return dx.reshape(sigma.shape)

    # ---------------------------------------------------------------- preprocessing

    def preprocess(self, images, key: RandomKey, alpha, levels, dtype):
        rows = _rows(images)
        odds, ldj = np.empty(rows.shape), np.empty(len(rows), dtype)
        kernels.preprocess(rows, _key_words(key), alpha, float(levels), odds, ldj)
        x = np.log(odds, out=odds).astype(dtype, copy=False)
        return x.reshape(images.shape), ldj

    # ---------------------------------------------------------------- optimiser

    def sum_squares(self, g) -> float:
        g = np.ascontiguousarray(g).reshape(-1)
        kernel = kernels.sum_few_squares if g.size <= _FEW else kernels.sum_squares
        return float(kernel(g))

    def adam(self, p, g, m, v, lr, beta1, beta2, eps, step, scale, failed=0.0):
        if failed:
            return self.sum_squares(g)
        cast = p.dtype.type
        step_size, second = lr / (1 - beta1**step), 1 / (1 - beta2**step)
        numbers = (step_size, beta1, 1 - beta1, beta2, 1 - beta2, eps, second, scale)
        return float(kernels.adam(p, g, m, v, *(cast(number) for number in numbers)))


def _rows(array):
    """(N, ...) as C-contiguous rows (N, D)."""
    return np.ascontiguousarray(array).reshape(len(array), math.prod(array.shape[1:]))


def _key_words(key: RandomKey):
    return np.array(key.words, np.uint64)


def _column_major(matrix):
    """A matrix as (column-major array, transpose flag) for BLAS, without a copy where possible."""
    if matrix.flags.c_contiguous:
        return matrix.T, 0
    return np.asfortranarray(matrix), 1
