"""Fixtures that several test files share, and what tests need.

Slow tests, which the quick tier leaves out (`-m "not slow"`), train for a second or more, go
through many states of a file, measure memory, compile kernels, or need a device; they are marked
where they stand.
"""

import gc
import importlib.util
import os
import shutil
import signal
import sys
from pathlib import Path

import pytest
from gpu import standin
from support import nvrtc
from support.runs import (  # noqa: F401
    advance,
    copy,
    drawn,
    finished,
    here,
    shell,
    snfnp_train,
    undrawn,
)

from snfnp import threads
from snfnp.ops import get_ops

# A shell that starts the tests in the background makes them, and what they start, ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Files that compile most kernels. They come first: one of several processes has them all.
FIRST = "benchmarks block_tridiagonal conv coupling density flow gradcheck_linear "
FIRST += "layers method monitors ops spline steps whole_step"
COMPILING = {f"test_{name}.py" for name in FIRST.split()}


def missing_compiler() -> str | None:
    """The reason why the kernels cannot be compiled for the CPU, or None."""
    if sys.platform != "linux":
        return f"support/hostcuda.h is for Linux, not for {sys.platform}"
    return None if shutil.which("g++") else "g++ is not installed"


def missing_docs() -> str | None:
    """The packages that build the site and are not installed, or None."""
    names = ("sphinx", "furo", "myst_parser", "latex2mathml")
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    return f"{', '.join(missing)}: not installed" if missing else None


# Why what a test with such a marker needs is missing here, or None.
NEEDS = {
    "nvrtc": nvrtc.missing,
    "hostcuda": missing_compiler,
    "device": lambda: standin.device().missing,
    "real_gpu": lambda: standin.device().missing_gpu,
    "docs": missing_docs,
}


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config):
    """The number of processes for -n auto: one for each core, at most eight.

    None besides this one if others would take longer to start than they save (one core, one or two
    files), and for the tests of a device, which all of them would share.
    """
    files = [argument for argument in config.args if ".py" in argument]
    few = len(files) == len(config.args) < 3
    cores = threads.cores()
    return 0 if few or cores == 1 or standin.wanted() else min(cores, 8)


def pytest_configure(config):
    """SNFNP_REQUIRE=nvrtc,device: what must be there, or no test is run at all."""
    if getattr(config.option, "numprocesses", None):
        # A thread of BLAS that waits for another one, which a busy core keeps waiting, spins.
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    for name in NEEDS:
        config.addinivalue_line("markers", f"{name}: skipped where that is missing")
    for name in filter(None, os.environ.get("SNFNP_REQUIRE", "").split(",")):
        if name not in NEEDS:
            raise pytest.UsageError(
                f"SNFNP_REQUIRE names {name}: choose of {', '.join(NEEDS)}"
            )
        if why := NEEDS[name]():
            raise pytest.UsageError(f"SNFNP_REQUIRE names {name}, but: {why}")


def pytest_collection_modifyitems(items):
    """Put the files first that compile most kernels."""
    folder = Path(__file__).parent
    items.sort(key=lambda item: os.path.relpath(item.path, folder) not in COMPILING)


def pytest_collection_finish():
    """Keep Python from looking for garbage among thousands of collected tests, again and again."""
    gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """Skips come before fixtures."""
    for name, missing in NEEDS.items():
        if item.get_closest_marker(name) and (why := missing()):
            pytest.skip(f"needs {name}: {why}")


@pytest.fixture(params=["numpy", pytest.param("numba", marks=pytest.mark.slow)])
def ops(request):
    """Each backend that runs on a CPU; Numba's kernels take long to compile."""
    return get_ops(request.param)


@pytest.fixture
def alone(monkeypatch):
    """Kernels without their parallel loops, which take longest to compile; test_ops.py has them."""
    monkeypatch.setattr("snfnp.ops.jit._SHORT", 1 << 60)
