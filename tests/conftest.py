"""Fixtures that several test files share, and what tests need (`support.requirements_plugin`)."""

import importlib.util
import os
import shutil
import sys

import pytest
from gpu import standin
from support import nvrtc, processes
from support.requirements_plugin import Requirements
from support.runs import snfnp_train  # noqa: F401 (a fixture)

from snfnp import threads
from snfnp.ops import get_ops


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config):
    """Processes where nobody said how many (-n auto): one for each core, at most eight.

    None but this one where others would take longer to start than they save (one core, one or two
    files), and for the tests of a device, which all of them would have to share.
    """
    files = [argument for argument in config.args if ".py" in argument]
    few = len(files) == len(config.args) < 3
    cores = len(threads.cores())
    return 0 if few or cores == 1 or standin.wanted() else min(cores, 8)


def pytest_configure(config):
    if getattr(config.option, "numprocesses", None):
        # A thread of BLAS that waits for another one, which a busy core keeps waiting, spins.
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    Requirements.register_markers(config)
    missing = {
        "nvrtc": nvrtc.missing,
        "hostcuda": missing_compiler,
        "device": lambda: standin.device().missing,
        "real_gpu": lambda: standin.device().missing_gpu,
        "mpi": processes.missing,
        "docs": missing_docs,
    }
    config.pluginmanager.register(Requirements(missing))


def missing_compiler() -> str | None:
    """Why the kernels cannot be compiled for the CPU, or None."""
    if sys.platform != "linux":
        return f"support/hostcuda.h is for Linux, not for {sys.platform}"
    return None if shutil.which("g++") else "g++ is not installed"


def missing_docs() -> str | None:
    """Which of the packages that build the site is not installed, or None."""
    names = ("sphinx", "furo", "myst_parser", "latex2mathml")
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    return f"{', '.join(missing)}: not installed" if missing else None


@pytest.fixture(params=["numpy", "numba"])
def ops(request):
    """Every backend that runs on a CPU, in turn."""
    return get_ops(request.param)
