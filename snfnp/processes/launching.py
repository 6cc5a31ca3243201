"""The output and the end of a command that several processes run together."""

import io
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout

from snfnp.errors import SnfnpError
from snfnp.ops import SINGLE_PROCESS, Communicator
from snfnp.processes import terminal
from snfnp.processes.mpi import launched, world
from snfnp.processes.terminal import handled

# seconds in which processes wait for an error that all of them have
_FAIL_TIMEOUT = 2.0
_READ_TIMEOUT = 0.5  # seconds for mpiexec to read a line before an abort discards it


@contextmanager
def process_group() -> Iterator[Communicator]:
    """The processes that run this command; only rank 0 prints. An exception ends all of them, in
    bounded time: if all fail, the first one reports the error; if some fail, the others may be
    waiting for them, and are aborted."""
    launch = launched()
    if launch is None:
        yield SINGLE_PROCESS
        return
    try:
        # Python handles none while MPI waits
        with handled(signal.SIG_DFL, signal.SIGINT, signal.SIGTERM):
            ranks = world()
    except SnfnpError as error:
        if launch.rank:
            raise SystemExit(error.exit_status) from None
        raise
    try:
        if isinstance(out := sys.stdout, io.TextIOWrapper):
            out.reconfigure(line_buffering=True)  # mpiexec may forward it to a screen
        nowhere = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
        with nowhere, redirect_stdout(nowhere if ranks.rank else out):
            yield ranks
    except BaseException as error:
        _end(ranks, error)
        raise
    ranks.exchange_exit_status(0)


def _end(ranks: Communicator, error: BaseException) -> None:
    """End all ranks; returns on the rank that is to raise the error as if it were alone."""
    status = terminal.exit_status(error)
    statuses = ranks.exchange_exit_status(status, _FAIL_TIMEOUT)
    if statuses is not None:
        reporting = next((rank for rank, code in enumerate(statuses) if code), 0)
        if ranks.rank != reporting:
            raise SystemExit(status) from None
    if statuses is None or ranks.rank:
        who = f"rank {ranks.rank}: " if ranks.rank else ""
        if terminal.report_error(error, who) is None and not isinstance(
            error, SystemExit
        ):
            print(f"rank {ranks.rank}:", file=sys.stderr)
            traceback.print_exception(error)
        sys.stderr.flush()
        if statuses is None:
            time.sleep(_READ_TIMEOUT)
            ranks.abort(status)
        raise SystemExit(status) from None
