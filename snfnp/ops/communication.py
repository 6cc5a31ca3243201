"""Processes that train one model together, or one alone; see derivations/26-many-cores.md.

`world()` finds the other processes, which MPI started; `device.communicator(world)` sums a device's
arrays over them: MPI those of the host, NCCL those of GPUs (`gpu/nccl.py`).
"""

import math
import os
import time
from collections.abc import Callable
from functools import cache, reduce
from operator import or_
from typing import Any, NamedTuple

import numpy as np

from snfnp.errors import BackendError, SnfnpError, UsageError

INSTALL = "python -m pip install mpi4py mpich"
# (how many processes, this one's number, how many on this machine), as each launcher tells its
# processes. Hydra (MPICH, Intel MPI) and Slurm's PMI-1 and PMI-2; Open MPI; Slurm's steps, which
# have nothing to do with the size of the job around them.
_VARIABLES = (
    ("PMI_SIZE", "PMI_RANK", "MPI_LOCALNRANKS"),
    ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),
    ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_NTASKS_PER_NODE"),
)
_EAGER = 5e-4  # seconds of a wait in which it looks again at once: ranks are seldom further apart
_POLL_INTERVAL = 2e-5  # seconds between looks after that


def shares(count: int, parts: int) -> list[range]:
    """`count` items in `parts` contiguous shares, as equal as possible."""
    return [range(k * count // parts, (k + 1) * count // parts) for k in range(parts)]


class Communicator:
    """The processes ("ranks") of a run. This one is a process by itself: it waits for nobody.

    rank, size: this process's number, from 0, and how many there are. local_rank, local_size: the
    same among the processes of this machine. All ranks must make the same calls in the same order;
    a call that not all of them make never returns. Only the main thread may make them.
    """

    rank, size = 0, 1
    local_rank, local_size = 0, 1

    def all_reduce(self, *arrays) -> None:
        """Put the sum over all ranks in place of each array.

        arrays: C-contiguous, float32 or float64, of the same shapes on every rank. Every rank gets
        the same bits, and the same number of ranks gets them again. Cost: each rank sends and
        receives 2 (size - 1) / size times the bytes of the arrays.
        """

    def any(self, flags: int) -> int:
        """The bitwise or of all ranks' flags. The host waits for the other ranks, never for a
        device."""
        return reduce(or_, self.gather(flags))

    def gather(self, value) -> list:
        """The values of all ranks, in their order. value: anything that can be pickled."""
        return [value]

    def broadcast(self, value) -> Any:
        """The value of rank 0. value: anything that can be pickled."""
        return self.gather(value if self.rank == 0 else None)[0]

    def exchange_exit_status(self, status: int, seconds: float = math.inf) -> list[int] | None:
        """The exit statuses of all ranks, or None if one has not called this within the timeout.

        The last call: what other calls a rank was in, or has still to make, does not matter.
        """
        return [status]

    def abort(self, status: int) -> None:
        """End all ranks at once, with this exit status."""
        os._exit(status)

    def on_rank_zero(self, function: Callable) -> Any:
        """The result of `function()`, which rank 0 alone calls; its SnfnpError is raised on every
        rank."""
        value = error = None
        if self.rank == 0:
            try:
                value = function()
            except SnfnpError as raised:
                error = raised
        value, error = self.broadcast((value, error))
        if error is not None:
            raise error
        return value

    def require_same(self, values: dict[str, object]) -> None:
        """Raises UsageError, on every rank, if the ranks have different values.

        values: {parameter: value}; a parameter that only some ranks have is a difference as well.
        """
        every = self.gather(values)
        for rank, theirs in enumerate(every):
            for name in every[0] | theirs:
                here, there = (str(given.get(name, "not given")) for given in (every[0], theirs))
                if here != there:
                    found = f"`{name}` is {here} for rank 0 and {there} for rank {rank}"
                    raise UsageError(f"{found}: give all processes the same")


SINGLE_PROCESS = Communicator()


class Mpi(Communicator):
    """All processes of an mpiexec or srun.

    MPI: the module `mpi4py.MPI`, whose import initialises MPI.
    """

    def __init__(self, MPI):
        self._mpi, self._comm = MPI, MPI.COMM_WORLD.Dup()
        self._end = MPI.COMM_WORLD.Dup()  # independent of unfinished collectives
        self.rank, self.size = self._comm.rank, self._comm.size
        machine = self._comm.Split_type(MPI.COMM_TYPE_SHARED)
        self.local_rank, self.local_size = machine.rank, machine.size
        machine.Free()

    def all_reduce(self, *arrays) -> None:
        # MPI does not promise that Allreduce gives every rank the same bits, and parameters that
        # differ by a rounding drift apart. So each rank adds one part, in the order of the ranks,
        # and hands it round. (An exchange keeps a core busy: not before all ranks are here.)
        _wait(self._comm.Ibarrier())
        for array in arrays:
            if not array.flags.c_contiguous:
                raise ValueError("an array that is summed over ranks must be C-contiguous")
            flat = array.reshape(-1)
            every_part = shares(flat.size, self.size)
            share = every_part[self.rank]
            parts = [len(part) for part in every_part], [part.start for part in every_part]
            mine = len(share)
            every = np.empty((self.size, mine), flat.dtype)
            rows = ([mine] * self.size, [mine * rank for rank in range(self.size)])
            self._comm.Alltoallv([flat, parts], [every, rows])
            every.sum(axis=0, out=flat[share.start : share.stop])
            self._comm.Allgatherv(self._mpi.IN_PLACE, [flat, parts])

    def gather(self, value) -> list:
        _wait(self._comm.Ibarrier())
        return self._comm.allgather(value)

    def exchange_exit_status(self, status: int, seconds: float = math.inf) -> list[int] | None:
        every = np.empty(self.size, np.int64)
        here = _wait(self._end.Iallgather(np.array([status], np.int64), every), seconds)
        return every.tolist() if here else None

    def abort(self, status: int) -> None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 2)  # for what MPI has to say about it; the reason has been given
        self._mpi.COMM_WORLD.Abort(status)


def _wait(request, seconds: float = math.inf) -> bool:
    """True once an operation is done, False after a timeout. MPI's own waiting occupies a core that
    another rank may need."""
    start = time.monotonic()
    while not request.Test():
        waited = time.monotonic() - start
        if waited > seconds:
            return False
        if waited > _EAGER:
            time.sleep(_POLL_INTERVAL)
    return True


class Launch(NamedTuple):
    """size: how many processes were started; rank: this one's number; here: how many on this
    machine, 0 if nothing tells; by: what tells."""

    size: int
    rank: int
    here: int
    by: str


def launched() -> Launch | None:
    """The launch of this process by the environment, if it is one of several: without MPI."""
    for size, *others in _VARIABLES:
        launch = Launch(_number(size), *map(_number, others), size)
        if launch.size > 1:
            return launch
    return None


def _number(variable: str) -> int:
    text = os.environ.get(variable, "")
    return int(text) if text.isdecimal() else 0


@cache
def world() -> Communicator:
    """All processes that were started together, by mpiexec or srun, or a single one, which does not
    import MPI. Raises BackendError if several processes cannot reach each other."""
    launch = launched()
    if launch is None:
        return SINGLE_PROCESS
    started = f"this was started as one of {launch.size} processes ({launch.by})"
    try:
        import mpi4py

        mpi4py.rc.thread_level = "funneled"  # the main thread alone communicates
        from mpi4py import MPI
    except ModuleNotFoundError:
        raise BackendError(f"{started}, but mpi4py is not installed: {INSTALL}") from None
    except (ImportError, RuntimeError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise BackendError(f"{started}, but mpi4py finds no MPI ({reason}): {INSTALL}") from None
    if MPI.COMM_WORLD.size != launch.size:
        library = " ".join(MPI.Get_library_version().split("\n")[0].split())
        found = f"{started}, of which mpi4py's {library} sees {MPI.COMM_WORLD.size}"
        raise BackendError(f"{found}: use the mpiexec of the same MPI, or srun --mpi=pmi2 or pmix")
    return Mpi(MPI)
