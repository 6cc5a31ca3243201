"""How the package settles the thread pools: in a process of its own, since it happens once."""

import os
import subprocess
import sys

import pytest

_PRINT = """
{before}
import snfnp
from snfnp import threads
from snfnp.ops import RandomKey, get_ops
get_ops("numba").random.uniform(RandomKey(0, 0), (10,), "float32")
import numba
found = threads.describe()
print(numba.threading_layer(), found["blas_thread_timeout"], found["blas_timeout_in_time"])
"""


def settled(before="", **environment):
    names = ("OPENBLAS_THREAD_TIMEOUT", "NUMBA_THREADING_LAYER", "OMP_WAIT_POLICY")
    kept = {key: value for key, value in os.environ.items() if key not in names}
    done = subprocess.run(
        [sys.executable, "-c", _PRINT.format(before=before)],
        env={**kept, **environment},
        capture_output=True,
        text=True,
        check=True,
        timeout=200,
    )
    return done.stdout.split()


def test_idle_threads_sleep_by_default():
    layer, timeout, in_time = settled()
    assert layer in ("omp", "workqueue") and (timeout, in_time) == ("4", "True")


def test_numpy_before_the_package_is_recorded():
    assert settled(before="import numpy")[1:] == ["4", "False"]


@pytest.mark.parametrize("policy", ["active", "ACTIVE"])
def test_spinning_openmp_threads_are_not_used(policy):
    assert settled(OMP_WAIT_POLICY=policy)[0] == "workqueue"


def test_the_environment_has_the_last_word():
    settings = {"OPENBLAS_THREAD_TIMEOUT": "20", "NUMBA_THREADING_LAYER": "workqueue"}
    assert settled(**settings) == ["workqueue", "20", "True"]
