"""Processes that train one model together, or one alone; see derivations/25-many-cores.md."""

import math
import os
from collections.abc import Callable
from typing import Any

from snfnp.errors import SnfnpError, UsageError


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
        """The bitwise or of all ranks' flags, an int64. The host waits for the other ranks, never
        for a device."""
        return flags

    def gather(self, value) -> list:
        """The values of all ranks, in their order. value: anything that can be pickled."""
        return [value]

    def broadcast(self, value) -> Any:
        """The value of rank 0. value: anything that can be pickled."""
        return value

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
