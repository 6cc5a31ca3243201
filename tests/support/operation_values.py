"""What operations come to at given keys and at extreme values: tests that run on every device.

`test_ops.py` and `gpu/test_ops.py` each have a subclass; their fixture `ops` says on what it runs.
"""

import math

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from snfnp.ops import RandomKey
from snfnp.ops.random import definition as philox
from support.arrays import pixels
from support.operation_calls import FLOATS, eps_of
from support.operation_cases_layers import ALPHA

COUNT, DIMENSIONS = 9, (1, 3, 4, 7, 784)  # rows, and values in each of them
EXTREME = [-np.inf, -1e4, -100.0, -1e-30, -0.0, 0.0, 1e-30, 100.0, 1e4, np.inf, np.nan]
each_precision = pytest.mark.parametrize("dtype", FLOATS)


class OperationValues:
    @pytest.mark.parametrize("as_array", [False, True])
    def test_counter_and_key_are_where_the_documentation_puts_them(self, ops, as_array):
        """With all 64 bits of seed and step; the step may be an array of shape ()."""
        seed = 0xA99F31D0_A4093822
        stream = 0x83707344
        step = 0x93198A2E_85A308D3
        block = 5
        lane = 2
        counter = tuple(np.uint64(c) for c in (block, step % 2**32, step >> 32, stream))
        expected = philox.philox4x32(counter, (seed % 2**32, seed >> 32))[lane]
        if as_array:
            step = ops.asarray(np.array(step, np.uint64)).reshape(())
        shape = (4 * block + lane + 1,)
        found = ops.random.uniform(RandomKey(seed, stream, step), shape, np.float64)
        assert ops.to_host(found)[-1] == float(expected) * 2.0**-32

    @each_precision
    @pytest.mark.parametrize("distribution", ["uniform", "normal", "rademacher"])
    def test_rows_from_the_first_one_on_are_those_of_the_whole(
        self, ops, distribution, dtype
    ):
        """To the last bit, wherever in a block of four words or in a pair the first one starts."""

        def draw(first, count, dimension):
            key = RandomKey(2**40 + 7, 5, 2**33 + 3, first)
            return ops.to_host(
                getattr(ops.random, distribution)(key, (count, dimension), dtype)
            )

        for dimension in DIMENSIONS:
            whole = draw(0, COUNT, dimension)
            for first in range(COUNT):
                rest = draw(first, COUNT - first, dimension)
                assert (rest.dtype, rest.flags.c_contiguous) == (dtype, True)
                assert_array_equal(rest, whole[first:])
                assert_array_equal(draw(first, 1, dimension), whole[first : first + 1])
            assert (draw(1, COUNT, dimension) != whole).any()

    def test_a_key_reaches_its_last_word(self, ops):
        """The highest index of a block that fits into its word of the counter."""
        key = RandomKey(3, 4, 5, first=2**34 - 6)
        count = 6
        blocks = np.array([2**32 - 2, 2**32 - 1], np.uint64)
        expected = np.stack(
            philox.philox4x32((blocks, *map(np.uint64, (5, 0, 4))), (3, 0)), -1
        )
        found = ops.to_host(ops.random.uniform(key, (count,), np.float64))
        assert_array_equal(found, expected.reshape(-1)[2:] * 2.0**-32)

    @each_precision
    def test_preprocess_of_a_part_is_that_of_the_whole(self, ops, dtype):
        rng = np.random.default_rng(0)
        key = RandomKey(2**40 + 7, 5, 2**33 + 3)
        for dimension in DIMENSIONS:
            images = rng.integers(0, 256, (COUNT, dimension)).astype(np.uint8)

            def parts(first, key, images=images):
                part = ops.asarray(images[first:])
                return map(
                    ops.to_host, ops.images.preprocess(part, key, 1e-6, 256, dtype)
                )

            x, ldj = parts(0, key)
            for first in range(COUNT):
                x_part, ldj_part = parts(first, key._replace(first=first))
                assert_array_equal(x_part, x[first:])
                assert_array_equal(ldj_part, ldj[first:])
            assert all(
                (a != b).all()
                for a, b in zip(parts(0, key._replace(first=1)), (x, ldj), strict=True)
            )

    def test_a_part_of_a_batch_is_flipped_and_shifted_as_in_the_whole(self, ops):
        images = pixels(40, 5, 4, 3)
        source = ops.images.source(images)
        key = RandomKey(2**40 + 7, 5, 2**33 + 3)
        source.stage(10, 30)
        whole = ops.to_host(source.take(10, 30, key)).copy()
        for first in range(8):
            source.stage(10 + first, 22)
            part = ops.to_host(source.take(10 + first, 22, key._replace(first=first)))
            assert_array_equal(part, whole[first : first + 22])
        source.stage(10, 30)
        assert (ops.to_host(source.take(10, 30, key._replace(first=1))) != whole).any()

    def test_uniform_in_single_precision_keeps_24_bits(self, ops):
        """32 bits would round to 1.0 at the top; multiples of 2**-24 below 1 are representable."""
        draws = ops.to_host(ops.random.uniform(RandomKey(3, 0), (1 << 16,), np.float32))
        multiples = draws.astype(np.float64) * 2**24
        assert_array_equal(multiples, np.floor(multiples))
        assert draws.min() >= 0 and draws.max() < 1

    @each_precision
    def test_smooth_leaky_relu_at_extreme_values(self, ops, dtype):
        x = ops.asarray(np.array(EXTREME, dtype)[:, None])
        y, ldj, sigma = map(ops.to_host, ops.activation.smooth_leaky_relu(x, ALPHA))
        eps = eps_of(dtype)
        expected = [
            -np.inf,
            -3e3,
            -30.0,
            *[0.7 * math.log(2)] * 4,
            100.0,
            1e4,
            np.inf,
            np.nan,
        ]
        assert_allclose(y[:, 0], expected, rtol=4 * eps)
        slope = [ALPHA, ALPHA, ALPHA, *[0.65] * 4, 1.0, 1.0, 1.0, np.nan]
        assert_allclose(ldj, np.log(slope), rtol=4 * eps, atol=4 * eps)
        expected = [0, 0, math.exp(-100), *[0.5] * 4, 1, 1, 1, np.nan]
        # a GPU's compiler takes single-precision numbers below 1.2e-38 as 0
        assert_allclose(sigma[:, 0], expected, rtol=4 * eps, atol=1e-37)

    @pytest.mark.filterwarnings(
        "ignore:invalid value:RuntimeWarning"
    )  # ∞ - ∞ in the residual
    @each_precision
    def test_smooth_leaky_relu_inverse_at_extreme_values(self, ops, dtype):
        """NaN and infinity pass through, terminate, and do not touch the values beside them."""
        y = np.array([*EXTREME, 0.3, -0.2], dtype)
        x = ops.to_host(ops.activation.smooth_leaky_relu_inverse(ops.asarray(y), ALPHA))
        assert_array_equal(x[[0, 9, 10]], [-np.inf, np.inf, np.nan])
        finite = np.isfinite(y)
        alone = ops.to_host(
            ops.activation.smooth_leaky_relu_inverse(ops.asarray(y[finite]), ALPHA)
        )
        assert_array_equal(x[finite], alone)

    @pytest.mark.parametrize("value", [0, 255])
    @each_precision
    def test_preprocess_is_finite_at_the_ends(self, ops, value, dtype):
        images = ops.asarray(np.full((64, 784), value, np.uint8))
        x, ldj = map(
            ops.to_host,
            ops.images.preprocess(images, RandomKey(0, 0), 1e-6, 256, dtype),
        )
        assert x.dtype == ldj.dtype == dtype and np.isfinite(ldj).all()
        assert np.abs(x).max() <= math.log((1 - 1e-6) / 1e-6) * (1 + 1e-6)
