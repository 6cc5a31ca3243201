"""Ranks that are threads of one process: what their sums and answers have to be, without MPI."""

import threading

import numpy as np

from snfnp.ops import Communicator


class _Meeting:
    """A place to which the threads of all ranks bring a value and take everybody's away."""

    def __init__(self, size):
        self.values = [None] * size
        self.barrier = threading.Barrier(size)

    def exchange(self, rank, value):
        self.values[rank] = value
        self.barrier.wait(60)
        found = list(self.values)
        self.barrier.wait(60)
        return found


class ThreadRank(Communicator):
    """One of several ranks."""

    def __init__(self, meeting, rank):
        self.rank = rank
        self.size = len(meeting.values)
        self._meeting = meeting

    def all_reduce(self, *arrays):
        for array in arrays:
            found = self._meeting.exchange(self.rank, array.copy())
            array[...] = np.sum(found, axis=0)

    def gather(self, value):
        return self._meeting.exchange(self.rank, value)


def on_ranks(size, function):
    """function(world) on every rank at once: their results. The first error is raised here."""
    meeting = _Meeting(size)
    results = [None] * size
    errors = []

    def run(rank):
        try:
            results[rank] = function(ThreadRank(meeting, rank))
        except BaseException as error:
            errors.append(error)
            meeting.barrier.abort()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for error in errors:
        if not isinstance(error, threading.BrokenBarrierError):
            raise error
    return results
