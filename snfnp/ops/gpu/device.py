"""The GPU as a device for groups of operations: arrays, and launches of kernels."""

from collections.abc import Callable
from contextlib import contextmanager

import numpy as np

from snfnp.ops.gpu import source
from snfnp.ops.gpu.cublas import Cublas
from snfnp.ops.gpu.graph import CALLS_UNTIL_RECORDED, Graph
from snfnp.ops.gpu.launch import Launcher
from snfnp.ops.gpu.requirements import describe, explain_out_of_memory, require_cupy

_MOST_BLOCKS = 1024  # of a kernel over items; each of its threads then takes several
_COUNTERS = 1024  # tiles of channels whose rows several blocks may share


class Gpu:
    """The CUDA device that is current when this is made, through CuPy; it refuses another device,
    and any thread but the one that made it.

    What operations return as a number on a CPU is here an array of shape (), and what they take as
    one may be such an array, so that no training step without an exact gradient makes the host
    wait. Raises BackendError with what is missing (CuPy, a driver, a device).

    launch: see `Launcher`; counters: of reductions' `last_block`, 0 between launches; tf32: see
    `get_ops`.
    """

    name = "cupy"
    asynchronous = True  # operations return before they are done
    compiles = True
    threads = None

    def __init__(self, tf32=False):
        self.xp = require_cupy()
        self.tf32 = tf32
        self.launch = Launcher(self.xp)
        self.cublas = Cublas(self.xp, tf32)
        self.counters = self.xp.zeros(_COUNTERS, np.uint32)
        # The counters are then 0, whatever stream uses them first.
        self.xp.cuda.get_current_stream().synchronize()
        self._constants: dict = {}

    def __reduce__(self):
        """A recipe for pickles: a device like this one, where they are opened."""
        return Gpu, (self.tf32,)

    def asarray(self, host, dtype=None):
        return self.xp.asarray(np.asarray(host, dtype=dtype, order="C"))

    def to_host(self, array):
        return self.xp.asnumpy(array)

    def known_on_host(self, condition):
        return None  # the host would have to wait for the answer

    @contextmanager
    def compilations(self, begins, ends):
        """See `HostDevice`; what CuPy finds in its cache takes a moment only."""
        outer = self.launch.observer
        self.launch.observer = (begins, ends)
        try:
            yield
        finally:
            self.launch.observer = outer

    def prepare(self, work):
        for _ in range(CALLS_UNTIL_RECORDED):
            work()
        self.synchronise()

    def capture(self, function, report=print):
        return Graph(self.xp, function, report)

    def synchronise(self):
        self.xp.cuda.runtime.deviceSynchronize()

    def describe(self):
        return describe(self.xp) | {"tf32": self.tf32}

    def shortfall(self, error):
        return explain_out_of_memory(error, self.xp)

    def free_memory(self) -> int:
        """Bytes that are free on the device, those that CuPy keeps for later included."""
        pool = self.xp.get_default_memory_pool()
        return self.xp.cuda.runtime.memGetInfo()[0] + pool.free_bytes()

    def empty(self, shape, dtype):
        """A new array that a kernel will fill."""
        return self.xp.empty(shape, dtype)

    def like(self, array):
        """A new C-contiguous array of the shape and type of this one, that a kernel will fill."""
        return self.empty(array.shape, array.dtype)

    def each(self, kernel: str, dtype, items: int, /, **arguments) -> None:
        """Launch a kernel that goes over so many items, one or more to a thread."""
        self.launch(
            kernel, dtype, min(-(-items // source.THREADS), _MOST_BLOCKS), **arguments
        )

    def fuse(self, function: Callable) -> Callable:
        """An elementwise function of arrays, as one launch."""
        return self.xp.fuse(function)

    def constant(self, host, dtype=np.float64):
        key = (host.shape, host.tobytes(), np.dtype(dtype).char)
        if key not in self._constants:
            # It outlives a graph's pool, and any stream may read it. The current stream may be
            # recording, which forbids copies from the host: this one is not.
            stream = self.xp.cuda.Stream(non_blocking=True)
            with (
                self.xp.cuda.using_allocator(self.xp.get_default_memory_pool().malloc),
                stream,
            ):
                self._constants[key] = self.asarray(host, dtype)
            stream.synchronize()
        return self._constants[key]
