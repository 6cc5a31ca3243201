"""Numba's compilers for the kernels of the CPU, and helpers of these.

Every kernel is deterministic: partial sums belong to a fixed block or sample, never to a thread,
and `total` adds them up in their order. No `fastmath`: isnan must work. Tasks are samples, or
blocks in the order of samples: a core then finds in its cache what it computed of the same samples
in the kernel before.

Compiling must not take long: what is in a parallel loop Numba analyses many times over. So the loop
of every kernel has one call in it (`parallel`), and what comes before or after is NumPy's.

Numba keeps what it has compiled beside the file of the kernel and looks at the date of that file
alone: after a change to a function that kernels of other files call, delete their `__pycache__`.
NUMBA_CACHE_DIR names another place; if none can be written, it is a temporary folder, or none.
"""

import inspect
import sys

import numba
import numpy as np
from numba import njit, prange
from numba.core import event

from snfnp import folders, threads
from snfnp.ops import group

threads.configure_numba()


def _find_cache() -> bool:
    """Let Numba keep its kernels in the first folder that can be written; False if none can."""

    def works() -> bool:
        try:
            njit(cache=True)(lambda: None)
        except RuntimeError:  # of the places that Numba knows none can be written
            return False
        return True

    if works():
        return True
    place = folders.private_folder("numba")
    if place:
        numba.config.CACHE_DIR = str(place)
    kept = place is not None and works()
    found = "compiled kernels cannot be kept beside the package or in the home folder: they are"
    what = f"kept in {place}" if kept else "compiled again in every run"
    print(f"{found} {what} (NUMBA_CACHE_DIR names another place)", file=sys.stderr)
    return kept


_CACHE = _find_cache()
_SHORT = 1 << 12  # values: some microseconds of work
compiled = njit(cache=_CACHE, error_model="numpy")
serial = njit(cache=_CACHE, error_model="numpy", inline="always")


def parallel(kernel):
    """kernel(task, …) as a function of (tasks, …), which calls it for every task in parallel; one
    after another if its first array is so short that waking threads takes longer.

    The loops are made as source text, since a parallel one takes tuples, but no tuple of them.
    """
    _, *arguments = inspect.signature(kernel).parameters
    call = ", ".join(arguments)
    inner = njit(error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)(kernel)
    scope = {"prange": prange, "uintp": np.uintp, "kernel": inner, "__name__": kernel.__module__}
    how = {"cache": _CACHE, "error_model": "numpy", "no_cfunc_wrapper": True}

    def loop(name, over):
        source = f"""def {name}(tasks, {call}):
    for task in {over}(tasks):
        kernel(uintp(task), {call})"""
        exec(compile(source, inspect.getfile(kernel), "exec"), scope)  # whose date Numba looks at
        return njit(**how, parallel=over == "prange")(scope[name])

    # of different names: what is kept on disk is found by them
    shared, alone = loop(kernel.__name__, "prange"), loop(f"{kernel.__name__}_alone", "range")

    place = None

    def run(tasks, *given):
        nonlocal place
        if place is None:
            place = next(i for i, each in enumerate(given) if isinstance(each, np.ndarray))
        (shared if given[place].size > _SHORT else alone)(tasks, *given)

    return run


class _Compilations(event.Listener):
    """Numba's compilations as calls of `begins` and `ends`; those within another are part of it."""

    def __init__(self, begins, ends):
        self._begins, self._ends, self._depth = begins, ends, 0

    def on_start(self, event):
        if self._depth == 0:
            self._begins()
        self._depth += 1

    def on_end(self, event):
        self._depth -= 1
        if self._depth == 0:
            self._ends(1)


def compilations(begins, ends):
    """See `HostDevice`."""
    return event.install_listener("numba:compile", _Compilations(begins, ends))


def total(parts, before=0.0):
    """before + Σ of `parts` over their first axis, one after another, in double precision."""
    sums = np.empty(parts.shape[1:])
    sums[...] = before
    _add(parts.reshape(len(parts), sums.size), sums.reshape(-1))
    return sums


@compiled
def _add(parts, sums):
    for part in range(len(parts)):
        for j in range(sums.size):
            sums[j] += parts[part, j]


GROUP = 8  # factors multiplied in double precision before one logarithm is taken
FLAT_BLOCK = 16384  # elements of a flat buffer that one task takes: 64 KB, inside the second cache


def rows(array):
    """(N, ...) as C-contiguous rows (N, D)."""
    return group.rows(np.ascontiguousarray(array))
