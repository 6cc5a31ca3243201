"""The device that something was made on, and the refusal to use it on another."""

from __future__ import annotations

from snfnp.errors import BackendError


class Home:
    """The device that was current when this was made.

    Streams, events, handles and memory belong to one device; on another one CUDA reads or writes
    what it should not, or fails long after. id: the device's number.
    """

    def __init__(self, cupy):
        self._current = cupy.cuda.runtime.getDevice
        self.id = self._current()

    def require(self) -> None:
        """Raises BackendError where another device is current."""
        current = self._current()
        if current != self.id:
            raise BackendError(
                f"this backend was made on GPU {self.id}, and GPU {current} is the current one: "
                f"use it inside `with cupy.cuda.Device({self.id})`, or make another with get_ops"
            )
