"""The start, the output and the end of a command that several processes run together."""

import importlib.util
import io
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

from snfnp.errors import SnfnpError, UsageError
from snfnp.ops import SINGLE_PROCESS, Communicator
from snfnp.processes import terminal
from snfnp.processes.mpi import INSTALL, launched, world
from snfnp.processes.terminal import handled

OPTION = "--processes"
_PER_CORE = 4  # processes of a machine for each core, at most
# seconds in which processes wait for an error that all of them have
_FAIL_TIMEOUT = 2.0
_READ_TIMEOUT = 0.5  # seconds for mpiexec to read a line before an abort discards it


def start(count: int, world: Communicator) -> None:
    """Replace this process by an mpiexec that runs the program `count` times, unless count is 1.
    Raises UsageError if mpiexec started the program already, or for an absurd count."""
    if count < 1:
        raise UsageError(f"`processes` is {count}: it must be at least 1")
    if count == 1:
        return
    if world.size > 1:
        raise UsageError(
            f"`processes` starts processes, and mpiexec has started {world.size} already: "
            "leave one of them out"
        )
    _require_cores(count)
    mpiexec = shutil.which("mpiexec", path=Path(sys.executable).parent) or shutil.which(
        "mpiexec"
    )
    needed = {"mpiexec": mpiexec, "mpi4py": importlib.util.find_spec("mpi4py")}
    for name, location in needed.items():
        if not location:
            raise UsageError(f"`processes` needs {name}, which is missing: {INSTALL}")
    sys.stdout.flush()
    words = sys.orig_argv[1:]
    # behind it there are no options
    end = words.index("--") if "--" in words else len(words)
    words.insert(end, f"{OPTION}=1")
    command = [str(mpiexec), "-n", str(count), sys.executable, *words]
    os.execv(command[0], command)


def _require_cores(count: int) -> None:
    """Raises UsageError for an absurd number of processes."""
    cores = os.cpu_count() or 1  # all of them: each process may be bound to one
    if count > _PER_CORE * cores:
        raise UsageError(
            f"{count} processes are far more than the {cores} cores of this machine: "
            f"start {cores} or fewer here"
        )


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
        _require_cores(launch.here)  # before MPI, in which all wait for each other
        # Python handles none while MPI waits
        with handled(signal.SIG_DFL, "SIGINT", "SIGTERM"):
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
