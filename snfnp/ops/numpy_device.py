"""What a backend says about its device: which one it is, and why something did not fit in it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Shortage:
    """Memory that was not there.

    found: what was asked for and what there was, for people. needed, room: bytes that this run
    would have held with what it asked for, and bytes that it could have had; None: not known.
    """

    found: str
    needed: int | None = None
    room: int | None = None

    def fitting(self, count: int, fixed: int = 0) -> int | None:
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


class DeviceOps:
    """Mixed into `NumpyOps`. Not operations on arrays: no backend has to agree with another."""

    def describe_device(self) -> dict:
        """The device and its libraries, for a run's configuration; {} where `threads` says it."""
        return {}

    def shortage(self, error: Exception) -> Shortage | None:
        """What did not fit, where an exception is about memory; None where it is not."""
        if not isinstance(error, MemoryError):
            return None
        return Shortage(str(error) or "nothing more is known")
