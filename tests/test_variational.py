"""Beyond the paper: the variational objective (A.4), and Eq. 31 along random directions."""

from __future__ import annotations

import itertools
from functools import partial

import numpy as np
import pytest
from numpy.random import default_rng
from numpy.testing import assert_array_equal
from support.arrays import assert_near, cast, pixels
from support.gradients import invert, layer_backward, moved
from support.trainers import gradient_of, make_trainer, small_config
from test_rules import RTOL, bent, check_flow, log_normal, random_params, two_layers

from snfnp.beyond import rules as module
from snfnp.beyond.rules import JacobianPenalty, Variational
from snfnp.beyond.training import Noise
from snfnp.context import BackwardContext
from snfnp.diagnostics import gradient_angles
from snfnp.flow import layer_key
from snfnp.gradcheck import as_matrix, check_gradient
from snfnp.layers import Linear
from snfnp.maps import Conv2d, Dense
from snfnp.ops import RandomKey, get_ops
from snfnp.rules import SelfNormalizing
from snfnp.step.batches import Repeated
from snfnp.step.trainer import Trainer
from snfnp.training.options import TrainConfig
from snfnp.training.runs.checkpoint import Checkpoint

D = 4
SIGMA = 0.6
KEY = RandomKey(3, 16, 5)
VARIATIONAL = {"objective": "variational", "lam": 2.0}
noisy_trainer = partial(make_trainer, **VARIATIONAL)


@pytest.fixture
def rng():
    return default_rng(0)


def test_noise_does_not_widen_single_precision(ops):
    layer = Linear(Dense(D), Variational(SIGMA))
    x = np.ones((3, D), np.float32)
    p = cast(layer.init(np.random, (D,)), np.float32)
    z, _, cache = layer.forward(ops, p, x)
    z = layer.rule.perturb(ops, f=layer.map, p=p, z=z, cache=cache, key=KEY)
    arrays = (z, *cache["noise"])
    assert {array.dtype for array in arrays} == {np.dtype(np.float32)}


def variational_flow(rng):
    flow = two_layers(Variational(SIGMA, 2), D)
    params = random_params(flow, rng)
    invert(params)
    return flow, params


def noise_of(ops, index):
    """The vectors that a layer of `variational_flow` draws. Of the generator's streams 16 are for
    what there is once in a step, and then 16 for each layer."""
    return ops.random.normal(KEY._replace(stream=16 + 16 * index), (2, D), np.float64)


def plain_bound(ops, params, x):
    """The mean of the bound over x, sample by sample."""
    total = 0.0
    h = x
    for index, name in ((0, "dense1"), (2, "dense2")):
        w = params[name]["W"]
        r = params[name]["R"]
        nu = noise_of(ops, index)
        total += np.linalg.slogdet(w)[1] + D / 2
        total -= np.mean([np.sum((r @ w @ row - row) ** 2) for row in h]) / (
            2 * SIGMA**2
        )
        total -= np.mean([np.sum((r @ w @ each) ** 2) for each in nu]) / 2
        noisy = [row + SIGMA * (-1) ** n * nu[n // 2 % 2] for n, row in enumerate(h)]
        h = np.array([w @ row + params[name]["b"] for row in noisy])
        if index == 0:
            h, ldj = bent(h)
            total += np.mean(ldj)
    return float(total + np.mean(log_normal(h)))


def test_a_flow_with_exact_inverses_ascends_the_bound(ops, rng):
    """Where R = W⁻¹, R stands for nothing else, and what holding h loses is 0: the gradient of the
    bound, end to end."""
    flow, params = variational_flow(rng)
    x = rng.standard_normal((6, D))
    latents, _, caches = flow.forward(
        ops, params, x, noise=Noise(ops, flow, params, KEY)
    )
    grads = flow.layout.views(np.full(flow.layout.size, np.nan))
    ctx = BackwardContext.of(ops, np.full(len(x), 1 / len(x)), 1 / (2 * SIGMA**2))
    dx, _ = flow.backward(ctx, params, caches, flow.latent_gradients(latents), grads)
    check_flow(lambda p: plain_bound(ops, p, x), params, grads, rng)
    check_gradient(lambda v: plain_bound(ops, params, v), x, dx, rng=rng, rtol=RTOL)


def test_the_noise_follows_from_lambda():
    config = TrainConfig(objective="variational", lam=50.0).resolve(1000)
    assert config.noise_vectors == 8 and config.rule == Variational(0.1, 8)
    for model, lam in (("fc", 1), ("glow", 100)):
        config = TrainConfig(model=model, objective="variational").resolve(1000)
        assert config.lam == lam == pytest.approx(config.rule.lam, rel=1e-15)


def test_evaluation_has_no_noise(ops):
    trainer = noisy_trainer(ops, dtype="float64")
    plain = noisy_trainer(ops, dtype="float64", objective="forward")
    images = pixels(9, 64)
    result, expected = (
        each.likelihood().evaluate(images, 0).nll for each in (trainer, plain)
    )
    assert result == expected


def test_every_step_has_noise_of_its_own(ops, monkeypatch):
    """The same inputs, seed and parameters at another step: another gradient."""
    encode = Trainer.encode  # the dequantisation noise stays that of step 0
    monkeypatch.setattr(Trainer, "encode", lambda self, x, _: encode(self, x, 0))
    trainer = noisy_trainer(ops, dtype="float64")
    images = pixels(6, 64)
    gradients = []
    for step in (0, 0, 1):
        trainer.scalars.set(step, 0.0)
        gradients.append(gradient_of(trainer, images))
    assert_array_equal(gradients[0], gradients[1])
    assert np.abs(gradients[2] - gradients[0]).max() > 1e-3


def test_recomputed_inputs_have_the_same_noise(ops):
    """A step of Glow with recomputed activations: the same gradient, but for rounding."""
    images = pixels(6, 8, 8, 1)
    gradients = []
    for recompute in (False, True):
        trainer = noisy_trainer(ops, "glow-2l-4k", dtype="float64", recompute=recompute)
        trainer.begin(Repeated(images))
        gradients.append(gradient_of(trainer, images))
    scale = np.abs(gradients[0]).max()
    assert 0 < np.abs(gradients[1] - gradients[0]).max() < 1e-11 * scale


N = 3
MU = 0.6
LAM = 0.7
PROBE_KEY = RandomKey(5, 0, 3)
DENSE = ((4,), Dense(4), None)
CONV = ((2, 2, 1), Conv2d((3, 3), 1), None)
LARGER = ((2, 2, 1), Conv2d((3, 3), 1), Conv2d((5, 5), 1))
MAPS = {"dense": DENSE, "conv": CONV, "inverse 5x5": LARGER}


@pytest.fixture
def all_signs(monkeypatch):
    """The probes become all sign vectors of four values."""

    def draw(ops, key, count, x):
        signs = np.array(list(itertools.product((1.0, -1.0), repeat=4)))
        assert count == len(signs)
        return signs.reshape(count, *x.shape[1:])

    monkeypatch.setattr(module, "draw_probes", draw)


def layer_of(which, rule):
    shape, f, g = MAPS[which]
    return Linear(f, rule, inverse_map=g)


def point(layer, shape, rng):
    p = moved(layer.init(rng, shape), rng, 0.2)
    return p, rng.standard_normal((N, *shape)), rng.standard_normal((N, *shape))


def backward(ops, layer, p, x, dz):
    """δ_x, the gradients, and what was measured."""
    _, _, cache = layer.forward(ops, p, x)
    more = {"dldj": np.full(N, 0.4), "lam": LAM, "key": layer_key(PROBE_KEY, 2)}
    return layer_backward(ops, layer, p, cache, dz, **more)


def penalty(ops, which, p) -> float:
    """μ ‖T(R) T(W) − I‖²_F, written out."""
    shape, f, g = MAPS[which]
    w = as_matrix(f, ops, p["W"], shape)
    r = as_matrix(g or f, ops, p["R"], shape)
    return float(MU * np.sum((r @ w - np.eye(4)) ** 2))


@pytest.mark.parametrize("objective", ["mixture", "forward"])
@pytest.mark.parametrize("which", MAPS)
def test_the_expected_penalty_is_the_distance_from_the_identity(
    ops, rng, all_signs, which, objective
):
    layer = layer_of(which, JacobianPenalty(objective, MU, 16))
    p, x, dz = point(layer, MAPS[which][0], rng)
    dx, grads, measured = backward(ops, layer, p, x, dz)
    layer = layer_of(which, SelfNormalizing(objective))
    plain_dx, plain, plain_measured = backward(ops, layer, p, x, dz)
    assert measured.jacobian_error == pytest.approx(
        penalty(ops, which, p) / MU, rel=1e-12
    )
    assert measured.error == pytest.approx(plain_measured.error, rel=1e-12)
    assert_near(dx, plain_dx, 1e-13)
    assert_near(grads["b"], plain["b"], 1e-13)
    for name in ("W", "R"):

        def ascends(v, name=name):
            return -penalty(ops, which, {**p, name: v})

        check_gradient(ascends, p[name], grads[name] - plain[name], rng=rng)


def test_probes_are_the_same_on_every_backend_and_others_in_every_layer_and_step():
    drawn = []
    for ops in (get_ops("numpy"), get_ops("numba")):
        for index, step in ((0, 0), (1, 0), (0, 1)):
            key = layer_key(RandomKey(3, 0, step), index)
            drawn.append(
                module.draw_probes(ops, key, 2, np.empty((5, 4, 3), np.float32))
            )
    for a, b in zip(drawn[:3], drawn[3:], strict=True):
        assert_array_equal(a, b)
        assert (a.shape, a.dtype) == ((2, 4, 3), np.float32)
        assert set(a.flat) == {1.0, -1.0}
    assert len({a.tobytes() for a in drawn}) == 3


def test_the_angle_is_the_likelihoods_alone(rng):
    """Eq. 31 belongs to the reconstruction's gradient, even at λ = 0, not to the likelihood's."""
    ops = get_ops("numpy")
    result = []
    x = rng.standard_normal((8, 16))
    for make in ({}, {"jvp_weight": 0.5}):
        trainer = make_trainer(ops, side=4, dtype="float64", **make)
        result.append(gradient_angles(ops, trainer.flow, trainer.params, x, 0.0))
    for plain, penalised in zip(*(each.values() for each in result), strict=True):
        assert plain.pop("reconstruction") == 0.0 < penalised.pop("reconstruction")
        assert plain == penalised


def test_the_penalty_is_off_by_default():
    assert small_config().rule == SelfNormalizing()
    assert small_config(objective="forward").rule == SelfNormalizing("forward")
    assert small_config(jvp_weight=0.2).rule == JacobianPenalty("mixture", 0.2, 4)


def test_the_metrics_have_the_average_of_the_steps(ops):
    """And a checkpoint in the middle of an epoch has what it is made of."""
    images = pixels(4, 6, 64, seed=1)
    make = partial(make_trainer, ops, jvp_weight=0.2, dtype="float64")
    errors = []
    for step in range(4):  # each alone, with the parameters that the others made
        trainer = make()
        for each in range(step + 1):
            trainer.figures()
            trainer.training_step(Repeated(images[each]))
        errors.append(trainer.figures()["jacobian_error"])
    trainer = make()
    again = make()
    for step in range(2):
        trainer.training_step(Repeated(images[step]))
    Checkpoint.of(trainer, {}).restore(again)
    for step in (2, 3):
        again.training_step(Repeated(images[step]))
    assert again.figures()["jacobian_error"] == pytest.approx(
        np.mean(errors), rel=1e-12
    )
    assert again.figures()["jacobian_error"] == 0.0
    assert min(errors) > 0
