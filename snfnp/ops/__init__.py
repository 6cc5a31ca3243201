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


def get_ops(backend: str = "numba", **settings) -> NumpyOps:
    """The operations of a backend: "numba" (the default on a CPU), "numpy" or "cupy" (a GPU).

    settings: what only `CupyOps` can be told (`tf32`); a backend without settings ignores them.
    Raises BackendError, with one line that says what is missing, where it cannot run.
    """
    if backend == "numpy":
        return NumpyOps()
    if backend == "numba":
        from snfnp.ops.numba_ops import NumbaOps

        return NumbaOps()
    if backend == "cupy":
        from snfnp.ops.cupy_ops import CupyOps

        return CupyOps(**settings)
    raise UsageError(f"backend is {backend!r}: choose one of {', '.join(BACKENDS)}")


__all__ = ["BACKENDS", "NumpyOps", "RandomKey", "get_ops"]
