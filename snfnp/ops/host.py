"""The CPU as a device."""

import socket
from collections.abc import Callable
from contextlib import nullcontext

import numpy as np

from snfnp import threads
from snfnp.ops.communication import SINGLE_PROCESS, Communicator


def ranks_on_shared_cores(world: Communicator) -> int:
    """The number of ranks that may run on the cores of this process, itself included: all ranks of
    a machine, unless a launcher gave each of them its own cores."""
    here = socket.gethostname(), threads.cores()
    return sum(host == here[0] and bool(cores & here[1]) for host, cores in world.gather(here))


class HostDevice:
    """The CPU: arrays are NumPy's, and every operation is done when it returns.

    xp: the array namespace; name: of the backend; asynchronous: operations may return before they
    are done; compiles: the first call of a kernel takes long.
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
        """A host array as a C-contiguous one on the device, cast if `dtype` is given."""
        return self.xp.ascontiguousarray(host, dtype=dtype)

    def to_host(self, array) -> np.ndarray:
        """A device array as a NumPy array on the host."""
        return np.asarray(array)

    def constant(self, host: np.ndarray, dtype=np.float64):
        """A small host array that depends on shapes alone, in this precision, on the device. It is
        copied once, and must not be changed."""
        return np.asarray(host, dtype)

    def known_on_host(self, condition) -> bool | None:
        """True if a condition or number of shape () is not 0, False if it is 0; None if the host
        would have to wait for the answer."""
        return bool(condition)

    def communicator(self, world: Communicator) -> Communicator:
        """A communicator that sums this device's arrays; all ranks make it together.

        Raises UsageError if they have different backends, and BackendError if two have the same GPU
        or cannot reach each other.
        """
        world.require_same({"backend": self.name})
        return world

    def capture(self, function, report=print, communicator: Communicator = SINGLE_PROCESS):
        """`function(images)`, for many calls with arrays of the same shape.

        It must put its results into arrays that outlive it and launch the same operations every
        time: a device may record it and replay that; if it cannot, `report` gets one line that says
        why. communicator: the one that the function uses: all of its ranks record, or none does.
        """
        return function

    def prepare(self, work: Callable[[], None], choose: bool = True) -> str:
        """Call work() until everything in it is compiled and, to choose, to time it with one thread
        and with all (`threads.choose`); a line on that choice, or ""."""
        if self.compiles:
            work()
        return threads.choose(work) if choose else ""

    @property
    def threads(self) -> int | None:
        """The number of threads on which results depend; None: they depend on none."""
        return threads.most()

    def run_async(self, function, *arguments, **named) -> None:
        """Call `function(*arguments, **named)`, for its writes to arrays among them.

        Inside `with ops.side_stream():` a device may do it at the same time as all that follows,
        up to the end of the block: until then nothing else may write what it reads, or touch what
        it writes. It keeps no array that it makes on the way.
        """
        function(*arguments, **named)

    def side_stream(self):
        """A context that waits, at its end, for everything that `run_async` started in it."""
        return nullcontext()

    def describe(self) -> dict:
        """The device and its libraries, for a run's configuration; {} if `threads` says it."""
        return {}

    def shortfall(self, error: Exception) -> str | None:
        """The memory that was asked for and what there is, in words; None for any other error."""
        if not isinstance(error, MemoryError):
            return None
        return str(error) or "nothing more is known"

    def synchronise(self) -> None:
        """Wait until everything on the device is done, on every stream."""
