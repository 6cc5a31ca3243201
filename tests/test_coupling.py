"""The affine coupling: its formula, network and memory.

The contract that every layer keeps is in test_layers.py; overrides are compared in test_ops.py.
"""

import numpy as np
import pytest
from support.explicit import convolve
from support.gradients import layer_backward, moved
from support.memory import peak

from snfnp.context import BackwardContext
from snfnp.layers import AffineCoupling
from snfnp.ops import get_ops
from snfnp.ops.coupling.definition import Coupling

EPS = np.finfo(np.float64).eps
SHAPES = [(2, 3, 2), (4, 3, 4), (1, 2, 6)]


def case(shape, width=8, samples=5, dtype=np.float64, noise=0.3):
    """A layer, its parameters away from their start, and images."""
    rng = np.random.default_rng(3)
    layer = AffineCoupling(shape[2], width)
    p = {k: v.astype(dtype) for k, v in moved(layer.init(rng, shape), rng, noise).items()}
    return layer, p, rng.standard_normal((samples, *shape)).astype(dtype)


def backward(layer, ops, p, cache, dz, dldj):
    return layer_backward(ops, layer, p, cache, dz, dldj=dldj)[:2]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_forward_is_the_formula(ops, shape):
    layer, p, x = case(shape)
    half = shape[2] // 2
    a1 = np.maximum(convolve(x[..., :half], p["w1"]) + p["b1"], 0)
    a2 = np.maximum(np.einsum("nyxi,io->nyxo", a1, p["w2"]) + p["b2"], 0)
    h = (convolve(a2, p["w3"]) + p["b3"]) * np.exp(3 * p["logs"])
    s = 2 * np.tanh(h[..., 0::2] / 2)
    z, ldj, _ = layer.forward(ops, p, x)
    np.testing.assert_array_equal(z[..., :half], x[..., :half])
    expected = x[..., half:] * np.exp(s) + h[..., 1::2]
    np.testing.assert_allclose(z[..., half:], expected, rtol=0, atol=1e-12)
    np.testing.assert_allclose(ldj, s.sum(axis=(1, 2, 3)), rtol=0, atol=1e-12)
    for unit in (a1, a2):  # the contract's points and these: ReLUs on both sides
        assert 0.1 < np.mean(unit > 0) < 0.9


def test_initial_parameters():
    layer = AffineCoupling(4)
    p = layer.init(np.random.default_rng(0), (14, 14, 4))
    shapes = {"w1": (3, 3, 2, 512), "b1": (512,), "w2": (512, 512), "b2": (512,)}
    shapes |= {"w3": (3, 3, 512, 4), "b3": (4,), "logs": (4,)}
    assert {k: v.shape for k, v in p.items()} == shapes
    for name in ("w1", "w2"):  # five standard errors of a standard deviation
        assert abs(p[name].std() - 0.05) < 5 * 0.05 / np.sqrt(2 * p[name].size)
    for name in ("b1", "b2", "w3", "b3", "logs"):
        assert not p[name].any()


@pytest.mark.parametrize("rows", [1, 7, 18, 1000])
def test_results_do_not_depend_on_the_block_size(ops, rows, monkeypatch):
    """Networks of one image at a time, of two, of three and (the last) of all of them."""
    layer, p, x = case((2, 3, 4), samples=8)
    dldj = np.linspace(-1, 1, 8)

    def everything():
        z, ldj, cache = layer.forward(ops, p, x)
        dx, g = backward(layer, ops, p, cache, 0.3 * x, dldj)
        return {"z": z, "ldj": ldj, "x": layer.inverse(ops, p, z), "dx": dx, **g}

    expected = everything()
    monkeypatch.setattr(Coupling, "network_values", rows * layer.width)
    for name, found in everything().items():
        atol = 100 * EPS * max(1, np.abs(expected[name]).max())
        np.testing.assert_allclose(found, expected[name], rtol=0, atol=atol, err_msg=name)


def test_an_empty_batch_passes_through(ops):
    layer, p, x = case((2, 3, 4), samples=0)
    z, ldj, cache = layer.forward(ops, p, x)
    assert z.shape == x.shape
    assert ldj.shape == (0,)
    assert layer.inverse(ops, p, z).shape == x.shape
    dx, g = backward(layer, ops, p, cache, z, ldj)
    assert dx.shape == x.shape
    assert not any(value.any() for value in g.values())


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_nan_is_never_zeroed(ops, dtype):
    out = np.array([[np.nan, -1, 2]], dtype)
    found = ops.coupling.bias_relu(out, np.zeros(3, dtype))
    np.testing.assert_array_equal(found, [[np.nan, 0, 2]])
    delta = np.array([[1, np.nan, 3], [5, 6, 7]], dtype)
    a = np.array([[np.nan, 0, 2], [0, 0, 1]], dtype)
    sums = np.empty(3, dtype)
    ops.coupling.bias_relu_backward(delta, a, sums)
    np.testing.assert_array_equal(delta, [[1, np.nan, 3], [0, 0, 7]])
    np.testing.assert_array_equal(sums, [1, np.nan, 10])


def test_memory_is_one_hidden_activation_and_three_blocks():
    """At (14, 14, 4) and width 512, where one activation (N H W, width) is 16 MB.

    The cache keeps a₂. Three blocks of about `network_values`, patches (9 · 6 of 512 channels,
    0.11 activations) and arrays of C channels come on top, and parameters and products.
    """
    ops, samples, pixels, width = get_ops("numba"), 40, 14 * 14, 512
    layer, p, x = case((14, 14, 4), width, samples, np.float32, noise=0.01)
    activation = samples * pixels * width * 4
    ctx = BackwardContext.of(ops, np.ones(samples, np.float32))
    grads, kept = {k: np.empty_like(v) for k, v in p.items()}, []

    def step():
        z, _, cache = layer.forward(ops, p, x)
        kept.append(sum(value.nbytes for value in cache.values()))
        layer.backward(ctx, p, cache, z, grads)

    blocks = 3 * ops.coupling.network_values * 4
    assert activation < peak(step) < 1.3 * activation + blocks
    assert kept[-1] < 1.05 * activation


def test_other_images_are_refused():
    with pytest.raises(ValueError, match=r"4 channels cannot take \(2, 2, 6\)"):
        AffineCoupling(4).output_shape((2, 2, 6))
    assert AffineCoupling(4).output_shape((2, 3, 4)) == (2, 3, 4)
