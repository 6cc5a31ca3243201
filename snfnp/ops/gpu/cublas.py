"""Matrix products through a cuBLAS handle of our own.

CuPy's own products refuse to run while a stream is captured. A handle with a fixed workspace may
run then, and it lets products add to their result. cuBLAS is column-major: a C-contiguous (M, N)
array is a column-major N × M matrix, so C = A B is computed as Cᵀ = Bᵀ Aᵀ.
"""

import ctypes
import weakref

import numpy as np

from snfnp.errors import BackendError, SnfnpError
from snfnp.ops.gpu.launch import DeviceGuard
from snfnp.ops.gpu.requirements import first_line, install

_WORKSPACE = 32 << 20  # bytes, what cuBLAS recommends for Hopper
_PLAIN, _TRANSPOSED = 0, 1
_DEFAULT_MATH, _TF32_MATH = 0, 3
_NO_MEMORY = 3


class Cublas:
    """gemm(a, b, out, beta): out ← a b + beta out, on CuPy's current stream. Products on several
    streams at the same time would share the workspace. tf32: see `get_ops`."""

    def __init__(self, cupy, tf32: bool):
        self._cupy, self._guard = cupy, DeviceGuard(cupy)
        self._library = _load(cupy)
        self._handle = ctypes.c_void_p()
        self._check(self._library.cublasCreate_v2(ctypes.byref(self._handle)))
        # It waits for the device, so the workspace outlives all products. Not at the end of the
        # process: CUDA may be gone by then.
        device = cupy.cuda.Device(self._guard.id)
        weakref.finalize(self, _destroy, device, self._library, self._handle).atexit = False
        mode = _TF32_MATH if tf32 else _DEFAULT_MATH
        self._check(self._library.cublasSetMathMode(self._handle, ctypes.c_int(mode)))
        self._workspace = cupy.empty(_WORKSPACE, np.uint8)
        self._set_stream(cupy.cuda.get_current_stream().ptr)

    def gemm(self, a, b, out, beta: float = 0.0) -> None:
        """a (M, K), b (K, N) of one type, each C-contiguous or the transpose of such; out (M, N),
        C-contiguous."""
        (rows, inner), columns = a.shape, b.shape[1]
        if not rows * columns:
            return
        if not inner:
            out[...] = beta * out if beta else 0
            return
        single = out.dtype == np.float32
        real = ctypes.c_float if single else ctypes.c_double
        alpha, factor = ctypes.byref(real(1.0)), ctypes.byref(real(beta))
        a_, a_operation, a_lead = self._matrix(a)
        b_, b_operation, b_lead = self._matrix(b)
        sizes = map(ctypes.c_int, (b_operation, a_operation, columns, rows, inner))
        of_b, of_a, of_out = (
            (ctypes.c_void_p(array.data.ptr), ctypes.c_int(lead))
            for array, lead in ((b_, b_lead), (a_, a_lead), (out, columns))
        )
        self._guard.require()
        current, stream = self._cupy.cuda.get_current_stream().ptr, ctypes.c_void_p()
        self._check(self._library.cublasGetStream_v2(self._handle, ctypes.byref(stream)))
        if current != (stream.value or 0):  # a null pointer's value is None
            self._set_stream(current)
        call = self._library.cublasSgemm_v2 if single else self._library.cublasDgemm_v2
        self._check(call(self._handle, *sizes, alpha, *of_b, *of_a, factor, *of_out))

    def _matrix(self, matrix):
        """(array, operation, leading dimension), copied if it is contiguous neither way."""
        rows, columns = matrix.shape
        row_stride, column_stride = (step // matrix.itemsize for step in matrix.strides)
        # the stride along an axis of length 1 means nothing
        if (column_stride == 1 or columns == 1) and (row_stride >= columns or rows == 1):
            return matrix, _PLAIN, columns if rows == 1 else row_stride
        if (row_stride == 1 or rows == 1) and (column_stride >= rows or columns == 1):
            return matrix, _TRANSPOSED, rows if columns == 1 else column_stride
        return self._cupy.ascontiguousarray(matrix), _PLAIN, columns

    def _set_stream(self, stream: int) -> None:
        self._check(self._library.cublasSetStream_v2(self._handle, ctypes.c_void_p(stream)))
        # setting a stream resets the workspace to cuBLAS's own, which cannot be captured
        place, size = ctypes.c_void_p(self._workspace.data.ptr), ctypes.c_size_t(_WORKSPACE)
        self._check(self._library.cublasSetWorkspace_v2(self._handle, place, size))

    @staticmethod
    def _check(status: int) -> None:
        if status == _NO_MEMORY:
            raise RuntimeError("CUBLAS_STATUS_ALLOC_FAILED")  # as CuPy's own handle does
        if status:
            raise SnfnpError(f"cuBLAS failed with status {status} (see cublasStatus_t)")


def _destroy(device, library, handle) -> None:
    with device:
        library.cublasDestroy_v2(handle)


def _load(cupy):
    """The cuBLAS library that CuPy itself has loaded, by CuPy's finder of NVIDIA's libraries."""
    import cupy.cublas

    try:
        from cuda import pathfinder

        return ctypes.CDLL(pathfinder.load_nvidia_dynamic_lib("cublas").abs_path)
    except (ImportError, OSError, RuntimeError) as error:
        major = cupy.cuda.runtime.runtimeGetVersion() // 1000
        found = f"backend cupy cannot load cuBLAS ({first_line(error)})"
        raise BackendError(f"{found}: {install(major)} brings it") from None
