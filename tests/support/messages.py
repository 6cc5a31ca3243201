"""Checks of how errors and announcements look."""

import pytest


def assert_one_line(error: BaseException, *parts: object) -> None:
    message = str(error)
    assert "\n" not in message
    for part in parts:
        assert str(part) in message


def no_announcement(line: str) -> None:
    pytest.fail(f"announced: {line}")
