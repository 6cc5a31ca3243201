"""Fixtures that several test files share."""

import pytest

from snfnp.ops import get_ops


@pytest.fixture(params=["numpy", "numba"])
def ops(request):
    """Every backend that runs on a CPU, in turn."""
    return get_ops(request.param)
