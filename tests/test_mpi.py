"""Processes that MPI started: how they are recognised, their sums, flags, values and ends."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
from support import processes

from snfnp.errors import BackendError
from snfnp.ops import SINGLE_PROCESS, get_ops
from snfnp.processes.mpi import launched, world

LAUNCHERS = {
    "hydra": {"PMI_SIZE": "3", "PMI_RANK": "1"},
    "Open MPI": {"OMPI_COMM_WORLD_SIZE": "3", "OMPI_COMM_WORLD_RANK": "1"},
    "srun": {"SLURM_STEP_NUM_TASKS": "3", "SLURM_PROCID": "1", "SLURM_NTASKS": "8"},
}
# Nothing, one process of hydra, and a job of Slurm's without srun.
ONE = (
    {},
    {"PMI_SIZE": "1", "PMI_RANK": "0"},
    {"SLURM_NTASKS": "8", "SLURM_PROCID": "0"},
)


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for names in LAUNCHERS.values():
        for name in names:
            monkeypatch.delenv(name, raising=False)
    world.cache_clear()
    yield lambda variables: [
        monkeypatch.setenv(*variable) for variable in variables.items()
    ]
    world.cache_clear()


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_launchers_are_recognised_by_environment_variables(environment, launcher):
    environment(LAUNCHERS[launcher])
    result = launched()
    assert (result.size, result.rank) == (3, 1)


@pytest.mark.parametrize("case", ONE)
def test_one_process_needs_no_mpi(environment, monkeypatch, case):
    monkeypatch.setitem(sys.modules, "mpi4py", None)  # an import would fail
    environment(case)
    assert launched() is None and world() is SINGLE_PROCESS


def test_operations_of_a_single_process_are_the_identity():
    alone = SINGLE_PROCESS
    array = np.arange(3.0)
    alone.all_reduce(array)
    assert array.tolist() == [0, 1, 2]
    assert (alone.rank, alone.size, alone.local_rank) == (0, 1, 0)
    assert (
        alone.any(5) == 5 and alone.gather("a") == ["a"] and alone.broadcast("a") == "a"
    )
    assert alone.on_rank_zero(lambda: 7) == 7 and alone.exchange_exit_status(
        3, 0.0
    ) == [3]
    assert get_ops("numpy").device.communicator(alone) is alone


def test_a_missing_mpi4py_is_one_line_with_a_remedy(environment, monkeypatch):
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    environment(LAUNCHERS["hydra"])
    with pytest.raises(
        BackendError, match=r"one of 3 processes .*pip install mpi4py mpich"
    ):
        world()


def test_a_launcher_of_another_mpi_is_detected(environment, monkeypatch):
    """Each process is then one of one to its own library, and would train by itself."""
    alone = SimpleNamespace(
        COMM_WORLD=SimpleNamespace(size=1),
        Get_library_version=lambda: "MPICH Version: 5.0\nmore",
    )
    mpi4py = SimpleNamespace(rc=SimpleNamespace(), MPI=alone)
    monkeypatch.setitem(sys.modules, "mpi4py", mpi4py)
    monkeypatch.setitem(sys.modules, "mpi4py.MPI", alone)
    environment(LAUNCHERS["Open MPI"])
    with pytest.raises(
        BackendError, match="one of 3 processes .* MPICH Version: 5.0 sees 1: use"
    ):
        world()


SUMS = """
import sys
import numpy as np
from snfnp.processes.mpi import world
w = world()
for dtype in ("f4", "f8"):
    for shape in ((), (1,), (2, 3), (70_001,)):
        whole = np.random.default_rng(3).normal(size=(w.size, *shape)).astype(dtype)
        first, other = whole[w.rank].copy(), np.full(5, w.rank, dtype)
        arrays = [np.asarray(first), other]
        w.all_reduce(*arrays)
        again = [np.asarray(whole[w.rank].copy())]
        w.all_reduce(*again)
        tolerance = w.size * np.finfo(dtype).eps * np.abs(whole).sum(0)
        assert (np.abs(arrays[0] - whole.sum(0)) <= tolerance).all()
        assert (other == w.size * (w.size - 1) / 2).all()
        for theirs in w.gather(arrays[0].tobytes()):
            assert theirs == arrays[0].tobytes() == again[0].tobytes()
try:
    w.all_reduce(np.ones((4, 4))[:, ::2])
except ValueError as error:
    assert "C-contiguous" in str(error)
else:
    raise AssertionError
assert w.any(1 << w.rank | 1 << 40) == (1 << w.size) - 1 | 1 << 40
assert w.gather(w.rank) == list(range(w.size)) == w.gather(w.local_rank)
assert (w.broadcast(np.full(3, w.rank)) == 0).all()
print(f"{w.rank} {w.exchange_exit_status(10 + w.rank)}")
"""


@pytest.mark.mpi
@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 3])
def test_sums_flags_and_values(size):
    """Sums are the same bits on every rank and each time, in both precisions."""
    met = [10 + rank for rank in range(size)]
    assert processes.run(size, SUMS) == [f"{rank} {met}" for rank in range(size)]


ERRORS = """
from snfnp.errors import DivergedError, UsageError
from snfnp.ops import get_ops
from snfnp.processes.mpi import world
w = world()
def fail():
    assert w.rank == 0
    raise DivergedError("no good", 7)
try:
    w.on_rank_zero(fail)
except DivergedError as error:
    assert (str(error), error.step) == ("no good", 7)
else:
    raise AssertionError
assert w.on_rank_zero(lambda: {"rank": w.rank}) == {"rank": 0}
w.require_same({"seed": 1})
for values in ({"seed": w.rank}, {"seed": 1} if w.rank else {}):
    try:
        w.require_same(values)
    except UsageError as error:
        print(error)
try:
    get_ops("numba" if w.rank else "numpy").device.communicator(w)
except UsageError as error:
    print(error)
"""


@pytest.mark.mpi
@pytest.mark.slow
def test_an_error_of_rank_0_and_a_difference_are_raised_by_all():
    differences = [
        "`seed` is 0 for rank 0 and 1",
        "`seed` is not given for rank 0 and 1",
    ]
    differences.append("`backend` is numpy for rank 0 and numba")
    lines = [
        f"{result} for rank 1: give all processes the same" for result in differences
    ]
    assert processes.run(2, ERRORS) == sorted(2 * lines)


ABSENT = """
from snfnp.processes.mpi import world
w = world()
if w.rank == 0:
    w.any(0)  # the other one never comes
assert w.exchange_exit_status(1, 0.5) is None
w.abort(7)
"""


@pytest.mark.mpi
@pytest.mark.slow
def test_abort_ends_ranks_that_wait():
    status, output, errors = processes.finish(processes.start(2, ["-c", ABSENT]))
    assert (status, output, errors) == (7, "", "")
