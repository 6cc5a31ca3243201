"""What the block recursion of `snfnp.maps.block_tridiagonal` needs: definitions."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import cache

import numpy as np
import threadpoolctl

from snfnp.errors import SingularMatrixError

_ONE_THREAD = 128  # up to this size of a product one BLAS thread is faster than two


class BlockOps:
    """Mixed into `NumpyOps`."""

    def inverse_and_log_abs_det(self, a):
        """a⁻¹ and log|det a| of a square matrix (n, n). O(n³). Raises SingularMatrixError.

        Where `a` is not finite, or singular on a device that does not say so, the inverse is not
        finite.
        """
        xp = self.xp
        try:
            return xp.linalg.inv(a), float(xp.linalg.slogdet(a)[1])
        except np.linalg.LinAlgError:
            raise SingularMatrixError("the matrix is singular") from None

    def chain_of_products(self, size: int) -> AbstractContextManager:
        """A context for many products of (size, size) matrices, each waiting for the last.

        It limits the threads of small products and changes no result. On an idle machine of two
        cores, a product of 112 × 112 matrices takes 36 to 43 µs on two threads and 33 on one; on
        a busy one, two threads wait for each other for milliseconds each time. Costs 10 µs.
        """
        if size > _ONE_THREAD:
            return nullcontext()
        return _blas_libraries(self.name).limit(limits=1, user_api="blas")


@cache
def _blas_libraries(backend: str) -> threadpoolctl.ThreadpoolController:
    """The BLAS libraries that a backend has loaded: looking for them takes milliseconds."""
    return threadpoolctl.ThreadpoolController()
