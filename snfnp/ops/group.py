"""The base of all groups of operations, and what an operation may do with its arguments.

Arrays are C-contiguous, rows are samples. An operation allocates its results, unless an argument
named `out` (an array, or a tuple of arrays, as contiguous) takes them; it changes no other
argument.
"""

import math
from typing import Any

Array = Any  # an array of a device: NumPy's, or CuPy's
Scalar = Any  # a number, or an array of shape () on a device
Shape = tuple[int, ...]


class OperationGroup:
    """Operations on the arrays of one device that belong together: one folder of `snfnp.ops`.

    Args:
        device: a `HostDevice`, or a `Gpu`, which has the same members.
        **groups: those before it in `Ops`, which become attributes; a class declares those that it
            uses.
    """

    def __init__(self, device: Any, **groups: "OperationGroup"):
        self.device = device
        self.xp: Any = device.xp  # the array namespace
        vars(self).update(groups)


def flat(x: Array) -> Array:
    """(N, ...) as rows (N, D), also if N = 0."""
    return x.reshape(len(x), math.prod(x.shape[1:]))
