"""Signals to a run, which take effect between steps, so that each update is complete; the end of a
command that fails: one line, or nothing, never a traceback."""

import io
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from types import FrameType

from snfnp.errors import SnfnpError, in_flags

CLOSED_PIPE = 128 + 13  # as shells report SIGPIPE
INTERRUPTED = 128 + 2  # as shells report SIGINT
# Packages that turn KeyboardInterrupt into another error or drop it: in an import, and where LLVM
# calls Python back.
SWALLOW_INTERRUPT = {"_frozen_importlib", "importlib", "numba", "llvmlite"}


class Signals:
    """The signals received so far, in the main thread. stop: Ctrl-C or SIGTERM was received."""

    stop = False

    def defer_interrupts(self) -> AbstractContextManager[None]:
        """A context in which Ctrl-C and SIGTERM take effect after the step in progress, and a
        second Ctrl-C at once."""
        self._ctrl_c = signal.getsignal(signal.SIGINT)
        return handled(self._stop)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self.stop = True
        signal.signal(signal.SIGINT, self._ctrl_c)
        with suppress(OSError):  # stderr may be closed
            print("\nstopping after this step …", file=sys.stderr)


@contextmanager
def handled(handler: Callable) -> Iterator[None]:
    """A context with this handler of Ctrl-C and SIGTERM, except one that is ignored, as Ctrl-C is
    for `command &` in a shell."""
    # no other thread may set handlers
    main = threading.current_thread() is threading.main_thread()
    before = {
        number: signal.signal(number, handler)
        for number in (signal.SIGINT, signal.SIGTERM)
        if main and signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        yield
    finally:
        for number, handler_before in before.items():
            signal.signal(number, handler_before)


@contextmanager
def robust_output() -> Iterator[None]:
    """Escape characters that an output's encoding lacks, and write every line at once: a log file
    is read during a run, and after one that was killed."""
    before = []
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and not stream.closed:
            before.append((stream, stream.errors, stream.line_buffering))
            stream.reconfigure(errors="backslashreplace", line_buffering=True)
    try:
        yield
    finally:
        with suppress(OSError, ValueError):  # closed: the next print fails, too
            for stream, errors, by_line in before:
                stream.reconfigure(errors=errors, line_buffering=by_line)


@contextmanager
def _all_streams() -> Iterator[None]:
    """A context in which closed standard streams are open to nowhere: what prints works, and no
    file of the command's gets their numbers, to which libraries write."""
    with ExitStack() as held:
        for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
            if getattr(sys, name) is None:
                nowhere = held.enter_context(open(os.devnull, mode, encoding="utf-8"))
                held.callback(setattr, sys, name, None)
                setattr(sys, name, nowhere)
        yield


@_all_streams()
@robust_output()
def run(work: Callable[[], None]) -> int:
    """Do a command's work, and return its exit status: 0; 2 after wrong usage and 1 after any other
    failure, with a line on stderr; 130 after Ctrl-C or SIGTERM and 141 after a closed pipe, without
    one. A mistake in the program is raised."""
    with handled(interrupt):
        try:
            try:
                work()
            finally:
                sys.stdout.flush()  # its errors are to be raised here, not at exit
            return 0
        except BaseException as error:
            status = _report_error(error)
            if status is None:
                raise
            return status


def _report_error(error: BaseException) -> int | None:
    """Report an exception on stderr, in a line, and return the exit status; None for a mistake in
    the program, or its intended end."""
    if isinstance(error, KeyboardInterrupt | BrokenPipeError):
        _abandon_output()
        return INTERRUPTED if isinstance(error, KeyboardInterrupt) else CLOSED_PIPE
    if isinstance(error, SnfnpError):
        line = in_flags(str(error))
    elif isinstance(error, MemoryError):
        reason = str(error).rstrip(".") or "nothing more is known"
        line = f"out of memory ({reason}): ask for less at once, or see which other program has it"
    elif isinstance(error, ModuleNotFoundError) and f"{error.name}.".startswith(
        "snfnp.beyond."
    ):
        line = f"{error.name} is not installed: install all of snfnp, or leave the option out"
    elif isinstance(error, OSError) and _fails(lambda: print(flush=True)):
        _abandon_output()
        line = f"the output cannot be written ({error.strerror}): send it elsewhere"
    elif isinstance(error, FileNotFoundError) and _fails(os.getcwd):
        line = "the current folder is gone: change to another one"
    else:
        return None
    try:
        print(f"error: {line}", file=sys.stderr)
    except OSError:  # stderr is closed too: only the status is left
        _abandon_output()
    return error.exit_status if isinstance(error, SnfnpError) else 1


def interrupt(number: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt; during an import or a compilation, which have nothing to save, end
    the process at once."""
    while frame is not None:
        if frame.f_globals.get("__name__", "").partition(".")[0] in SWALLOW_INTERRUPT:
            _abandon_output()
            os._exit(INTERRUPTED)
        frame = frame.f_back
    raise KeyboardInterrupt


def _fails(action: Callable[[], object]) -> bool:
    """True if the operating system refuses something."""
    try:
        action()
        return False
    except OSError:
        return True


def _abandon_output() -> None:
    """Discard unflushed output: the interpreter would complain about it at exit."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(nowhere, stream.fileno())
        # there is no stream, it is closed, or it is being written to
        except (AttributeError, ValueError, RuntimeError):
            pass
    os.close(nowhere)
