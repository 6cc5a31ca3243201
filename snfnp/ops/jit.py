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
from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

import numba
import numpy as np
from numba import prange
from numba.core import event
from numba.core.compiler_lock import global_compiler_lock

from snfnp import files, threads
from snfnp.ops.group import Array

threads.configure_numba()
njit: Any = numba.njit  # whose types know neither its options nor what it returns
config: Any = numba.config  # pyright: ignore[reportPrivateImportUsage]
_SOURCES = Path(__file__).resolve().parent
_KEPT = 3  # folders of kernels, the most recently used ones: one for each state of the sources


def _digest() -> str:
    """The state of everything that kernels are made of; `__init__` has the package's version."""
    digest = hashlib.sha256(f"Numba {numba.__version__}".encode())
    for path in [_SOURCES.parent / "__init__.py", *sorted(_SOURCES.rglob("*.py"))]:
        if "gpu" not in (path.stem, path.parent.name):
            digest.update(
                f"\n{os.path.relpath(path, _SOURCES)}\n".encode() + path.read_bytes()
            )
    return digest.hexdigest()[:16]


def _kernel_folder() -> Path | None:
    """The first of the possible folders for compiled kernels that can be written, or None.

    Folders may be shared by several checkouts, each of which removes old kernels of its own alone.
    """
    checkout = f"snfnp-{hashlib.sha256(str(_SOURCES).encode()).hexdigest()[:8]}"
    state = Path(checkout, _digest())
    roots = [_SOURCES / "__pycache__", files.user_cache() / "kernels"]
    if root := os.environ.get("NUMBA_CACHE_DIR"):
        roots = [Path(root)]
    folder = next(filter(_is_usable, (root / state for root in roots)), None)
    if folder is None:
        private = files.private_folder("numba")
        folder = private and private / state
        remedy = f"kept in {private}" if folder else "compiled again in every run"
        print(
            f"compiled kernels cannot be kept in {' or '.join(map(str, roots))}: they are {remedy} "
            "(NUMBA_CACHE_DIR names another place)",
            file=sys.stderr,
        )
    if folder:
        with suppress(OSError):  # another process may do the same
            folder.mkdir(parents=True, exist_ok=True)
            os.utime(folder)
            states = sorted(folder.parent.iterdir(), key=os.path.getmtime)
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
os.register_at_fork(after_in_child=lambda: _POOL.acquire(blocking=False))


def compiled(kernel: Callable, **options: Any) -> Any:
    """A function that is compiled when it is first called, and kept in the folder above: a user's
    own kernels go to Numba's. Files that cannot be read or written, since a crash left them empty
    or the disk is full, are forgotten, and the function is compiled as if there were none."""

    @contextmanager
    def guard():  # in place of Numba's, which lets all errors pass
        try:
            yield
        except Exception:
            with suppress(OSError):
                function._cache.flush()

    usual = config.CACHE_DIR
    config.CACHE_DIR = str(_FOLDER or "")
    try:
        function = njit(cache=bool(_FOLDER), error_model="numpy", **options)(kernel)
    finally:
        config.CACHE_DIR = usual
    function._cache._guard_against_spurious_io_errors = guard
    return function


def inlined(kernel: Callable) -> Any:
    """A function that is inlined into the kernels that call it."""
    return compiled(kernel, inline="always")


def parallel(kernel: Callable) -> Callable[..., None]:
    """kernel(task, array, …) as a function of (tasks, array, …), which calls it for every task in
    parallel; one after another if the array is so short that waking threads takes longer, or if
    Numba's threads are not to be had.

    The loops are made as source text: a parallel loop takes tuples, but no nested ones.
    """
    _, *names = inspect.signature(kernel).parameters
    call = ", ".join(names)
    inner = njit(error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)(
        kernel
    )
    scope = {
        "prange": prange,
        "uintp": np.uintp,
        "kernel": inner,
        "__name__": kernel.__module__,
    }

    def loop(name, over):
        """The compiled loop of this name over tasks, by "prange" or "range"."""
        source = f"""def {name}(tasks, {call}):
    for task in {over}(tasks):
        kernel(uintp(task), {call})"""
        exec(compile(source, inspect.getfile(kernel), "exec"), scope)
        return compiled(scope[name], no_cfunc_wrapper=True, parallel=over == "prange")

    # Numba finds a kernel on disk by its name: the two have different ones.
    shared = loop(kernel.__name__, "prange")
    alone = loop(f"{kernel.__name__}_alone", "range")

    def run(tasks, array, *others):
        if array.size > _SHORT and _POOL.acquire(blocking=False):
            try:
                shared(tasks, array, *others)
            finally:
                _POOL.release()
        else:
            alone(tasks, array, *others)

    return run


def alike(*arrays: Array) -> bool:
    """True if the arrays are all in single, or all in double precision: what kernels are made for.
    (A byte order of another machine is neither.)"""
    dtype = arrays[0].dtype
    # a generator would cost a call for each array, in every operation of a step
    for each in arrays:
        if each.dtype != dtype:
            return False
    return dtype in _PRECISIONS


class _Compilations(event.Listener):
    """Numba's compilations as calls of `begins` and `ends`; those within another are part of it."""

    def __init__(self, begins: Callable[[], None], ends: Callable[[int], None]):
        self._begins = begins
        self._ends = ends
        self._depth = 0

    def on_start(self, event: Any) -> None:
        if self._depth == 0:
            self._begins()
        self._depth += 1

    def on_end(self, event: Any) -> None:
        self._depth -= 1
        if self._depth == 0:
            self._ends(1)


def compilations(
    begins: Callable[[], None], ends: Callable[[int], None]
) -> AbstractContextManager:
    """See `HostDevice`."""
    return event.install_listener("numba:compile", _Compilations(begins, ends))
