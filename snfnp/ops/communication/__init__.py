"""Processes that train one model together: one alone, MPI for arrays on the host, NCCL on GPUs.

`world()` finds the other processes; `device.communicator(world)` sums a device's arrays over them.
"""

import os
from functools import cache
from typing import NamedTuple

from snfnp.errors import BackendError
from snfnp.ops.communication.definition import SINGLE_PROCESS, Communicator, shares

INSTALL = "python -m pip install mpi4py mpich"
# (how many processes, this one's number, how many on this machine), as each launcher tells its
# processes. Hydra (MPICH, Intel MPI) and Slurm's PMI-1 and PMI-2; Open MPI; Slurm's steps, which
# have nothing to do with the size of the job around them.
_VARIABLES = (
    ("PMI_SIZE", "PMI_RANK", "MPI_LOCALNRANKS"),
    ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),
    ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_NTASKS_PER_NODE"),
)


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
    from snfnp.ops.communication.mpi import Mpi

    return Mpi(MPI)


__all__ = ["INSTALL", "SINGLE_PROCESS", "Communicator", "launched", "shares", "world"]
