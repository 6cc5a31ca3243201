"""Processes that train one model together: one alone, MPI for arrays on the host, NCCL on GPUs.

`world()` is how a process finds the others; a device makes of it what its arrays need
(`device.communicator(world)`).
"""

from functools import cache

from snfnp.errors import BackendError
from snfnp.ops.communication.definition import SINGLE_PROCESS, Communicator, shares
from snfnp.ops.communication.launch import launched

INSTALL = "python -m pip install mpi4py mpich"


@cache
def world() -> Communicator:
    """All processes that were started together, by mpiexec or srun, or a single one.

    The environment tells which: for a single process MPI is not even imported. Raises BackendError,
    in one line, if several processes were started that cannot reach each other.
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
