"""Signals to a run: they are acted on between steps, so that no update is left half done."""

from __future__ import annotations

import signal
import sys
from contextlib import contextmanager


class Signals:
    """The signals that came; a context manager, in which SIGUSR1 ends no process.

    stop: Ctrl-C or SIGTERM came; checkpoint: SIGUSR1 did, which batch systems can send ahead;
    quiet: another process says that the run stops.
    """

    def __init__(self, quiet: bool = False):
        self._quiet = quiet
        self.stop = self.checkpoint = False
        self._handlers = {}

    def __enter__(self) -> Signals:
        self._handlers = _install(self._checkpoint, ("SIGUSR1",))
        return self

    def __exit__(self, *error) -> None:
        _restore(self._handlers)

    @contextmanager
    def stops_between_steps(self):
        """Let Ctrl-C and SIGTERM wait for the step in progress; a second Ctrl-C does not."""
        handlers = _install(self._stop, ("SIGINT", "SIGTERM"))
        try:
            yield
        finally:
            _restore(handlers)

    def _stop(self, number, frame) -> None:
        if self.stop and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.stop = True
        if not self._quiet:
            print("\nstopping after this step …", file=sys.stderr)

    def _checkpoint(self, number, frame) -> None:
        self.checkpoint = True


def _install(handler, names) -> dict:
    """Handle the signals of these names, as far as the system knows them; the handlers before."""
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    return {number: signal.signal(number, handler) for number in numbers}


def _restore(handlers: dict) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)
