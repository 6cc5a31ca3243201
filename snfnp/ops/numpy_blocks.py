"""What the block recursion of `snfnp.maps.block_tridiagonal` needs: definitions."""

from __future__ import annotations

import math
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

    def norms(self, *matrices) -> list[float]:
        """The Frobenius norms of matrices in double precision, read back together."""
        xp = self.xp
        return [math.sqrt(float(xp.vdot(a, a))) for a in matrices]

    def eliminate(self, d, minus_lower, diagonal, upper):
        """One step of block elimination: S = D⁻¹ U and the next D, B − L S. O(n³).

        d (D), minus_lower (−L), diagonal (B), upper (U): (n, n), double.
        Returns D⁻¹, S, the next D, log|det D|, and the Frobenius norms of D, of D⁻¹ and of the
        difference between the two D. Raises SingularMatrixError.
        """
        inverse, log_abs_det = self.inverse_and_log_abs_det(d)
        ratio, following = self._next_block(inverse, minus_lower, diagonal, upper)
        return inverse, ratio, following, log_abs_det, self.norms(d, inverse, following - d)

    def _next_block(self, inverse, minus_lower, diagonal, upper):
        """S and the next D from D⁻¹."""
        ratio = self.matmul(inverse, upper)
        return ratio, self.matmul_add(minus_lower, ratio, diagonal.copy())

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
