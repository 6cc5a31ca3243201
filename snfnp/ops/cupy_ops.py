"""The GPU backend: NumPy's definitions on CuPy arrays.

The definitions use nothing but an array namespace, so they hold on the device as they stand; what
CuPy does differently is overridden here. This module imports without CuPy; making a `CupyOps`
needs it, a driver and a device, and says in one line what is missing.
"""

from __future__ import annotations

import numpy as np

from snfnp.errors import BackendError, SingularMatrixError
from snfnp.ops.numpy_ops import NumpyOps


class CupyOps(NumpyOps):
    """Operations on the current CUDA device."""

    name = "cupy"

    def __init__(self):
        self.xp = _import_cupy()

    def asarray(self, host, dtype=None):
        return self.xp.asarray(np.ascontiguousarray(host, dtype=dtype))

    def to_host(self, array) -> np.ndarray:
        return self.xp.asnumpy(array)

    def inverse(self, w):
        # CuPy answers a singular matrix with inf or NaN instead of an error
        return self._finite(self.xp.linalg.inv(w))

    def solve(self, w, z):
        return self._finite(super().solve(w, z))

    def _finite(self, result):
        if not bool(self.xp.isfinite(result).all()):
            raise SingularMatrixError("the weight matrix is singular or not finite")
        return result

    def sum_squares(self, g) -> float:
        return float(self.xp.sum(self.xp.square(g.astype(np.float64))))


def _import_cupy():
    """CuPy with a working device, or a BackendError that says what is missing."""
    try:
        import cupy
    except ImportError as error:
        raise BackendError(
            f"--backend cupy needs CuPy ({error}): pip install cupy-cuda13x (or cupy-cuda12x for "
            "a CUDA 12 driver), or choose --backend numba"
        ) from None
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        raise BackendError(
            f"--backend cupy found CuPy {cupy.__version__} but no usable CUDA driver or device "
            f"({str(error).splitlines()[0]}): check nvidia-smi, or choose --backend numba"
        ) from None
    if not count:
        raise BackendError("--backend cupy found no CUDA device: choose --backend numba")
    return cupy
