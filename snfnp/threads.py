"""The threads of two pools on the same cores: OpenBLAS for products, Numba for everything else.

By default idle threads of both pools spin, each on cores that the other needs, and a step takes
several times as long. The package lets idle OpenBLAS threads sleep at once, and those of GNU OpenMP
(Numba's on Linux) after a short spin: waking a thread takes about as long as a small kernel. Other
threading layers sleep at once. A process has a thread per core, or per core of its container's
quota. Settings in the environment take precedence, and every run records those in force, since the
rounding of BLAS depends on the number of threads. Derivation: derivations/26-many-cores.md.
"""

import math
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

_BLAS_TIMEOUT = "OPENBLAS_THREAD_TIMEOUT"
_OMP_WAIT = "OMP_WAIT_POLICY"
_GOMP_SPIN = "GOMP_SPINCOUNT"
_SPINS = "5000"  # iterations, a few tenths of a millisecond at most
_NUMBERS = ("NUMBA_NUM_THREADS", "OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS")
_blas_timeout_in_time = True
# Held during products: a child of a fork would wait for ever for a lock that OpenBLAS held.
blas = threading.Lock()
_lock = threading.Lock()  # of what follows, and of the numbers of BLAS's threads
_limits: list[float] = []  # those in force, of all threads
# path: a BLAS library, and its threads without limits
_unlimited: dict[str, tuple[Any, int]] = {}


def at_fork(lock: Any) -> None:
    """Let no thread hold a lock when another one forks: the child would wait for it for ever."""
    release = lock.release
    os.register_at_fork(
        before=lock.acquire, after_in_parent=release, after_in_child=release
    )


at_fork(_lock)
at_fork(blas)


def configure_blas() -> None:
    """Let idle OpenBLAS threads sleep at once (2**4 ticks); no effect once NumPy is loaded."""
    global _blas_timeout_in_time
    if _BLAS_TIMEOUT in os.environ:
        return
    _blas_timeout_in_time = "numpy" not in sys.modules
    os.environ[_BLAS_TIMEOUT] = "4"


def configure_numba() -> None:
    """Choose a threading layer whose idle threads soon sleep, before the first kernel runs: passive
    OpenMP if it is installed and no OpenMP library has read its settings yet, else the work queue.
    A waiting policy in the environment is kept, and no spin is added to it."""
    if "NUMBA_THREADING_LAYER" in os.environ:
        return
    import numba
    import threadpoolctl

    loaded = any(
        pool["user_api"] == "openmp" for pool in threadpoolctl.threadpool_info()
    )
    if _OMP_WAIT not in os.environ and sys.platform == "linux":
        os.environ.setdefault(_GOMP_SPIN, _SPINS)
    os.environ.setdefault(_OMP_WAIT, "passive")
    config: Any = numba.config  # pyright: ignore[reportPrivateImportUsage]
    config.THREADING_LAYER = "workqueue"
    if not loaded and os.environ[_OMP_WAIT].lower() == "passive":
        with suppress(ImportError):  # this build or the system has no OpenMP
            import numba.np.ufunc.omppool

            config.THREADING_LAYER = "omp"


def cores() -> int:
    """The number of cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def quota(root: Path = Path("/")) -> float:
    """The cores whose time a container may use, by Linux's control groups (version 1 or 2);
    infinite without a limit."""
    limits = [math.inf]
    with suppress(OSError, ValueError):
        for line in (
            (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
        ):
            _, controllers, path = line.split(":", 2)
            if controllers and "cpu" not in controllers.split(","):
                continue
            base = root / "sys/fs/cgroup" / ("cpu" if controllers else "")
            group = base / path.lstrip("/")
            groups = (group, *(up for up in group.parents if up.is_relative_to(base)))
            limits += map(_limit, groups)
    return min(limits)


def _limit(group: Path) -> float:
    for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        with suppress(OSError, ValueError):  # no such file, or "max"
            texts = ((group / name).read_text(encoding="utf-8") for name in names)
            most, period = " ".join(texts).split()
            if float(most) > 0:
                return float(most) / float(period)
    return math.inf


def limit_to_cores() -> None:
    """Give BLAS and Numba at most a thread for each core, unless the environment sets numbers."""
    if not any(name in os.environ for name in _NUMBERS):
        limit(max(1, int(min(cores(), quota()))))


def limit(count: int) -> None:
    """Give BLAS, and Numba if it is loaded, at most `count` threads. (Numba's number is that of the
    thread that calls this, BLAS's that of the process.)"""
    with _lock:
        for pool in blas_libraries():
            pool.set_num_threads(min(count, pool.get_num_threads()))
        for path, (pool, threads) in _unlimited.items():
            _unlimited[path] = pool, min(count, threads)
    if numba := _numba():
        numba.set_num_threads(min(count, numba.get_num_threads()))


@contextmanager
def limited(count: int | None = None) -> Iterator[None]:
    """A context in which BLAS and Numba have at most `count` threads (None: as many as before). At
    its end every pool has as many as before."""
    numba = _numba()
    before = numba.get_num_threads() if numba else 1
    with blas_limited(count):
        try:
            if numba and count is not None:
                numba.set_num_threads(min(count, before))
            yield
        finally:
            if numba:
                numba.set_num_threads(before)


@contextmanager
def blas_limited(
    count: int | None, libraries: list[Any] | None = None
) -> Iterator[None]:
    """A context in which BLAS has at most `count` threads (None: as many as before).

    The number is the process's: the smallest `count` of all threads that are in such a context
    holds for all, and the last to leave restores the number that the first found.

    Args:
        libraries: the controllers of threadpoolctl; default: those of all BLAS libraries.
    """
    most = math.inf if count is None else count
    with _lock:
        for pool in blas_libraries() if libraries is None else libraries:
            _unlimited.setdefault(pool.filepath, (pool, pool.get_num_threads()))
        _limits.append(most)
        _apply_limits()
    try:
        yield
    finally:
        with _lock:
            _limits.remove(most)
            _apply_limits()
            if not _limits:
                _unlimited.clear()


def _apply_limits() -> None:
    for pool, threads in _unlimited.values():
        pool.set_num_threads(int(min(threads, *_limits, math.inf)))


def most() -> int:
    """The threads of the larger pool."""
    numba = _numba()
    blas = (pool.get_num_threads() for pool in blas_libraries())
    return max([1, *blas, numba.get_num_threads() if numba else 1])


def blas_libraries() -> list:
    """The controllers of all BLAS libraries that are loaded."""
    import threadpoolctl

    return threadpoolctl.ThreadpoolController().select(user_api="blas").lib_controllers


def _numba() -> Any:
    """The module, if it is loaded."""
    if "numba" not in sys.modules:
        return None
    import numba  # waits until a thread that is importing it has done so

    return numba


def describe() -> dict:
    """The settings in force, for a run's configuration: BLAS libraries, threads, Numba's layer."""
    import threadpoolctl

    pools = [
        {
            k: pool.get(k)
            for k in ("internal_api", "version", "architecture", "num_threads")
        }
        for pool in threadpoolctl.threadpool_info()
        # not Numba's OpenMP, which appears with its first kernel
        if pool["user_api"] == "blas"
    ]
    described = {
        "blas": pools,
        "blas_thread_timeout": os.environ.get(_BLAS_TIMEOUT),
        "blas_timeout_in_time": _blas_timeout_in_time,
        "omp_wait_policy": os.environ.get(_OMP_WAIT),
        "gomp_spincount": os.environ.get(_GOMP_SPIN),
    }
    if numba := _numba():
        described["numba_layer"] = str(numba.config.THREADING_LAYER)
        described["numba_threads"] = numba.get_num_threads()
    return described
