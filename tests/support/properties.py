"""Settings of the tests that draw their cases (hypothesis): always the same few, and no files."""

from hypothesis import HealthCheck, settings

# `ops`, which every case of a test shares, holds no state.
_SHARED = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


def cases(count: int):
    """A decorator: this many cases, drawn alike on every machine and in every run."""
    return settings(
        max_examples=count, derandomize=True, deadline=None, suppress_health_check=_SHARED
    )
