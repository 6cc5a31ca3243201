"""A command that several processes run together: their start, their output, their end."""

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
from snfnp.ops import SINGLE_PROCESS, Communicator, world
from snfnp.ops.communication import INSTALL, launched
from snfnp.processes import terminal
from snfnp.processes.signals import handled

OPTION = "--processes"
_PER_CORE = 4  # processes of a machine for each core, at most: more only wait for one another
_FAIL_TIMEOUT = 2.0  # seconds in which processes that fail alike have all failed
_READ_TIMEOUT = 0.5  # seconds in which mpiexec reads a line; what it has not read, an abort drops


def start(count: int, argv: list[str], world: Communicator) -> None:
    """Become an mpiexec that runs this program `count` times; signals and the exit status are then
    its own affair. Does nothing for one. Raises UsageError if the program is one of several
    already, or there would be far more than the machine has cores.

    argv: the command's arguments, the last ones of this process, with `OPTION` among them.
    """
    if count < 1:
        raise UsageError(f"`processes` is {count}: it must be at least 1")
    if count == 1:
        return
    if world.size > 1:
        already = f"mpiexec has started {world.size} already: leave one of them out"
        raise UsageError(f"`processes` starts processes, and {already}")
    _require_cores(count)
    mpiexec = find_mpiexec("`processes`")
    program = sys.orig_argv[1 : len(sys.orig_argv) - len(argv)]
    sys.stdout.flush()
    command = [mpiexec, "-n", str(count), sys.executable, *program, *_without_option(argv)]
    os.execv(mpiexec, command)


def _require_cores(count: int) -> None:
    """Raises UsageError for so many processes that this machine would do nothing but hold them."""
    cores = os.cpu_count() or 1  # all of them: each process may be bound to one
    if count > _PER_CORE * cores:
        found = f"{count} processes are far more than the {cores} cores of this machine"
        raise UsageError(f"{found}: start {cores} or fewer here")


def find_mpiexec(feature: str) -> str:
    """The mpiexec of this environment, or one on the PATH. Raises UsageError if there is none,
    or no mpi4py. feature: needs it."""
    mpiexec = shutil.which("mpiexec", path=Path(sys.executable).parent) or shutil.which("mpiexec")
    for missing, place in (("mpiexec", mpiexec), ("mpi4py", importlib.util.find_spec("mpi4py"))):
        if not place:
            raise UsageError(f"{feature} needs {missing}, which is missing: {INSTALL}")
    return mpiexec


def _without_option(argv: list[str]) -> list[str]:
    rest, words = [], iter(argv)
    for word in words:
        if word == OPTION:
            next(words)
        elif not word.startswith(f"{OPTION}="):
            rest.append(word)
    return rest


@contextmanager
def process_group() -> Iterator[Communicator]:
    """The processes that run this command, of which rank 0 alone prints.

    An exception ends all of them, in bounded time. If all fail alike, each of them gets here soon,
    and the first one that failed says what it was; if only some fail, the others may already wait
    for them, and are ended.
    """
    launch = launched()
    if launch is None:
        yield SINGLE_PROCESS
        return
    try:
        _require_cores(launch.here)  # before MPI, which has all of them wait for each other
        with handled(signal.SIG_DFL, "SIGINT", "SIGTERM"):  # MPI waits where Python hears of none
            ranks = world()
    except SnfnpError as error:
        if launch.rank:
            raise SystemExit(error.exit_status) from None
        raise
    try:
        if isinstance(out := sys.stdout, io.TextIOWrapper):
            out.reconfigure(line_buffering=True)  # mpiexec hands it on, also to a screen
        nowhere = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
        with nowhere, redirect_stdout(nowhere if ranks.rank else out):
            yield ranks
    except BaseException as error:
        _end(ranks, error)
        raise
    ranks.exchange_exit_status(0)


def _end(ranks: Communicator, error: BaseException) -> None:
    """End all ranks; returns if the error is to be raised as if this process were alone."""
    status = terminal.exit_status(error)
    statuses = ranks.exchange_exit_status(status, _FAIL_TIMEOUT)
    if statuses is not None:
        reporting = next((rank for rank, code in enumerate(statuses) if code), 0)
        if ranks.rank != reporting:
            raise SystemExit(status) from None
    if statuses is None or ranks.rank:
        who = f"rank {ranks.rank}: " if ranks.rank else ""
        if terminal.report_error(error, who) is None and not isinstance(error, SystemExit):
            print(f"rank {ranks.rank}:", file=sys.stderr)
            traceback.print_exception(error)
        sys.stderr.flush()
        if statuses is None:
            time.sleep(_READ_TIMEOUT)
            ranks.abort(status)
        raise SystemExit(status) from None
