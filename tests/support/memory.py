"""The memory that a call takes at its height."""

import tracemalloc
from collections.abc import Callable


def peak(call: Callable) -> int:
    """Bytes at the height of a second call: the first one compiles and fills caches."""
    call()
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
