"""The errors that a user can cause and act on.

A message names parameters in backticks: `batch_size`, `graph=False`. `in_flags` turns them into the
flags of the command line, which prints messages so.
"""

import difflib
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from numbers import Integral, Real
from typing import Any

Report = Callable[[str], object]  # gets a line for the user
_LONGEST = 2000  # characters of a message


class SnfnpError(Exception):
    """A failure that a person can act on: one line that says what was found and what to do.

    Characters that a terminal would act on, as in a file's name, are spelled out. At most 2,000
    characters are kept, since a message may quote a damaged file.
    """

    exit_status = 1

    def __init__(self, message: str = ""):
        cut = "…" if len(message) > _LONGEST else ""
        super().__init__(printable(message[:_LONGEST] + cut))


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
def within_memory(
    ops: Any, parameter: str, count: int, also: str = ""
) -> Iterator[None]:
    """Turn running out of memory into a SnfnpError that advises a smaller value of a parameter than
    `count`; also: other advice."""
    try:
        yield
    except Exception as error:
        shortfall = ops.device.shortfall(error)
        if shortfall is None:
            raise
        raise SnfnpError(
            f"out of memory: {shortfall}: choose a smaller `{parameter}` than {count}{also}"
        ) from None


def require_whole(owner: object, least: int, **values: Any) -> None:
    """Raises UsageError for anything but whole numbers of at least `least`; owner: what has them as
    settings, as a layer, or None."""
    _require(
        owner,
        values,
        lambda value: _is_number(value) and least <= value < 2**63,
        f"give a whole number from {least} to 2**63 - 1",
    )


def require_real(
    owner: object, high: float, or_zero: bool = False, **values: Any
) -> None:
    """Raises UsageError for anything but numbers between 0 and high; or_zero: or 0."""
    _require(
        owner,
        values,
        lambda value: (
            _is_number(value, Real) and (0 < value < high or or_zero and value == 0)
        ),
        f"it must be in (0, {high:g}){' or 0' * or_zero}",
    )


def require_sizes(
    owner: object, count: int | None = None, least: int = 1, **values: Any
) -> None:
    """Raises UsageError for anything but tuples of whole numbers of at least `least`; count: how
    many, or None for any number."""
    number = "" if count is None else f"{count} "
    _require(
        owner,
        values,
        lambda value: (
            isinstance(value, tuple)
            and count in (None, len(value))
            and all(_is_number(size) and least <= size for size in value)
        ),
        f"give a tuple of {number}whole numbers of at least {least}",
    )


def require_instance(owner: object, *kinds: type, **values: Any) -> None:
    """Raises UsageError for anything but instances of these classes; a class is no instance."""
    _require(
        owner,
        values,
        lambda value: isinstance(value, kinds),
        f"give an instance of {' or '.join(kind.__name__ for kind in kinds)}",
    )


def _require(
    owner: object, values: dict, fits: Callable[[Any], bool], advice: str
) -> None:
    for name, value in values.items():
        if not fits(value):
            whose = "" if owner is None else f" of {type(owner).__name__}"
            shown = repr(value)[:60]
            if isinstance(value, type):
                shown = f"the class {value.__name__}"
            raise UsageError(f"{name}{whose} is {shown}: {advice}")


def _is_number(value: object, kind: type = Integral) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def printable(text: object) -> str:
    """A text in which unprintable characters, such as newlines and escapes, are spelled out."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text)
    )


# words of other libraries for options that they do not resemble
_SYNONYMS = {
    "cuda": "cupy",
    "device": "backend",
    "gpu": "cupy",
    "learning_rate": "lr",
    "output_dir": "out",
    "precision": "dtype",
    "random_state": "seed",
}


def suggestion(word: str, names: Iterable[str]) -> str:
    """ " (did you mean NAME?)" with the name that a word stands for or, misspelt, resembles, or "".
    The names may be flags."""
    meant = _SYNONYMS.get(word.removeprefix("--").replace("-", "_"), word)
    same = [name for name in names if name in (meant, flag_of(meant))]
    close = same or difflib.get_close_matches(word, names, 1)
    return f" (did you mean {close[0]}?)" if close else ""


# flags whose names differ from their parameters'
_FLAGS = {"lam": "lambda", "exact": "inverse exact"}


def flag_of(parameter: str) -> str:
    """The flag of the command line for a parameter."""
    return "--" + _FLAGS.get(parameter, parameter.replace("_", "-"))


def in_flags(message: str) -> str:
    """A message with flags in place of the parameters in its backticks."""

    def flag(named):
        name, value = named.groups()
        if value == "False":
            return flag_of(f"no_{name}")
        return flag_of(name) if value in (None, "True") else f"{flag_of(name)} {value}"

    return re.sub(r"`(\w+)(?:=([^`]*))?`", flag, message)
