"""The order that a graph and its second branch keep between streams, on streams that only note who
waits for whom."""

import gc
import weakref
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import numpy as np
import pytest

from snfnp.errors import BackendError
from snfnp.ops.communication import Communicator
from snfnp.ops.gpu import side_stream as module
from snfnp.ops.gpu.graph import Graph
from snfnp.ops.gpu.launch import DeviceGuard
from snfnp.ops.gpu.side_stream import SideStream


class Stream:
    """before: all operations that are done before whatever is started here next.

    recording: what is recorded of this stream, and of those that wait for it meanwhile; before is
    then of the recording's operations.
    """

    def __init__(self, cuda=None, non_blocking=False):
        self.cuda, self.non_blocking = cuda, non_blocking
        self.before, self.recording, self.outside = set(), None, None

    def __enter__(self):
        self.outer, self.cuda.current = self.cuda.current, self
        return self

    def __exit__(self, *error):
        self.cuda.current = self.outer

    def run(self, operation):
        if self.recording is not None:
            self.recording.operations[operation] = set(self.before)
        self.before.add(operation)

    def wait_event(self, event):
        if self.recording is None and event.recording is not None:
            self.join(event.recording)
        assert self.recording is event.recording, "an event of another stream in a recording"
        self.before |= event.before

    def join(self, recording):
        assert self.non_blocking
        self.recording, self.outside, self.before = recording, self.before, set()
        recording.streams.append(self)

    def is_capturing(self):
        return self.recording is not None

    def begin_capture(self):
        self.join(SimpleNamespace(operations={}, streams=[]))

    def end_capture(self):
        recording, before = self.recording, self.before
        for stream in recording.streams:
            stream.recording, stream.before = None, stream.outside
        if before != set(recording.operations):
            raise RuntimeError("cudaErrorStreamCaptureUnjoined")

        def launch(stream):
            for operation in recording.operations:
                self.cuda.work.append(f"{operation}'")
                stream.run(f"{operation}'")

        return SimpleNamespace(launch=launch, operations=recording.operations)

    def synchronize(self):
        self.cuda.host |= self.before


class Event:
    def __init__(self, cuda):
        self.cuda, self.before, self.recording = cuda, set(), None

    def record(self, stream):
        self.before, self.recording = set(stream.before), stream.recording

    def synchronize(self):
        self.cuda.host |= self.before


class Pool:
    def __init__(self, cuda):
        self.cuda, self.freed, self.size = cuda, False, 0
        cuda.pools.append(self)

    malloc = None

    def total_bytes(self):
        return self.size

    def free_all_blocks(self):
        assert {each for each in self.cuda.work if "step" in each} <= self.cuda.host
        self.freed = True


class Array:
    """A device array; what is written to it is an operation of the current stream."""

    shape, dtype = (2, 3), np.dtype("float32")

    def __init__(self, cuda):
        self.cuda = cuda

    def __setitem__(self, where, images):
        self.cuda.do(f"copy {images.name}")


@pytest.fixture
def cupy():
    cuda = SimpleNamespace(host=set(), pools=[], work=[], device=0)
    cuda.runtime = SimpleNamespace(getDevice=lambda: cuda.device, CUDARuntimeError=RuntimeError)
    cuda.current = Stream(cuda)
    cuda.get_current_stream = lambda: cuda.current
    cuda.Stream = lambda non_blocking: Stream(cuda, non_blocking)
    cuda.Event = lambda disable_timing: Event(cuda)
    cuda.MemoryPool = lambda: Pool(cuda)
    cuda.using_allocator = lambda malloc: nullcontext()
    cuda.Device = lambda number: nullcontext()

    def do(operation):
        cuda.work.append(operation)
        cuda.current.run(operation)

    cuda.do = do
    default = SimpleNamespace(free_all_blocks=lambda: None)
    return SimpleNamespace(
        cuda=cuda,
        empty_like=lambda images: Array(cuda),
        zeros=lambda *_: Array(cuda),
        get_default_memory_pool=lambda: default,
    )


def images(name, shape=(2, 3)):
    return SimpleNamespace(name=name, shape=shape, dtype=np.dtype("float32"))


@contextmanager
def on(cupy, stream):
    before, cupy.cuda.current = cupy.cuda.current, stream
    yield
    cupy.cuda.current = before


def test_calls_come_after_what_their_caller_did_and_before_what_it_does_next(cupy):
    cuda = cupy.cuda
    first, second = (Stream(cuda, non_blocking=True) for _ in range(2))
    graph = Graph(cupy, lambda images: cuda.do("step"), print)
    seen = set()
    for call in range(6):
        caller = first if call < 4 else second
        with on(cupy, caller):
            cuda.do(f"before {call}")
            if call < 2:  # a plain call, on the graph's stream
                graph(images(str(call)))
                assert f"before {call}" in graph._stream.before
            else:
                graph(images(str(call)))
                assert f"copy {call}" in caller.before and "step'" in caller.before
            assert {"step", f"copy {call}"} <= caller.before
            seen |= {f"copy {call}"}
    assert graph._stream.non_blocking and graph.recorded
    # the copy for the first replay on another stream comes after the last one on the first
    assert {"copy 3", "step'"} <= second.before


def test_the_recorded_step_is_nothing_but_the_function(cupy):
    cuda = cupy.cuda
    graph = Graph(cupy, lambda images: cuda.do("step"), print)
    for call in range(3):
        graph(images(str(call)))
    replayed = Stream(cuda)
    graph._recording.graph.launch(replayed)
    assert replayed.before == {"step'"}


def test_memory_is_given_back_after_the_last_use(cupy):
    """`Pool.free_all_blocks` looks whether the host has waited for all steps."""
    graph = Graph(cupy, lambda images: cupy.cuda.do("step"), print)
    for call in range(4):
        graph(images(str(call)))
    graph(images("wide", (2, 5)))
    assert [pool.freed for pool in cupy.cuda.pools] == [True, False]
    del graph
    assert [pool.freed for pool in cupy.cuda.pools] == [True, True]


def test_a_recording_whose_memory_changed_is_not_used(cupy):
    """Where memory runs out, CuPy gives free blocks back, and some of them were its own."""

    def step(images):
        cupy.cuda.do("step")
        if cupy.cuda.current.is_capturing():
            cupy.cuda.pools[0].size -= 512

    said = []
    graph = Graph(cupy, step, said.append)
    for call in range(4):
        graph(images(str(call)))
    assert not graph.recorded and "the memory that it works in changed" in said[0]
    assert "step'" not in cupy.cuda.work and cupy.cuda.work[-1] == "step"
    assert cupy.cuda.pools[0].freed


def test_what_belongs_to_a_device_refuses_another(cupy):
    home, graph = DeviceGuard(cupy), Graph(cupy, lambda images: None, print)
    home.require()
    cupy.cuda.device = 1
    for use in (home.require, lambda: graph(images("0"))):
        with pytest.raises(BackendError, match="made on GPU 0, and GPU 1 is") as error:
            use()
        assert "\n" not in str(error.value)


class Rank(Communicator):
    """One of two; the other says what is given."""

    size = 2

    def __init__(self, theirs):
        self.theirs, self.asked = theirs, []

    def any(self, flags):
        self.asked.append(flags)
        return flags | self.theirs


@pytest.mark.parametrize("theirs", [0, 1])
@pytest.mark.parametrize("fails", [False, True])
def test_all_ranks_record_or_none_does(cupy, theirs, fails):
    """Asked once, by whoever fails as by whoever does not; one that records alone would wait."""
    said, rank = [], Rank(theirs)

    def step(images):
        if fails and cupy.cuda.current.is_capturing():
            raise RuntimeError("no such call in a recording")
        cupy.cuda.do("step")

    graph = Graph(cupy, step, said.append, rank)
    for call in range(5):
        graph(images(str(call)))
    assert rank.asked == [fails]
    assert graph.recorded == (not fails and not theirs)
    why = "RuntimeError: no such call in a recording" if fails else "not by another process"
    assert [why in line for line in said] == [True] * (fails or theirs)


# ---------------------------------------------------------------- a second branch


@pytest.fixture
def branch(cupy, monkeypatch):
    monkeypatch.setattr(module, "Cublas", lambda cupy, tf32: "products of the branch")
    made = SideStream(cupy, tf32=False)
    made.seen = {}  # {operation: what it came after}

    def do(operation):
        made.seen[operation] = set(cupy.cuda.current.before)
        cupy.cuda.do(operation)

    made.do = do
    return made


def backward(branch):
    """Two layers, the gradients of their weights aside."""
    for layer in (2, 1):
        branch.do(f"delta {layer}")
        branch.run_async(branch.do, f"weights {layer}")


def test_what_is_done_aside_comes_after_what_was_before_it_and_is_not_waited_for(branch):
    with branch.side_stream():
        backward(branch)
    branch.do("adam")
    assert branch.seen == {
        "delta 2": set(),
        "weights 2": {"delta 2"},
        "delta 1": {"delta 2"},  # beside it
        "weights 1": {"delta 2", "weights 2", "delta 1"},
        "adam": {"delta 2", "weights 2", "delta 1", "weights 1"},
    }
    branch.run_async(branch.do, "alone")  # outside, a call as any other
    assert "adam" in branch.seen["alone"] and "alone" in branch._cupy.cuda.current.before


def test_a_recording_has_two_branches(cupy, branch):
    said = []

    def step(images):
        with branch.side_stream():
            backward(branch)
        branch.do("adam")

    graph = Graph(cupy, step, said.append)
    for call in range(4):
        graph(images(str(call)))
    assert graph.recorded and not said
    assert graph._recording.graph.operations == {
        "delta 2": set(),
        "weights 2": {"delta 2"},
        "delta 1": {"delta 2"},
        "weights 1": {"delta 2", "weights 2", "delta 1"},
        "adam": {"delta 2", "weights 2", "delta 1", "weights 1"},
    }


def test_a_branch_that_is_not_joined_cannot_be_recorded(cupy, branch, monkeypatch):
    """Which is what the driver says, too: the join is not for its order alone."""
    monkeypatch.setattr(branch, "side_stream", lambda: nullcontext())
    monkeypatch.setattr(branch, "_open", True)
    said = []
    graph = Graph(cupy, lambda images: backward(branch), said.append)
    for call in range(3):
        graph(images(str(call)))
    assert not graph.recorded and "Unjoined" in said[0]


def test_a_stream_that_takes_no_part_in_a_recording_is_found(cupy, branch, monkeypatch):
    monkeypatch.setattr(branch._stream, "wait_event", lambda event: None)
    monkeypatch.setattr(cupy.cuda.current, "is_capturing", lambda: True)
    with pytest.raises(RuntimeError, match="does not take part"), branch.side_stream():
        backward(branch)


def test_what_it_reads_is_kept_until_the_join(branch):
    """CuPy would hand its memory to the next array of the caller's stream."""

    class Delta:
        pass

    with branch.side_stream():
        delta = Delta()
        alive = weakref.ref(delta)
        branch.run_async(lambda delta: None, delta)
        del delta
        gc.collect()
        assert alive()
    gc.collect()
    assert not alive()


def test_it_has_products_and_a_counter_of_its_own(branch):
    seen = []
    with branch.side_stream():
        branch.run_async(lambda: seen.append(branch.active))
        seen.append(branch.active)
    assert seen == [True, False]  # what a device asks before it hands them out
    assert branch.cublas == "products of the branch" and branch.counter is not None


def test_a_failure_leaves_nothing_behind(branch):
    def fail():
        branch.do("half of it")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), branch.side_stream():
        branch.run_async(fail)
    assert not branch.active and not branch._held
    assert "half of it" in branch._cupy.cuda.current.before
    branch._cupy.cuda.device = 1
    with pytest.raises(BackendError, match="made on GPU 0"), branch.side_stream():
        backward(branch)


def test_what_was_wrong_first_is_heard_and_nothing_is_kept(branch, monkeypatch):
    """A spoiled recording lets no event be recorded, and its memory is to be given back."""

    def refuse(stream):
        raise RuntimeError("cudaErrorStreamCaptureInvalidated")

    with pytest.raises(ZeroDivisionError), branch.side_stream():
        branch.run_async(branch.do, "weights")
        monkeypatch.setattr(branch._done, "record", refuse)
        raise ZeroDivisionError
    assert not branch._held
    with pytest.raises(RuntimeError, match="Invalidated"), branch.side_stream():
        branch.run_async(branch.do, "weights")
    assert not branch._held
