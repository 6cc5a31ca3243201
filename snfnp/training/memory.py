"""Advice for a computation that ran out of memory."""

from collections.abc import Callable
from contextlib import contextmanager

from snfnp.errors import SnfnpError


@contextmanager
def within_memory(
    ops, option: str, count: int, fixed: Callable[[], int] = lambda: 0, also: str = ""
):
    """Turn running out of memory in here into a SnfnpError that says which `option` would fit.

    option: sets how many items are computed at once; count: how many those are; fixed(): bytes
    that are held however many items there are, asked for in a failure only; also: other help.
    """
    try:
        yield
    except SnfnpError:
        raise
    except Exception as error:
        shortfall = ops.device.shortfall(error)
        if shortfall is None:
            raise
        fits = shortfall.largest_fitting(count, fixed())
        if fits is None:
            advice = f"choose a smaller {option} than {count}"
        elif fits:
            advice = (
                f"try {option} {fits} or smaller (estimated in proportion: what {count} had taken "
                "when it failed)"
            )
        else:
            advice = f"not even {option} 1 would fit here: use a device with more memory"
        raise SnfnpError(f"out of memory: {shortfall.found}: {advice}{also}") from None
