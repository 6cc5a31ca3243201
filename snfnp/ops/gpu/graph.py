"""A function of device arrays, captured once as a CUDA graph and replayed.

The first calls and the recording are on a stream of the graph's own, a non-blocking one: while
another is recorded, any touch of the legacy default stream would fail. Events order it with the
caller's stream, on which replays are. A graph works in memory of its own pool, which nothing else
may use while the graph lives.
"""

import gc
import weakref
from contextlib import contextmanager, suppress

from snfnp.ops.gpu.launch import DeviceGuard

_WARM_UP = 2  # calls before the capture: kernels are compiled and memory is allocated
CALLS_UNTIL_RECORDED = _WARM_UP + 1


class Graph:
    """`function(argument)` as a graph: after two plain calls, one launch instead of hundreds.

    The function must put its results into arrays that outlive it, never let the host wait, and
    read from the device what changes between calls. Another argument is captured again. If the
    capture fails, `report` gets one line that says why, and every call is a plain one.
    """

    def __init__(self, cupy, function, report):
        self._cupy = cupy
        self._function = function
        self._report = report
        self._guard = DeviceGuard(cupy)
        self._recording = _Recording(cupy, self._guard.id)
        self._failed = False
        # Not __del__: Python finalises the members of a cycle in any order.
        weakref.finalize(self, self._recording.release).atexit = False

    def __call__(self, argument) -> None:
        self._guard.require()
        if self._failed:
            self._function(argument)
            return
        recording = self._recording
        if recording.argument is not argument:
            recording.restart(argument)
        caller = self._cupy.cuda.get_current_stream()
        if recording.graph is None:
            with recording.environment(caller):
                if recording.calls < _WARM_UP:
                    self._function(argument)
                    recording.calls += 1
                    return
                error = self._record(recording)
            if error:
                self._give_up(error)
                self(argument)
                return
        caller.wait_event(recording.done)
        recording.graph.launch(caller)
        recording.done.record(caller)

    def _record(self, recording: "_Recording") -> str | None:
        """Capture the function; nothing runs. What went wrong, or None."""
        error = graph = None
        returned = recording.returned
        gc.collect()
        collecting = gc.isenabled()
        try:
            gc.disable()  # what it frees of CUDA's could spoil the recording
            recording.stream.begin_capture()
            self._function(recording.argument)
        except Exception as failure:  # the same call works without a graph
            error = _reason(failure)
        finally:
            try:
                graph = recording.stream.end_capture()
            except Exception as failure:
                error = error or _reason(failure)
            if collecting:
                gc.enable()
        if error is None and recording.returned != returned:
            # When memory runs out, a pool returns its free blocks to CUDA and asks again. The
            # recording may have used some of these, and a replay would write to others' memory.
            error = "its pool ran out of memory and returned blocks"
        recording.graph = None if error else graph
        return error

    def _give_up(self, error: str) -> None:
        self._failed = True
        gc.collect()  # what failed may have left cycles that hold arrays of the pool
        self._recording.restart(None)
        self._report(
            f"the training step cannot be recorded as a CUDA graph ({error}): "
            "it runs without one"
        )


class _Recording:
    """The graph for one argument, and the stream and the memory with which it is made."""

    def __init__(self, cupy, device: int):
        self._cupy = cupy
        self._device = device
        self._reached = cupy.cuda.Event(disable_timing=True)
        self._allocated = 0
        self.done = cupy.cuda.Event(disable_timing=True)
        self.stream = cupy.cuda.Stream(non_blocking=True)
        self.pool = cupy.cuda.MemoryPool(self._allocate)
        self.argument = None
        self.graph = None
        self.calls = 0

    def restart(self, argument) -> None:
        self.release()
        # Memory that was dropped elsewhere is of no use to this pool.
        self._cupy.get_default_memory_pool().free_all_blocks()
        self.argument = argument
        self.calls = 0

    @contextmanager
    def environment(self, caller):
        """The stream as the current one, after and before all else on the caller's, and the pool as
        CuPy's."""
        self._reached.record(caller)
        self.stream.wait_event(self._reached)
        try:
            with self.stream, self._cupy.cuda.using_allocator(self.pool.malloc):
                yield
        finally:  # even after a failure: what was started still runs
            self.done.record(self.stream)
            caller.wait_event(self.done)

    def _allocate(self, size: int):
        memory = self._cupy.cuda.Memory(size)
        self._allocated += size
        return self._cupy.cuda.MemoryPointer(memory, 0)

    @property
    def returned(self) -> int:
        """Bytes that the pool has returned to CUDA. It may grow while a call is recorded."""
        return self._allocated - self.pool.total_bytes()

    def release(self) -> None:
        """Wait for what still runs, and give the memory back."""
        cuda = self._cupy.cuda
        # After a fault on the device every call fails, and nothing can be given back.
        with suppress(cuda.runtime.CUDARuntimeError), cuda.Device(self._device):
            self.stream.synchronize()
            self.done.synchronize()
            self.graph = None
            self.pool.free_all_blocks()


def _reason(error: Exception) -> str:
    """An error in one line: as text, since its frames hold arrays of the graph's pool."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
