"""The CPU as a device, and what any device says about memory that was not there."""

from __future__ import annotations

import socket
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np

from snfnp import threads
from snfnp.ops.communication import SINGLE_PROCESS, Communicator


def ranks_on_shared_cores(world: Communicator) -> int:
    """How many of the ranks may run on cores that this process may run on, itself included: all of
    a machine's, but for launchers that give each cores of its own."""
    here = socket.gethostname(), threads.cores()
    return sum(host == here[0] and bool(cores & here[1]) for host, cores in world.gather(here))


@dataclass(frozen=True)
class MemoryShortfall:
    """Memory that was not there.

    found: what was asked for and what there was, in words. needed, room: the bytes that this run
    would have held with what it asked for, and the bytes that it could have had; None: not known.
    """

    found: str
    needed: int | None = None
    room: int | None = None

    def largest_fitting(self, count: int, fixed: int = 0) -> int | None:
        """How many items would fit instead of `count`: count // 2ᵏ for the smallest k >= 1.

        An estimate: it takes memory for `fixed` bytes plus a share for each item, and counts what
        was needed up to the failure, so that the true answer is this one or a smaller one. 0 where
        not even one item fits, None where nothing is known.
        """
        if self.needed is None:
            return None
        share = max(self.needed - fixed, 0) / count
        count //= 2
        while count and fixed + share * count > self.room:
            count //= 2
        return count


class HostDevice:
    """The CPU: arrays are NumPy's, and every operation is done when it returns.

    name: of the backend; start_note: why a first run is slow to start, for its user.
    """

    xp = np
    asynchronous = False

    def __init__(self, name: str, start_note: str = ""):
        self.name, self.start_note = name, start_note

    def asarray(self, host, dtype=None):
        """The same array, C-contiguous, and cast where `dtype` is given."""
        return self.xp.ascontiguousarray(host, dtype=dtype)

    def to_host(self, array) -> np.ndarray:
        return np.asarray(array)

    def constant(self, host: np.ndarray, dtype=np.float64):
        """A small host array that depends on shapes alone, in this precision, on the device."""
        return np.asarray(host, dtype)

    def known_on_host(self, condition) -> bool | None:
        """Whether a condition or number of shape () is not 0; None where the host would wait."""
        return bool(condition)

    def communicator(self, world: Communicator) -> Communicator:
        """What sums this device's arrays over the processes of a run. Made by all ranks together.

        Raises UsageError where they have different backends, and BackendError where two have one
        GPU or cannot reach each other.
        """
        world.require_same({"--backend": self.name})
        return world

    def capture(self, function, report=print, communicator: Communicator = SINGLE_PROCESS):
        """`function(images)`, to be called again and again with arrays of the same shape.

        It must put its results into arrays that outlive it and launch the same operations every
        time. A device may record the first calls and replay them; where it cannot, `report` gets
        one line that says why. communicator: which the function uses, if any: either all of its
        ranks record, or none does.
        """
        return function

    def run_async(self, function, *arguments, **named) -> None:
        """Call `function(*arguments, **named)`, perhaps beside what the host starts next."""
        function(*arguments, **named)

    def side_stream(self):
        """A context at whose end everything that `run_async` started in it is done before what
        follows."""
        return nullcontext()

    def describe(self) -> dict:
        """The device and its libraries, for a run's configuration; {} where `threads` says it."""
        return {}

    def shortfall(self, error: Exception) -> MemoryShortfall | None:
        """What did not fit, where an exception is about memory; None where it is not."""
        if not isinstance(error, MemoryError):
            return None
        return MemoryShortfall(str(error) or "nothing more is known")

    def synchronise(self) -> None:
        """Wait until everything on the device is done, whoever started it."""
