"""The order that a graph keeps between streams, on streams that only note who waits for whom."""

from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import numpy as np
import pytest

from snfnp.errors import BackendError
from snfnp.ops.communication import Communicator
from snfnp.ops.gpu.graph import Graph
from snfnp.ops.gpu.home import Home


class Stream:
    """before: all operations that are done before whatever is started here next."""

    def __init__(self, cuda=None, non_blocking=False):
        self.cuda, self.non_blocking = cuda, non_blocking
        self.before, self.recorded = set(), None

    def __enter__(self):
        self.outer, self.cuda.current = self.cuda.current, self
        return self

    def __exit__(self, *error):
        self.cuda.current = self.outer

    def run(self, operation):
        if self.recorded is not None:
            self.recorded.append(operation)
        else:
            self.before.add(operation)

    def wait_event(self, event):
        assert self.recorded is None, "an event of another stream in a recording"
        self.before |= event.before

    def begin_capture(self):
        assert self.non_blocking
        self.recorded = []

    def end_capture(self):
        operations, self.recorded = self.recorded, None

        def launch(stream):
            for operation in operations:
                self.cuda.work.append(f"{operation}'")
                stream.run(f"{operation}'")

        return SimpleNamespace(launch=launch)

    def synchronize(self):
        self.cuda.host |= self.before


class Event:
    def __init__(self, cuda):
        self.cuda, self.before = cuda, set()

    def record(self, stream):
        self.before = set(stream.before)

    def synchronize(self):
        self.cuda.host |= self.before


class Pool:
    def __init__(self, cuda):
        self.cuda, self.freed = cuda, False
        cuda.pools.append(self)

    malloc = None

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


def test_what_belongs_to_a_device_refuses_another(cupy):
    home, graph = Home(cupy), Graph(cupy, lambda images: None, print)
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
        if fails and cupy.cuda.current.recorded is not None:
            raise RuntimeError("no such call in a recording")
        cupy.cuda.do("step")

    graph = Graph(cupy, step, said.append, rank)
    for call in range(5):
        graph(images(str(call)))
    assert rank.asked == [fails]
    assert graph.recorded == (not fails and not theirs)
    why = "RuntimeError: no such call in a recording" if fails else "not by another process"
    assert [why in line for line in said] == [True] * (fails or theirs)
