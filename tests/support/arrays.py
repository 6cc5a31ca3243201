"""Arrays: random pixels, numbers and matrices, and comparisons."""

import numpy as np
from numpy.testing import assert_allclose


def pixels(*shape, seed=0):
    """Random bytes."""
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def normal(*shape, seed=0):
    """Numbers with a standard normal distribution."""
    return np.random.default_rng(seed).normal(size=shape)


def cast(arrays, dtype):
    """{name: array} in that precision."""
    return {name: array.astype(dtype) for name, array in arrays.items()}


def orthogonal(rng, size):
    """A random orthogonal matrix."""
    return np.linalg.qr(rng.standard_normal((size, size)))[0]


def with_gains(rng, gains):
    """A random matrix with these singular values."""
    left, right = (orthogonal(rng, len(gains)) for _ in range(2))
    return left * gains @ right


def assert_near(found, expected, atol, message="") -> None:
    """Arrays differ by at most atol, and are NaN or infinite in the same places."""
    assert_allclose(found, expected, rtol=0, atol=atol, err_msg=message)
