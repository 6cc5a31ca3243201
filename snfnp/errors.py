"""The errors that a user can cause and act on.

A message names parameters in backticks: `batch_size`, `graph=False`. `in_flags` turns them into the
flags of the command line, which prints messages so.
"""

import difflib
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class SnfnpError(Exception):
    """A failure that a person can act on: one line that says what was found and what to do.

    Characters that a terminal would act on, as in a file's name, are spelled out.
    """

    exit_status = 1

    def __init__(self, message: str = ""):
        super().__init__(printable(message))


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
def within_memory(ops, parameter: str, count: int, also: str = "") -> Iterator[None]:
    """Turn running out of memory into a SnfnpError that advises a smaller value of a parameter than
    `count`; also: other advice."""
    try:
        yield
    except Exception as error:
        shortfall = ops.device.shortfall(error)
        if shortfall is None:
            raise
        advice = f"choose a smaller `{parameter}` than {count}"
        raise SnfnpError(f"out of memory: {shortfall}: {advice}{also}") from None


def printable(text: object) -> str:
    """A text in which unprintable characters, such as newlines and escapes, are spelled out."""
    shown = (c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))
    return "".join(shown)


def suggestion(word: str, names: Iterable[str]) -> str:
    """ " (did you mean NAME?)" with the name that a misspelt word resembles, or ""."""
    close = difflib.get_close_matches(word, names, 1)
    return f" (did you mean {close[0]}?)" if close else ""


# flags whose names differ from their parameters'
_FLAGS = {"lam": "lambda", "exact": "inverse exact"}


def flag_of(parameter: str) -> str:
    """The flag of the command line for a parameter."""
    return "--" + _FLAGS.get(parameter, parameter.replace("_", "-"))


def in_flags(message: str) -> str:
    """A message with flags in place of the parameters in its backticks."""

    def flag(named: re.Match) -> str:
        name, value = named.groups()
        if value == "False":
            return flag_of(f"no_{name}")
        return flag_of(name) if value in (None, "True") else f"{flag_of(name)} {value}"

    return re.sub(r"`(\w+)(?:=([^`]*))?`", flag, message)
