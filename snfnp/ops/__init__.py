"""Numbers on a device: the only place that knows NumPy from Numba from CuPy.

An ops object is passed explicitly to everything that computes; there is no current backend.
`NumpyOps` is the definition of every operation. The other two override what is hot, and a test
compares every override with its definition.
"""

from __future__ import annotations

from snfnp.errors import UsageError
from snfnp.ops.numpy_ops import NumpyOps
from snfnp.ops.philox import RandomKey

BACKENDS = ("numba", "numpy", "cupy")


def get_ops(backend: str = "numba", tf32: bool = False) -> NumpyOps:
    """The operations of a backend: "numba" (the default on a CPU), "numpy" or "cupy" (a GPU).

    tf32: see `CupyOps`; the others have no such precision, and nothing to be told.
    Raises BackendError, with one line that says what is missing, where it cannot run.
    """
    if backend == "numpy":
        return NumpyOps()
    if backend == "numba":
        from snfnp.ops.numba_ops import NumbaOps

        return NumbaOps()
    if backend == "cupy":
        from snfnp.ops.cupy_ops import CupyOps

        return CupyOps(tf32)
    raise UsageError(f"backend is {backend!r}: choose one of {', '.join(BACKENDS)}")


__all__ = ["BACKENDS", "NumpyOps", "RandomKey", "get_ops"]
