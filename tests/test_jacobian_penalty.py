"""Eq. 31 along random directions.

With all 2^D sign vectors for probes Σ ννᵀ/n is the identity: what holds in expectation then holds
to rounding, and it knows nothing of the rule's own formulas.
"""

from __future__ import annotations

import itertools
from functools import partial

import numpy as np
import pytest
from support.trainers import make_trainer, run_training, small_config

from snfnp.beyond import jacobian_penalty as module
from snfnp.beyond.jacobian_penalty import JacobianPenalty
from snfnp.context import BackwardContext, layer_key
from snfnp.diagnostics import gradient_angles
from snfnp.gradcheck import GradientError, as_matrix, check_gradient
from snfnp.layers import Linear
from snfnp.maps import Conv2d, Dense
from snfnp.ops import RandomKey, get_ops
from snfnp.rules import SelfNormalizing
from snfnp.training.batches import Repeated
from snfnp.training.runs.load import load_run

N, MU, LAM = 3, 0.6, 0.7
KEY = RandomKey(5, 0, 3)
DENSE = ((4,), Dense(4), None)
CONV = ((2, 2, 1), Conv2d((3, 3), 1), None)
LARGER = ((2, 2, 1), Conv2d((3, 3), 1), Conv2d((5, 5), 1))
MAPS = {"dense": DENSE, "conv": CONV, "inverse 5x5": LARGER}


@pytest.fixture
def rng():
    return np.random.default_rng(0)


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
    p = {k: v + 0.2 * rng.standard_normal(v.shape) for k, v in layer.init(rng, shape).items()}
    return p, rng.standard_normal((N, *shape)), rng.standard_normal((N, *shape))


def backward(ops, layer, p, x, dz, lam=LAM, key=KEY):
    """δ_x, the gradients, and what was measured."""
    grads = {name: np.full_like(value, np.nan) for name, value in p.items()}
    ctx = BackwardContext.of(ops, np.full(N, 0.4), lam, key=layer_key(key, 2))
    _, _, cache = layer.forward(ops, p, x)
    dx, measured = layer.backward(ctx, p, cache, dz, grads)
    return dx, grads, measured


def penalty(ops, which, p) -> float:
    """μ ‖T(R) T(W) − I‖²_F, written out."""
    shape, f, g = MAPS[which]
    w, r = as_matrix(f, ops, p["W"], shape), as_matrix(g or f, ops, p["R"], shape)
    return float(MU * np.sum((r @ w - np.eye(4)) ** 2))


@pytest.mark.parametrize("objective", ["mixture", "forward"])
@pytest.mark.parametrize("which", MAPS)
def test_its_expectation_is_the_distance_from_the_identity(ops, rng, all_signs, which, objective):
    layer = layer_of(which, JacobianPenalty(objective, MU, 16))
    p, x, dz = point(layer, MAPS[which][0], rng)
    dx, grads, measured = backward(ops, layer, p, x, dz)
    layer = layer_of(which, SelfNormalizing(objective))
    plain_dx, plain, plain_measured = backward(ops, layer, p, x, dz)
    assert measured.jacobian_error == pytest.approx(penalty(ops, which, p) / MU, rel=1e-12)
    assert measured.error == pytest.approx(plain_measured.error, rel=1e-12)
    np.testing.assert_allclose(dx, plain_dx, rtol=0, atol=1e-13)
    np.testing.assert_allclose(grads["b"], plain["b"], rtol=0, atol=1e-13)
    for name in ("W", "R"):

        def ascends(v, name=name):
            return -penalty(ops, which, {**p, name: v})

        added = grads[name] - plain[name]
        check_gradient(ascends, p[name], added, rng=rng)
        with pytest.raises(GradientError):
            check_gradient(ascends, p[name], 1.01 * added, rng=rng)


# ---------------------------------------------------------------- products, numbers, memory


@pytest.mark.parametrize("rule, products", [(SelfNormalizing(), 5), (JacobianPenalty(), 10)])
def test_the_probes_take_five_products_of_their_own(monkeypatch, rng, rule, products):
    """In a backward pass: T(W)ν, T(R)T(W)ν, T(R)ᵀe, and two gradients of weights."""
    ops, rows = get_ops("numpy"), []
    layer = layer_of("dense", rule)
    p, x, dz = point(layer, (4,), rng)
    _, _, cache = layer.forward(ops, p, x)
    for name in ("matmul", "matmul_add"):
        original = getattr(ops.linalg, name)

        def counted(a, b, out=None, original=original):
            rows.append(len(a))
            return original(a, b, out=out)

        monkeypatch.setattr(ops.linalg, name, counted)
    ctx = BackwardContext.of(ops, np.ones(N), LAM, key=RandomKey(0, 0))
    layer.backward(ctx, p, cache, dz, {k: np.empty_like(v) for k, v in p.items()})
    assert len(rows) == products


def test_probes_are_the_same_on_every_backend_and_others_in_every_layer_and_step():
    """Whatever part of the batch a key is for."""
    drawn = []
    for ops, first in ((get_ops("numpy"), 0), (get_ops("numba"), 5)):
        for place, step in ((0, 0), (1, 0), (0, 1)):
            key = layer_key(RandomKey(3, 0, step, first), place)
            drawn.append(module.draw_probes(ops, key, 2, np.empty((5, 4, 3), np.float32)))
    for a, b in zip(drawn[:3], drawn[3:], strict=True):
        np.testing.assert_array_equal(a, b)
        assert (a.shape, a.dtype) == ((2, 4, 3), np.float32)
        assert set(a.flat) == {1.0, -1.0}
    assert len({a.tobytes() for a in drawn}) == 3


def test_the_angle_is_the_likelihoods_alone(rng):
    """Eq. 31 is part of what pulls, also where λ is 0; the likelihood's gradient has none of it."""
    ops, found = get_ops("numpy"), []
    x = rng.standard_normal((8, 16))
    for make in ({}, {"jvp_weight": 0.5}):
        trainer = make_trainer(ops, side=4, dtype="float64", **make)
        found.append(gradient_angles(ops, trainer.flow, trainer.params, x, 0.0))
    for plain, penalised in zip(*found, strict=True):
        assert (plain.angle, plain.likelihood) == (penalised.angle, penalised.likelihood)
        assert plain.reconstruction == 0.0 < penalised.reconstruction


# ---------------------------------------------------------------- options, runs


def test_off_by_default_it_is_the_plain_rule():
    assert small_config().rule == SelfNormalizing()
    assert small_config(objective="forward").rule == SelfNormalizing("forward")
    assert small_config(jvp_weight=0.2).rule == JacobianPenalty("mixture", 0.2, 4)


def test_a_run_opened_again_has_its_rule(tmp_path):
    make = {"jvp_weight": 0.2, "lambda_control": "geco"}
    whole, _ = run_training(tmp_path / "whole", epochs=1, **make)
    assert all("jacobian_error" in record for record in whole.read_metrics())
    rules = {layer.rule for _, layer in load_run(whole.path).flow.layers if layer.learns_inverse}
    assert rules == {small_config(**make).rule}


def test_the_metrics_have_the_average_of_the_steps(ops):
    """And a checkpoint in the middle of an epoch has what it is made of."""
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (4, 6, 64)).astype(np.uint8)
    make = partial(make_trainer, ops, jvp_weight=0.2, dtype="float64")
    errors = []
    for step in range(4):  # each alone, with the parameters that the others made
        trainer = make()
        for each in range(step + 1):
            trainer.figures()
            trainer.training_step(Repeated(images[each]))
        errors.append(trainer.figures()["jacobian_error"])
    trainer, again = make(), make()
    for step in range(2):
        trainer.training_step(Repeated(images[step]))
    again.restore(trainer.checkpoint({}))
    for step in (2, 3):
        again.training_step(Repeated(images[step]))
    assert again.figures()["jacobian_error"] == pytest.approx(np.mean(errors), rel=1e-12)
    assert again.figures()["jacobian_error"] == 0.0
    assert min(errors) > 0
