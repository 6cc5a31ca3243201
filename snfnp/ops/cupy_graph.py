"""A function of device arrays, recorded once as a CUDA graph and replayed."""

from __future__ import annotations

_WARM_UP = 2  # calls before recording: kernels are compiled and memory is found
# The default stream, unless CUPY_CUDA_PER_THREAD_DEFAULT_STREAM asks for another one. It waits for
# all others and they wait for it, without a word.
_LEGACY = 0


class Graph:
    """`function(images)` as a graph: after two plain calls, one launch instead of hundreds.

    The function must put its results into arrays that outlive it, never let the host wait, and
    take what changes from the device. An array of another shape or type is recorded anew. Where
    recording fails, `say` gets one line that says why, and every call is a plain one.
    """

    def __init__(self, cupy, function, say):
        self._cupy, self._function, self._say = cupy, function, say
        self._stream = cupy.cuda.Stream()  # the default one cannot be recorded
        self._reached = cupy.cuda.Event(disable_timing=True)
        self._failed = False
        self._forget()

    def _forget(self) -> None:
        self._graph, self._input, self._calls = None, None, 0
        # What was dropped elsewhere is of no use to it.
        self._cupy.get_default_memory_pool().free_all_blocks()
        # What the graph works in is its own for good: whatever is allocated elsewhere later
        # would be overwritten by a replay, had it the same address.
        self._pool = self._cupy.cuda.MemoryPool()

    def __call__(self, images) -> None:
        caller = self._cupy.cuda.get_current_stream()
        self._wait(self._stream, caller)
        with self._stream:
            self._call(images)
        self._wait(caller, self._stream)

    def _wait(self, later, earlier) -> None:
        """What is started on one stream from now on waits for what is on the other."""
        if _LEGACY not in (later.ptr, earlier.ptr):
            self._reached.record(earlier)
            later.wait_event(self._reached)

    def _call(self, images) -> None:
        if self._failed:
            self._function(images)
            return
        if self._input is None or not _alike(self._input, images):
            self._forget()
            self._input = self._cupy.empty_like(images)
        if self._input.data.ptr != images.data.ptr:
            self._input[...] = images
        if self._graph is None and self._calls < _WARM_UP:
            with self._cupy.cuda.using_allocator(self._pool.malloc):
                self._function(self._input)
            self._calls += 1
            return
        if self._graph is None and not self._record():
            self._function(images)
            return
        self._graph.launch()

    def _record(self) -> bool:
        """Record the function; nothing runs. False where it cannot be."""
        error = None
        with self._cupy.cuda.using_allocator(self._pool.malloc):
            self._stream.begin_capture()
            try:
                self._function(self._input)
            except Exception as failure:  # whatever it was, the same call works without a graph
                error = failure
            try:
                graph = self._stream.end_capture()
            except Exception as failure:
                error = error or failure
        if error is None:
            self._graph = graph
            return True
        self._failed = True
        self._forget()
        reason = (str(error).splitlines() or [""])[0]
        self._say(
            f"the training step cannot be recorded as a CUDA graph ({type(error).__name__}: "
            f"{reason}): it runs without one"
        )
        return False


def _alike(a, b) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype
