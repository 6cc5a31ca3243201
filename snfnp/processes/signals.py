"""Signals to a run, which take effect between steps, so that each update is complete."""

import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import contextmanager, suppress


class Signals:
    """The signals received so far, in the main thread. checkpoint: SIGUSR1 was received, which
    batch systems can send before they end a job."""

    def __init__(self, rank: int = 0, size: int = 1):
        self._quiet = rank > 0  # only rank 0 announces the stop
        self._launcher = os.getppid() if size > 1 else None
        self._stop_came = self.checkpoint = False

    @property
    def stop(self) -> bool:
        """True after Ctrl-C or SIGTERM, or once the launcher that forwards them is gone."""
        return self._stop_came or self._launcher not in (None, os.getppid())

    def ignore_sigusr1(self):
        """A context in which SIGUSR1 asks for a checkpoint and does not end the process."""
        return handled(self._checkpoint, "SIGUSR1")

    def defer_interrupts(self):
        """A context in which Ctrl-C and SIGTERM take effect after the step in progress, and a
        second Ctrl-C at once."""
        self._ctrl_c = signal.getsignal(signal.SIGINT)
        return handled(self._stop, "SIGINT", "SIGTERM")

    def _stop(self, number, frame) -> None:
        self._stop_came = True
        signal.signal(signal.SIGINT, self._ctrl_c)
        if not self._quiet:
            with suppress(OSError):  # stderr may be closed
                print("\nstopping after this step …", file=sys.stderr)

    def _checkpoint(self, number, frame) -> None:
        self.checkpoint = True


@contextmanager
def handled(handler: Callable | signal.Handlers, *names: str):
    """A context with this handler of the named signals, those that the system has."""
    main = threading.current_thread() is threading.main_thread()  # no other thread may set handlers
    numbers = [getattr(signal, name) for name in names if main and hasattr(signal, name)]
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, handler_before in before.items():
            signal.signal(number, handler_before)
