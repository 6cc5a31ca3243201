"""The errors that a user can cause and act on."""

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class SnfnpError(Exception):
    """A failure that a person can act on: one line that says what was found and what to do."""

    exit_status = 1


class UsageError(SnfnpError):
    """Wrong options or wrong input given by the user."""

    exit_status = 2


class SingularMatrixError(SnfnpError):
    """A linear map that cannot be inverted: its log-determinant is minus infinity."""


class DivergedError(SnfnpError):
    """NaN or infinity in training. It stops the run; it is never zeroed.

    step: the step, from 1, that failed or after which it was found, if that is known.
    """

    def __init__(self, message: str, step: int | None = None):
        super().__init__(message)
        self.step = step


class CheckpointError(SnfnpError):
    """A checkpoint that is damaged or belongs to another model."""


class BackendError(UsageError):
    """A backend that this machine cannot run; the message says what is missing."""


@contextmanager
def within_memory(ops, option: str, count: int, also: str = "") -> Iterator[None]:
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


def suggestion(word: str, names: Iterable[str]) -> str:
    """The name that a wrong word looks like, as the end of a message; nothing if none does."""
    close = difflib.get_close_matches(word, names, 1)
    return f" (did you mean {close[0]}?)" if close else ""
