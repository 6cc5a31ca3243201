"""Fixtures that several test files share, and what tests need (`support.requirements_plugin`)."""

import shutil
import sys

import pytest
from gpu import standin
from support import nvrtc
from support.requirements_plugin import Requirements

from snfnp.ops import get_ops


def pytest_configure(config):
    Requirements.register_markers(config)
    missing = {
        "nvrtc": nvrtc.missing,
        "hostcuda": missing_compiler,
        "device": lambda: standin.device().missing,
        "real_gpu": lambda: standin.device().missing_gpu,
    }
    config.pluginmanager.register(Requirements(missing))


def missing_compiler() -> str | None:
    """Why the kernels cannot be compiled for the CPU, or None."""
    if sys.platform != "linux":
        return f"support/hostcuda.h is for Linux, not for {sys.platform}"
    return None if shutil.which("g++") else "g++ is not installed"


@pytest.fixture(params=["numpy", "numba"])
def ops(request):
    """Every backend that runs on a CPU, in turn."""
    return get_ops(request.param)
