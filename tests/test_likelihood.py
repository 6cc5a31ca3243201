"""Exact likelihoods of flows, of mixtures of Gaussians and of averages; their terms and samples."""

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
from numpy import linalg
from numpy.testing import assert_allclose, assert_array_equal
from scipy.integrate import quad
from scipy.special import logit
from scipy.stats import norm
from support.arrays import normal, pixels
from support.data_files import FULL_MNIST, needs_full_mnist
from support.gradients import random_parameters
from support.trainers import images_of, make_trainer

from snfnp.data import load_dataset
from snfnp.errors import DivergedError
from snfnp.flow import Flow
from snfnp.gradcheck import central_difference
from snfnp.layers import (
    Layer,
    Linear,
    Preprocess,
    RationalQuadraticSpline,
    SmoothLeakyReLU,
)
from snfnp.layers.preprocess import Standardise
from snfnp.likelihood import EVALUATION_NOISE, Likelihood
from snfnp.maps import Dense
from snfnp.ops import RandomKey, get_ops
from snfnp.rules import SelfNormalizing

D = 7
N = 5
KEY = RandomKey(3, EVALUATION_NOISE)


@dataclass(frozen=True)
class Reverse(Layer):
    """A layer whose log-determinant is 0 for every x, and that has no `log_det`: a permutation."""

    def forward(self, ops, p, x):
        return ops.xp.ascontiguousarray(x[:, ::-1]), 0, {}

    def inverse(self, ops, p, z):
        return z[:, ::-1]


def small_flow(rule=None):
    dense = Linear(Dense(D), rule or SelfNormalizing())
    before = (
        ("dense1", dense),
        ("activation1", SmoothLeakyReLU(0.3)),
        ("reverse", Reverse()),
    )
    return Flow((D,), (*before, ("dense2", dense)), Preprocess(alpha=0.01))


@pytest.fixture
def images():
    result = pixels(N, D, seed=9)
    result.flat[0] = 0
    result.flat[1] = 255
    return result


def test_log_prob_matches_brute_force(ops, images):
    """log N(z) + slogdet of the whole Jacobian by differences + the preprocessing's own."""
    flow = small_flow()
    layout, flat = random_parameters(flow)
    result = Likelihood(ops, flow, flat).log_prob(images, seed=3)

    p = layout.views(flat)
    u = get_ops("numpy").random.uniform(KEY, images.shape, np.float64)
    s = 0.01 + 0.98 * (images + u) / 256
    points = logit(s)
    log_volume = np.sum(np.log(0.98 / 256) - np.log(s) - np.log1p(-s), axis=1)

    def f(x):
        a = p["dense1"]["W"] @ x + p["dense1"]["b"]
        h = (0.3 * a + 0.7 * np.logaddexp(0, a))[::-1]
        return p["dense2"]["W"] @ h + p["dense2"]["b"]

    for n, x in enumerate(points):
        jacobian = np.transpose([central_difference(f, x, e, 1e-2) for e in np.eye(D)])
        z = f(x)
        expected = norm.logpdf(z).sum() + linalg.slogdet(jacobian)[1] + log_volume[n]
        assert_allclose(result[n], expected, rtol=1e-9)


@pytest.mark.parametrize("at_once", [1, 2, 100])
def test_at_once_does_not_change_the_noise(ops, images, at_once, monkeypatch):
    """Nor the terms, but for the rounding of sums over N images."""
    flow = small_flow()
    likelihood = Likelihood(ops, flow, random_parameters(flow)[1])
    whole = likelihood.evaluate(images, seed=11).terms
    seen = []
    forward = type(flow.layers[0][1]).forward

    def counted(layer, ops, p, x, *more):
        seen.append(len(x))
        return forward(layer, ops, p, x, *more)

    monkeypatch.setattr(type(flow.layers[0][1]), "forward", counted)
    parts = likelihood.evaluate(images, seed=11, at_once=at_once).terms
    assert max(seen) == min(at_once, N)
    for term, nats in whole.items():
        assert_allclose(parts[term], nats, rtol=1e-13)


def test_a_watch_gets_every_input_of_every_layer_once(ops, images):
    flow = small_flow()
    _, flat = random_parameters(flow)
    likelihood = Likelihood(ops, flow, flat)
    watched = {name: [] for name, _ in flow.layers}
    firsts = []

    def watch(layer, x, first):
        watched[layer].append(ops.to_host(x).copy())
        firsts.append(first)

    result = likelihood.evaluate(images, 3, at_once=2, watch=watch)
    assert result == likelihood.evaluate(images, 3, at_once=2)
    assert firsts == [first for first in (0, 2, 4) for _ in flow.layers]
    x, _ = flow.encode(ops, ops.asarray(images), KEY, np.float64)
    for name, layer in flow.layers:
        assert_allclose(np.concatenate(watched[name]), ops.to_host(x), rtol=1e-12)
        x = layer.forward(ops, likelihood.params[name], x)[0]


@dataclass(frozen=True)
class Stretch(SmoothLeakyReLU):
    """A layer with both kinds of log-determinant: twice the smooth leaky ReLU of x."""

    def forward(self, ops, p, x):
        z, ldj, cache = super().forward(ops, p, x)
        return 2 * z, ldj, cache

    def log_det(self, ops, p, shape):
        return math.prod(shape) * math.log(2)


def test_both_terms_of_a_layer_count(ops):
    rows = normal(N, D, seed=2)
    flow = Flow((D,), (("own", Stretch()),), Standardise((0.0,) * D, (1.0,) * D))
    result = Likelihood(ops, flow, ops.asarray([]))
    z, ldj, _ = Stretch().forward(ops, {}, ops.asarray(rows))
    volume = ldj + D * math.log(2)
    expected = norm.logpdf(z).sum(axis=1) + volume
    assert_allclose(result.log_prob(rows), expected, rtol=1e-14)
    evaluation = result.evaluate(rows)
    assert evaluation.nll == pytest.approx(-expected.mean(), rel=1e-14)
    assert evaluation.terms["own"] == pytest.approx(volume.mean(), rel=1e-14)


def test_a_likelihood_never_changes(ops, images):
    """It keeps a copy: no determinant can go stale when training goes on in the buffer."""
    flow = small_flow()
    layout, flat = random_parameters(flow)
    likelihood = Likelihood(ops, flow, flat)
    before = likelihood.log_prob(images, seed=3), likelihood.sample(4, seed=0)
    flat *= 1.5
    after = likelihood.log_prob(images, seed=3), likelihood.sample(4, seed=0)
    for one, other in zip(before, after, strict=True):
        assert_array_equal(one, other)
    trained = Likelihood(ops, flow, flat)
    assert np.all(trained.log_prob(images, seed=3) != before[0])


def test_evaluation_is_in_double_precision(ops, images):
    """A float32 buffer is a rounding of the parameters, not of the likelihood."""
    flow = small_flow()
    layout, flat = random_parameters(flow)
    rounded = flat.astype(np.float32)
    single = Likelihood(ops, flow, rounded).log_prob(images, seed=3)
    double = Likelihood(ops, flow, rounded.astype(np.float64)).log_prob(images, seed=3)
    assert single.dtype == np.float64
    assert_array_equal(single, double)


def test_single_precision_evaluation_is_off_by_rounding(ops, images):
    """Some ten roundings of each value of an image, whose logit and terms are below 30 nats; the
    determinants are those of double precision."""
    trainer = make_trainer(ops, "fc", eval_dtype="float32")
    single = trainer.likelihood()
    double = Likelihood(ops, trainer.flow, trainer.p)
    assert single.log_dets == double.log_dets
    images = ops.to_host(images_of(trainer, 0))
    result, expected = (each.evaluate(images, seed=3).nll for each in (single, double))
    assert (
        0
        < abs(result - expected)
        <= 10 * 30 * trainer.flow.dimension * np.finfo(np.float32).eps
    )


def test_latents_are_cast_to_the_precision_of_the_likelihood(ops):
    flow = Flow(
        (2,), (("bend", SmoothLeakyReLU(0.3)), ("spline", RationalQuadraticSpline(5)))
    )
    flow = replace(flow, preprocess=Standardise((0.0, 0.0), (1.0, 1.0)))
    z = np.array([[3, -2], [0, 1]])
    for dtype in ("float64", "float32"):
        likelihood = Likelihood(
            ops, flow, flow.layout.pack(flow.init(0), np.float64), dtype
        )
        drawn = [
            likelihood.sample(2, latents=(z.astype(kind),))
            for kind in (int, "f4", "f8")
        ]
        assert np.array_equal(drawn[0], drawn[1]) and np.array_equal(drawn[0], drawn[2])
        result = likelihood.sample(2, temperature=np.float64(0.7))
        assert np.array_equal(result, likelihood.sample(2, temperature=0.7))


def mean_and_variance_of_log_jacobian(alpha=1e-6):
    """Of one pixel of each level 0 … 255, over the noise, by quadrature: two arrays (256,)."""

    def log_jacobian(noisy):
        s = alpha + (1 - 2 * alpha) * noisy / 256
        one_minus_s = alpha + (1 - 2 * alpha) * (256 - noisy) / 256
        return math.log((1 - 2 * alpha) / 256) - math.log(s) - math.log(one_minus_s)

    def moment(power):
        return np.array(
            [quad(lambda v: log_jacobian(v) ** power, k, k + 1)[0] for k in range(256)]
        )

    mean = moment(1)
    return mean, moment(2) - mean**2


@needs_full_mnist
def test_preprocessing_log_jacobians_on_mnist():
    """They add 272.7 ± 0.3 nats to log p(x), which is what the paper measures (A.3).

    The sign is +: most pixels are near 0, where the logit stretches more than the division by 256
    shrinks. The expectation over the noise is 272.5 for the test images and 272.7 for the
    validation images; one draw for 2,000 images is compared with theirs.
    """
    full = load_dataset("mnist", FULL_MNIST)
    mean, variance = mean_and_variance_of_log_jacobian()

    def levels(images):
        return np.bincount(images.ravel(), minlength=256) / len(images)

    for images in (full.validation, full.test):
        few = images[:2000]
        _, ldj = Preprocess().forward(get_ops("numpy"), few, KEY, np.float64)
        deviation = math.sqrt(levels(few) @ variance / len(few))
        assert abs(ldj.mean() - levels(few) @ mean) < 4 * deviation
        assert abs(levels(images) @ mean - 272.7) < 0.3


def test_nonfinite_samples_are_an_error():
    flow = small_flow()
    layout, flat = random_parameters(flow)
    layout.views(flat)["dense2"]["R"][0, 0] = np.nan
    likelihood = Likelihood(get_ops("numpy"), flow, flat)
    with pytest.raises(
        DivergedError, match="samples are not finite: try `exact=True`, or another"
    ):
        likelihood.sample(3, seed=0)
    with pytest.raises(
        DivergedError, match="samples are not finite: try another checkpoint"
    ):
        likelihood.sample(1, latents=(np.full((1, D), np.nan),), exact=True)
    assert likelihood.sample(3, seed=0, exact=True).shape == (3, *flow.shape)
