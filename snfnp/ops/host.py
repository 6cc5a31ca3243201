"""The CPU as a device."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from snfnp import threads
from snfnp.ops.group import Array, Scalar

# glibc keeps freed memory up to twice the size of the largest array freed before, of those below
# 32 MB, and returns the rest to the system: each step would then have to get it back, page by page.
_LARGEST = 31 << 20


class HostDevice:
    """The CPU: arrays are NumPy's, and operations finish before they return.

    Args:
        name: of the backend.
        compilations: of a backend that compiles its kernels: see `compilations`.

    Attributes:
        xp: the array namespace.
        asynchronous: operations may return before they finish.
        compiles: the first call of a kernel compiles it.
    """

    xp: Any = np
    asynchronous = False

    def __init__(
        self,
        name: str,
        compilations: Callable[..., AbstractContextManager] | None = None,
    ):
        np.empty(_LARGEST, np.uint8)  # freed at once, and never touched
        self.name = name
        self.compiles = compilations is not None
        self._compilations = compilations

    def compilations(
        self, begins: Callable[[], None], ends: Callable[[int], None]
    ) -> AbstractContextManager:
        """A context in which begins() is called before kernels are compiled, ends(count) after."""
        return self._compilations(begins, ends) if self._compilations else nullcontext()

    def asarray(self, host: Any, dtype: DTypeLike | None = None) -> Array:
        """A host array as a C-contiguous array on the device, cast if `dtype` is given."""
        return self.xp.asarray(host, dtype=dtype, order="C")

    def to_host(self, array: Array) -> np.ndarray:
        """A device array as a NumPy array on the host."""
        return np.asarray(array)

    def constant(self, host: np.ndarray, dtype: DTypeLike = np.float64) -> Array:
        """A small host array that depends on shapes alone, on the device in this precision. It is
        copied once and must not be changed."""
        return np.asarray(host, dtype)

    def known_on_host(self, condition: Scalar) -> bool | None:
        """The truth of a condition; None where reading it would make the host wait."""
        return bool(condition)

    def capture(
        self,
        function: Callable[[Any], None],
        report: Callable[[str], object] = print,
    ) -> Callable[[Any], None]:
        """`function(argument)`, which a device may record and replay in later calls.

        It must write its results into arrays that outlive it, and launch the same operations in
        every call with the same argument. If it cannot be recorded, `report` gets a line that says
        why.
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

    def describe(self) -> dict[str, Any]:
        """The device and its libraries, for a run's record; {} if `threads` describes it."""
        return {}

    def shortfall(self, error: Exception) -> str | None:
        """The memory that an error says is missing; None if the error is of another kind."""
        if not isinstance(error, MemoryError):
            return None
        return str(error) or "nothing more is known"

    def synchronise(self) -> None:
        """Wait until everything on the device has finished, on every stream."""
