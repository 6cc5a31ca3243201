"""The GPU as a device for rooms: arrays, and what launches of kernels need."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np

from snfnp.errors import BackendError
from snfnp.ops.communication import ALONE, Communicator
from snfnp.ops.communication.nccl import Nccl
from snfnp.ops.gpu import source
from snfnp.ops.gpu.branch import Branch
from snfnp.ops.gpu.cublas import Products
from snfnp.ops.gpu.graph import Graph
from snfnp.ops.gpu.launch import Launcher
from snfnp.ops.gpu.measure import count_kernels
from snfnp.ops.gpu.requirements import describe, explain_out_of_memory, require_cupy
from snfnp.ops.host import Shortage
from snfnp.ops.random.philox import RandomKey

_MOST_BLOCKS = 1024  # of a kernel over items; each of its threads then takes several


class Gpu:
    """The CUDA device that is current when this is made, through CuPy; it refuses another.

    Nothing that a self-normalizing training step does makes the host wait: what operations return
    as a number on a CPU is here an array of shape (), and what they take as a number may be one.
    This module imports without CuPy. Making a `Gpu` needs CuPy, a driver and a device, and raises
    BackendError with what is missing.

    launch(name, dtype, blocks, *arguments, threads=…): see `Launcher`. products: see `Products`.
    tf32: let tensor cores round the factors of single-precision products to 10 bits. overlap: run
    what is called `aside` on a second stream.
    world: the processes of this run, where it is more than one: each makes a device of its own
    the current one, as many as there are in turn, before anything is on any of them.
    """

    name = "cupy"
    start_note = "the first steps compile the kernels; later runs load them from CuPy's cache"
    asynchronous = True  # operations return before they are done

    def __init__(self, tf32: bool = False, world: Communicator = ALONE, overlap: bool = False):
        self.xp = require_cupy(world.local_rank if world.size > 1 else None)
        self.tf32 = tf32
        self.launch = Launcher(self.xp)
        try:
            self._products = Products(self.xp, tf32)
            self._branch = Branch(self.xp, tf32) if overlap else None
        except Exception as error:
            shortage = self.shortage(error)
            if shortage is None:
                raise
            raise BackendError(
                f"the GPU's memory is full ({shortage.found}): see with nvidia-smi what holds it"
            ) from None
        self._counter = self.xp.zeros(1, np.uint32)
        self.xp.cuda.get_current_stream().synchronize()  # it is 0, whatever stream uses it first
        self._constants: dict = {}

    # ---------------------------------------------------------------- host and device

    def asarray(self, host, dtype=None):
        return self.xp.asarray(np.ascontiguousarray(host, dtype=dtype))

    def to_host(self, array) -> np.ndarray:
        return self.xp.asnumpy(array)

    def peek(self, condition) -> None:
        return None  # the host would have to wait for the answer

    def capture(self, function, report=print, communicator: Communicator = ALONE) -> Graph:
        return Graph(self.xp, function, report, communicator)

    def aside(self, function, *arguments, **named) -> None:
        if self._branch:
            self._branch.aside(function, *arguments, **named)
        else:
            function(*arguments, **named)

    def joining(self):
        return self._branch.joining() if self._branch else nullcontext()

    def communicator(self, world: Communicator) -> Communicator:
        world.require_same({"--backend": self.name})
        return Nccl(self.xp, world) if world.size > 1 else world

    def synchronise(self) -> None:
        self.xp.cuda.runtime.deviceSynchronize()

    # ---------------------------------------------------------------- what there is

    def describe(self) -> dict:
        return describe(self.xp) | {"tf32": self.tf32, "overlap": self._branch is not None}

    def shortage(self, error: Exception) -> Shortage | None:
        return explain_out_of_memory(error, self.xp)

    def launches(self, function) -> int | None:
        return count_kernels(self.xp, function)

    def memory_rate(self) -> float | None:
        attributes = self.xp.cuda.Device().attributes
        clock, bits = attributes.get("MemoryClockRate"), attributes.get("GlobalMemoryBusWidth")
        if not clock or not bits:  # newer drivers do not report the clock
            return None
        return 2 * 1e3 * clock * bits / 8  # kHz, and both edges of the clock carry data

    # ---------------------------------------------------------------- what kernels need

    def empty(self, shape, dtype):
        """A new array that a kernel will fill."""
        return self.xp.empty(shape, dtype)

    def contiguous(self, array):
        return self.xp.ascontiguousarray(array)

    def each(self, kernel: str, dtype, items: int, *arguments) -> None:
        """Launch a kernel that goes over so many items, one or more to a thread."""
        self.launch(kernel, dtype, min(-(-items // source.THREADS), _MOST_BLOCKS), *arguments)

    @property
    def products(self) -> Products:
        """Those of the stream that is in use."""
        return self._branch.products if self._on_branch else self._products

    def counter(self):
        """The counter of a reduction's `last_block`, 0 between launches."""
        return self._branch.counter if self._on_branch else self._counter

    @property
    def _on_branch(self) -> bool:
        return self._branch is not None and self._branch.active

    def scalar(self, number) -> tuple:
        """A number as the two arguments of a kernel's `value`: where it is, or what it is."""
        if isinstance(number, (int, float, np.generic)):
            return None, float(number)
        return number.astype(np.float64, copy=False), 0.0

    def constant(self, host: np.ndarray, dtype=np.float64):
        """A small host array that depends on shapes alone, in this precision, kept on the
        device."""
        key = (host.shape, host.tobytes(), np.dtype(dtype).char)
        if key not in self._constants:
            cuda = self.xp.cuda
            # It outlives whatever is at work, so it is not in a graph's pool; and any stream may
            # read it, so its copy is done.
            with cuda.using_allocator(self.xp.get_default_memory_pool().malloc):
                made = self.asarray(host, dtype)
            cuda.get_current_stream().synchronize()
            self._constants[key] = made
        return self._constants[key]

    def key_words(self, key: RandomKey, shape) -> tuple:
        """A key as the arguments of a kernel: step (where it is, or what it is), stream, seed, and
        the first element of an array of this shape (`RandomKey.start`), the same in every replay of
        a graph."""
        known = isinstance(key.step, (int, np.integer))
        step = (None, _signed(key.step)) if known else (key.step, 0)
        return (*step, key.stream, _signed(key.seed), key.start(shape))


def _signed(number: int) -> int:
    """The low 64 bits of a number as a signed integer."""
    return (number + 2**63) % 2**64 - 2**63
