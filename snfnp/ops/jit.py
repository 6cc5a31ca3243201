"""Numba's compilers for the kernels of the CPU, and helpers of these.

Every kernel is deterministic: partial sums belong to a fixed block or sample, never to a thread.
No `fastmath`: isnan must work. `prange` is over samples, or blocks in the order of samples: a core
then finds in its cache what it computed of the same samples in the kernel before.

Numba keeps what it has compiled beside the file of the kernel and looks at the date of that file
alone: after a change to a function that kernels of other files call, delete their `__pycache__`.
NUMBA_CACHE_DIR names another place; if none can be written, it is a temporary folder, or none.
"""

import sys

import numba
import numpy as np
from numba import njit

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
    print(
        "compiled kernels cannot be kept beside the package or in the home folder: they are "
        + (f"kept in {place}" if kept else "compiled again in every run")
        + " (NUMBA_CACHE_DIR names another place)",
        file=sys.stderr,
    )
    return kept


_CACHE = _find_cache()
parallel = njit(parallel=True, cache=_CACHE, error_model="numpy")
compiled = njit(cache=_CACHE, error_model="numpy")
serial = njit(cache=_CACHE, error_model="numpy", inline="always")

GROUP = 8  # factors multiplied in double precision before one logarithm is taken
FLAT_BLOCK = 16384  # elements of a flat buffer that one task takes: 64 KB, inside the second cache


def rows(array):
    """(N, ...) as C-contiguous rows (N, D)."""
    return group.rows(np.ascontiguousarray(array))
