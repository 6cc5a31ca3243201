"""A function of device arrays, captured once as a CUDA graph and replayed.

The first calls and the recording are on a stream of the graph's own, a non-blocking one: while
another is recorded, any touch of the legacy default stream would fail. Events order it with the
caller's stream, on which replays are. A graph works in memory of its own pool, which nothing else
may use while the graph lives.
"""

import gc
import weakref
from contextlib import contextmanager, suppress

from snfnp.ops.communication import SINGLE_PROCESS
from snfnp.ops.gpu.launch import DeviceGuard

_WARM_UP = 2  # calls before the capture: kernels are compiled and memory is allocated
CALLS_UNTIL_RECORDED = _WARM_UP + 1


class Graph:
    """`function(argument)` as a graph: after two plain calls, one launch instead of hundreds.

    The function must put its results into arrays that outlive it, never let the host wait, and
    read from the device what changes between calls. Another argument is captured again. If the
    capture fails on one rank of `world`, `report` gets one line that says why, and every
    call of all of them is a plain one: else they would wait for each other's sums for ever.
    """

    def __init__(self, cupy, function, report, world=SINGLE_PROCESS):
        self._cupy, self._function, self._report = cupy, function, report
        self._guard, self._world = DeviceGuard(cupy), world
        self._stream = cupy.cuda.Stream(non_blocking=True)
        self._reached, self._done = (cupy.cuda.Event(disable_timing=True) for _ in range(2))
        self._recording: _Recording | None = None
        self._release, self._failed = lambda: None, False

    def __call__(self, argument) -> None:
        self._guard.require()
        if self._failed:
            self._function(argument)
            return
        if self._recording is None or self._recording.argument is not argument:
            self._begin(argument)
        recording, caller = self._recording, self._cupy.cuda.get_current_stream()
        if recording.graph is None:
            with self._own_stream(caller), self._cupy.cuda.using_allocator(recording.pool.malloc):
                if recording.calls < _WARM_UP:
                    self._function(argument)
                    recording.calls += 1
                    return
                error = self._record(recording)
            if error:
                self._give_up(error)
                self(argument)
                return
        caller.wait_event(self._done)
        recording.graph.launch(caller)
        self._done.record(caller)

    def _begin(self, argument) -> None:
        self._release()
        # Memory that was dropped elsewhere is of no use to the new pool.
        self._cupy.get_default_memory_pool().free_all_blocks()
        self._recording = _Recording(self._cupy, argument, self._stream, self._done, self._guard.id)
        # Not __del__: Python finalises the members of a cycle in any order.
        self._release = weakref.finalize(self, self._recording.release)
        self._release.atexit = False

    @contextmanager
    def _own_stream(self, caller):
        """The graph's stream as the current one, after and before all else on the caller's."""
        self._reached.record(caller)
        self._stream.wait_event(self._reached)
        try:
            with self._stream:
                yield
        finally:  # even after a failure: what was started still runs
            self._done.record(self._stream)
            caller.wait_event(self._done)

    def _record(self, recording) -> str | None:
        """Capture the function; nothing runs. What went wrong, or None."""
        error = graph = None
        given_back = recording.given_back
        gc.collect()
        collecting = gc.isenabled()
        try:
            gc.disable()  # what it frees of CUDA's could spoil the recording
            self._stream.begin_capture()
            self._function(recording.argument)
        except Exception as failure:  # the same call works without a graph
            error = _reason(failure)
        finally:
            try:
                graph = self._stream.end_capture()
            except Exception as failure:
                error = error or _reason(failure)
            if collecting:
                gc.enable()
        if error is None and recording.given_back != given_back:
            # When memory runs out, a pool returns its free blocks to CUDA and asks again. The
            # recording may have used some of these, and a replay would write to others' memory.
            error = "its pool ran out of memory and returned blocks"
        if self._world.any(error is not None) and error is None:
            error = "not by another process"
        recording.graph = None if error else graph
        return error

    @property
    def recorded(self) -> bool:
        """True if the next call with the same argument is a replay."""
        return self._recording is not None and self._recording.graph is not None

    def _give_up(self, error: str) -> None:
        self._failed = True
        gc.collect()  # what failed may have left cycles that hold arrays of the pool
        self._release()
        self._recording = None
        found = f"the training step cannot be recorded as a CUDA graph ({error})"
        self._report(f"{found}: it runs without one")


class _Recording:
    """The state for one argument: the graph, and the memory it works in."""

    def __init__(self, cupy, argument, stream, done, device: int):
        self.argument = argument
        self._cupy, self._stream, self._done, self._device = cupy, stream, done, device
        self.pool, self._allocated = cupy.cuda.MemoryPool(self._allocate), 0
        self.graph, self.calls = None, 0

    def _allocate(self, size: int):
        cuda = self._cupy.cuda
        memory = cuda.MemoryPointer(cuda.Memory(size), 0)
        self._allocated += size
        return memory

    @property
    def given_back(self) -> int:
        """Bytes that the pool has returned to CUDA. It may grow while a call is recorded."""
        return self._allocated - self.pool.total_bytes()

    def release(self) -> None:
        """Wait for what still runs, and give the memory back."""
        # After a fault on the device every call fails, and nothing can be given back.
        cuda = self._cupy.cuda
        with suppress(cuda.runtime.CUDARuntimeError), cuda.Device(self._device):
            self._stream.synchronize()
            self._done.synchronize()
            self.graph = None
            self.pool.free_all_blocks()


def _reason(error: Exception) -> str:
    """An error in one line: as text, since its frames hold arrays of the graph's pool."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
