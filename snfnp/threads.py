"""The threads of two pools on the same cores: OpenBLAS for products, Numba for everything else.

By default idle threads of both pools spin, each on cores that the other needs, and a step takes
several times as long. The package lets idle OpenBLAS threads sleep at once, and those of GNU OpenMP
(Numba's on Linux) after a short spin: waking a thread takes about as long as a small kernel. Other
threading layers sleep at once. A process has a thread per core, or per core of its container's
quota. Settings in the environment take precedence, and every run records those in force, since the
rounding of BLAS depends on the number of threads. Derivation: derivations/25-many-cores.md.
"""

import math
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

_BLAS_TIMEOUT = "OPENBLAS_THREAD_TIMEOUT"
_OMP_WAIT, _GOMP_SPIN = "OMP_WAIT_POLICY", "GOMP_SPINCOUNT"
_SPINS = "5000"  # iterations, a few tenths of a millisecond at most
_NUMBERS = ("NUMBA_NUM_THREADS", "OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS")
_in_force = {"blas_timeout_in_time": True}


def configure_blas() -> None:
    """Let idle OpenBLAS threads sleep at once (2**4 ticks); no effect once NumPy is loaded."""
    if _BLAS_TIMEOUT in os.environ:
        return
    _in_force["blas_timeout_in_time"] = "numpy" not in sys.modules
    os.environ[_BLAS_TIMEOUT] = "4"


def configure_numba() -> None:
    """Choose a threading layer whose idle threads soon sleep, before the first kernel runs: passive
    OpenMP if it is installed and no OpenMP library has read its settings yet, else the work queue.
    A waiting policy in the environment is kept, and no spin is added to it."""
    if "NUMBA_THREADING_LAYER" in os.environ:
        return
    import numba
    import threadpoolctl

    loaded = any(pool["user_api"] == "openmp" for pool in threadpoolctl.threadpool_info())
    if _OMP_WAIT not in os.environ and sys.platform == "linux":
        os.environ.setdefault(_GOMP_SPIN, _SPINS)
    os.environ.setdefault(_OMP_WAIT, "passive")
    config: Any = numba.config  # pyright: ignore[reportPrivateImportUsage]
    config.THREADING_LAYER = "workqueue"
    if not loaded and os.environ[_OMP_WAIT].lower() == "passive":
        with suppress(ImportError):  # this build or the system has no OpenMP
            import numba.np.ufunc.omppool

            config.THREADING_LAYER = "omp"


def cores() -> frozenset[int]:
    """The cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def quota(root: Path = Path("/")) -> float:
    """The cores whose time a container may use, by Linux's control groups (version 1 or 2);
    infinite without a limit."""
    found = [math.inf]
    with suppress(OSError, ValueError):
        for line in (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and "cpu" not in controllers.split(","):
                continue
            base = root / "sys/fs/cgroup" / ("cpu" if controllers else "")
            group = base / path.lstrip("/")
            found += map(_limit, (group, *(up for up in group.parents if up.is_relative_to(base))))
    return min(found)


def _limit(group: Path) -> float:
    for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        with suppress(OSError, ValueError):  # no such file, or "max"
            texts = ((group / name).read_text(encoding="utf-8") for name in names)
            most, period = " ".join(texts).split()
            if float(most) > 0:
                return float(most) / float(period)
    return math.inf


def share_cores(processes: int = 1) -> None:
    """Give BLAS and Numba at most the threads of a process's share of the cores. A single process
    keeps the numbers that the environment sets."""
    if processes > 1 or not any(name in os.environ for name in _NUMBERS):
        limit(max(1, int(min(len(cores()), quota())) // processes))


def limit(count: int) -> None:
    """Give BLAS, and Numba if it is loaded, at most `count` threads."""
    for get, put in _pools():
        put(min(count, get()))


@contextmanager
def limited(count: int | None = None) -> Iterator[None]:
    """A context in which BLAS and Numba have at most `count` threads (None: as many as before). At
    its end every pool has as many as before."""
    before = [(put, get()) for get, put in _pools()]
    try:
        if count is not None:
            limit(count)
        yield
    finally:
        for put, threads in before:
            put(threads)


def most() -> int:
    """The threads of the larger pool."""
    return max([1, *(get() for get, _ in _pools())])


def _pools() -> list[tuple[Callable[[], int], Callable[[int], object]]]:
    """The functions that get and set the number of threads of each pool that is loaded."""
    import threadpoolctl

    blas = threadpoolctl.ThreadpoolController().select(user_api="blas").lib_controllers
    pools = [(pool.get_num_threads, pool.set_num_threads) for pool in blas]
    if numba := sys.modules.get("numba"):
        pools.append((numba.get_num_threads, numba.set_num_threads))
    return pools


def describe() -> dict:
    """The settings in force, for a run's configuration: BLAS libraries, threads, Numba's layer."""
    import threadpoolctl

    pools = [
        {k: pool.get(k) for k in ("internal_api", "version", "architecture", "num_threads")}
        for pool in threadpoolctl.threadpool_info()
        if pool["user_api"] == "blas"  # not Numba's OpenMP, which appears with its first kernel
    ]
    described = {
        "blas": pools,
        "blas_thread_timeout": os.environ.get(_BLAS_TIMEOUT),
        "blas_timeout_in_time": _in_force["blas_timeout_in_time"],
        "omp_wait_policy": os.environ.get(_OMP_WAIT),
        "gomp_spincount": os.environ.get(_GOMP_SPIN),
    }
    if numba := sys.modules.get("numba"):
        described["numba_layer"] = str(numba.config.THREADING_LAYER)
        described["numba_threads"] = numba.get_num_threads()
    return described
