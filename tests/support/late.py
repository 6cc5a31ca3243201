"""A device that does what is called aside at the end of the pass, and not before."""

from contextlib import contextmanager
from functools import partial


class PutOff:
    """`aside` and `joining` of a device. done: how many calls were put off so far."""

    def __init__(self):
        self._waiting, self.done = None, 0

    def aside(self, function, *arguments, **named):
        call = partial(function, *arguments, **named)
        if self._waiting is None:
            call()
        else:
            self._waiting.append(call)

    @contextmanager
    def joining(self):
        self._waiting = []
        try:
            yield
        finally:
            waiting, self._waiting = self._waiting, None
            self.done += len(waiting)
            for call in waiting:
                call()
