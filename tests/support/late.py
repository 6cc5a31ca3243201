"""A device that does what is called with `run_async` at the end of the pass, and not before."""

from contextlib import contextmanager
from functools import partial


class PutOff:
    """`run_async` and `side_stream` of a device. done: how many calls were put off so far."""

    def __init__(self):
        self._waiting, self.done = None, 0

    def run_async(self, function, *arguments, **named):
        call = partial(function, *arguments, **named)
        if self._waiting is None:
            call()
        else:
            self._waiting.append(call)

    @contextmanager
    def side_stream(self):
        self._waiting = []
        try:
            yield
        finally:
            waiting, self._waiting = self._waiting, None
            self.done += len(waiting)
            for call in waiting:
                call()
