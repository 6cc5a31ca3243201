"""Two thread pools share the cores here: OpenBLAS for products, Numba for everything else.

By default an idle OpenBLAS thread spins for about 2**26 clock ticks before it sleeps, and an idle
OpenMP thread of Numba's spins as well: each pool then takes the cores that the other one needs,
and a step takes several times as long. So the package makes both sleep at once, unless the
environment already says otherwise, and every run records what is in force. Numba's work queue
sleeps too, but takes longer to start a kernel than OpenMP with a passive waiting policy, and a
convolutional step starts many small ones.
"""

from __future__ import annotations

import os
import sys

_BLAS_TIMEOUT = "OPENBLAS_THREAD_TIMEOUT"
_NUMBA_LAYER = "NUMBA_THREADING_LAYER"
_OMP_WAIT = "OMP_WAIT_POLICY"
_in_force = {"blas_timeout_in_time": True}


def settle_blas() -> None:
    """Let idle OpenBLAS threads sleep at once (2**4 ticks). Too late once NumPy is loaded."""
    if _BLAS_TIMEOUT in os.environ:
        return
    _in_force["blas_timeout_in_time"] = "numpy" not in sys.modules
    os.environ[_BLAS_TIMEOUT] = "4"


def settle_numba() -> None:
    """Choose a threading layer whose idle threads sleep. Call before the first kernel runs.

    Passive OpenMP where it is there and nothing has loaded an OpenMP library before (which reads
    its waiting policy once, then); else the work queue.
    """
    if _NUMBA_LAYER in os.environ:
        return
    import numba
    import threadpoolctl

    loaded = any(pool["user_api"] == "openmp" for pool in threadpoolctl.threadpool_info())
    os.environ.setdefault(_OMP_WAIT, "passive")
    passive = not loaded and os.environ[_OMP_WAIT].lower() == "passive" and _has_openmp()
    numba.config.THREADING_LAYER = "omp" if passive else "workqueue"


def _has_openmp() -> bool:
    """Whether this build of Numba has an OpenMP layer and the system the library behind it."""
    try:
        import numba.np.ufunc.omppool  # noqa: F401
    except ImportError:
        return False
    return True


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
        "omp_wait_policy": os.environ.get(_OMP_WAIT),
    }
    if "numba" in sys.modules:
        numba = sys.modules["numba"]
        described["numba_layer"] = str(numba.config.THREADING_LAYER)
        described["numba_threads"] = numba.get_num_threads()
    return described
