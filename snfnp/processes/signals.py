"""Signals to a run: they are acted on between steps, so that no update is left half done."""

import signal
import sys
from collections.abc import Callable
from contextlib import contextmanager

from snfnp.processes import terminal


class Signals:
    """The signals that came.

    stop: Ctrl-C or SIGTERM came; checkpoint: SIGUSR1 did, which batch systems can send ahead;
    quiet: another process says that the run stops.
    """

    def __init__(self, quiet: bool = False):
        self._quiet = quiet
        self.stop = self.checkpoint = False

    def ends_no_process(self):
        """A context in which SIGUSR1 ends no process."""
        return _handled(self._checkpoint, "SIGUSR1")

    def ends_at_once(self):
        """A context in which Ctrl-C ends a command as SIGTERM does: a compiler keeps Python from
        hearing of it. In other programs, a notebook among them, it stays what it is."""
        ours = signal.getsignal(signal.SIGINT) is terminal.interrupt
        return _handled(signal.SIG_DFL, *["SIGINT"] * ours)

    def stops_between_steps(self):
        """A context in which Ctrl-C and SIGTERM wait for the step in progress; a second Ctrl-C does
        not."""
        return _handled(self._stop, "SIGINT", "SIGTERM")

    def _stop(self, number, frame) -> None:
        if self.stop and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.stop = True
        if not self._quiet:
            print("\nstopping after this step …", file=sys.stderr)

    def _checkpoint(self, number, frame) -> None:
        self.checkpoint = True


@contextmanager
def _handled(handler: Callable | signal.Handlers, *names: str):
    """Handle the signals of these names, as far as the system knows them, in here."""
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, handler_before in before.items():
            signal.signal(number, handler_before)
