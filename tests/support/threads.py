"""Results that the number of Numba's threads must not change."""

import numba
import numpy as np
import pytest


def assert_threads_change_no_bit(results) -> None:
    """The arrays of results(), however short, are on one thread those on two, bit for bit."""
    if numba.config.NUMBA_NUM_THREADS < 2:
        pytest.skip("one thread only")
    before, found = numba.get_num_threads(), []
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("snfnp.ops.jit._SHORT", 0)
            for count in (1, 2):
                numba.set_num_threads(count)
                found.append(results())
    finally:
        numba.set_num_threads(before)
    for one, two in zip(*found, strict=True):
        np.testing.assert_array_equal(one, two)
