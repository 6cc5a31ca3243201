"""Numba's compilers for the kernels of the CPU, and helpers of these.

Every kernel is deterministic: partial sums belong to a fixed block or sample, never to a thread.
No `fastmath`: isnan must work. Tasks are samples, or blocks in the order of samples: a core then
finds in its cache what it computed of the same samples in the kernel before.

Numba analyses the body of a parallel loop many times over. To keep compilation short, the loop of
every kernel has one call in it (`parallel`), and what comes before or after is NumPy's.

Numba's threads work for one thread of the process at a time: if two start a loop, its work queue
ends the process. A thread that finds them busy goes through its loop alone, and so does every child
of a fork, where those of GNU OpenMP are gone. Neither waits, and the bits are the same.

Compiled kernels are kept in a folder of their own for each state of the sources below `snfnp/ops`:
Numba itself looks at the date of a kernel's file alone, and would go on with the old code of a
function that is inlined from another file.
"""

import hashlib
import inspect
import os
import shutil
import sys
import threading
from contextlib import suppress
from pathlib import Path

import numba
import numpy as np
from numba import njit, prange
from numba.core import event
from numba.core.compiler_lock import global_compiler_lock

from snfnp import files, threads

threads.configure_numba()
_SOURCES = Path(__file__).resolve().parent
_KEPT = 3  # states of the sources whose kernels are kept: those that were used last


def _digest() -> str:
    """The state of everything that kernels are made of; `__init__` has the package's version."""
    digest = hashlib.sha256(f"Numba {numba.__version__}".encode())
    for path in [_SOURCES.parent / "__init__.py", *sorted(_SOURCES.rglob("*.py"))]:
        if "gpu" not in (path.stem, path.parent.name):
            digest.update(f"\n{os.path.relpath(path, _SOURCES)}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def _kernel_folder() -> Path | None:
    """The folder for compiled kernels, in the first place that can be written; None: there is none.

    Places may be shared by several checkouts, each of which removes old kernels of its own alone.
    """
    given = os.environ.get("NUMBA_CACHE_DIR")
    places = [_SOURCES / "__pycache__", files.user_cache() / "kernels"]
    state = Path(f"snfnp-{hashlib.sha256(str(_SOURCES).encode()).hexdigest()[:8]}", _digest())
    usual = (place / state for place in ([Path(given)] if given else places))
    folder = next(filter(_is_usable, usual), None)
    if folder is None:
        private = files.private_folder("numba")
        folder = private and private / state
        found = "compiled kernels cannot be kept beside the package or in the home folder: they are"
        what = f"kept in {private}" if folder else "compiled again in every run"
        print(f"{found} {what} (NUMBA_CACHE_DIR names another place)", file=sys.stderr)
    if folder:
        with suppress(OSError):  # another process may do the same
            folder.mkdir(parents=True, exist_ok=True)
            os.utime(folder)
            states = sorted(folder.parent.iterdir(), key=lambda each: each.stat().st_mtime)
            for old in states[:-_KEPT]:
                shutil.rmtree(old, ignore_errors=True)
    return folder


def _is_usable(folder: Path) -> bool:
    """Find out if files can be put into a folder, which is made."""
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
    return os.access(folder, os.W_OK | os.X_OK)


_FOLDER = _kernel_folder()
_SHORT = 1 << 12  # values: some microseconds of work
_PRECISIONS = {np.dtype(np.float32), np.dtype(np.float64)}
_POOL = threading.Lock()  # held while Numba's threads work
threads.at_fork(global_compiler_lock)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: _POOL.acquire(blocking=False))


def compiled(kernel, **how):
    """A function that is compiled when it is first called, and kept in the folder above: a user's
    own kernels go to Numba's."""
    before, numba.config.CACHE_DIR = numba.config.CACHE_DIR, str(_FOLDER or "")
    try:
        return njit(cache=_FOLDER is not None, error_model="numpy", **how)(kernel)
    finally:
        numba.config.CACHE_DIR = before


def serial(kernel):
    """A function that is inlined into the kernels that call it."""
    return compiled(kernel, inline="always")


def parallel(kernel):
    """kernel(task, …) as a function of (tasks, …), which calls it for every task in parallel; one
    after another if its first array is so short that waking threads takes longer, or if Numba's
    threads are not to be had.

    The loops are made as source text: a parallel loop takes tuples, but no nested ones.
    """
    _, *arguments = inspect.signature(kernel).parameters
    call = ", ".join(arguments)
    inner = njit(error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)(kernel)
    scope = {"prange": prange, "uintp": np.uintp, "kernel": inner, "__name__": kernel.__module__}

    def loop(name, over):
        source = f"""def {name}(tasks, {call}):
    for task in {over}(tasks):
        kernel(uintp(task), {call})"""
        exec(compile(source, inspect.getfile(kernel), "exec"), scope)
        return compiled(scope[name], no_cfunc_wrapper=True, parallel=over == "prange")

    # of different names, by which the kernels on disk are found
    shared, alone = loop(kernel.__name__, "prange"), loop(f"{kernel.__name__}_alone", "range")
    place = None

    def run(tasks, *given):
        nonlocal place
        if place is None:
            place = next(i for i, each in enumerate(given) if isinstance(each, np.ndarray))
        if given[place].size > _SHORT and _POOL.acquire(blocking=False):
            try:
                shared(tasks, *given)
            finally:
                _POOL.release()
        else:
            alone(tasks, *given)

    return run


def alike(*arrays) -> bool:
    """True if the arrays are all in single, or all in double precision: what kernels are made for.
    (A byte order of another machine is neither.)"""
    dtype = arrays[0].dtype
    return dtype in _PRECISIONS and all(each.dtype == dtype for each in arrays)


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
