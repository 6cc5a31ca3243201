"""What operations come to at given keys and at extreme values: tests that run on every device.

`test_ops.py` and `gpu/test_ops.py` each have a subclass; their fixture `ops` says on what it runs.
"""

import math

import numpy as np
import pytest

from snfnp.ops import RandomKey
from snfnp.ops.random import philox
from support.operation_calls import FLOATS, eps_of
from support.operation_cases_layers import ALPHA

EXTREME = [-np.inf, -1e4, -100.0, -1e-30, -0.0, 0.0, 1e-30, 100.0, 1e4, np.inf, np.nan]


class OperationValues:
    def test_uniform_is_philox(self, ops):
        """philox4x32-10 in Random123's kat_vectors: of counter 0 and key 0."""
        words = ops.to_host(ops.random.uniform(RandomKey(0, 0, 0), (4,), np.float64)) * 2.0**32
        assert words.tolist() == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]

    @pytest.mark.parametrize("as_array", [False, True])
    def test_counter_and_key_are_where_the_documentation_puts_them(self, ops, as_array):
        """With all 64 bits of seed and step; the step may be an array of shape ()."""
        seed, stream, step = 0xA99F31D0_A4093822, 0x83707344, 0x93198A2E_85A308D3
        block, lane = 5, 2
        counter = tuple(np.uint64(c) for c in (block, step % 2**32, step >> 32, stream))
        expected = philox.philox4x32(counter, (seed % 2**32, seed >> 32))[lane]
        if as_array:
            step = ops.asarray(np.array(step, np.uint64)).reshape(())
        found = ops.random.uniform(
            RandomKey(seed, stream, step), (4 * block + lane + 1,), np.float64
        )
        assert ops.to_host(found)[-1] == float(expected) * 2.0**-32

    def test_uniform_in_single_precision_keeps_24_bits(self, ops):
        """32 bits would round to 1.0 at the top; multiples of 2**-24 below 1 are representable."""
        draws = ops.to_host(ops.random.uniform(RandomKey(3, 0), (1 << 16,), np.float32))
        multiples = draws.astype(np.float64) * 2**24
        np.testing.assert_array_equal(multiples, np.floor(multiples))
        assert draws.min() >= 0
        assert draws.max() < 1

    @pytest.mark.parametrize("dtype", FLOATS)
    def test_smooth_leaky_relu_at_extreme_values(self, ops, dtype):
        x = ops.asarray(np.array(EXTREME, dtype)[:, None])
        y, ldj, sigma = map(ops.to_host, ops.activation.smooth_leaky_relu(x, ALPHA))
        eps = eps_of(dtype)
        expected = [-np.inf, -3e3, -30.0, *[0.7 * math.log(2)] * 4, 100.0, 1e4, np.inf, np.nan]
        np.testing.assert_allclose(y[:, 0], expected, rtol=4 * eps)
        slope = [ALPHA, ALPHA, ALPHA, *[0.65] * 4, 1.0, 1.0, 1.0, np.nan]
        np.testing.assert_allclose(ldj, np.log(slope), rtol=4 * eps, atol=4 * eps)
        expected = [0, 0, math.exp(-100), *[0.5] * 4, 1, 1, 1, np.nan]
        # a GPU's compiler takes single-precision numbers below 1.2e-38 as 0
        np.testing.assert_allclose(sigma[:, 0], expected, rtol=4 * eps, atol=1e-37)

    @pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # ∞ - ∞ in the residual
    @pytest.mark.parametrize("dtype", FLOATS)
    def test_smooth_leaky_relu_inverse_at_extreme_values(self, ops, dtype):
        """NaN and infinity pass through, terminate, and do not touch the values beside them."""
        y = np.array([*EXTREME, 0.3, -0.2], dtype)
        x = ops.to_host(ops.activation.smooth_leaky_relu_inverse(ops.asarray(y), ALPHA))
        np.testing.assert_array_equal(x[[0, 9, 10]], [-np.inf, np.inf, np.nan])
        finite = np.isfinite(y)
        alone = ops.to_host(ops.activation.smooth_leaky_relu_inverse(ops.asarray(y[finite]), ALPHA))
        np.testing.assert_array_equal(x[finite], alone)

    @pytest.mark.parametrize("value", [0, 255])
    @pytest.mark.parametrize("dtype", FLOATS)
    def test_preprocess_is_finite_at_the_ends(self, ops, value, dtype):
        images = ops.asarray(np.full((64, 784), value, np.uint8))
        x, ldj = map(ops.to_host, ops.images.preprocess(images, RandomKey(0, 0), 1e-6, 256, dtype))
        assert x.dtype == ldj.dtype == dtype
        assert np.isfinite(x).all()
        assert np.isfinite(ldj).all()
        bound = math.log((1 - 1e-6) / 1e-6) * (1 + 1e-6)
        assert np.abs(x).max() <= bound
