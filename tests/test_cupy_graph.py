"""The order that a graph and its second branch keep between streams, on streams that only note who
waits for whom."""

import gc
import weakref
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest

from snfnp.errors import BackendError
from snfnp.ops.communication import Communicator
from snfnp.ops.gpu import side_stream as module
from snfnp.ops.gpu.graph import Graph
from snfnp.ops.gpu.side_stream import SideStream


class Stream:
    """before: all operations that are done before whatever is started here next.

    recording: what is recorded of this stream, and of those that wait for it meanwhile; before is
    then of the recording's operations.
    """

    def __init__(self, cuda):
        self.cuda, self.before, self.recording, self.outside = cuda, set(), None, None

    def __enter__(self):
        self.outer, self.cuda.current = self.cuda.current, self

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
                stream.run(f"{operation}'")

        return SimpleNamespace(launch=launch, operations=recording.operations)

    def synchronize(self):
        self.cuda.host |= self.before


class Event:
    synchronize = Stream.synchronize

    def __init__(self, cuda):
        self.cuda, self.before, self.recording = cuda, set(), None

    def record(self, stream):
        self.before, self.recording = set(stream.before), stream.recording


class Pool:
    malloc, size = None, 0
    waited = None  # what the host had waited for when it was freed

    def __init__(self, cuda):
        self.cuda = cuda
        cuda.pools.append(self)

    def total_bytes(self):
        return self.size

    def free_all_blocks(self):
        self.waited = set(self.cuda.host)


class Array:
    """A device array; what is written to it is an operation of the current stream."""

    shape, dtype = (2, 3), np.dtype("float32")

    def __init__(self, cuda):
        self.cuda = cuda

    def __setitem__(self, where, images):
        self.cuda.current.run(f"copy {images.name}")


@pytest.fixture
def cupy():
    cuda = SimpleNamespace(host=set(), pools=[], device=0)
    cuda.runtime = SimpleNamespace(getDevice=lambda: cuda.device, CUDARuntimeError=RuntimeError)
    cuda.current = Stream(cuda)
    cuda.get_current_stream = lambda: cuda.current
    cuda.Stream = lambda non_blocking: Stream(cuda)
    cuda.Event = lambda disable_timing: Event(cuda)
    cuda.MemoryPool = lambda allocate: Pool(cuda)
    cuda.using_allocator = lambda malloc: nullcontext()
    cuda.Device = lambda number: nullcontext()
    cuda.do = lambda operation: cuda.current.run(operation)
    default = SimpleNamespace(free_all_blocks=lambda: None)
    return SimpleNamespace(
        cuda=cuda,
        empty_like=lambda images: Array(cuda),
        zeros=lambda *_: Array(cuda),
        get_default_memory_pool=lambda: default,
    )


def call(graph, times, shape=(2, 3)):
    for number in range(times):
        graph(SimpleNamespace(name=number, shape=shape, dtype=np.dtype("float32")))


def test_calls_come_after_what_their_caller_did_and_before_what_it_does_next(cupy):
    """Two plain ones on the graph's stream, then replays, on one caller's and another's."""
    cuda = cupy.cuda
    graph = Graph(cupy, lambda images: cuda.do("step"), print)
    for caller, last in ((Stream(cuda), 4), (Stream(cuda), 6)):
        with caller:
            cuda.do(f"before {last}")
            call(graph, last)
        assert {"step", "step'", f"copy {last - 1}", f"before {last}"} <= caller.before
    assert "before 4" in graph._stream.before and graph.recorded
    # the copy for the first replay on another stream comes after the last one on the first
    assert "copy 3" in caller.before
    assert set(graph._recording.graph.operations) == {"step"}  # no copy


def test_memory_is_given_back_after_the_last_use(cupy):
    graph = Graph(cupy, lambda images: cupy.cuda.do("step"), print)
    call(graph, 4)
    first = cupy.cuda.pools[0]
    call(graph, 1, (2, 5))
    assert first.waited >= {"step", "step'"}
    del graph
    assert [pool.waited is None for pool in cupy.cuda.pools] == [False, False]


def test_a_recording_whose_pool_returned_memory_is_not_used(cupy):
    """If memory runs out, CuPy returns free blocks, some of which the recording may have used."""

    def step(images):
        cupy.cuda.do("step")
        if cupy.cuda.current.is_capturing():
            cupy.cuda.pools[0].size -= 512

    said = []
    graph = Graph(cupy, step, said.append)
    call(graph, 4)
    assert not graph.recorded and "its pool ran out of memory" in said[0]
    assert "step'" not in cupy.cuda.current.before and cupy.cuda.pools[0].waited


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
    call(graph, 5)
    assert rank.asked == [fails]
    assert graph.recorded == (not fails and not theirs)
    why = "RuntimeError: no such call in a recording" if fails else "not by another process"
    assert [why in line for line in said] == [True] * (fails or theirs)


# ---------------------------------------------------------------- a second branch


@pytest.fixture
def branch(cupy, monkeypatch):
    monkeypatch.setattr(module, "Cublas", lambda cupy, tf32: "products of the branch")
    return SideStream(cupy, tf32=False)


def test_what_is_aside_is_beside_the_rest_and_before_what_comes_after_the_block(cupy, branch):
    """Two branches of a recording, which lists what each operation came after."""
    said = []

    def step(images):
        with branch.side_stream():
            for layer in (2, 1):
                cupy.cuda.do(f"delta {layer}")
                branch.run_async(cupy.cuda.do, f"weights {layer}")
        cupy.cuda.do("adam")
        branch.run_async(cupy.cuda.do, "alone")  # outside, a call as any other

    graph = Graph(cupy, step, said.append)
    call(graph, 4)
    assert graph.recorded and not said
    everything = {"delta 2", "weights 2", "delta 1", "weights 1", "adam"}
    assert graph._recording.graph.operations == {
        "delta 2": set(),
        "weights 2": {"delta 2"},
        "delta 1": {"delta 2"},
        "weights 1": {"delta 2", "weights 2", "delta 1"},
        "adam": everything - {"adam"},
        "alone": everything,
    }
    assert everything <= cupy.cuda.current.before  # of the plain calls


def test_a_stream_that_takes_no_part_in_a_recording_is_found(cupy, branch, monkeypatch):
    monkeypatch.setattr(branch._stream, "wait_event", lambda event: None)
    monkeypatch.setattr(cupy.cuda.current, "is_capturing", lambda: True)
    with pytest.raises(RuntimeError, match="does not take part"), branch.side_stream():
        branch.run_async(print)


def test_what_it_reads_is_kept_until_the_join(branch):
    """CuPy would hand its memory to the next array of the caller's stream."""
    with branch.side_stream():
        delta = Pool(SimpleNamespace(pools=[]))
        alive = weakref.ref(delta)
        branch.run_async(lambda delta: None, delta)
        del delta
        gc.collect()
        assert alive()
    gc.collect()
    assert not alive()


def test_a_failure_leaves_nothing_behind_and_what_was_wrong_first_is_heard(branch, monkeypatch):
    """A spoiled recording lets no event be recorded, and its memory is to be given back."""

    def refuse(stream):
        raise RuntimeError("cudaErrorStreamCaptureInvalidated")

    with pytest.raises(ZeroDivisionError), branch.side_stream():
        branch.run_async(lambda: 1 / 0)
    assert not branch.active and not branch._held
    monkeypatch.setattr(branch._done, "record", refuse)
    with pytest.raises(ZeroDivisionError), branch.side_stream():
        branch.run_async(print)
        raise ZeroDivisionError
    with pytest.raises(RuntimeError, match="Invalidated"), branch.side_stream():
        branch.run_async(print)
    assert not branch._held


def test_what_belongs_to_a_device_refuses_another(cupy, branch):
    graph = Graph(cupy, lambda images: None, print)
    cupy.cuda.device = 1
    for use in (lambda: call(graph, 1), lambda: branch.run_async(print)):
        with pytest.raises(BackendError, match="made on GPU 0, and GPU 1 is"), branch.side_stream():
            use()
