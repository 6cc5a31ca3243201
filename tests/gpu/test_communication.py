"""Sums over processes on the device: alone with NCCL itself, and in a recorded step."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
from support.trainers import Given, host, make_trainer

from gpu import standin as devices
from snfnp.errors import BackendError
from snfnp.ops import SINGLE_PROCESS, get_ops
from snfnp.ops.communication import Communicator
from snfnp.ops.gpu import nccl

pytestmark = pytest.mark.slow


class OneOfTwo(Communicator):
    """Rank 0, whose partner has the same everything but is on another machine. elsewhere: what it
    gives in place of what it would have in common with this rank."""

    size = local_size = 2

    def __init__(self, **elsewhere):
        self._elsewhere = {"place": "another machine"} | elsewhere

    def gather(self, value):
        there = value
        if isinstance(value, tuple):
            there = (self._elsewhere["place"] or value[0], value[1])
        elif value is None:
            there = self._elsewhere.get("missing")
        return [value, there]


@pytest.fixture
def doubling(ops, monkeypatch):
    """A module in place of CuPy's for NCCL: the partner sends what this rank does. It notes calls
    as (in place, count, type, stream), and works on the pointers that it is given, on the current
    stream."""
    calls, xp = [], ops.xp
    types = {7: np.float32, 8: np.float64}

    def all_reduce(sent, received, count, kind, op, stream):
        assert op == 0 and stream == xp.cuda.get_current_stream().ptr
        calls.append((sent == received, count, kind, stream))
        memory = xp.cuda.UnownedMemory(received, count * np.dtype(types[kind]).itemsize, ops)
        array = xp.ndarray(count, types[kind], xp.cuda.MemoryPointer(memory, 0))
        xp.multiply(array, 2, out=array)

    fake = SimpleNamespace(
        available=True,
        calls=calls,
        NCCL_SUM=0,
        NCCL_FLOAT32=7,
        NCCL_FLOAT64=8,
        get_unique_id=lambda: b"id",
        groupStart=lambda: calls.append("start"),
        groupEnd=lambda: calls.append("end"),
        NcclCommunicator=lambda *of: calls.append(of) or SimpleNamespace(allReduce=all_reduce),
    )
    monkeypatch.setitem(sys.modules, "cupy.cuda.nccl", fake)
    monkeypatch.setattr(xp.cuda, "nccl", fake, raising=False)
    return fake


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
        make_trainer(backend, "conv", side=4, dtype="float64", batch_size=4, world=world, **changes)
        for backend, world in ((ops, OneOfTwo()), (get_ops("numpy"), Doubling()))
    ]
    images = [np.random.default_rng(step).integers(0, 256, (2, 4, 4, 1)) for step in range(5)]
    for trainer in trainers:
        on_device = [trainer.ops.asarray(each, np.uint8) for each in images]
        batches = Given(on_device.__getitem__)
        for _ in images:
            trainer.training_step(batches)
    found, expected = trainers
    found.check(pytest.fail)
    assert doubling.calls.pop(0) == (2, b"id", 0)
    for name in ("p", "m", "state"):
        a, b = host(found, name), host(expected, name)
        assert a.size == 0 or np.abs(a - b).max() <= 1e-10 * np.abs(b).max(), name
    for a, b in zip(*(vars(t.averages()).values() for t in (found, expected)), strict=True):
        assert a == pytest.approx(b, rel=1e-10)
    # two plain calls and the recording, in place on its stream; replays add all the same
    assert found._ascend.recorded and doubling.calls.count("start") == 3
    stream = found._ascend._stream.ptr
    sums = [each for each in doubling.calls if each not in ("start", "end")]
    assert {(place, kind, at) for place, _, kind, at in sums} == {(True, 8, stream)}


def test_arrays_of_both_precisions_are_summed_in_one_group(ops, doubling):
    communicator = nccl.Nccl(ops.xp, OneOfTwo())
    arrays = [ops.xp.ones(5, np.float32), ops.xp.ones((2, 3))]
    communicator.all_reduce(*arrays)
    assert all((array == 2).all() for array in arrays)
    stream = ops.xp.cuda.get_current_stream().ptr
    made, *sums = doubling.calls
    assert made == (2, b"id", 0)
    assert sums == ["start", (True, 5, 7, stream), (True, 6, 8, stream), "end"]
    with pytest.raises(ValueError, match="C-contiguous"):
        communicator.all_reduce(ops.xp.ones((4, 4))[:, ::2])
    assert sums == doubling.calls[1:]


@pytest.mark.parametrize("here", [True, False])
def test_without_nccl_all_ranks_say_which_lacks_it(ops, doubling, here):
    doubling.available = here
    line = "NCCL is not installed: python -m pip install nvidia-nccl-cu1[23]"
    with pytest.raises(BackendError, match=f"for rank {int(here)} {line}"):
        there = "NCCL is not installed: python -m pip install nvidia-nccl-cu13"
        nccl.Nccl(ops.xp, OneOfTwo(missing=there))


def test_two_processes_on_one_gpu_are_refused(ops, doubling):
    with pytest.raises(BackendError, match="2 processes on .* its 1 GPU.*ranks 0 and 1 both"):
        nccl.Nccl(ops.xp, OneOfTwo(place=None))
    assert not doubling.calls


def test_a_single_process_uses_no_nccl(ops):
    assert ops.device.communicator(SINGLE_PROCESS) is SINGLE_PROCESS


def test_local_ranks_are_assigned_devices_round_robin(ops):
    """With one device, all have it; that there are too few is found when they meet."""

    class Third(Communicator):
        rank = local_rank = 2
        size = local_size = 3

    count, before = ops.xp.cuda.runtime.getDeviceCount(), ops.xp.cuda.runtime.getDevice()
    try:
        get_ops("cupy", world=Third())
        assert ops.xp.cuda.runtime.getDevice() == 2 % count
    finally:
        ops.xp.cuda.runtime.setDevice(before)


@pytest.mark.real_gpu
def test_nccl_sums_in_a_recorded_step(ops):
    """One rank: a sum of one term, in a graph, and in both precisions."""
    found, missing = nccl._load(ops.xp)
    if missing:
        pytest.skip(missing)
    communicator = nccl.Nccl(ops.xp, SINGLE_PROCESS)
    for dtype in (np.float32, np.float64):
        images, total = ops.xp.ones((3, 4), dtype), ops.xp.zeros(7, dtype)

        def step(images, total=total):
            total[...] = images.sum()
            communicator.all_reduce(total)

        graph = ops.device.capture(step, pytest.fail)
        for call in range(5):
            images.fill(call)
            graph(images)
            assert ops.to_host(total).tolist() == [12 * call] * 7
        assert graph.recorded


TWO = """
import sys
import cupy
import numpy as np
from snfnp.ops import world
from snfnp.ops.gpu import nccl
nccl._require_apart = lambda places: None  # NCCL is to say it
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

    missing = nccl._load(ops.xp)[1]
    if missing:
        pytest.skip(missing)
    assert devices.device().kind == devices.GPU
    lines = processes.run(2, TWO)
    print("two processes on one GPU:", *lines)
    assert lines == ["3.0 3.0"] * 2 or all(line.startswith("refused: NCCL") for line in lines)
