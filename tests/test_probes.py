"""Rules that look along random directions: Eq. 31, and flip(R) ⊙ m by probes.

With all 2^D sign vectors for probes Σ ννᵀ/n is the identity: what holds in expectation then holds
to rounding, and it knows nothing of the rules' own formulas.
"""

from __future__ import annotations

import itertools
from functools import partial

import numpy as np
import pytest
from support.trainers import make_trainer, run_training, small_config

from snfnp.beyond import probes as module
from snfnp.beyond.chain import Chain
from snfnp.beyond.inverse_updates import LeastSquares, Projection
from snfnp.beyond.probes import JacobianPenalty, Probe
from snfnp.context import BackwardContext, layer_key
from snfnp.diagnostics import gradient_angles
from snfnp.errors import UsageError
from snfnp.gradcheck import GradientError, as_matrix, check_gradient
from snfnp.layers import Linear
from snfnp.maps import Conv2d, Dense
from snfnp.models import PRESETS, make_rule
from snfnp.ops import RandomKey, get_ops
from snfnp.rules import Relative, SelfNormalizing
from snfnp.training.options import TrainConfig
from snfnp.training.runs.load import load_run

N, MU, LAM = 3, 0.6, 0.7
KEY = RandomKey(5, 0, 3)
DENSE = ((4,), Dense(4), None)
CONV = ((2, 2, 1), Conv2d((3, 3), 1), None)
LARGER = ((2, 2, 1), Conv2d((3, 3), 1), Conv2d((5, 5), 1))
TWO = ((2, 2, 1), Conv2d((3, 3), 1), Chain(Conv2d((3, 3), 1), 2))
MAPS = {"dense": DENSE, "conv": CONV, "inverse 5x5": LARGER, "two convolutions": TWO}


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def all_signs(monkeypatch):
    """Every rule's probes become all sign vectors of four values."""

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


# ---------------------------------------------------------------- Eq. 31


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


# ---------------------------------------------------------------- flip(R) ⊙ m by probes


@pytest.mark.parametrize("objective", ["mixture", "forward"])
@pytest.mark.parametrize("which", ["dense", "conv", "inverse 5x5"])
def test_the_expectation_of_probes_is_the_self_normalizing_gradient(
    ops, rng, all_signs, which, objective
):
    layer = layer_of(which, Probe(objective, 16))
    p, x, dz = point(layer, MAPS[which][0], rng)
    dx, found, measured = backward(ops, layer, p, x, dz)
    layer = layer_of(which, SelfNormalizing(objective))
    plain_dx, plain, plain_measured = backward(ops, layer, p, x, dz)
    assert measured.error == pytest.approx(plain_measured.error, rel=1e-12)
    np.testing.assert_allclose(dx, plain_dx, rtol=0, atol=1e-13)
    for name in p:
        np.testing.assert_allclose(found[name], plain[name], rtol=0, atol=1e-12)


def drawn(ops, count, steps, rng):
    """The likelihood's gradients of W by `count` probes, in so many steps, and without probes."""
    layer = layer_of("dense", Probe("forward", count))
    p, x, _ = point(layer, (4,), rng)
    still = np.zeros_like(x)
    found = [
        backward(ops, layer, p, x, still, lam=0.0, key=RandomKey(5, 0, step))[1]["W"]
        for step in range(steps)
    ]
    exact = backward(ops, layer_of("dense", SelfNormalizing("forward")), p, x, still, lam=0.0)
    return np.array(found), exact[1]["W"], 1.2 * p["R"]  # 1.2: the weight of three samples


@pytest.mark.parametrize("count", [1, 4])
def test_bias_and_variance(rng, count):
    """Unbiased; and Var of an entry of v R̂ᵀ, R̂ = Rννᵀ, is v² (‖R_j‖² − R_ji²)/n for signs."""
    steps = 4000
    found, exact, scaled = drawn(get_ops("numpy"), count, steps, rng)
    variance = (np.sum(scaled**2, axis=1, keepdims=True) - scaled**2).T / count
    np.testing.assert_allclose(exact, scaled.T, rtol=0, atol=1e-14)
    # five standard errors of sixteen means, and of the mean of sixteen variances
    assert (np.abs(found.mean(axis=0) - exact) <= 5 * np.sqrt(variance / steps)).all()
    ratio = found.var(axis=0).mean() / variance.mean()
    assert abs(ratio - 1) < 0.1


# ---------------------------------------------------------------- products, numbers, memory


@pytest.mark.parametrize(
    "rule, products",
    [(SelfNormalizing(), 5), (JacobianPenalty(), 6), (Probe(), 5), (Probe("forward", 3), 5)],
    ids=str,
)
def test_probes_are_merged_into_the_products_that_there_are(monkeypatch, rng, rule, products):
    """Of a backward pass: only T(W)ν of Eq. 31 finds none, T(W)x was made in the forward pass."""
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
    rule = make_rule("self-normalizing", "forward", "plain", jvp_probes=8)
    assert rule == SelfNormalizing("forward")
    assert small_config(jvp_weight=0.2).rule == JacobianPenalty("mixture", 0.2, 4)
    assert small_config(gradient="probe", probes=3, objective="forward").rule == Probe("forward", 3)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"jvp_weight": -1.0}, "--jvp-weight is -1.0: it must be 0 or more"),
        ({"jvp_weight": float("nan")}, "--jvp-weight is nan: it must be 0 or more"),
        ({"jvp_weight": float("inf")}, "--jvp-weight is inf: it must be 0 or more and finite"),
        ({"jvp_weight": 0.2, "jvp_probes": 0}, "--jvp-probes is 0: it must be at least 1"),
        ({"jvp_probes": 2}, "--jvp-probes only has an effect with a positive --jvp-weight"),
        ({"jvp_weight": 0.2, "gradient": "exact"}, "only has an effect with --gradient self-norm"),
        ({"jvp_weight": 0.2, "gradient": "probe"}, "only has an effect with --gradient self-norm"),
        ({"jvp_weight": 0.2, "inverse_update": "projection"}, "--jvp-weight .*--inverse-update g"),
        ({"gradient": "probe", "inverse_update": "projection"}, "--inverse-update .*self-norm"),
        ({"jvp_weight": 0.2, "objective": "variational"}, "--jvp-weight .*mixture or forward"),
        ({"gradient": "probe", "objective": "variational"}, "choose mixture or forward"),
        ({"gradient": "probe", "probes": 0}, "--probes is 0: it must be at least 1"),
        ({"probes": 2}, "--probes only has an effect with --gradient probe"),
        ({"gradient": "probe", "model": "emerging"}, "emerging cannot be trained with --gradient"),
        ({"gradient": "probe", "model": "conv", "inverse_depth": 2}, "--inverse-depth .*self-norm"),
    ],
    ids=str,
)
def test_what_has_no_effect_is_refused(changes, message):
    with pytest.raises(UsageError, match=message) as found:
        TrainConfig(**changes).resolve(1000)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    "wrong", [partial(JacobianPenalty, weight=-1), partial(Probe, probes=0), partial(Probe, "all")]
)
def test_a_rule_is_checked(wrong):
    with pytest.raises(UsageError):
        wrong()


def test_every_model_that_learns_its_inverse_takes_probes():
    for preset in PRESETS.values():
        assert ("probe" in preset.gradients) == ("self-normalizing" in preset.gradients)


@pytest.mark.parametrize(
    "make",
    [{"jvp_weight": 0.2, "lambda_control": "mdmm"}, {"gradient": "probe", "probes": 2}],
    ids=str,
)
def test_a_run_opened_again_has_its_rule(tmp_path, make):
    whole, _ = run_training(tmp_path / "whole", epochs=1, **make)
    records = whole.read_metrics()
    assert all(("jacobian_error" in record) == ("jvp_weight" in make) for record in records)
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
            trainer.lam_figures()
            trainer.training_step(images[each])
        errors.append(trainer.lam_figures()["jacobian_error"])
    trainer, again = make(), make()
    for step in range(2):
        trainer.training_step(images[step])
    again.restore(trainer.checkpoint({}))
    for step in (2, 3):
        again.training_step(images[step])
    assert again.lam_figures()["jacobian_error"] == pytest.approx(np.mean(errors), rel=1e-12)
    assert again.lam_figures()["jacobian_error"] == 0.0
    assert min(errors) > 0


CONV = Conv2d((3, 3), 2)


@pytest.mark.parametrize(
    "rule, maps, problem",
    [
        (Probe(), (CONV, Chain(CONV, 2)), "probes need an inverse of one layer"),
        (Relative(), (CONV, None), "the relative gradient needs a dense layer"),
        (LeastSquares(), (CONV, Chain(CONV, 2)), "a least-squares inverse needs single conv"),
        (Projection(), (CONV, None), "a projected inverse needs a dense layer"),
    ],
)
def test_a_layer_refuses_maps_that_its_rule_is_not_for(rule, maps, problem):
    """In Python as on the command line, and not in its first backward pass."""
    with pytest.raises(UsageError, match=f"^{problem}"):
        Linear(maps[0], rule, inverse_map=maps[1])
