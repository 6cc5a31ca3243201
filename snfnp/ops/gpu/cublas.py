"""Matrix products through a cuBLAS handle of our own.

CuPy's own products refuse to run while a CUDA graph is recorded. A handle with a fixed workspace
may run then, and it lets products add to their result. cuBLAS is column-major: a C-contiguous
(M, N) array is a column-major N × M matrix, so C = A B is computed as Cᵀ = Bᵀ Aᵀ.
"""

import ctypes
import weakref
from ctypes import c_int, c_size_t, c_void_p

import numpy as np

from snfnp.errors import BackendError, SnfnpError
from snfnp.ops.gpu.launch import DeviceGuard
from snfnp.ops.gpu.requirements import cuda_version, first_line, install

_WORKSPACE = 32 << 20  # bytes, what cuBLAS recommends for Hopper
# values of cuBLAS's enumerations
_PLAIN = 0
_TRANSPOSED = 1
_DEFAULT_MATH = 0
_TF32_MATH = 3
_NO_MEMORY = 3
_OPERAND = (c_void_p, c_int)  # a pointer, and the leading dimension
# the types of: the handle; two operations and three sizes; α; A; B; β; C
_GEMM = (c_void_p, *[c_int] * 5, c_void_p, *_OPERAND, *_OPERAND, c_void_p, *_OPERAND)


class Cublas:
    """gemm(a, b, out, beta): out ← a b + beta out, on CuPy's current stream. Two products
    must not run at the same time on two streams: they share the workspace. tf32: see `get_ops`."""

    def __init__(self, cupy, tf32: bool):
        self._cupy = cupy
        self._guard = DeviceGuard(cupy)
        self._library = _load(cupy)
        self._library.cublasSgemm_v2.argtypes = _GEMM
        self._library.cublasDgemm_v2.argtypes = _GEMM
        self._handle = c_void_p()
        _check(self._library.cublasCreate_v2(ctypes.byref(self._handle)))
        # Destroying the handle waits for the device, so that the workspace outlives all products.
        # At the end of the process it is not destroyed: CUDA may be gone by then.
        device = cupy.cuda.Device(self._guard.id)
        weakref.finalize(
            self, _destroy, device, self._library, self._handle
        ).atexit = False
        mode = _TF32_MATH if tf32 else _DEFAULT_MATH
        _check(self._library.cublasSetMathMode(self._handle, c_int(mode)))
        self._workspace = cupy.empty(_WORKSPACE, np.uint8)
        self._set_stream(cupy.cuda.get_current_stream().ptr)

    def gemm(self, a, b, out, beta: float = 0.0) -> None:
        """a (M, K), b (K, N), out (M, N), which is C-contiguous, all of one type."""
        rows, inner = a.shape
        columns = b.shape[1]
        if not rows * columns:
            return
        if not inner:
            out[...] = beta * out if beta else 0
            return
        self._guard.require()
        current = self._cupy.cuda.get_current_stream().ptr
        stream = c_void_p()
        _check(self._library.cublasGetStream_v2(self._handle, ctypes.byref(stream)))
        if current != (stream.value or 0):  # a null pointer's value is None
            self._set_stream(current)
        a, a_operation, a_lead = self._column_major(a)
        b, b_operation, b_lead = self._column_major(b)
        single = out.dtype == np.float32
        product = (
            self._library.cublasSgemm_v2 if single else self._library.cublasDgemm_v2
        )
        real = ctypes.c_float if single else ctypes.c_double
        # outᵀ ← bᵀ aᵀ + beta outᵀ, in the order of _GEMM
        sizes = (b_operation, a_operation, columns, rows, inner)
        alpha_b = (ctypes.byref(real(1.0)), b.data.ptr, b_lead)
        beta_out = (ctypes.byref(real(beta)), out.data.ptr, columns)
        _check(product(self._handle, *sizes, *alpha_b, a.data.ptr, a_lead, *beta_out))

    def _column_major(self, matrix):
        """The matrix, copied if it is contiguous neither way; operation and leading dimension."""
        rows, columns = matrix.shape
        if matrix.flags.f_contiguous and not matrix.flags.c_contiguous:
            return matrix, _TRANSPOSED, rows
        return self._cupy.ascontiguousarray(matrix), _PLAIN, columns

    def _set_stream(self, stream: int) -> None:
        _check(self._library.cublasSetStream_v2(self._handle, c_void_p(stream)))
        # setting a stream resets the workspace to cuBLAS's own, which cannot be captured
        _check(
            self._library.cublasSetWorkspace_v2(
                self._handle, c_void_p(self._workspace.data.ptr), c_size_t(_WORKSPACE)
            )
        )


def _check(status: int) -> None:
    if status == _NO_MEMORY:
        # as CuPy's own handle does, and recognised as a lack of memory
        raise RuntimeError("CUBLAS_STATUS_ALLOC_FAILED")
    if status:
        raise SnfnpError(f"cuBLAS failed with status {status} (see cublasStatus_t)")


def _destroy(device, library, handle) -> None:
    with device:
        library.cublasDestroy_v2(handle)


def _load(cupy):
    """The cuBLAS library that CuPy itself has loaded, by CuPy's finder of NVIDIA's libraries."""
    import cupy.cublas  # loads CuPy's

    try:
        from cuda import pathfinder

        return ctypes.CDLL(pathfinder.load_nvidia_dynamic_lib("cublas").abs_path)
    except (ImportError, OSError, RuntimeError) as error:
        raise BackendError(
            f"backend cupy cannot load cuBLAS ({first_line(error)}): "
            f"{install(cuda_version(cupy))} brings it"
        ) from None
