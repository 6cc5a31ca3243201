"""Two thread pools share the cores here: OpenBLAS for products, Numba for everything else.

By default idle threads of both spin: each pool then takes the cores that the other one needs, and a
step takes several times as long. So the package lets an OpenBLAS thread sleep at once and an OpenMP
thread soon, unless the environment already says otherwise, and every run records what is in force.

Soon, not at once: to wake a thread takes about as long as a small kernel runs, of which a
convolutional step starts more than a hundred. GNU OpenMP, which Numba has on Linux, can be told how
long to spin; others, and Numba's work queue, sleep at once. See derivations/25-many-cores.md.
"""

import os
import sys

_BLAS_TIMEOUT = "OPENBLAS_THREAD_TIMEOUT"
_OMP_WAIT = "OMP_WAIT_POLICY"
_GOMP_SPIN = "GOMP_SPINCOUNT"
_SPINS = "5000"  # turns of an empty loop: a few tenths of a millisecond at most
_in_force = {"blas_timeout_in_time": True}


def configure_blas() -> None:
    """Let idle OpenBLAS threads sleep at once (2**4 ticks). Too late once NumPy is loaded."""
    if _BLAS_TIMEOUT in os.environ:
        return
    _in_force["blas_timeout_in_time"] = "numpy" not in sys.modules
    os.environ[_BLAS_TIMEOUT] = "4"


def configure_numba() -> None:
    """Choose a threading layer whose idle threads soon sleep. Call before the first kernel runs.

    Passive OpenMP if it is there and nothing has loaded an OpenMP library before (which reads its
    settings once, then); else the work queue. A waiting policy that the environment states
    means what it says: no spinning is added to it.
    """
    if "NUMBA_THREADING_LAYER" in os.environ:
        return
    import numba
    import threadpoolctl

    loaded = any(pool["user_api"] == "openmp" for pool in threadpoolctl.threadpool_info())
    if _OMP_WAIT not in os.environ and sys.platform == "linux":
        os.environ.setdefault(_GOMP_SPIN, _SPINS)
    os.environ.setdefault(_OMP_WAIT, "passive")
    passive = not loaded and os.environ[_OMP_WAIT].lower() == "passive" and _has_openmp()
    numba.config.THREADING_LAYER = "omp" if passive else "workqueue"


def _has_openmp() -> bool:
    """True if this build of Numba has an OpenMP layer and the system has its library."""
    try:
        import numba.np.ufunc.omppool  # noqa: F401
    except ImportError:
        return False
    return True


def cores() -> frozenset[int]:
    """The cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def share_cores(processes: int) -> None:
    """Leave most cores to others: this is one of so many processes that compute on them at once.

    BLAS and Numba then have as many threads as there are cores for each, or as few as the
    environment says.
    """
    import numba
    import threadpoolctl

    share = max(1, len(cores()) // processes)
    numba.set_num_threads(min(share, numba.get_num_threads()))
    for pool in threadpoolctl.ThreadpoolController().select(user_api="blas").lib_controllers:
        pool.set_num_threads(min(share, pool.get_num_threads()))


def describe() -> dict:
    """The settings in force, for a run's configuration: BLAS libraries, threads, Numba's layer."""
    import threadpoolctl

    pools = [
        {k: pool.get(k) for k in ("internal_api", "version", "architecture", "num_threads")}
        for pool in threadpoolctl.threadpool_info()
        if pool["user_api"] == "blas"  # Numba's OpenMP is there too, once a kernel has run
    ]
    described = {
        "blas": pools,
        "blas_thread_timeout": os.environ.get(_BLAS_TIMEOUT),
        "blas_timeout_in_time": _in_force["blas_timeout_in_time"],
        "omp_wait_policy": os.environ.get(_OMP_WAIT),
        "gomp_spincount": os.environ.get(_GOMP_SPIN),
    }
    if "numba" in sys.modules:
        numba = sys.modules["numba"]
        described["numba_layer"] = str(numba.config.THREADING_LAYER)
        described["numba_threads"] = numba.get_num_threads()
    return described
