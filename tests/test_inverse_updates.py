"""R found without a gradient: projected, or by least squares."""

import numpy as np
import pytest
from support.explicit import convolution_matrix
from support.gradients import moved
from support.trainers import gradient_of, host, make_trainer, small_config, take_steps

from snfnp.beyond.inverse_updates import LeastSquares, Projection
from snfnp.context import BackwardContext, Measured, layer_key
from snfnp.errors import DivergedError, UsageError
from snfnp.gradcheck import check_layer
from snfnp.layers import Linear
from snfnp.maps import Conv2d, Dense
from snfnp.ops import RandomKey, get_ops
from snfnp.rules import Exact, SelfNormalizing
from snfnp.training.options import TrainConfig
from snfnp.training.runs.checkpoint import load_checkpoint, save_checkpoint
from snfnp.training.step import cut

ROWS = 4
NOISE = 0.15
RNG = np.random.default_rng
KEY = RandomKey(5, 0, 3)
RECIPE = {"recipe": "least-squares"}
RUNS = pytest.mark.parametrize("model", ["fc", "conv", "glow-2l-4k"])


class Step:
    """One backward pass of a linear layer at a random point, in double precision."""

    def __init__(self, ops, layer, shape, params=None, volume=1.0, rows=ROWS):
        self.layer, self.shape = layer, shape
        self.p = params or moved(layer.init(RNG(1), shape), RNG(1), NOISE)
        rng = RNG(2)
        self.x = rng.standard_normal((rows, *shape))
        self.dz = rng.standard_normal((rows, *layer.output_shape(shape)))
        self.volume = volume
        ctx = BackwardContext.of(ops, np.full(rows, volume / rows), key=layer_key(KEY, 2))
        self.key = ctx.key
        _, _, cache = layer.forward(ops, self.p, self.x)
        self.grads = {name: np.full_like(value, np.nan) for name, value in self.p.items()}
        result = layer.backward(ctx, self.p, cache, self.dz, self.grads)
        self.dx, measured = result if layer.learns_inverse else (result, Measured())
        self.grads |= measured.updates
        self.reconstruction = measured.error


def exact(step, ops):
    """The same layer's exact gradients at the same point."""
    params = {name: value for name, value in step.p.items() if name != "R"}
    layer = Linear(step.layer.map, Exact(), bias="b" in params)
    return Step(ops, layer, step.shape, params, step.volume).grads


def test_projection_is_the_nearest_matrix_that_takes_z_back_to_x(ops):
    step = Step(ops, Linear(Dense(7), Projection(ridge=1e-12)), (7,))
    r, z = step.p["R"], step.x @ step.p["W"].T
    np.testing.assert_allclose(z @ step.grads["R"].T, step.x, atol=1e-8)
    change = step.grads["R"] - r
    # the smallest change with that property: its rows are combinations of the batch's z
    error = step.x - z @ r.T
    np.testing.assert_allclose(change, error.T @ np.linalg.pinv(z.T), atol=1e-8)
    assert np.abs(change).max() > 0.01


# ---------------------------------------------------------------- least squares


@pytest.mark.parametrize("batch", [8, 24])  # fewer images than are logged, and more
def test_the_logged_error_is_that_of_the_batch_however_it_is_cut(batch):
    trainer = make_trainer(
        get_ops("numpy"), "conv", **RECIPE, inverse_kernel=3, dtype="float64", batch_size=batch
    )
    images = RNG(3).integers(0, 256, (batch, *trainer.flow.shape)).astype(np.uint8)
    trainer.initialise_from_data(images)
    for value in (named["R"] for named in trainer.params.values() if "R" in named):
        value *= 0.9  # an error, with a part in every image

    def logged(parts):
        total = 0.0
        for part in cut(batch, parts):
            gradient_of(trainer, images[part.first :][: part.count], part)
            total += trainer.log.read().last[1] * part.count / batch
        return total

    expected = logged(1)
    assert expected > 1e-3
    assert [logged(parts) for parts in (2, 3, 8)] == pytest.approx([expected] * 3, rel=1e-12)


def convolution(kernel, inverse_kernel, channels, rule):
    inverse = Conv2d(inverse_kernel, channels)
    return Linear(Conv2d(kernel, channels), rule, inverse_map=inverse)


def test_over_all_probes_the_mean_is_the_series(monkeypatch):
    """All 2⁸ images of ±1 at once: no error of sampling is left."""
    ops, shape = get_ops("numpy"), (2, 2, 2)
    everything = 1 - 2 * ((np.arange(256)[:, None] >> np.arange(8)) & 1).astype(float)
    signs = everything.reshape(256, *shape)
    monkeypatch.setattr(type(ops.random), "rademacher", lambda self, key, size, dtype: signs.copy())
    rule = LeastSquares(256, 40, tolerance=1.0)
    step = Step(ops, convolution((3, 3), (3, 3), 2, rule), shape)
    w = convolution_matrix(step.p["W"], shape)
    error = np.eye(8) - convolution_matrix(step.grads["R"], shape) @ w
    assert 1e-3 < np.linalg.norm(error, 2) < 0.7
    np.testing.assert_allclose(step.grads["W"], exact(step, ops)["W"], rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(
    "linear, shape, rule",
    [(Conv2d((1, 1), 3), (2, 3, 3), LeastSquares()), (Dense(5), (5,), Projection())],
    ids=str,
)
def test_at_the_inverse_the_gradient_is_the_exact_one(ops, linear, shape, rule):
    """Least squares comes there by itself; the others stay."""
    start = Step(ops, Linear(linear, rule), shape)
    inverse = np.linalg.inv(start.p["W"])
    params = start.p if isinstance(rule, LeastSquares) else {**start.p, "R": inverse}
    step = Step(ops, Linear(linear, rule), shape, params)
    np.testing.assert_allclose(step.grads["R"], inverse, rtol=1e-9, atol=1e-10)
    for name, gradient in exact(step, ops).items():
        np.testing.assert_allclose(step.grads[name], gradient, rtol=1e-9, atol=1e-10)
    beside = {**params, "R": 1.1 * inverse, "W": 1.001 * params["W"]}
    other = Step(ops, Linear(linear, rule), shape, beside).grads["W"]
    assert np.abs(other - step.grads["W"]).max() > 1e-4


# ---------------------------------------------------------------- parameters that are assigned


@RUNS
def test_the_optimiser_has_no_moments_of_what_rules_find(model):
    trainer = make_trainer(get_ops("numpy"), model, **RECIPE)
    found = sum(
        layer.rule.updates == ("R",) for layer, _ in trainer.flow.learned_inverses().values()
    )
    assert found > 1
    size = sum(e.stop - e.start for e in trainer.layout.entries if e.name == "R")
    layout = trainer.layout
    assert trainer.m.size == trainer.v.size == layout.split
    assert size <= layout.size - layout.split < size + 16 * found
    assert {e.name for e in layout.optimised.entries} & {"R"} == set()
    assert {e.name for e in layout.updated.entries} == {"R"}


@RUNS
def test_a_step_assigns_and_the_norm_is_of_the_rest(model):
    trainer = take_steps(make_trainer(get_ops("numpy"), model, dtype="float64", **RECIPE), range(2))
    for name in trainer.flow.learned_inverses():
        assert "R" not in trainer.grads[name]
        np.testing.assert_array_equal(trainer.params[name]["R"], trainer.updates[name]["R"])
    optimised = trainer.gradient[: trainer.layout.split]
    assert trainer.metrics().gradient_norm == pytest.approx(np.linalg.norm(optimised), rel=1e-12)


@RUNS
def test_a_run_stopped_in_an_epoch_goes_on_bit_for_bit(tmp_path, model):
    ops = get_ops("numba")
    whole = take_steps(make_trainer(ops, model, **RECIPE), range(5))
    part = take_steps(make_trainer(ops, model, **RECIPE), range(3))
    path = tmp_path / "part.safetensors"
    save_checkpoint(path, part.checkpoint({}))
    again = make_trainer(ops, model, **RECIPE)
    again.restore(load_checkpoint(path, again.layout))
    take_steps(again, range(3, 5))
    for name in ("p", "m", "v"):
        np.testing.assert_array_equal(host(again, name), host(whole, name))


@pytest.mark.parametrize("model, layer", [("fc", "dense2"), ("conv", "conv3.3")])
def test_an_r_that_is_not_finite_stops_the_run_and_names_the_layer(model, layer):
    trainer = make_trainer(get_ops("numpy"), model, dtype="float64", **RECIPE)
    take_steps(trainer, range(1))
    before = trainer.p.copy()
    backward = trainer.flow.backward

    def spoiled(*arguments):
        dx, measured = backward(*arguments)
        measured[layer].updates["R"].reshape(-1)[3] = np.nan  # W's gradient is not spoiled with it
        return dx, measured

    object.__setattr__(trainer.flow, "backward", spoiled)
    with pytest.raises(DivergedError, match=f"step 2: the gradient of {layer}.R is not finite"):
        take_steps(trainer, range(1, 2))
    np.testing.assert_array_equal(trainer.p, before)


@pytest.mark.parametrize("model", ["fc", "conv"])
def test_a_failed_step_assigns_nothing(model):
    trainer = make_trainer(get_ops("numpy"), model, dtype="float64", **RECIPE)
    take_steps(trainer, range(1))
    before = host(trainer, "p").copy()
    first = trainer.layout.entries[0]
    assigned = trainer.p[trainer.layout.split :].copy()
    trainer.p[first.start] = np.nan
    with pytest.raises(DivergedError):
        take_steps(trainer, range(1, 2))
    np.testing.assert_array_equal(trainer.p[trainer.layout.split :], assigned)
    np.testing.assert_array_equal(trainer.p[1:], before[1:])


def test_check_layer_says_what_it_cannot_check():
    with pytest.raises(UsageError, match="R of this layer has no gradient, its rule finds it"):
        check_layer(Linear(Dense(3), Projection()), (3,))


# ---------------------------------------------------------------- options


def test_the_recipe_fills_in_what_was_not_given():
    filled = {model: small_config(model=model, **RECIPE) for model in ("fc", "conv", "glow-2l-4k")}
    chosen = {
        model: (config.inverse_update, config.inverse_kernel, config.bias_init, config.lam)
        for model, config in filled.items()
    }
    assert chosen == {
        "fc": ("projection", None, "data", 0.0),
        "conv": ("least-squares", 5, "data", 0.0),
        "glow-2l-4k": ("least-squares", None, "zero", 0.0),
    }
    assert small_config(model="conv", **RECIPE, inverse_kernel=3).inverse_kernel == 3
    paper = small_config(model="conv")
    papers = (paper.inverse_update, paper.inverse_kernel, paper.bias_init)
    assert papers == ("gradient", None, "zero")
    assert TrainConfig.from_dict(filled["conv"].as_dict()) == filled["conv"]


def test_the_forward_objective_has_a_lambda_of_its_own():
    lam = {m: small_config(model=m, objective="forward").lam for m in ("fc", "conv", "glow-2l-4k")}
    assert lam == {"fc": 0.1, "conv": 1.0, "glow-2l-4k": 100.0}
    assert small_config(objective="forward", lam=0.3).lam == 0.3


@pytest.mark.parametrize(
    "options, message",
    [
        ({"lam": 0.5, **RECIPE}, "--lambda only has an effect with --inverse-update gradient"),
        ({"objective": "forward", **RECIPE}, "--objective only has an effect with --inverse-up"),
        ({"lambda_control": "geco", "inverse_update": "projection"}, "--lambda-control only has"),
        ({"model": "conv", "inverse_depth": 2, **RECIPE}, "--inverse-depth only has an effect"),
        ({"inverse_update": "projection", "model": "conv"}, "choose gradient or least-squares"),
        ({"inverse_update": "least-squares"}, "choose gradient or projection"),
        ({"gradient": "exact", "inverse_update": "projection"}, "--inverse-update only has"),
    ],
)
def test_what_does_not_go_together_is_refused_in_one_line(options, message):
    with pytest.raises(UsageError, match=message) as refused:
        small_config(**options)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "linear, rule, message",
    [(Conv2d((1, 1), 2), Projection(), "a dense layer"), (Dense(3), LeastSquares(), "single conv")],
)
def test_a_rule_refuses_maps_that_it_is_not_for(linear, rule, message):
    with pytest.raises(UsageError, match=message):
        Linear(linear, rule)
    Linear(linear, SelfNormalizing())
