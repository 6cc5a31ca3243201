"""Signals to a run: they are acted on between steps, so that no update is left half done."""

import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import contextmanager, suppress


class Signals:
    """The signals that came.

    checkpoint: SIGUSR1 came, which batch systems can send ahead; rank, size: of this process among
    those that train together. Outside the main thread, to which signals go, none are handled.
    """

    def __init__(self, rank: int = 0, size: int = 1):
        self._quiet = rank > 0  # rank 0 says that the run stops
        self._launcher = os.getppid() if size > 1 else None
        self._stop_came = self.checkpoint = False

    @property
    def stop(self) -> bool:
        """True once Ctrl-C or SIGTERM came, or the launcher that would hand them on is gone."""
        return self._stop_came or self._launcher not in (None, os.getppid())

    def ends_no_process(self):
        """A context in which SIGUSR1 ends no process."""
        return handled(self._checkpoint, "SIGUSR1")

    def stops_between_steps(self):
        """A context in which Ctrl-C and SIGTERM wait for the step in progress; a second Ctrl-C does
        what it did before."""
        self._ctrl_c = signal.getsignal(signal.SIGINT)
        return handled(self._stop, "SIGINT", "SIGTERM")

    def _stop(self, number, frame) -> None:
        self._stop_came = True
        signal.signal(signal.SIGINT, self._ctrl_c)
        if not self._quiet:
            with suppress(OSError):  # nobody may be left to read it: the step goes on
                print("\nstopping after this step …", file=sys.stderr)

    def _checkpoint(self, number, frame) -> None:
        self.checkpoint = True


@contextmanager
def handled(handler: Callable | signal.Handlers, *names: str):
    """Handle the signals of these names, as far as the system knows them, in here."""
    main = threading.current_thread() is threading.main_thread()  # Python lets no other do it
    numbers = [getattr(signal, name) for name in names if main and hasattr(signal, name)]
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, handler_before in before.items():
            signal.signal(number, handler_before)
