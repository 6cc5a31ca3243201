"""The CPU as a device."""

import socket
from collections.abc import Callable
from contextlib import nullcontext

import numpy as np

from snfnp import threads
from snfnp.ops.communication import SINGLE_PROCESS, Communicator


def ranks_on_shared_cores(world: Communicator) -> int:
    """The number of ranks that share the cores of this process, itself included: all on a machine,
    unless the launcher bound each to cores of its own."""
    here = socket.gethostname(), threads.cores()
    return sum(host == here[0] and bool(cores & here[1]) for host, cores in world.gather(here))


class HostDevice:
    """The CPU: arrays are NumPy's, and operations finish before they return.

    xp: the array namespace; name: of the backend; asynchronous: operations may return before they
    finish; compiles: the first call of a kernel compiles it.
    """

    xp = np
    asynchronous = False

    def __init__(self, name: str, compilations=None):
        self.name, self.compiles = name, compilations is not None
        self._compilations = compilations

    def compilations(self, begins, ends):
        """A context in which begins() is called before kernels are compiled, ends(count) after."""
        return self._compilations(begins, ends) if self._compilations else nullcontext()

    def asarray(self, host, dtype=None):
        """A host array as a C-contiguous array on the device, cast if `dtype` is given."""
        return self.xp.asarray(host, dtype=dtype, order="C")

    def to_host(self, array) -> np.ndarray:
        """A device array as a NumPy array on the host."""
        return np.asarray(array)

    def constant(self, host: np.ndarray, dtype=np.float64):
        """A small host array that depends on shapes alone, on the device in this precision. It is
        copied once and must not be changed."""
        return np.asarray(host, dtype)

    def known_on_host(self, condition) -> bool | None:
        """The truth of a number of shape (); None if the host would have to wait for it."""
        return bool(condition)

    def communicator(self, world: Communicator) -> Communicator:
        """An object whose `all_reduce` sums this device's arrays, made by all ranks together.

        Raises UsageError if their backends differ, and BackendError if two have the same GPU or
        cannot reach each other.
        """
        world.require_same({"backend": self.name})
        return world

    def capture(self, function, report=print, world: Communicator = SINGLE_PROCESS):
        """`function(argument)`, which a device may record and replay in later calls.

        It must write its results into arrays that outlive it, and launch the same operations in
        every call with the same argument. If it cannot be recorded, `report` gets a line that says
        why.
        world: the ranks whose sums the function takes; all of them record, or none.
        """
        return function

    def prepare(self, work: Callable[[], None]) -> None:
        """Call work() until everything in it is compiled, or recorded."""
        if self.compiles:
            work()

    @property
    def threads(self) -> int | None:
        """The number of threads on which results depend; None: they depend on none."""
        return threads.most()

    def describe(self) -> dict:
        """The device and its libraries, for a run's record; {} if `threads` describes it."""
        return {}

    def shortfall(self, error: Exception) -> str | None:
        """The memory that an error found missing, in words; None if it is of another kind."""
        if not isinstance(error, MemoryError):
            return None
        return str(error) or "nothing more is known"

    def synchronise(self) -> None:
        """Wait until everything on the device has finished, on every stream."""
