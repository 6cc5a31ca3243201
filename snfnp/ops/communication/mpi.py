"""Processes that MPI started, and sums of arrays on the host; see derivations/25-many-cores.md."""

import math
import os
import time

import numpy as np

from snfnp.ops.communication.definition import Communicator, shares

_EAGER = 5e-4  # seconds of a wait in which it looks again at once: ranks are seldom further apart
_POLL_INTERVAL = 2e-5  # seconds between looks after that


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

    def any(self, flags: int) -> int:
        both = np.array([flags], np.int64)
        _wait(self._comm.Iallreduce(self._mpi.IN_PLACE, both, self._mpi.BOR))
        return int(both[0])

    def gather(self, value) -> list:
        _wait(self._comm.Ibarrier())
        return self._comm.allgather(value)

    def broadcast(self, value):
        _wait(self._comm.Ibarrier())
        return self._comm.bcast(value)

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
