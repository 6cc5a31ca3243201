"""The processes that train one model together, or one alone; see derivations/26-many-cores.md.

`device.communicator(world)` sums a device's arrays over them: MPI those of the host
(`snfnp.processes.mpi`), NCCL those of GPUs (`gpu/nccl.py`).
"""

import math
import os
from collections.abc import Callable
from functools import reduce
from operator import or_
from typing import Any

from snfnp.errors import SnfnpError, UsageError
from snfnp.ops.group import Array


def shares(count: int, parts: int) -> list[range]:
    """`count` items in `parts` contiguous shares, as equal as possible."""
    return [range(k * count // parts, (k + 1) * count // parts) for k in range(parts)]


class Communicator:
    """The processes ("ranks") of a run. This one is a process by itself: it waits for nobody.

    All ranks must make the same calls in the same order; a call that not all of them make never
    returns. Only the main thread may make them.

    Attributes:
        rank: this process's number, from 0.
        size: how many there are.
        local_rank: the same among the processes of this machine.
    """

    rank = 0
    size = 1
    local_rank = 0

    def all_reduce(self, *arrays: Array) -> None:
        """Put the sum over all ranks in place of each array.

        arrays: C-contiguous, float32 or float64, of the same shapes on every rank. Every rank gets
        the same bits, and the same number of ranks gets them again. Cost: each rank sends and
        receives 2 (size - 1) / size times the bytes of the arrays.
        """

    def any(self, flags: int) -> int:
        """The bitwise or of all ranks' flags. The host waits for the other ranks, never for a
        device."""
        return reduce(or_, self.gather(flags))

    def gather(self, value: Any) -> list:
        """The values of all ranks, in their order. value: anything that can be pickled."""
        return [value]

    def broadcast(self, value: Any) -> Any:
        """The value of rank 0. value: anything that can be pickled."""
        return self.gather(value if self.rank == 0 else None)[0]

    def exchange_exit_status(
        self, status: int, seconds: float = math.inf
    ) -> list[int] | None:
        """The exit statuses of all ranks, or None if one has not called this within the timeout.

        The last call: what other calls a rank was in, or has still to make, does not matter.
        """
        return [status]

    def abort(self, status: int) -> None:
        """End all ranks at once, with this exit status."""
        os._exit(status)

    def on_rank_zero(self, function: Callable[[], Any]) -> Any:
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
                here = str(every[0].get(name, "not given"))
                there = str(theirs.get(name, "not given"))
                if here != there:
                    raise UsageError(
                        f"`{name}` is {here} for rank 0 and {there} for rank {rank}: "
                        "give all processes the same"
                    )


SINGLE_PROCESS = Communicator()
