"""The package settles the thread pools: in a process of its own, since it happens once."""

import os
import re
import subprocess
import sys
import threading

import pytest
from support.ranks import on_ranks

from snfnp import threads
from snfnp.ops.host import ranks_on_shared_cores

_PRINT = """
{before}
import snfnp
from snfnp import threads
from snfnp.ops import RandomKey, get_ops
get_ops("numba").random.uniform(RandomKey(0, 0), (10,), "float32")
import numba
found = threads.describe()
blas = (found["blas_thread_timeout"], found["blas_timeout_in_time"])
print(numba.threading_layer(), *blas, found["omp_wait_policy"], found["gomp_spincount"])
"""

NAMES = ["OPENBLAS_THREAD_TIMEOUT", "NUMBA_THREADING_LAYER", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT"]


def printed(script, **environment):
    """The output of a script in a process of its own; a variable that is "" is left out."""
    variables = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))} | environment
    variables = {name: value for name, value in variables.items() if value}
    command = [sys.executable, "-c", script]
    return subprocess.check_output(command, env=variables, text=True, timeout=300)


SPINS = "5000" if sys.platform == "linux" else "None"


@pytest.mark.parametrize(
    "before, settings, found",
    [
        ("", {}, "(omp|workqueue) 4 True passive " + SPINS),
        ("import numpy", {}, "(omp|workqueue) 4 False passive " + SPINS),
        ("", {"OMP_WAIT_POLICY": "ACTIVE"}, "workqueue 4 True ACTIVE None"),
        ("", {NAMES[0]: "20", NAMES[1]: "workqueue"}, "workqueue 20 True None None"),
        ("", {"GOMP_SPINCOUNT": "7"}, "(omp|workqueue) 4 True passive 7"),
        ("", {"OMP_WAIT_POLICY": "passive"}, "(omp|workqueue) 4 True passive None"),
    ],
)
def test_idle_threads_sleep_and_the_environment_has_the_last_word(before, settings, found):
    """NumPy before the package is recorded; OpenMP threads that are to spin are not used."""
    said = printed(_PRINT.format(before=before), **dict.fromkeys(NAMES, "") | settings)
    assert re.fullmatch(found, said.strip())


# ---------------------------------------------------------------- results

_STEPS = """
import hashlib
import numba
import numpy as np
from snfnp.ops import get_ops
from support.trainers import make_trainer
images = np.random.default_rng(0).integers(0, 256, (25, 28, 28, 1)).astype(np.uint8)
for threads in (1, 2):
    numba.set_num_threads(threads)
    trainer = make_trainer(get_ops("numba"), {model!r}, side=28)
    trainer.initialise_from_data(images)
    for _ in range(2):
        trainer.training_step(images)
    assert numba.get_num_threads() == threads
    buffers = (trainer.p, trainer.gradient, np.array(trainer.metrics().surrogate))
    print(hashlib.sha256(b"".join(buffer.tobytes() for buffer in buffers)).hexdigest())
"""


def test_a_step_has_the_same_bits_whatever_the_number_of_threads():
    """Two threads, also where there is one core; 25 samples are in no kernel a whole number of
    tasks."""
    one, two = printed(_STEPS.format(model="conv"), NUMBA_NUM_THREADS="2").split()
    assert one == two


_SHARED = """
import numba
import snfnp
from snfnp import threads
from snfnp.ops import get_ops
from support.ranks import on_ranks

threads.cores = lambda: frozenset(range(4))


def counts(world):
    get_ops("numba", world=world)
    blas = [each["num_threads"] for each in threads.describe()["blas"]]
    return numba.get_num_threads(), *blas


get_ops("numba")  # threads that import the same modules at once may see half of them
for found in on_ranks({ranks}, counts):
    print(*found)
"""


@pytest.mark.parametrize(("ranks", "most"), [(1, 4), (2, 2), (4, 1)])
def test_ranks_of_a_machine_share_its_cores(ranks, most):
    names = {f"{name}_NUM_THREADS": "4" for name in ("OMP", "OPENBLAS", "NUMBA")}
    said = printed(_SHARED.format(ranks=ranks), **names)
    lines = [[int(found) for found in line.split()] for line in said.splitlines()]
    assert len(lines) == ranks
    for numba, *blas in lines:  # OpenBLAS has no more than there are cores here
        assert numba == most and blas and max(blas) <= most


def test_cores_that_a_launcher_gave_to_one_rank_are_not_shared(monkeypatch):
    own = {}

    def count(world):
        own[threading.get_ident()] = frozenset([2 * world.rank, 2 * world.rank + 1])
        return ranks_on_shared_cores(world)

    monkeypatch.setattr(threads, "cores", lambda: own[threading.get_ident()])
    assert on_ranks(3, count) == [1, 1, 1]
    monkeypatch.setattr(threads, "cores", lambda: frozenset([0, 1]))
    assert on_ranks(3, ranks_on_shared_cores) == [3, 3, 3]


def test_what_is_said_of_blas_is_not_of_openmp(monkeypatch):
    """Numba's OpenMP library is loaded with its first kernel: what a process tells of BLAS would
    depend on what it had computed before."""
    pools = [{"user_api": "openmp", "num_threads": 4}, {"user_api": "blas", "num_threads": 2}]
    monkeypatch.setattr("threadpoolctl.threadpool_info", lambda: pools)
    assert [pool["num_threads"] for pool in threads.describe()["blas"]] == [2]
