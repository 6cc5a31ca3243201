"""Calls side by side: their launches of one kernel become one launch.

What a training step does for each layer, and no other layer waits for, is small: launched layer by
layer, most of a GPU would be idle.
"""

import threading
from collections.abc import Callable


class SideBySide:
    """run(series): lists of calls, which need nothing of each other, on the caller's stream.

    Each list has a thread, and one of them runs at a time, up to its next `wait(launch)` or its
    end. Once all are there, `start(launches)` gets what they wait for.
    """

    def __init__(self, cupy, start: Callable[[list], None]):
        self._cupy, self._start, self._own = cupy, start, threading.local()

    def wait(self, launch) -> bool:
        """True once the launch has been started; False, at once, outside of `run`."""
        turn = getattr(self._own, "turn", None)
        if turn:
            turn.pause(launch)
        return turn is not None

    def run(self, series: list[list[Callable[[], None]]]) -> None:
        cuda = self._cupy.cuda  # what is current belongs to a thread
        device, stream, allocator = cuda.Device(), cuda.get_current_stream(), cuda.get_allocator()

        def begin(calls, turn) -> None:
            self._own.turn = turn
            device.use()  # `with` would not make a context current where this is the default
            with stream, cuda.using_allocator(allocator):
                for call in calls:
                    call()

        turns = [_Turn(begin, calls) for calls in series]
        try:
            while turns:
                launches = [turn.resume() for turn in turns]
                turns = [turn for turn, launch in zip(turns, launches, strict=True) if launch]
                self._start(list(filter(None, launches)))
        finally:
            for turn in turns:  # after a failure
                turn.stop()


class _Turn:
    """begin(calls, self) in a thread, which runs only while another one waits in `resume`."""

    def __init__(self, begin: Callable, calls: list):
        self._go, self._back = threading.Semaphore(0), threading.Semaphore(0)
        self._launch = self._error = None
        self._stopped = False
        self._thread = threading.Thread(target=self._run, args=(begin, calls), daemon=True)
        self._thread.start()

    def resume(self):
        """Let it run: what it then waits for, or None at its end."""
        self._launch = None
        self._go.release()
        self._back.acquire()
        if self._error:
            raise self._error
        return self._launch

    def pause(self, launch) -> None:
        self._launch = launch
        self._back.release()
        self._go.acquire()
        if self._stopped:
            raise SystemExit

    def stop(self) -> None:
        self._stopped = True
        self._go.release()
        self._thread.join()

    def _run(self, begin, calls) -> None:
        self._go.acquire()
        try:
            if not self._stopped:
                begin(calls, self)
        except BaseException as error:
            self._error = error
        self._back.release()
