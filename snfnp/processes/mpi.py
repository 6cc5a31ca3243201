"""MPI: finding the processes that were started together, and sums of the host's arrays over them.

See derivations/26-many-cores.md.
"""

import math
import os
import time
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from snfnp.errors import BackendError
from snfnp.ops import SINGLE_PROCESS, Array, Communicator, shares

INSTALL = "python -m pip install mpi4py mpich"
# (how many processes, this one's number), as each launcher tells its processes. Hydra (MPICH, Intel
# MPI) and Slurm's PMI-1 and PMI-2; Open MPI; Slurm's steps, which have nothing to do with the size
# of the job around them.
_VARIABLES = (
    ("PMI_SIZE", "PMI_RANK"),
    ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
    ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID"),
)
_EAGER = 5e-4  # seconds of a wait before it sleeps between polls: ranks are seldom further apart
_POLL_INTERVAL = 2e-5  # seconds


class Mpi(Communicator):
    """All processes of an mpiexec or srun.

    Args:
        MPI: the module `mpi4py.MPI`, whose import initialises MPI.
    """

    def __init__(self, MPI: Any):
        self._mpi = MPI
        self._comm = MPI.COMM_WORLD.Dup()
        self._end = MPI.COMM_WORLD.Dup()  # independent of unfinished collectives
        self.rank = self._comm.rank
        self.size = self._comm.size
        machine = self._comm.Split_type(MPI.COMM_TYPE_SHARED)
        self.local_rank = machine.rank
        machine.Free()

    def all_reduce(self, *arrays: Array) -> None:
        # MPI does not promise that Allreduce gives every rank the same bits, and parameters that
        # differ by a rounding drift apart. So each rank adds one part, in the order of the ranks,
        # and hands it round. (An exchange keeps a core busy: not before all ranks are here.)
        _wait(self._comm.Ibarrier())
        for array in arrays:
            if not array.flags.c_contiguous:
                raise ValueError(
                    "an array that is summed over ranks must be C-contiguous"
                )
            flat = array.reshape(-1)
            parts = shares(flat.size, self.size)
            part = parts[self.rank]
            counts = [len(each) for each in parts]
            received = np.empty((self.size, len(part)), flat.dtype)
            source = [flat, (counts, [each.start for each in parts])]
            starts = [len(part) * rank for rank in range(self.size)]
            self._comm.Alltoallv(source, [received, ([len(part)] * self.size, starts)])
            received.sum(axis=0, out=flat[part.start : part.stop])
            self._comm.Allgatherv(self._mpi.IN_PLACE, source)

    def gather(self, value: Any) -> list:
        _wait(self._comm.Ibarrier())
        return self._comm.allgather(value)

    def exchange_exit_status(
        self, status: int, seconds: float = math.inf
    ) -> list[int] | None:
        every = np.empty(self.size, np.int64)
        here = _wait(self._end.Iallgather(np.array([status], np.int64), every), seconds)
        return every.tolist() if here else None

    def abort(self, status: int) -> None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        # for what MPI has to say about it; the reason has been given
        os.dup2(nowhere, 2)
        self._mpi.COMM_WORLD.Abort(status)


def _wait(request: Any, seconds: float = math.inf) -> bool:
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
    """The launch of a process.

    Attributes:
        size: how many processes were started.
        rank: this one's number.
        by: the environment variable that tells.
    """

    size: int
    rank: int
    by: str


def launched() -> Launch | None:
    """The launch of this process by the environment, if it is one of several: without MPI."""
    for size, rank in _VARIABLES:
        launch = Launch(_number(size), _number(rank), size)
        if launch.size > 1:
            return launch
    return None


def _number(variable: str) -> int:
    text = os.environ.get(variable, "")
    return int(text) if text.isdecimal() else 0


@cache
def world() -> Communicator:
    """All processes that were started together, by mpiexec or srun, or a single one, which does not
    import MPI.

    Raises:
        BackendError: if several processes cannot reach each other.
    """
    launch = launched()
    if launch is None:
        return SINGLE_PROCESS
    started = f"this was started as one of {launch.size} processes ({launch.by})"
    try:
        import mpi4py

        mpi4py.rc.thread_level = "funneled"  # the main thread alone communicates
        from mpi4py import MPI
    except ModuleNotFoundError:
        raise BackendError(
            f"{started}, but mpi4py is not installed: {INSTALL}"
        ) from None
    except (ImportError, RuntimeError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise BackendError(
            f"{started}, but mpi4py finds no MPI ({reason}): {INSTALL}"
        ) from None
    if MPI.COMM_WORLD.size != launch.size:
        library = " ".join(MPI.Get_library_version().split("\n")[0].split())
        raise BackendError(
            f"{started}, of which mpi4py's {library} sees {MPI.COMM_WORLD.size}: "
            "use the mpiexec of the same MPI, or srun --mpi=pmi2 or pmix"
        )
    return Mpi(MPI)
