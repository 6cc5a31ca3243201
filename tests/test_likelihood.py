"""Exact likelihoods of flows, of mixtures of Gaussians and of averages; their terms and samples."""

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.special import logit
from scipy.stats import norm
from support.data_files import FULL_MNIST, needs_full_mnist
from support.gradients import random_parameters
from support.trainers import images_of, make_trainer

from snfnp.data import load_dataset
from snfnp.density import mixture, training
from snfnp.density.ensemble import Ensemble, MixtureMember, stacked_weights
from snfnp.density.mixture import Mixture
from snfnp.density.training import mixture_candidates
from snfnp.errors import DivergedError
from snfnp.flow import Flow
from snfnp.gradcheck import central_difference, check_layer
from snfnp.layers import (
    Layer,
    Linear,
    Preprocess,
    RationalQuadraticSpline,
    SmoothLeakyReLU,
)
from snfnp.layers.preprocess import Standardise
from snfnp.likelihood import EVALUATION_NOISE, Evaluation, Likelihood
from snfnp.maps import Dense
from snfnp.ops import RandomKey, get_ops
from snfnp.rules import SelfNormalizing

D, N = 7, 5
KEY = RandomKey(3, EVALUATION_NOISE)


@dataclass(frozen=True)
class Reverse(Layer):
    """A layer whose log-determinant is 0 for every x, and that has no `log_det`: a permutation."""

    def forward(self, ops, p, x):
        return ops.xp.ascontiguousarray(x[:, ::-1]), 0, {}

    def inverse(self, ops, p, z):
        return z[:, ::-1]


def small_flow(rule=None, dimension=D):
    dense = Linear(Dense(dimension), rule or SelfNormalizing())
    before = (("dense1", dense), ("activation1", SmoothLeakyReLU(0.3)), ("reverse", Reverse()))
    return Flow((dimension,), (*before, ("dense2", dense)), Preprocess(alpha=0.01))


@pytest.fixture
def images():
    found = np.random.default_rng(9).integers(0, 256, (N, D)).astype(np.uint8)
    found.flat[0], found.flat[1] = 0, 255
    return found


def test_log_prob_matches_brute_force(ops, images):
    """log N(z) + slogdet of the whole Jacobian by differences + the preprocessing's own."""
    flow = small_flow()
    layout, flat = random_parameters(flow)
    found = Likelihood(ops, flow, flat).log_prob(images, seed=3)

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
        expected = norm.logpdf(z).sum() + np.linalg.slogdet(jacobian)[1] + log_volume[n]
        np.testing.assert_allclose(found[n], expected, rtol=1e-9)


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
        np.testing.assert_allclose(parts[term], nats, rtol=1e-13)


def test_each_likelihood_term_is_that_of_its_step(ops, images):
    flow = small_flow()
    layout, flat = random_parameters(flow)
    params = layout.views(flat)
    evaluation = Likelihood(ops, flow, flat).evaluate(images, seed=11)
    assert evaluation.dimension == D
    terms = evaluation.terms
    x, ldj = flow.encode(ops, images, RandomKey(11, EVALUATION_NOISE, 0), np.float64)
    a = x @ params["dense1"]["W"].T + params["dense1"]["b"]
    (z,), _, _ = flow.forward(ops, params, x)
    expected = {
        "base density": norm.logpdf(z).sum(axis=1).mean(),
        "dequantisation": 0.0,
        "scale": D * math.log(0.98 / 256),
        "logit": ldj.mean() - D * math.log(0.98 / 256),
        "dense1": np.linalg.slogdet(params["dense1"]["W"])[1],
        "activation1": np.log(0.3 + 0.7 / (1 + np.exp(-a))).sum(axis=1).mean(),
        "reverse": 0.0,
        "dense2": np.linalg.slogdet(params["dense2"]["W"])[1],
    }
    np.testing.assert_allclose(list(terms.values()), list(expected.values()), rtol=1e-12)
    assert list(terms) == list(expected)


@dataclass(frozen=True)
class Stretch(SmoothLeakyReLU):
    """A layer with both kinds of log-determinant: z = e^s (smooth leaky ReLU of x)."""

    def parameter_shapes(self, shape):
        return {"s": ()}

    def forward(self, ops, p, x):
        z, ldj, cache = super().forward(ops, p, x)
        return ops.xp.exp(p["s"]) * z, ldj, {**cache, "x": x}

    def inverse(self, ops, p, z):
        return super().inverse(ops, p, ops.xp.exp(-p["s"]) * z)

    def log_det(self, ops, p, shape):
        return float(p["s"]) * math.prod(shape)

    def backward(self, ctx, p, cache, dz, grads):
        dz = dz * ctx.ops.xp.exp(p["s"])
        y = ctx.ops.activation.smooth_leaky_relu(cache["x"], self.alpha)[0]
        grads["s"][...] = (dz * y).sum() + ctx.log_det_weight * dz[0].size
        return super().backward(ctx, p, cache, dz, grads)


def test_both_terms_of_a_layer_count(ops):
    layer, rows = Stretch(0.3), np.random.default_rng(2).standard_normal((N, D))
    check_layer(layer, (D,), ops=ops)
    flow = Flow((D,), (("own", layer),), Standardise((0.0,) * D, (1.0,) * D))
    found = Likelihood(ops, flow, ops.asarray([0.5]))
    z, ldj, _ = layer.forward(ops, {"s": ops.asarray(0.5)}, ops.asarray(rows))
    expected = norm.logpdf(z).sum(axis=1) + ldj + 0.5 * D
    np.testing.assert_allclose(found.log_prob(rows), expected, rtol=1e-14)
    assert found.evaluate(rows).nll == pytest.approx(-expected.mean(), rel=1e-14)
    assert found.evaluate(rows).terms["own"] == pytest.approx((ldj + 0.5 * D).mean(), rel=1e-14)


def test_bits_per_dimension():
    evaluation = Evaluation({"a": -1000.0, "b": 400.0}, 784)
    assert evaluation.nll == 600.0
    np.testing.assert_allclose(evaluation.bits_per_dimension, 600 / (784 * math.log(2)), rtol=1e-15)


def test_a_likelihood_never_changes(ops, images):
    """It keeps a copy: no determinant can go stale when training goes on in the buffer."""
    flow = small_flow()
    layout, flat = random_parameters(flow)
    likelihood = Likelihood(ops, flow, flat)
    log_dets = dict(likelihood.log_dets)
    before = likelihood.log_prob(images, seed=3), log_dets, likelihood.sample(4, seed=0)
    flat *= 1.5
    after = likelihood.log_prob(images, seed=3), likelihood.log_dets, likelihood.sample(4, seed=0)
    np.testing.assert_array_equal(before[0], after[0])
    assert before[1] == after[1]
    np.testing.assert_array_equal(before[2], after[2])
    trained = Likelihood(ops, flow, flat)
    assert np.all(trained.log_prob(images, seed=3) != before[0])
    expected = before[1]["dense1"] + D * math.log(1.5)
    np.testing.assert_allclose(trained.log_dets["dense1"], expected, rtol=1e-12)


def test_evaluation_is_in_double_precision(ops, images):
    """A float32 buffer is a rounding of the parameters, not of the likelihood."""
    flow = small_flow()
    layout, flat = random_parameters(flow)
    rounded = flat.astype(np.float32)
    single = Likelihood(ops, flow, rounded).log_prob(images, seed=3)
    double = Likelihood(ops, flow, rounded.astype(np.float64)).log_prob(images, seed=3)
    assert single.dtype == np.float64
    np.testing.assert_array_equal(single, double)


def test_single_precision_evaluation_is_off_by_rounding(ops, images):
    """Some ten roundings of each value of an image, whose logit and terms are below 30 nats; the
    determinants are those of double precision."""
    trainer = make_trainer(ops, "fc", eval_dtype="float32")
    single, double = trainer.likelihood(), Likelihood(ops, trainer.flow, trainer.p)
    assert single.log_dets == double.log_dets
    images = ops.to_host(images_of(trainer, 0))
    found, expected = (each.evaluate(images, seed=3).nll for each in (single, double))
    assert 0 < abs(found - expected) <= 10 * 30 * trainer.flow.dimension * np.finfo(np.float32).eps


def test_learned_and_exact_samples_agree_where_r_is_the_inverse(ops):
    flow = small_flow()
    likelihood = Likelihood(ops, flow, random_parameters(flow, exact_inverse=True)[1])
    learned, exact = (likelihood.sample(50, seed=4, exact=exact) for exact in (False, True))
    assert learned.shape == (50, D)
    assert learned.dtype == np.uint8
    assert len(np.unique(learned)) > 20
    np.testing.assert_array_equal(learned, exact)
    approximate = Likelihood(ops, flow, random_parameters(flow)[1])
    assert np.any(approximate.sample(50, seed=4) != approximate.sample(50, seed=4, exact=True))


def test_samples_are_the_inverse_of_latents(ops):
    """sample() and log_prob() use one map: a sample's x goes forward to temperature · z."""
    flow = small_flow()
    layout, flat = random_parameters(flow)
    params = layout.views(flat)
    found = Likelihood(ops, flow, flat).sample(20, seed=4, temperature=0.5, exact=True)
    key = RandomKey(4, 2)  # SAMPLE_LATENTS
    z = 0.5 * get_ops("numpy").random.normal(key, (20, D), np.float64)
    h = np.linalg.solve(params["dense2"]["W"], (z - params["dense2"]["b"]).T).T[:, ::-1]
    a = ops.activation.smooth_leaky_relu_inverse(np.ascontiguousarray(h), 0.3)
    x = np.linalg.solve(params["dense1"]["W"], (a - params["dense1"]["b"]).T).T
    s = 1 / (1 + np.exp(-x))
    pixels = np.clip(np.floor(256 * (s - 0.01) / 0.98), 0, 255)
    np.testing.assert_array_equal(found, pixels)


def test_latents_of_several_scales_are_drawn_independently(ops, monkeypatch):
    trainer, drawn, inverse = make_trainer(ops, "glow"), [], Flow.inverse

    def noting(flow, ops, params, latents, **options):
        drawn.extend(ops.to_host(each).reshape(len(each), -1) for each in latents)
        return inverse(flow, ops, params, latents, **options)

    monkeypatch.setattr(Flow, "inverse", noting)
    trainer.likelihood().sample(200, seed=3, exact=True)
    first, second = drawn
    assert first.shape == second.shape == (200, 32)
    correlation = np.corrcoef(first.ravel(), second.ravel())[0, 1]
    assert abs(correlation) < 5 / math.sqrt(first.size)


def test_latents_are_cast_to_the_precision_of_the_likelihood(ops):
    flow = Flow((2,), (("bend", SmoothLeakyReLU(0.3)), ("spline", RationalQuadraticSpline(4))))
    flow = replace(flow, preprocess=Standardise((0.0, 0.0), (1.0, 1.0)))
    z = np.array([[3, -2], [0, 1]])
    for dtype in ("float64", "float32"):
        likelihood = Likelihood(ops, flow, flow.layout.pack(flow.init(0), np.float64), dtype)
        drawn = [likelihood.sample(2, latents=(z.astype(kind),)) for kind in (int, "f4", "f8")]
        assert np.array_equal(drawn[0], drawn[1]) and np.array_equal(drawn[0], drawn[2])
        found = likelihood.sample(2, temperature=np.float64(0.7))
        assert np.array_equal(found, likelihood.sample(2, temperature=0.7))


def mean_and_variance_of_log_jacobian(alpha=1e-6):
    """Of one pixel of each level 0 … 255, over the noise, by quadrature: two arrays (256,)."""

    def log_jacobian(noisy):
        s = alpha + (1 - 2 * alpha) * noisy / 256
        one_minus_s = alpha + (1 - 2 * alpha) * (256 - noisy) / 256
        return math.log((1 - 2 * alpha) / 256) - math.log(s) - math.log(one_minus_s)

    def moment(power):
        return np.array([quad(lambda v: log_jacobian(v) ** power, k, k + 1)[0] for k in range(256)])

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
    with pytest.raises(DivergedError, match="samples are not finite: try `exact=True`, or another"):
        likelihood.sample(3, seed=0)
    with pytest.raises(DivergedError, match="samples are not finite: try another checkpoint"):
        likelihood.sample(1, latents=(np.full((1, D), np.nan),), exact=True)
    assert likelihood.sample(3, seed=0, exact=True).shape == (3, *flow.shape)


def test_weights_are_those_at_which_held_out_rows_are_likeliest():
    """Against a grid over the weights of three densities, of which one is never of use."""
    rng = np.random.default_rng(0)
    x = np.where(rng.random(300) < 0.7, rng.normal(size=300), rng.normal(4, 1, 300))
    scores = -((x - np.array([[0.0], [4.0], [40.0]])) ** 2) / 2
    weights = stacked_weights(scores)
    grid = np.linspace(1e-3, 1 - 1e-3, 999)
    total = np.logaddexp(scores[0] + np.log(grid)[:, None], scores[1] + np.log1p(-grid)[:, None])
    assert abs(weights[0] - grid[total.sum(axis=1).argmax()]) < 2e-3
    assert weights[2] == 0 and weights.sum() == pytest.approx(1)


def test_samples_come_from_every_member_by_its_weight():
    """The two members lie far apart, so that each sample's origin is plain."""
    preprocess = Standardise((0.0,), (1.0,))
    mixtures = (Mixture(np.ones(1), np.array([[m]]), np.ones((1, 1, 1))) for m in (0.0, 100.0))
    members = tuple(MixtureMember(preprocess, mixture) for mixture in mixtures)
    ensemble = Ensemble(np.array([0.8, 0.2]), members, preprocess)
    drawn = ensemble.sample(5000, np.random.default_rng(0), True)[:, 0]
    assert abs((drawn > 50).mean() - 0.2) < 0.02
    assert abs((drawn[:1000] > 50).mean() - 0.2) < 0.04  # in random order
    assert abs(drawn[drawn < 50].std() - 1) < 0.05


@pytest.mark.parametrize("kind", ["full", "diagonal"])
def test_em_finds_the_mixture_that_rows_come_from(kind):
    rng, covariances = np.random.default_rng(0), np.stack([np.eye(2), np.eye(2) / 2])
    truth = Mixture(np.array([0.3, 0.7]), np.array([[0.0, 0.0], [5.0, 1.0]]), covariances)
    x, fresh = truth.sample(2000, rng), truth.sample(2000, rng)
    found = Mixture.fit(x, 2, kind, 0.3, 0)
    np.testing.assert_allclose(np.sort(found.weights), [0.3, 0.7], atol=0.03)
    assert abs(found.log_prob(fresh).mean() - truth.log_prob(fresh).mean()) < 0.01
    side = np.linspace(-8, 12, 400)
    grid = np.stack(np.meshgrid(side, side), axis=2).reshape(-1, 2)
    assert np.exp(found.log_prob(grid)).sum() * (side[1] - side[0]) ** 2 == pytest.approx(1)
    alike = Mixture.fit(np.ones((5, 2)) + rng.normal(size=(5, 1)), 3, kind, 0.3, 0)
    assert np.isfinite(alike.log_prob(x)).all()  # of columns that are equal


@pytest.mark.parametrize("kind", ["full", "diagonal", "tied"])
def test_a_step_of_em_is_the_formula_with_its_prior(kind):
    """π = (n + 1) / (N + K), μ and Σ = (S + ν C) / (n + ν), from the shares of the step before."""
    rng = np.random.default_rng(0)
    rows, prior, usual = rng.normal(size=(50, 3)), 0.7, np.diag([1.0, 2.0, 0.5])
    before = Mixture(np.array([0.3, 0.7]), rng.normal(size=(2, 3)), np.stack([np.eye(3)] * 2))
    apart = rows - before.means[:, np.newaxis]
    joint = np.log([[0.3], [0.7]]) + norm.logpdf(apart).sum(axis=2)
    shares = np.exp(joint - np.logaddexp.reduce(joint))
    mean, sums = before._expected(rows)
    assert mean == pytest.approx(np.logaddexp.reduce(joint).mean(), rel=1e-12)
    np.testing.assert_allclose(before.log_prob(rows), np.logaddexp.reduce(joint), rtol=1e-12)
    found = Mixture._maximised(sums, usual, kind, prior)
    counts = shares.sum(axis=1)
    np.testing.assert_allclose(found.weights, (counts + 1) / 52, rtol=1e-12)
    scatters = []
    for share, count, mean in zip(shares, counts, found.means, strict=True):
        np.testing.assert_allclose(mean, share @ rows / count, rtol=1e-10)
        scatters.append((rows - mean).T @ ((rows - mean) * share[:, np.newaxis]))
    if kind == "tied":
        scatters, counts = [sum(scatters)] * 2, [counts.sum()] * 2
    for root, scatter, count in zip(found.roots, scatters, counts, strict=True):
        expected = (scatter + prior * usual) / (count + prior)
        expected *= np.eye(3) if kind == "diagonal" else 1
        np.testing.assert_allclose(root @ root.T, expected, rtol=1e-10, atol=1e-12)


def test_the_prior_of_many_components_is_as_much_smaller(monkeypatch):
    """C K^(−2/D), and a millionth of its mean on the diagonal."""
    seen, original = [], Mixture._maximised.__func__

    def noted(cls, sums, usual, kind, prior):
        seen.append(usual)
        return original(cls, sums, usual, kind, prior)

    monkeypatch.setattr(Mixture, "_maximised", classmethod(noted))
    rows = np.random.default_rng(0).normal(size=(200, 3)) * [1, 2, 3]
    Mixture.fit(rows, 8, "full", 0.3, 0)
    expected = np.cov(rows.T, bias=True) / 4
    expected += 1e-6 * np.trace(expected) / 3 * np.eye(3)
    np.testing.assert_allclose(seen[0], expected, rtol=1e-12)


def test_a_start_has_a_row_of_each_of_groups_far_apart():
    rng = np.random.default_rng(0)
    groups = np.repeat([[0.0, 0.0], [100.0, 0.0], [0.0, 100.0]], 50, axis=0)
    rows = groups + rng.normal(size=(150, 2))
    for seed in range(20):
        labels = mixture._start(rows, 3, np.random.default_rng(seed))
        assert all(len(set(labels[first : first + 50])) == 1 for first in (0, 50, 100))
        assert len(set(labels)) == 3
    assert set(mixture._start(rows[:1].repeat(9, axis=0), 3, rng)) == {0}  # no other row is left


def test_samples_of_a_mixture_have_its_covariances():
    roots = np.array([[[1.0, 0.0], [1.5, 0.5]], [[0.2, 0.0], [-1.0, 0.1]]])
    drawn = Mixture(np.array([1.0, 0.0]), np.zeros((2, 2)), roots).sample(
        20_000, np.random.default_rng(0)
    )
    np.testing.assert_allclose(np.cov(drawn.T), roots[0] @ roots[0].T, atol=0.06)


def test_many_rows_go_through_a_mixture_in_parts(monkeypatch):
    """A fit to a part of the rows comes first: the rest has the same rows twice, to 1e-9."""
    rows = np.random.default_rng(0).normal(size=(300, 2))
    whole = Mixture.fit(rows, 3, "full", 0.3, 0)
    monkeypatch.setattr(mixture, "_NUMBERS", 64)
    parts = Mixture.fit(rows, 3, "full", 0.3, 0)
    np.testing.assert_allclose(parts.means, whole.means, atol=1e-9)
    np.testing.assert_allclose(parts.log_prob(rows), whole.log_prob(rows), atol=1e-9)
    monkeypatch.setattr(mixture, "_FIRST", 150)
    seen, original = [], Mixture._expected

    def noted(fitted, some):
        seen.append(len(some))
        return original(fitted, some)

    monkeypatch.setattr(Mixture, "_expected", noted)
    Mixture.fit(rows, 3, "full", 0.3, 0)
    assert set(seen) == {150, 300} and 0 < seen.count(300) <= mixture._ON_ALL


def test_scores_of_mixtures_have_the_units_of_the_data_and_come_from_other_rows(monkeypatch):
    rng, fitted = np.random.default_rng(0), []
    rows, ldj, folds = rng.normal(size=(60, 2)), rng.normal(size=60), np.split(np.arange(60), 3)
    original = Mixture.fit.__func__

    def noted(cls, rows, *settings):
        fitted.append(rows)
        return original(cls, rows, *settings)

    monkeypatch.setattr(Mixture, "fit", classmethod(noted))
    for candidate in mixture_candidates(rows, folds, 0, ldj):
        for fold, member in zip(folds, candidate.members, strict=True):
            expected = member.log_prob(rows[fold]) + ldj[fold]
            np.testing.assert_array_equal(candidate.scores[fold], expected)
    for number, own in enumerate(fitted):
        rest = np.delete(rows, folds[number % 3], axis=0)
        np.testing.assert_array_equal(np.sort(own, axis=0), np.sort(rest, axis=0))


def test_mixtures_of_many_rows_take_more_components_while_they_are_better(monkeypatch):
    """Fitted to a part of the rows; a second prior begins where the first was best."""
    monkeypatch.setattr(training, "FEW", 100)
    monkeypatch.setattr(training, "_WORK", 2000)
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 3, (300, 2)) + 0.05 * rng.normal(size=(300, 2))
    folds, fitted, original = np.split(np.arange(60), 3), [], Mixture.fit.__func__

    def noted(cls, rows, *settings):
        fitted.append(len(rows))
        return original(cls, rows, *settings)

    monkeypatch.setattr(Mixture, "fit", classmethod(noted))
    found = mixture_candidates(rows, folds, 0, np.zeros(300))
    sizes = [int(each.name.split()[2].rstrip(",")) for each in found]
    assert sizes[:4] == [1, 4, 16, 32] and all(each.refit is None for each in found)
    best = sizes[int(np.argmax([each.mean for each in found[:4]]))]
    assert best > 1 and sizes[4:] == [each for each in sizes[:4] if each >= best]
    assert fitted[::3] == [min(280, 2000 // each) for each in sizes]
    assert all(len(each.scores) == 60 for each in found)
    monkeypatch.setattr(training, "_SMOOTHED", 200)
    assert len(mixture_candidates(rows, folds, 0, np.zeros(300))) == 4


def test_components_are_as_many_as_rows_and_columns_allow():
    def most(rows, columns):
        x = np.random.default_rng(0).normal(size=(rows, columns))
        names = [each.name for each in mixture_candidates(x, [np.arange(5)], 0, np.zeros(rows))]
        return max(int(name.split()[2].rstrip(",")) for name in names)

    assert most(60, 2) == 8 and most(60, 12) == 4


def test_rows_beyond_the_values_of_a_lattice_are_drawn_again():
    """N(0, 2²) rounded to −1, 0 or 1: each as often as its cell is probable among the three."""
    preprocess = Standardise((0.0,), (1.0,), (1.0,), (0.0,), (1.0,), (-1.0,), (1.0,))
    member = MixtureMember(
        preprocess, Mixture(np.ones(1), np.zeros((1, 1)), np.full((1, 1, 1), 2.0))
    )
    drawn = Ensemble(np.ones(1), (member,), preprocess).sample(
        20_000, np.random.default_rng(0), True
    )
    cells = np.diff(norm.cdf([-1.5, -0.5, 0.5, 1.5], scale=2.0))
    shares = [(drawn == value).mean() for value in (-1, 0, 1)]
    np.testing.assert_allclose(shares, cells / cells.sum(), atol=0.015)


def test_small_weights_of_an_average_are_left_out():
    """The best weight of a density that alone explains 5 of 1000 rows is 0.005, of 50: 0.05."""
    for rows, expected in ((5, 0.0), (50, 0.05)):
        scores = np.zeros((2, 1000))
        scores[1] = -50.0
        scores[:, :rows] = [[-50.0], [0.0]]
        np.testing.assert_allclose(stacked_weights(scores), [1 - expected, expected], atol=1e-3)


def test_mixtures_close_in_on_values_that_many_rows_share():
    rng, width = np.random.default_rng(0), 1e-3
    shared, rows = rng.random((400, 2)) < 0.5, rng.normal(size=(400, 2))
    rows[shared] = rng.uniform(2, 2 + width, shared.sum())
    normal = np.exp(-(rows**2) / 2) / np.sqrt(2 * np.pi)
    inside = (rows >= 2) & (rows <= 2 + width)
    truth = np.log(normal / 2 + inside / (2 * width)).sum(axis=1).mean()
    folds = [np.arange(k, 400, 5) for k in range(5)]
    best = max(each.mean for each in mixture_candidates(rows, folds, 0, np.zeros(400)))
    assert best > truth - 1  # 0.4 to 0.6 below in eight seeds; 1.7 to 2.1 with a prior of one row
