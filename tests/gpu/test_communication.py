"""Sums over processes on the device: alone with NCCL itself, and in a recorded step."""

import ast
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from support.messages import one_line
from support.trainers import Given, host, make_trainer

from gpu import standin as devices
from snfnp.errors import BackendError
from snfnp.ops import SINGLE_PROCESS, get_ops
from snfnp.ops.communication import Communicator
from snfnp.ops.gpu import nccl

pytestmark = pytest.mark.slow


class OneOfTwo(Communicator):
    """Rank 0, whose partner has the same everything."""

    size = 2

    def gather(self, value):
        return [value, value]


@pytest.fixture
def doubling(ops, monkeypatch):
    """A module in place of `cupyx.distributed`: the partner sends what this rank does. It notes
    calls as (size, type, stream)."""
    calls = []
    xp = ops.xp

    class Group:
        def all_reduce(self, in_array, out_array, op="sum", stream=None):
            assert in_array is out_array and op == "sum" and stream is None
            calls.append(
                (in_array.size, in_array.dtype.char, xp.cuda.get_current_stream().ptr)
            )
            xp.multiply(in_array, 2, out=out_array)

    def init_process_group(n_devices, rank, *, use_mpi):
        calls.append((n_devices, rank, use_mpi))
        return Group()

    fake = SimpleNamespace(calls=calls, init_process_group=init_process_group)
    monkeypatch.setitem(sys.modules, "cupyx.distributed", fake)
    return fake


def test_cupys_functions_take_what_they_are_given(ops):
    """Importing them needs MPI and NCCL; their text does not."""
    folder = Path(ops.xp.__file__).parents[1] / "cupyx" / "distributed"
    taken = {
        node.name: {each.arg for each in (*node.args.args, *node.args.kwonlyargs)}
        for file in ("_init.py", "_nccl_comm.py")
        for node in ast.walk(ast.parse((folder / file).read_text()))
        if isinstance(node, ast.FunctionDef)
    }
    assert {"n_devices", "rank", "use_mpi"} <= taken["init_process_group"]
    assert {"in_array", "out_array", "op", "stream"} <= taken["all_reduce"]


class Doubling(OneOfTwo):
    """Rank 0 of two on the host, with the same partner."""

    def all_reduce(self, *arrays):
        for array in arrays:
            array *= 2


@pytest.mark.parametrize(
    "changes", [{"lambda_control": "geco"}, {"jvp_weight": 0.3, "inverse_kernel": 5}]
)
def test_a_training_step_is_recorded_with_its_sums(ops, doubling, changes):
    """A rank of two, whose partner has the same part of the gradient: the same as on the host."""
    trainers = [
        make_trainer(
            backend,
            "conv",
            side=4,
            dtype="float64",
            batch_size=4,
            world=world,
            **changes,
        )
        for backend, world in ((ops, OneOfTwo()), (get_ops("numpy"), Doubling()))
    ]
    images = [
        np.random.default_rng(step).integers(0, 256, (2, 4, 4, 1)) for step in range(5)
    ]
    for trainer in trainers:
        on_device = [trainer.ops.asarray(each, np.uint8) for each in images]
        batches = Given(on_device.__getitem__)
        for _ in images:
            trainer.training_step(batches)
    found, expected = trainers
    found.check(pytest.fail)
    assert doubling.calls.pop(0) == (2, 0, True)
    for name in ("p", "m", "state"):
        a = host(found, name)
        b = host(expected, name)
        assert a.size == 0 or np.abs(a - b).max() <= 1e-10 * np.abs(b).max(), name
    for a, b in zip(
        *(vars(t.averages()).values() for t in (found, expected)), strict=True
    ):
        assert a == pytest.approx(b, rel=1e-10)
    # two plain calls and the recording, of two arrays each, on its stream; replays add all the same
    assert found._ascend._recording.graph and len(doubling.calls) == 6
    stream = found._ascend._recording.stream.ptr
    assert {each[1:] for each in doubling.calls} == {("d", stream)}


def test_arrays_of_both_precisions_are_summed(ops, doubling):
    communicator = nccl.Nccl(ops.xp, OneOfTwo())
    arrays = [ops.xp.ones(5, np.float32), ops.xp.ones((2, 3))]
    communicator.all_reduce(*arrays)
    assert all((array == 2).all() for array in arrays)
    stream = ops.xp.cuda.get_current_stream().ptr
    assert doubling.calls == [(2, 0, True), (5, "f", stream), (6, "d", stream)]


@pytest.mark.parametrize(
    "reason", ["NCCL is not available", "NCCL_ERROR_INVALID_USAGE"]
)
def test_what_keeps_nccl_from_connecting_is_one_line(
    ops, doubling, monkeypatch, reason
):
    def fails(*given, **more):
        raise RuntimeError(reason)

    monkeypatch.setattr(doubling, "init_process_group", fails)
    install = "python -m pip install nvidia-nccl-cu1"
    with one_line(BackendError, f"of 2 ranks ({reason})", "a GPU of its own", install):
        nccl.Nccl(ops.xp, OneOfTwo())


def test_a_single_process_uses_no_nccl(ops):
    assert ops.device.communicator(SINGLE_PROCESS) is SINGLE_PROCESS


def test_local_ranks_are_assigned_devices_round_robin(ops):
    """With one device, all have it; that there are too few is found when they meet."""

    class Third(Communicator):
        rank = local_rank = 2
        size = 3

    count = ops.xp.cuda.runtime.getDeviceCount()
    before = ops.xp.cuda.runtime.getDevice()
    try:
        get_ops("cupy", world=Third())
        assert ops.xp.cuda.runtime.getDevice() == 2 % count
    finally:
        ops.xp.cuda.runtime.setDevice(before)


def available() -> bool:
    """Whether CuPy finds NCCL."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from cupy.cuda import nccl as library
    return library.available


@pytest.mark.real_gpu
def test_nccl_sums_in_a_recorded_step(ops):
    """One rank: a sum of one term, in a graph, and in both precisions."""
    if not available():
        pytest.skip("NCCL is not installed")
    communicator = nccl.Nccl(ops.xp, SINGLE_PROCESS)
    for dtype in (np.float32, np.float64):
        images = ops.xp.ones((3, 4), dtype)
        total = ops.xp.zeros(7, dtype)

        def step(images, total=total):
            total[...] = images.sum()
            communicator.all_reduce(total)

        graph = ops.device.capture(step, pytest.fail)
        for call in range(5):
            images.fill(call)
            graph(images)
            assert ops.to_host(total).tolist() == [12 * call] * 7
        assert graph._recording.graph


TWO = """
import sys
import cupy
import numpy as np
from snfnp.processes.mpi import world
from snfnp.ops.gpu import nccl
w = world()
try:
    communicator = nccl.Nccl(cupy, w)
except Exception as error:
    print("refused:", error, flush=True)
    sys.exit()
array = cupy.full(1000, w.rank + 1.0)
communicator.all_reduce(array)
print(float(array[0]), float(array[-1]))
"""


@pytest.mark.real_gpu
@pytest.mark.mpi
def test_two_processes_on_one_gpu(ops):
    """NCCL needs a GPU for each; where it makes an exception, the sums are right."""
    from support import processes

    if not available():
        pytest.skip("NCCL is not installed")
    assert devices.device().kind == devices.GPU
    lines = processes.run(2, TWO)
    print("two processes on one GPU:", *lines)
    refused = "refused: NCCL cannot connect the GPUs of 2 ranks"
    assert lines == ["3.0 3.0"] * 2 or all(line.startswith(refused) for line in lines)
