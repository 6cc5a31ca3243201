"""The gradients of linear layers: self-normalizing (Eqs. 8-20), exact (Eq. 2), relative.

The self-normalizing update is the exact gradient of Eq. 3 where R = W⁻¹ (tested on densities), and
elsewhere the exact gradient of the stop-gradient objective (tested on that scalar).
"""

import numpy as np
import pytest
from numpy import linalg
from numpy.testing import assert_allclose
from support.arrays import assert_near, cast
from support.gradients import flow_backward, invert, layer_backward, moved, peak

from snfnp.context import BackwardContext
from snfnp.flow import Flow
from snfnp.gradcheck import check_gradient, stop_gradient_objective
from snfnp.layers import Linear, SmoothLeakyReLU
from snfnp.maps import Dense
from snfnp.rules import Exact, SelfNormalizing

RTOL = 1e-8
D = 5
N = 4


def matrix(rng):
    return np.eye(D) + 0.3 * rng.standard_normal((D, D))


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def log_normal(z):
    """log N(z; 0, I) per row."""
    return -0.5 * np.sum(z * z, axis=1) - 0.5 * z.shape[1] * np.log(2 * np.pi)


def slogdet(w):
    return linalg.slogdet(w)[1]


def gradients(ops, layer, params, x, lam=0.0, dz=None, dldj=None):
    """The gradients that a layer writes; by default those under a Gaussian base density."""
    z, _, cache = layer.forward(ops, params, x)
    dz = -z / len(x) if dz is None else dz
    dx, grads, _ = layer_backward(ops, layer, params, cache, dz, dldj=dldj, lam=lam)
    return grads, dx


def plain_frozen_scalar(objective, bar, dz, dldj, lam, x):
    """The stop-gradient objective of a dense layer, sample by sample and without the package."""
    c, c_inverse = {"mixture": (0.5, 0.5), "forward": (1.0, 0.0)}[objective]

    def scalar(p):
        total = c * sum(dldj) * np.trace(bar["R"] @ p["W"])
        total -= c_inverse * sum(dldj) * np.trace(bar["W"] @ p["R"])
        for x_n, dz_n in zip(x, dz, strict=True):
            total += dz_n @ (c * p["W"] @ x_n + p["b"])
            total -= c_inverse * (bar["W"].T @ dz_n) @ (p["R"] @ (bar["W"] @ x_n))
            total -= lam / len(x) * np.sum((p["R"] @ p["W"] @ x_n - x_n) ** 2)
        return float(total)

    return scalar


@pytest.mark.parametrize("objective", ["mixture", "forward"])
@pytest.mark.parametrize("lam", [0.0, 0.7, 100.0])
def test_stop_gradient_objective(ops, rng, objective, lam):
    layer = Linear(Dense(D), SelfNormalizing(objective))
    p = {"W": matrix(rng), "R": matrix(rng), "b": rng.standard_normal(D)}
    x = rng.standard_normal((N, D))
    dz = rng.standard_normal((N, D))
    dldj = rng.standard_normal(N)
    plain = plain_frozen_scalar(objective, p, dz, dldj, lam, x)
    package = stop_gradient_objective(layer, (D,), ops, p, x, dz, dldj, lam)

    moved = {
        name: value + rng.standard_normal(value.shape) for name, value in p.items()
    }
    for point in (p, moved):
        assert_allclose(package(x, point), plain(point), rtol=1e-12)

    grads, dx = gradients(ops, layer, p, x, lam, dz, dldj)
    assert_near(dx, dz @ p["W"], 1e-13)
    for name, gradient in grads.items():
        moved = lambda v, name=name: plain({**p, name: v})  # noqa: E731
        check_gradient(moved, p[name], gradient, rng=rng, rtol=RTOL)


def two_layers(rule, features=D):
    dense = Linear(Dense(features), rule)
    layers = (
        ("dense1", dense),
        ("activation1", SmoothLeakyReLU(0.3)),
        ("dense2", dense),
    )
    return Flow((features,), layers)


def random_params(flow, rng):
    return moved(flow.init(0), rng, 0.2)


def bent(h):
    """Plain: the activation of the two-layer flow, and log|det J| per row."""
    ldj = np.sum(np.log(0.3 + 0.7 / (1 + np.exp(-h))), axis=1)
    return 0.3 * h + 0.7 * np.log(1 + np.exp(h)), ldj


def mean_log_likelihood(params, x, inverses=False):
    """Plain: the two-layer flow's mean log-likelihood, by W or (p^g) by the inverse of R."""
    total = 0.0
    h = x
    for name in ("dense1", "dense2"):
        p = params[name]
        if inverses:
            h = linalg.solve(p["R"], h.T).T + p["b"]
            total -= slogdet(p["R"])
        else:
            h = h @ p["W"].T + p["b"]
            total += slogdet(p["W"])
        if name == "dense1":
            h, ldj = bent(h)
            total += np.mean(ldj)
    return float(total + np.mean(log_normal(h)))


def check_flow(objective, params, grads, rng):
    for layer, named in params.items():
        for name, value in named.items():

            def moved(v, layer=layer, name=name):
                return objective({**params, layer: {**params[layer], name: v}})

            how = {"rng": rng, "rtol": RTOL, "name": f"{layer}.{name}"}
            check_gradient(moved, value, grads[layer][name], **how)


def test_whole_flow_with_exact_inverses_ascends_the_mixture(ops, rng):
    """Eq. 3 with R_k = W_k⁻¹, λ of no effect: every parameter of both densities."""
    flow = two_layers(SelfNormalizing())
    params = random_params(flow, rng)
    x = rng.standard_normal((N, D))
    invert(params)
    grads = flow_backward(ops, flow, params, x, lam=2.0).grads

    def mixture(p):
        return 0.5 * mean_log_likelihood(p, x) + 0.5 * mean_log_likelihood(
            p, x, inverses=True
        )

    check_flow(mixture, params, grads, rng)


def step_of(ops, rule, features=512, batch=16):
    """A forward and a backward pass of a dense layer, whose gradients have their buffers."""
    layer = Linear(Dense(features), rule)
    rng = np.random.default_rng(0)
    params = cast(layer.init(rng, (features,)), np.float32)
    grads = {name: np.zeros_like(value) for name, value in params.items()}
    x = rng.standard_normal((batch, features)).astype(np.float32)
    ctx = BackwardContext.of(ops, np.full(batch, 1 / batch, np.float32), 1.0)

    def step():
        z, _, cache = layer.forward(ops, params, x)
        layer.backward(ctx, params, cache, -z / batch, grads)

    return step


def test_a_self_normalizing_step_allocates_no_matrix(ops):
    """Products write into the gradient's views: activations are allocated, D × D arrays are not."""
    one_matrix = 512 * 512 * 4
    assert peak(step_of(ops, SelfNormalizing())) < one_matrix
    # the inverse: the measure sees a matrix
    assert peak(step_of(ops, Exact())) > one_matrix
