"""A learned inverse of several convolutions, against matrices written out."""

from dataclasses import dataclass

import numpy as np
import pytest
from support.explicit import on_taps
from support.gradients import layer_backward

from snfnp.beyond.chain import Chain
from snfnp.errors import UsageError
from snfnp.gradcheck import as_matrix, check_gradient, check_layer
from snfnp.layers import Linear
from snfnp.maps import Conv2d
from snfnp.ops import Epilogue
from snfnp.rules import SelfNormalizing

SHAPES = [(4, 5, 2), (2, 3, 1), (1, 4, 2)]  # of the last two no walk of five columns fits the rows


def close(found, expected):
    """Relative to the largest entry: sums of at most a few thousand products."""
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-13 * np.abs(expected).max())


@dataclass
class Point:
    """f of 3×3 and a chain g at random weights near the identity, with all matrices."""

    ops: object
    shape: tuple
    layers: int = 2
    kernel: tuple = (3, 3)

    def __post_init__(self):
        rng = np.random.default_rng(5)
        self.f = Conv2d((3, 3), self.shape[2])
        self.g = Chain(Conv2d(self.kernel, self.shape[2]), self.layers)
        self.w = self.f.identity() + 0.3 * rng.standard_normal(self.f.weight_shape)
        self.r = self.g.identity() + 0.3 * rng.standard_normal(self.g.weight_shape)
        self.x = rng.standard_normal((4, *self.shape))
        self.t_w = as_matrix(self.f, self.ops, self.w, self.shape)
        self.t_r = [as_matrix(self.g.map, self.ops, r, self.shape) for r in self.r]
        self.chain = np.linalg.multi_dot([np.eye(len(self.t_w)), *self.t_r[::-1]])

    def without_data(self, objective="mixture"):
        """What the rule makes of the log-determinants alone, {name: gradient}."""
        rule = SelfNormalizing(objective)
        layer = Linear(self.f, rule, bias=False, inverse_map=self.g)
        params, nothing = {"W": self.w, "R": self.r}, np.zeros((1, *self.shape))
        _, _, cache = layer.forward(self.ops, params, nothing)
        return layer_backward(self.ops, layer, params, cache, nothing, lam=1.0)[1]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_the_map_is_the_product_of_its_convolutions(ops, shape, layers):
    point = Point(ops, shape, layers)
    rows = point.x.reshape(4, -1)
    close(as_matrix(point.g, ops, point.r, shape), point.chain)
    close(point.g.apply(ops, point.r, point.x).reshape(4, -1), rows @ point.chain.T)
    close(point.g.adjoint(ops, point.r, point.x).reshape(4, -1), rows @ point.chain)
    error, total = point.g.residual(ops, point.r, point.x, 2 * point.x, 3.0)
    close(error.reshape(4, -1), rows @ point.chain.T - 2 * rows)
    np.testing.assert_allclose(total, 3 + np.sum(error * error) / 4, rtol=1e-13)
    epilogue = Epilogue(a=-3.0, y=point.x**2, b=0.5)
    found = point.g.adjoint_then(ops, point.r, point.x, epilogue).out
    close(found.reshape(4, -1), 0.5 * rows**2 - 3 * rows @ point.chain)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("layers, kernel", [(1, (3, 3)), (2, (3, 3)), (2, (5, 3)), (3, (3, 3))])
def test_what_stands_in_for_the_inverses(ops, shape, layers, kernel):
    """½ ∂⟨T(w), T(r)ᵀ⟩/∂w and −½ ∂⟨T(r), T(w)ᵀ⟩/∂r_i by the matrices, the border included."""
    point = Point(ops, shape, layers, kernel)
    grads = point.without_data()
    close(grads["W"], 0.5 * on_taps(point.chain.T, point.f.weight_shape, shape))
    for i in range(layers):
        before = np.linalg.multi_dot([np.eye(len(point.t_w))] * 2 + point.t_r[:i][::-1])
        after = np.linalg.multi_dot([np.eye(len(point.t_w))] * 2 + point.t_r[i + 1 :][::-1])
        matrix = (before @ point.t_w @ after).T
        expected = on_taps(matrix, point.g.map.weight_shape, shape)
        close(grads["R"][i], -0.5 * expected)
    assert np.all(point.without_data("forward")["R"] == 0)  # R has no density of its own


def test_the_border_matters(ops):
    """Negative control: products of kernels times m of Eq. 27, which is right without a border."""
    point = Point(ops, (4, 5, 2))
    kernel = np.zeros((5, 5, 2, 2))
    for h, v in np.ndindex(3, 3):
        for y, x in np.ndindex(3, 3):
            kernel[h + y, v + x] += point.r[0][h, v] @ point.r[1][y, x]
    whole = Conv2d((5, 5), 2)
    plain = 0.5 * point.f.flip(point.f.fit(kernel)) * point.f.multiple(point.shape)
    found = point.without_data()["W"]
    assert np.abs(plain - found).max() > 0.05 * np.abs(found).max()
    inner = as_matrix(whole, ops, kernel, point.shape).reshape(4, 5, 2, 40)[1:-1, 1:-1]
    chain = point.chain.reshape(4, 5, 2, 40)[1:-1, 1:-1]
    close(inner, chain)  # the same map, but at the border


def exact_inverse_pair():
    """w, r on images of 2 × 2 with T(w) = (T(r_2) T(r_1))⁻¹, border and all.

    Two pixels wide, K = a shift by one column has K² = 0, so (I + aK)⁻¹ = I − aK is a convolution
    again; so is the same with rows, and the product of both inverses, a kernel of 3×3.
    """
    shape, a, b = (2, 2, 1), 0.7, -0.4
    w, r = np.zeros((3, 3, 1, 1)), np.zeros((2, 3, 3, 1, 1))
    r[:, 1, 1] = w[1, 1] = 1
    r[0, 1, 2], r[1, 2, 1] = a, b
    w[1, 2], w[2, 1], w[2, 2] = -a, -b, a * b
    return shape, w, r


@pytest.mark.parametrize("name", ["W", "R"])
def test_where_the_chain_is_the_inverse_the_terms_are_exact(ops, name):
    """By central differences of the log-determinants themselves, which know of no substitution."""
    shape, w, r = exact_inverse_pair()
    point, rng = Point(ops, shape), np.random.default_rng(0)
    point.w, point.r = w, r
    t_w, t_r = as_matrix(point.f, ops, w, shape), as_matrix(point.g, ops, r, shape)
    np.testing.assert_allclose(t_r @ t_w, np.eye(4), rtol=0, atol=1e-15)

    def half_log_det(weight):
        matrix = as_matrix(point.f if name == "W" else point.g, ops, weight, shape)
        return (0.5 if name == "W" else -0.5) * np.linalg.slogdet(matrix)[1]

    gradient = point.without_data()[name]
    check_gradient(half_log_det, getattr(point, name.lower()), gradient, rng=rng, rtol=1e-8)


@pytest.mark.parametrize("objective", ["mixture", "forward"])
@pytest.mark.parametrize("layers, size", [(1, 3), (2, 3), (2, 5), (3, 3)])
def test_frozen_bar_scalar(ops, objective, layers, size):
    """With data, bias and λ; wrong by 1% is caught in there."""
    chain = Chain(Conv2d((size, size), 2), layers)
    layer = Linear(Conv2d((3, 3), 2), SelfNormalizing(objective), inverse_map=chain)
    report = check_layer(layer, (3, 3, 2), ops=ops)
    assert max(report.errors.values()) <= 1e-8
    assert min(report.controls[name] for name in ("W", "R")) > 1e-3


def test_a_chain_of_one_is_a_single_map(ops):
    """To rounding: both count the positions, one of them as a sum over walks of two steps."""
    point, layers = Point(ops, (4, 5, 2), 1), []
    for g, r in ((point.g, point.r), (point.g.map, point.r[0])):
        layer, p = Linear(point.f, inverse_map=g), {"W": point.w, "R": r, "b": np.ones(2)}
        z, _, cache = layer.forward(ops, p, point.x)
        layers.append(layer_backward(ops, layer, p, cache, -z, lam=0.7)[1])
    chain, single = layers
    for name in ("W", "b"):
        close(chain[name], single[name])
    close(chain["R"][0], single["R"])


def test_it_starts_where_a_single_inverse_does(ops):
    """T(r) = T(w)ᵀ (A.3): for Glow's orthogonal 1×1 matrices, the inverse itself."""
    chain = Chain(Conv2d((5, 5), 2), 2)
    p = Linear(Conv2d((3, 3), 2), inverse_map=chain).init(np.random.default_rng(0), (4, 5, 2))
    t_w = as_matrix(Conv2d((3, 3), 2), ops, p["W"], (4, 5, 2))
    close(as_matrix(chain, ops, p["R"], (4, 5, 2)), t_w.T)
    assert p["R"].shape == (2, 5, 5, 2, 2)


def test_a_chain_has_at_least_one_layer():
    with pytest.raises(UsageError, match="layers is 0"):
        Chain(Conv2d((3, 3), 1), 0)
