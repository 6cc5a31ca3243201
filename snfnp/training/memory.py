"""Advice for a computation that ran out of memory."""

from contextlib import contextmanager

from snfnp.errors import SnfnpError


@contextmanager
def within_memory(ops, option: str, count: int, also: str = ""):
    """Turn running out of memory in here into a SnfnpError that says which `option`, of which there
    are now `count`, takes less; also: other help."""
    try:
        yield
    except Exception as error:
        shortfall = ops.device.shortfall(error)
        if shortfall is None:
            raise
        advice = f"choose a smaller {option} than {count}"
        raise SnfnpError(f"out of memory: {shortfall}: {advice}{also}") from None
