"""Emerging convolutions: what depends on what, the determinant, the inverse, the transpose.

The contract that every layer keeps is in test_layers.py.
"""

import math
from dataclasses import replace

import numpy as np
import pytest
from support.gradients import layer_backward

from snfnp.errors import SingularMatrixError
from snfnp.flow import Flow
from snfnp.layers.emerging import CausalConv2d, emerging_layers

SHAPES = [(1, 1, 3), (4, 5, 1), (5, 4, 2), (1, 6, 4), (6, 1, 2), (3, 3, 7), (2, 2, 16)]
EPS = np.finfo(np.float64).eps


def kernel(channels, rng):
    """A causal kernel near the identity; what the mask hides is NaN: nobody may read it."""
    k = 0.3 / channels * rng.standard_normal((2, 2, channels, channels))
    k[1, 1] += np.eye(channels)
    k[1, 1][np.tril_indices(channels, -1)] = np.nan
    return k


def case(shape, samples=5, seed=0, reverse=False):
    rng = np.random.default_rng(seed)
    layer = CausalConv2d(shape[2], reverse=reverse)
    p = {"W": kernel(shape[2], rng), "b": rng.standard_normal(shape[2])}
    return layer, p, rng.standard_normal((samples, *shape))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_forward_is_the_sum_over_four_pixels(ops, shape):
    layer, p, x = case(shape)
    z, ldj, _ = layer.forward(ops, p, x)
    w = np.nan_to_num(p["W"])
    padded = np.pad(x, ((0, 0), (1, 0), (1, 0), (0, 0)))
    expected = np.zeros_like(z) + p["b"]
    for h in range(2):
        for v in range(2):
            seen = padded[:, h : h + shape[0], v : v + shape[1]]
            expected += np.einsum("nyxi,io->nyxo", seen, w[h, v])
    assert ldj == 0
    np.testing.assert_allclose(z, expected, rtol=0, atol=100 * EPS * np.abs(x).max())


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_opposite_direction_is_the_layer_between_two_turns(ops, shape):
    layer, p, x = case(shape)
    opposite = replace(layer, reverse=True)
    z, found = layer.forward(ops, p, x[:, ::-1, ::-1].copy())[0], opposite.forward(ops, p, x)[0]
    atol = 100 * EPS * np.abs(x).max()
    np.testing.assert_allclose(found, z[:, ::-1, ::-1], rtol=0, atol=atol)
    back = opposite.inverse(ops, p, z[:, ::-1, ::-1].copy())
    np.testing.assert_array_equal(back, layer.inverse(ops, p, z)[:, ::-1, ::-1])


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_a_diagonal_without_an_inverse_is_one_clear_error(ops, value):
    layer, p, x = case((3, 4, 2))
    z, _, cache = layer.forward(ops, p, x)
    p["W"][1, 1, 1, 1] = value
    for call in (
        lambda: layer.log_det(ops, p, (3, 4, 2)),
        lambda: layer.inverse(ops, p, z),
        lambda: layer_backward(ops, layer, p, cache, z),
    ):
        with pytest.raises(SingularMatrixError, match="diagonal"):
            call()


def test_initial_parameters():
    channels, gain = 40, 0.01
    p = CausalConv2d(channels, gain=gain).init(np.random.default_rng(0), (3, 3, channels))
    np.testing.assert_array_equal(np.tril(p["W"][1, 1], -1), 0)
    np.testing.assert_array_equal(p["b"], np.zeros(channels))
    noise = p["W"].copy()
    noise[1, 1] -= np.eye(channels)
    drawn = noise[noise != 0]
    xavier = gain * math.sqrt(2 / (4 * channels + 4 * channels))
    # the standard error of a standard deviation is about σ / √(2n)
    assert abs(drawn.std() - xavier) < 5 * xavier / math.sqrt(2 * drawn.size)
    assert list(CausalConv2d(3, bias=False).init(np.random.default_rng(0), (3, 3, 3))) == ["W"]


def flow_and_parameters(shape, rng):
    flow = Flow(shape, emerging_layers("conv1", shape[2], gain=1.0))
    params = flow.init(3)
    for p in params.values():
        for value in p.values():
            value += 0.05 * rng.standard_normal(value.shape)
    return flow, params


def test_emerging_convolution_sees_its_eight_neighbours(ops):
    """One causal half sees the pixels before, the other those after: together a 3×3 window."""
    rng = np.random.default_rng(6)
    flow, params = flow_and_parameters((7, 7, 1), rng)
    x = rng.standard_normal((1, 7, 7, 1))
    (before,), _, _ = flow.forward(ops, params, x)
    x[0, 3, 3, 0] += 1.0
    (after,), _, _ = flow.forward(ops, params, x)
    window = np.zeros((7, 7), bool)
    window[2:5, 2:5] = True
    np.testing.assert_array_equal((after != before)[0, :, :, 0], window)
