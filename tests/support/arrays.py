"""Comparisons of arrays."""

from numpy.testing import assert_allclose


def assert_near(found, expected, atol, message="") -> None:
    """Arrays differ by at most atol, and are NaN or infinite in the same places."""
    assert_allclose(found, expected, rtol=0, atol=atol, err_msg=message)
