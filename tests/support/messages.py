"""Checks of how errors and announcements look."""

from contextlib import contextmanager

import pytest


def assert_one_line(error, *parts):
    message = str(error)
    assert "\n" not in message
    for part in parts:
        assert str(part) in message


@contextmanager
def one_line(kind, *parts, match=None):
    """The block raises an error of that kind, whose message is one line with these parts.

    Gives what `pytest.raises` gives.
    """
    with pytest.raises(kind, match=match) as caught:
        yield caught
    assert_one_line(caught.value, *parts)


def no_announcement(line):
    pytest.fail(f"announced: {line}")


def cases(text):
    """{what is typed: what is said of it}, of lines that have both, and a bar in between; an
    indented line goes on with the one before."""
    lines = text.strip().replace("\n  ", " ").splitlines()
    pairs = (line.split(" | ") for line in lines)
    return {typed: said.strip() for typed, said in pairs}
