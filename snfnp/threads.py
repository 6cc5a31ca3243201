"""Two thread pools share the cores here: OpenBLAS for products, Numba for everything else.

By default an idle OpenBLAS thread spins for about 2**26 clock ticks before it sleeps, and with
Numba's OpenMP layer an idle Numba thread spins as well: each pool then takes the cores that the
other one needs (measured on two cores: the same mix of products and kernels took 24 ms per step
instead of 8). So the package makes both sleep at once, unless the environment already says
otherwise, and records in every run what is in force.
"""

from __future__ import annotations

import os
import sys

_BLAS_TIMEOUT = "OPENBLAS_THREAD_TIMEOUT"
_NUMBA_LAYER = "NUMBA_THREADING_LAYER"
_in_force = {"blas_timeout_in_time": True}


def settle_blas() -> None:
    """Let idle OpenBLAS threads sleep at once (2**4 ticks). Too late once NumPy is loaded."""
    if _BLAS_TIMEOUT in os.environ:
        return
    _in_force["blas_timeout_in_time"] = "numpy" not in sys.modules
    os.environ[_BLAS_TIMEOUT] = "4"


def settle_numba() -> None:
    """Choose Numba's work queue, whose idle threads sleep. Call before the first kernel runs."""
    if _NUMBA_LAYER not in os.environ:
        import numba

        numba.config.THREADING_LAYER = "workqueue"


def describe() -> dict:
    """What is in force, for a run's configuration: BLAS libraries, their threads, Numba's layer."""
    import threadpoolctl

    pools = [
        {k: pool.get(k) for k in ("internal_api", "version", "architecture", "num_threads")}
        for pool in threadpoolctl.threadpool_info()
    ]
    described = {
        "blas": pools,
        "blas_thread_timeout": os.environ.get(_BLAS_TIMEOUT),
        "blas_timeout_in_time": _in_force["blas_timeout_in_time"],
    }
    if "numba" in sys.modules:
        numba = sys.modules["numba"]
        described["numba_layer"] = str(numba.config.THREADING_LAYER)
        described["numba_threads"] = numba.get_num_threads()
    return described
