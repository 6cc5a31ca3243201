"""A second stream, for work that nothing waits for before the end of a pass: the gradients of
weights, beside the chain of δ from layer to layer (in a recorded step a branch of the graph)."""

from contextlib import contextmanager, suppress

import numpy as np

from snfnp.ops.gpu.cublas import Cublas
from snfnp.ops.gpu.launch import DeviceGuard


class SideStream:
    """A stream for calls of run_async(function, *arguments, **named) inside `with side_stream():`.

    Such a call comes after all that was started before it on the caller's stream, and before all
    that is started there after the block. Its arguments are kept until then: CuPy hands memory that
    is dropped to the next array on the caller's stream. cublas, counter: of this stream.
    """

    def __init__(self, cupy, tf32: bool):
        self._cupy, self._guard = cupy, DeviceGuard(cupy)
        self._stream = cupy.cuda.Stream(non_blocking=True)
        self._reached, self._done = (cupy.cuda.Event(disable_timing=True) for _ in range(2))
        self.cublas, self.counter = Cublas(cupy, tf32), cupy.zeros(1, np.uint32)
        cupy.cuda.get_current_stream().synchronize()  # the counter is 0 from here on
        self._open = self.active = False
        self._held: list = []

    def run_async(self, function, *arguments, **named) -> None:
        """Call the function on the stream; outside of `side_stream`, or inside of another call, on
        the current one."""
        if self.active or not self._open:
            function(*arguments, **named)
            return
        self._guard.require()
        caller = self._cupy.cuda.get_current_stream()
        self._held.append((function, arguments, named))
        self._reached.record(caller)
        self._stream.wait_event(self._reached)
        if caller.is_capturing() and not self._stream.is_capturing():
            # what it ran would be missing from every replay
            raise RuntimeError("a second stream does not take part in a recording here")
        self.active = True
        try:
            with self._stream:
                function(*arguments, **named)
        finally:
            self.active = False

    @contextmanager
    def side_stream(self):
        caller = self._cupy.cuda.get_current_stream()
        self._open = True
        try:
            yield
        except BaseException:
            # A recording must end with no stream left out; if it is spoiled, or the device is,
            # this fails too, and what was wrong first is to be heard.
            with suppress(self._cupy.cuda.runtime.CUDARuntimeError):
                self._join(caller)
            raise
        else:
            self._join(caller)

    def _join(self, caller) -> None:
        self._open = False
        held, self._held = self._held, []
        if held:
            self._done.record(self._stream)
            caller.wait_event(self._done)
