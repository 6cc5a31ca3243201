"""The controllers of λ: against references written out, in closed form, in a step, in a run."""

import math

import numpy as np
import pytest
from support.trainers import (
    BATCH,
    host,
    images_of,
    make_trainer,
    run_training,
    small_config,
    take_steps,
)

from snfnp.context import BackwardContext, Slice
from snfnp.errors import UsageError
from snfnp.ops.step.definition import Controller, Row
from snfnp.training.batches import Repeated
from snfnp.training.options import TrainConfig
from snfnp.training.runs.load import load_run


def controller(**changes):
    defaults = {"relative": False, "tolerance": 0.3, "rate": 0.1, "highest": 5.0, "lowest": 1e-3}
    return Controller(**{**defaults, "smoothing": 0.9, **changes})


def put(ops, own, lam, layers):
    return ops.asarray(own.new_state(layers, lam))


def geco(constraints, lam, own):
    """Rezende & Viola 2018, algorithm 1, lines 7 to 11: Ĉ of C − κ, started at its first value."""
    average, found = None, []
    for c in constraints:
        e = c - own.tolerance
        average = e if average is None else own.smoothing * average + (1 - own.smoothing) * e
        lam = min(max(lam * math.exp(own.rate * average), own.lowest), own.highest)
        found.append(lam)
    return found


STEPS, LAYERS, SAMPLES = 60, 3, 7


def run_control(ops, own, found, lam=0.9):
    """λ after each step (steps, L), and what the steps returned."""
    state, lams, totals = put(ops, own, lam, found.shape[1]), [], []
    for each in found:
        each = ops.asarray(each)
        results = ops.step.control(each, SAMPLES, own, 1.0, 0.0, out=state)
        totals.append([float(ops.to_host(result)) for result in results])
        lams.append(ops.to_host(state)[Row.LAM].copy())
    return np.array(lams), np.array(totals), ops.to_host(state)


@pytest.mark.parametrize("relative", [False, True])
def test_the_formulas_over_many_steps(ops, relative):
    rng = np.random.default_rng(3)
    errors = rng.uniform(0, 0.8, (STEPS, LAYERS)) * np.linspace(1.6, 0.2, STEPS)[:, None]
    inputs = rng.uniform(0.5, 2.0, (STEPS, LAYERS)) * SAMPLES
    own = controller(relative=relative)
    found = np.stack([errors, inputs], axis=2)
    lams, totals, state = run_control(ops, own, found)
    constraints = errors * SAMPLES / inputs if relative else errors
    expected = np.stack([geco(c, 0.9, own) for c in constraints.T], axis=1)
    np.testing.assert_allclose(lams, expected, rtol=1e-12)
    assert len(np.unique(expected)) > STEPS / 2  # most steps are between the bounds
    used = np.vstack([np.full((1, expected.shape[1]), 0.9), expected[:-1]])
    np.testing.assert_allclose(totals[:, 0], errors.sum(axis=1), rtol=1e-12)
    weighted = (used * errors).sum(axis=1)
    np.testing.assert_allclose(totals[:, 1] * totals[:, 0], weighted, rtol=1e-12)
    np.testing.assert_allclose(state[Row.CONSTRAINT_SUM], constraints.sum(axis=0), rtol=1e-12)
    assert (state[Row.COUNTED] == STEPS).all()


def test_bounds_are_kept(ops):
    for size, bound in ((1e300, 5.0), (0.0, 1e-3)):
        found = np.full((200, 1, 2), size)
        own = controller(rate=100.0)
        lams, _, state = run_control(ops, own, found)
        assert lams[-1] == bound and np.isfinite(state).all()


@pytest.mark.parametrize("what", ["error", "inputs", "squares", "failed"])
def test_what_is_not_finite_moves_nothing(ops, what):
    """Neither λ nor an average. Beside it, a layer whose C is finite goes on."""
    own = controller(relative=what == "inputs")
    state = put(ops, own, 0.9, 2)
    found = np.ones((2, 2))
    ops.step.control(ops.asarray(found), SAMPLES, own, 1.0, 0.0, out=state)
    before = ops.to_host(state).copy()
    if what in ("error", "inputs"):
        found[0, 0 if what == "error" else 1] = math.nan if what == "error" else 0.0
    squares = math.inf if what == "squares" else 1.0
    failed = 3.0 if what == "failed" else 0.0
    ops.step.control(ops.asarray(found), SAMPLES, own, squares, failed, out=state)
    after = ops.to_host(state)
    np.testing.assert_array_equal(after[:, 0], before[:, 0])
    moved = what in ("error", "inputs")
    assert (after[Row.COUNTED, 1] == before[Row.COUNTED, 1] + 1) == moved


def rows(trainer):
    return trainer.ops.to_host(trainer.multipliers.values)


FAST = {"lambda_rate": 20.0}


def test_a_lambda_that_cannot_move_is_a_fixed_one(ops):
    """Bit for bit, in single precision too."""
    for dtype in ("float32", "float64"):
        held = {"lambda_control": "geco", "lam": 0.7, "lambda_min": 0.7, "lambda_max": 0.7}
        controlled = take_steps(make_trainer(ops, dtype=dtype, **held), range(3))
        fixed = take_steps(make_trainer(ops, dtype=dtype, lam=0.7), range(3))
        np.testing.assert_array_equal(controlled.p, fixed.p)
        a, b = vars(controlled.metrics()).values(), vars(fixed.metrics()).values()
        np.testing.assert_allclose(list(a), list(b), rtol=1e-14)


@pytest.mark.parametrize("model", ["fc", "conv", "glow-2l-4k"])
@pytest.mark.parametrize("constraint", ["relative", "absolute"])
def test_a_step_sees_each_layers_constraint(ops, model, constraint):
    """E and ‖h‖² from the layers themselves, one by one."""
    changes = {"lambda_control": "geco", "constraint": constraint, "tolerance": 1e-3}
    trainer = make_trainer(ops, model, dtype="float64", **changes)
    trainer.begin(Repeated(images_of(trainer, 0)))
    images, params = images_of(trainer, 0), trainer.layout.views(host(trainer, "p").copy())
    trainer.training_step(Repeated(images))
    x, _ = trainer.encode(images, 0, Slice(0, BATCH, BATCH))
    expected = []
    for name, layer in trainer.flow.layers:
        z = layer.forward(ops, params[name], x)[0]
        if layer.learns_inverse:
            error = np.sum((layer.inverse(ops, params[name], z) - x) ** 2) / BATCH
            size = np.sum(x**2) / BATCH if constraint == "relative" else 1.0
            expected.append(error / size)
        x = z
    np.testing.assert_allclose(rows(trainer)[Row.CONSTRAINT], expected, rtol=1e-8, atol=1e-25)


def test_a_step_uses_the_lambdas_that_the_step_before_left(ops):
    """The next gradient is that of these λ given by hand, and not of those that follow."""
    changes = {"lambda_control": "geco", "tolerance": 1e-6, **FAST}
    trainer = take_steps(make_trainer(ops, dtype="float64", **changes), range(2))
    lams, p = trainer.multipliers.lam, host(trainer, "p").copy()
    assert len(set(lams.values())) == len(lams)
    trainer.training_step(Repeated(images_of(trainer, 2)))
    found = trainer.gradient.copy()
    assert trainer.multipliers.lam != lams
    for given, same in ((lams, True), (trainer.multipliers.lam, False)):
        by_hand = make_trainer(ops, dtype="float64")
        by_hand.p[...] = p
        params, flow = by_hand.params, by_hand.flow
        x, _ = trainer.encode(images_of(trainer, 2), 2, Slice(0, BATCH, BATCH))
        latents, _, caches = flow.forward(ops, params, x)
        ctx, factors = BackwardContext.of(ops, np.full(BATCH, 1 / BATCH)), {}
        for layer, lam in given.items():
            factors[layer] = -2 * lam / BATCH
        deltas = flow.latent_gradients(latents)
        flow.backward(ctx, params, caches, deltas, by_hand.grads, factors)
        assert (np.abs(by_hand.gradient - found).max() <= 1e-12) == same


def test_the_surrogate_has_every_layers_lambda(ops):
    changes = {"lambda_control": "geco", "tolerance": 1e-6, **FAST}
    trainer = take_steps(make_trainer(ops, dtype="float64", **changes), range(3))
    used = np.array(list(trainer.multipliers.lam.values()))
    trainer.training_step(Repeated(images_of(trainer, 3)))
    metrics, errors = trainer.metrics(), trainer.multipliers.sums[::2]
    density = trainer.log.array[7]
    assert metrics.reconstruction == pytest.approx(errors.sum(), rel=1e-12)
    assert metrics.surrogate == pytest.approx(density - (used * errors).sum(), rel=1e-12)


def test_a_run_has_lambda_and_constraint_in_its_metrics(tmp_path):

    make = {"lambda_control": "geco", "tolerance": 1e-5, **FAST}
    whole, _ = run_training(tmp_path / "whole", **make)
    records = whole.read_metrics()
    for record in records:
        for name in ("lam", "constraint"):
            assert record[f"{name}_min"] <= record[name] <= record[f"{name}_max"]
    loaded = load_run(whole.path, "last")
    assert np.mean(list(loaded.lam.values())) == pytest.approx(records[-1]["lam"], rel=1e-12)


def test_a_resumed_runs_lambda_is_the_controllers(tmp_path):
    config = small_config(lambda_control="geco")
    with pytest.raises(UsageError, match="its λ is in the checkpoint; leave `lam` out"):
        config.resumed({"lam": 3.0}, tmp_path)
    assert config.resumed({"lam": 1.0}, tmp_path) == config
    with pytest.raises(UsageError, match="lambda_control = geco: it cannot be resumed with fixed"):
        config.resumed({"lambda_control": "fixed"}, tmp_path)
    assert small_config().resumed({"lam": 3.0}, tmp_path).lam == 3.0


def test_defaults_follow_where_lambda_starts():
    """ln λ starts to move by C − κ a step, whatever λ is."""
    for model in ("fc", "glow"):
        assert TrainConfig(model=model, lambda_control="geco").resolve(1000).lambda_rate == 1.0
