"""Every operation on the device, against its definition on the CPU."""

from __future__ import annotations

import math

import numpy as np
import pytest
from opcalls import (
    FLOATS,
    NO_SAMPLES,
    SIZES,
    assert_as_defined,
    assert_nan_spreads_as_defined,
    eps_of,
    every_second,
    overridden,
    transposed,
)
from opcases import ALPHA, NEVER_EMPTY, OVERRIDES

from snfnp.ops import RandomKey, philox
from snfnp.ops.cupy_ops import CupyOps

NAMES = [name for name in OVERRIDES if name in overridden(CupyOps)]


def put(ops):
    """A host array on the device, its axes in the same order in memory."""

    def put_array(array):
        order = np.argsort([-stride for stride in array.strides], kind="stable")
        moved = ops.asarray(array.transpose(order))
        return moved.transpose(tuple(map(int, np.argsort(order)))) if array.ndim else moved

    return put_array


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", NAMES)
def test_operation_is_the_definition(ops, name, dtype, size):
    call = OVERRIDES[name](np.random.default_rng(0), dtype, size)
    assert_as_defined(ops, name, call, put(ops))


@pytest.mark.parametrize("layout", [every_second, transposed])
@pytest.mark.parametrize("size", [(5, 37), (3, 5, 7, 2)], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_operation_takes_strided_and_transposed_arguments(ops, name, size, layout):
    call = OVERRIDES[name](np.random.default_rng(1), np.float64, size)
    assert_as_defined(ops, name, call, put(ops), layout)


@pytest.mark.parametrize("size", NO_SAMPLES, ids=str)
@pytest.mark.parametrize("name", [name for name in NAMES if name not in NEVER_EMPTY])
def test_operation_takes_no_samples(ops, name, size):
    call = OVERRIDES[name](np.random.default_rng(0), np.float32, size)
    assert_as_defined(ops, name, call, put(ops))


# ---------------------------------------------------------------- random numbers


def test_philox_known_answer(ops):
    """philox4x32-10 in Random123's kat_vectors: of counter 0 and key 0."""
    words = ops.to_host(ops.uniform(RandomKey(0, 0, 0), (4,), np.float64)) * 2.0**32
    assert words.tolist() == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]


@pytest.mark.parametrize("on_device", [False, True])
def test_counter_and_key_are_where_the_documentation_puts_them(ops, on_device):
    """With all 64 bits of seed and step; the step may be on the device."""
    seed, stream, step = 0xA99F31D0_A4093822, 0x83707344, 0x93198A2E_85A308D3
    block, lane = 5, 2
    counter = tuple(np.uint64(c) for c in (block, step % 2**32, step >> 32, stream))
    expected = philox.philox4x32(counter, (seed % 2**32, seed >> 32))[lane]
    if on_device:
        step = ops.asarray(np.array(step, np.uint64)).reshape(())
    found = ops.uniform(RandomKey(seed, stream, step), (4 * block + lane + 1,), np.float64)
    assert ops.to_host(found)[-1] == float(expected) * 2.0**-32


@pytest.mark.parametrize("dtype", FLOATS)
def test_uniform_stays_below_one(ops, dtype):
    draws = ops.to_host(ops.uniform(RandomKey(3, 0), (1 << 16,), dtype))
    assert draws.min() >= 0 and draws.max() < 1


# ---------------------------------------------------------------- extreme inputs

EXTREME = [-np.inf, -1e4, -100.0, -1e-30, -0.0, 0.0, 1e-30, 100.0, 1e4, np.inf, np.nan]


@pytest.mark.parametrize("dtype", FLOATS)
def test_smooth_leaky_relu_at_extreme_values(ops, dtype):
    x = np.array(EXTREME, dtype)[:, None]
    y, ldj, sigma = map(ops.to_host, ops.smooth_leaky_relu(ops.asarray(x), ALPHA))
    eps = eps_of(dtype)
    expected = [-np.inf, -3e3, -30.0, *[0.7 * math.log(2)] * 4, 100.0, 1e4, np.inf, np.nan]
    np.testing.assert_allclose(y[:, 0], expected, rtol=4 * eps)
    slope = [ALPHA, ALPHA, ALPHA, *[0.65] * 4, 1.0, 1.0, 1.0, np.nan]
    np.testing.assert_allclose(ldj, np.log(slope), rtol=4 * eps, atol=4 * eps)
    at_zero = [0.5] * 4
    # the compiler takes single-precision numbers below 1.2e-38 as 0
    np.testing.assert_allclose(
        sigma[:, 0], [0, 0, math.exp(-100), *at_zero, 1, 1, 1, np.nan], rtol=4 * eps, atol=1e-37
    )


@pytest.mark.parametrize("dtype", FLOATS)
def test_smooth_leaky_relu_inverse_at_extreme_values(ops, dtype):
    """NaN and infinity pass through, terminate, and do not touch the values beside them."""
    y = np.array([*EXTREME, 0.3, -0.2], dtype)
    x = ops.to_host(ops.smooth_leaky_relu_inverse(ops.asarray(y), ALPHA))
    np.testing.assert_array_equal(x[[0, 9, 10]], [-np.inf, np.inf, np.nan])
    finite = np.isfinite(y)
    alone = ops.to_host(ops.smooth_leaky_relu_inverse(ops.asarray(y[finite]), ALPHA))
    np.testing.assert_array_equal(x[finite], alone)


@pytest.mark.parametrize("value", [0, 255])
@pytest.mark.parametrize("dtype", FLOATS)
def test_preprocess_is_finite_at_the_ends(ops, value, dtype):
    images = ops.asarray(np.full((64, 784), value, np.uint8))
    x, ldj = map(ops.to_host, ops.preprocess(images, RandomKey(0, 0), 1e-6, 256, dtype))
    assert np.isfinite(x).all() and np.isfinite(ldj).all()
    assert np.abs(x).max() <= math.log((1 - 1e-6) / 1e-6) * (1 + 1e-6)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("size", [(5, 37), (3, 5, 7, 2)], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_nan_spreads_as_defined(ops, name, size):
    call = OVERRIDES[name](np.random.default_rng(0), np.float32, size)
    assert_nan_spreads_as_defined(ops, name, call, put(ops))
