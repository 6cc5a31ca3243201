"""White coordinates: whitening layers, and Adam on V with W = U V."""

import math
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from numpy import linalg
from numpy.random import default_rng
from numpy.testing import assert_allclose, assert_array_equal
from support.arrays import assert_near, cast, orthogonal
from support.messages import one_line
from support.trainers import (
    BATCH,
    Given,
    ReferenceAdam,
    batches_of,
    gradient_of,
    images_of,
    make_trainer,
    take_steps,
)

import snfnp
from snfnp.context import BackwardContext
from snfnp.errors import DivergedError, UsageError
from snfnp.flow import Flow
from snfnp.layers import ActNorm, Linear, Whiten
from snfnp.layers.whiten import _shrunk
from snfnp.likelihood import WHITENING_NOISE
from snfnp.maps import Dense, Map
from snfnp.models import PRESETS
from snfnp.ops import RandomKey, get_ops
from snfnp.rules import Exact
from snfnp.step import coordinates
from snfnp.step.batches import Repeated
from snfnp.step.coordinates import change_coordinates, kernel_inputs, whitening
from snfnp.training.options import TrainConfig

OPS = get_ops("numpy")
MODELS = {  # its kernels with a U, per layer: small models of 8×8 images
    "conv": [("conv", "W"), ("conv", "R")],
    "emerging": [("mix", "W"), ("causal", "W"), ("anticausal", "W")],
    "conv-exponential": [("mix", "W"), ("exp", "W")],
    "glow": [("mix", "W"), ("mix", "R"), ("coupling", "w1"), ("split", "w1")],
}
D = 12
WHITE = {"model": "fc", "coordinates": "white", "dtype": "float64"}


def trainer_of(model, chosen="white", **changes):
    changes |= {"dtype": "float64", "warmup_epochs": 0, "coordinates": chosen}
    found = make_trainer(OPS, model, **changes)
    found.begin(Repeated(images_of(found, 0)))
    return found


def matrices(trainer):
    """{(layer, kernel): U} of a trainer."""
    u = trainer.coordinates.values
    found = {key: u[part] for key, part in trainer.coordinates._slices.items()}
    return {
        key: a.reshape((round(a.size**0.5),) * 2).copy() for key, a in found.items()
    }


def flat(views):
    return {
        (layer, name): a for layer, named in views.items() for name, a in named.items()
    }


def turned(arrays, u, by):
    """Arrays by (layer, name), kernels as matrices multiplied by what `by` makes of their U."""
    return {
        key: (by(u[key]) @ a.reshape(len(u[key]), -1)).reshape(a.shape)
        if key in u
        else a.copy()
        for key, a in arrays.items()
    }


def adam_in_v(model, entering=True, leaving=True):
    """Parameters after steps of Adam on V = U⁻¹ W and on what has no U, from gradients at W = U V.

    Wrong without `entering`, the gradient of W as it is, or `leaving`, a step of W as it is.
    """
    white = trainer_of(model)
    plain = trainer_of(model, "plain")
    white.renew(Given(partial(images_of, white)))
    u = matrices(white)
    lr = plain.config.lr
    own = turned(flat(plain.params), u, linalg.inv)
    adam = {key: ReferenceAdam() for key in own}
    for t in range(2):
        plain.scalars.set(t, lr)
        gradient_of(plain, images_of(plain, t))
        g = turned(flat(plain.grads), u, lambda u: u.T if entering else np.eye(len(u)))
        step = {key: lr * adam[key].direction(g[key]) for key in own}
        for key, s in (step if leaving else turned(step, u, linalg.inv)).items():
            own[key] += s
        for key, value in turned(own, u, lambda u: u).items():
            flat(plain.params)[key][...] = value
    return plain.p


@pytest.mark.parametrize("model", MODELS)
def test_it_is_adam_in_v(model):
    """To rounding, which Adam's division by the size of small gradients makes larger."""
    found = take_steps(trainer_of(model), range(2))
    assert np.abs(found.p - adam_in_v(model)).max() / found.config.lr < 1e-8
    for wrong in ({"entering": False}, {"leaving": False}):
        assert np.abs(found.p - adam_in_v(model, **wrong)).max() / found.config.lr > 0.5


@pytest.mark.parametrize("model", MODELS)
def test_u_is_made_of_the_rows_that_a_kernel_multiplies(model):
    """On fewer rows than a kernel has inputs, its gradient is a combination of them."""
    trainer = trainer_of(model)
    kernels = set()
    rng = default_rng(0)
    for place, (name, layer) in enumerate(trainer.flow.layers):
        p = {
            k: a + 0.1 * rng.standard_normal(a.shape)
            for k, a in trainer.params[name].items()
        }
        if "exp" in name:
            p["W"][...] = 0  # of the series z = x + K x + …, its second term alone
        channels = [*trainer.flow.with_shapes()][place][2][-1]
        x = rng.standard_normal((1, 1, 3, channels))
        for kernel, images in kernel_inputs(layer).items():
            kernels.add((name.split("_")[-1].rstrip("0123456789."), kernel))
            z, _, cache = layer.forward(OPS, p, x)
            delta = rng.standard_normal(z.shape)
            grads = {key: np.zeros_like(value) for key, value in p.items()}
            context = BackwardContext.of(OPS, np.zeros(1), lam=0.3)
            layer.backward(context, p, cache, delta, grads)
            *taps, outputs = p[kernel].shape
            # a causal kernel's last sees all
            by_output = grads[kernel].reshape(-1, outputs).T
            gradient = (
                by_output[-1] if "causal" in name else max(by_output, key=linalg.norm)
            )
            rows = OPS.conv.patches(images(cache), taps[:2])
            if rows.any(axis=0).sum() <= 3:
                continue
            for seen, right in ((rows, True), (rows[:, ::-1], False)):
                rest = gradient - seen.T @ linalg.lstsq(seen.T, gradient, rcond=None)[0]
                relative = np.abs(rest).max() / np.abs(gradient).max()
                assert relative < 1e-12 if right else relative > 1e-3, (name, kernel)
    assert kernels == set(MODELS[model])


def test_u_whitens_the_rows_of_a_batch():
    trainer = trainer_of("conv")
    images = images_of(trainer, 0)
    before = trainer.p.copy()
    x, _ = trainer.encode(images, 0)
    padded = np.pad(x[..., 0], ((0, 0), (1, 1), (1, 1)))
    rows = np.lib.stride_tricks.sliding_window_view(
        padded, (3, 3), axis=(1, 2)
    ).reshape(-1, 9)
    trainer.renew(Repeated(images))
    u = matrices(trainer)["conv1.1", "W"]
    assert_allclose(u, whitening(rows.T @ rows / len(rows)), rtol=1e-9, atol=1e-9)
    assert_array_equal(trainer.p, before)


def test_whitening_is_the_inverse_square_root_of_second_moments():
    """U M U = m I for eigenvalues above the floor; and of moments that have no root."""
    basis = orthogonal(default_rng(0), 4)
    for values, expected in (
        ([0.5, 2.0, 3.0, 10.5], [4.0, 4.0, 4.0, 4.0]),
        (
            [0.0, 0.0, 1e-5, 4 - 1e-5],
            [0.0, 0.0, 1e-5 / 1e-2, 1.0],
        ),  # a constant, and its noise
    ):
        second = (basis * values) @ basis.T
        u = whitening(second)
        assert_allclose(u, u.T, rtol=1e-12, atol=1e-12)
        assert_allclose(u @ second @ u, (basis * expected) @ basis.T, atol=1e-9)
    for nothing in (np.zeros((3, 3)), np.full((3, 3), np.nan)):
        assert_array_equal(whitening(nothing), np.eye(3))


@pytest.mark.parametrize("model", PRESETS)
def test_the_recipe_sets_what_is_not_given(model):
    def chosen(**options):
        config = TrainConfig(model=model, recipe="white", epochs=9, **options).resolve(
            60_000
        )
        return {name: getattr(config, name) for name in (*sets, "objective", *given)}

    given = {
        "lr": 0.1,
        "coordinates": "plain",
        "lr_schedule": "constant",
        "warmup_epochs": 2.5,
    }
    preset = PRESETS[model]
    sets = {
        "bias_init": "zero",
        "lr": preset.lr,
        "clip_norm": preset.clip_norm,
    } | preset.white
    white = {"lr_schedule": "cosine", "warmup_epochs": 1}
    exact = sets | ({} if preset.clip_exact else {"clip_norm": None})
    if model == "vector":  # its own layers whiten, and its recipe is an objective alone
        del given["coordinates"]
        with one_line(UsageError, "recipe"):
            chosen(gradient="exact")
    else:
        white["coordinates"] = "white"
        assert chosen(gradient="exact") == exact
    assert chosen() == sets == sets | white
    for name, value in given.items():
        assert chosen(**{name: value}) == sets | {name: value}


def test_a_flow_of_ones_own_is_whitened_by_its_layers():
    flow = Flow((64,), (("white", Whiten(64)), ("dense", Linear(Dense(64)))))
    trainer = take_steps(make_trainer(OPS, flow=flow), [0])
    assert trainer.params["white"]["b"].all() and not trainer.coordinates


DENSE = Linear(Dense(4))
UNBIASED = Linear(Dense(4), bias=False)
OF_ROWS = {
    "weight_shape": (4,),
    "output_shape": lambda self, shape: shape,
    "identity": lambda self: np.ones(4),
}
SCALE = type("Scale", (Map,), OF_ROWS)()
OWN = {
    "neither convolutions nor Whiten layers: leave it out": (DENSE,),
    "Whiten layer b is renewed: it needs a dense": (DENSE, Whiten(4, renewed=True)),
    "b is renewed: .* with a bias behind it": (
        DENSE,
        Whiten(4, renewed=True),
        UNBIASED,
    ),
    "b is renewed: it needs a dense Linear": (
        DENSE,
        Whiten(4, renewed=True),
        Linear(SCALE, Exact()),
    ),
}


@pytest.mark.parametrize("message", OWN)
def test_a_flow_of_ones_own_that_has_no_such_coordinates_is_refused(message):
    flow = Flow((4,), tuple(zip("abc", OWN[message], strict=False)))
    with one_line(UsageError, match=message):
        make_trainer(OPS, flow=flow, coordinates="white")


def correlated(rows=400):
    """Rows of variances from 1/400 to 9, turned, with a mean."""
    rng = default_rng(3)
    turn = orthogonal(rng, D)
    return 5 + rng.standard_normal((rows, D)) * np.geomspace(0.05, 3, D) @ turn


def numbers_of(x):
    return Whiten(D).from_sums(len(x), x.sum(axis=0), x.T @ x)


def test_the_root_its_inverse_and_its_determinant_have_their_closed_forms():
    """C is a difference of mean squares, 300 in all, that are 1e5 times its least eigenvalue."""
    x = correlated()
    layer = Whiten(D)
    p = numbers_of(x)
    values, vectors = linalg.eigh(np.cov(x.T, bias=True))
    assert_array_equal(p["U"], p["U"].T)
    z, ldj, _ = layer.forward(OPS, p, x)
    assert ldj == 0
    assert abs(layer.log_det(OPS, p, (D,)) + np.log(values).sum() / 2) < 1e-10
    assert_allclose(layer.inverse(OPS, p, z), x, atol=1e-11)
    root = (vectors * values**0.5) @ vectors.T
    assert_allclose(layer.inverse(OPS, p, np.eye(D) + p["b"]), root.T, atol=1e-11)
    assert_allclose(z.mean(axis=0), 0, atol=1e-11)
    assert_allclose(np.cov(z.T, bias=True), np.eye(D), atol=1e-10)


def test_scaled_coordinates_take_the_variances_alone():
    """The covariance of scaled rows is their correlation; of a kernel's rows, U⁻² is the second
    moments' diagonal, which white coordinates have with the rest."""
    x = correlated(D)
    layer = Whiten(D, diagonal=True)
    z = layer.forward(OPS, layer.from_sums(len(x), x.sum(axis=0), x.T @ x), x)[0]
    assert_allclose(np.cov(z.T, bias=True), np.corrcoef(x.T), atol=1e-10)
    u = {}
    for chosen in ("scaled", "white"):
        trainer = trainer_of("conv", chosen)
        trainer.renew(Given(partial(images_of, trainer)))
        u[chosen] = matrices(trainer)
    for key, scaled in u["scaled"].items():
        moments = linalg.matrix_power(u["white"][key], -2)
        # but for eigenvalues that the floor, 0.01, raises
        assert_allclose(np.diag(scaled) ** -2.0, np.diag(moments), rtol=0, atol=0.01)
        assert np.count_nonzero(scaled) == len(scaled)
    flow = TrainConfig(model="fc", coordinates="scaled").filled().build_flow((4, 4, 1))
    assert {
        layer.diagonal for _, layer in flow.layers if isinstance(layer, Whiten)
    } == {True}


@pytest.mark.parametrize("mean", [1e6, 1e8])
def test_a_large_mean_hides_no_covariance(mean):
    """The rounding of the rows remains: 1e-8 of their spread. (All are outside of the splines.)"""
    how = {"preprocess": "none", "epochs": 1, "dtype": "float64", "backend": "numpy"}
    near, far = (
        snfnp.fit(correlated() + shift, report=None, **how).params["whiten"]
        for shift in (99, mean)
    )
    assert_near(far["U"], near["U"], 1e-6 * np.abs(near["U"]).max())
    assert not np.array_equal(far["U"], near["U"])
    assert_allclose(far["b"], near["b"] - near["U"] @ np.full(D, mean - 99), rtol=1e-5)


def test_a_direction_without_variance_gets_the_smallest_variance_allowed():
    """A constant feature, and one that another determines: what they come to is bounded."""
    x = correlated()
    x[:, 0], x[:, 1] = 7.0, 2 * x[:, 2]
    u = numbers_of(x)["U"]
    mean = linalg.eigvalsh(np.cov(x.T, bias=True)).mean()
    assert_allclose(linalg.eigvalsh(u)[-2:] * (1e-6 * mean) ** 0.5, 1, rtol=1e-9)


BAD = {
    f"{D} samples .* give more, Whiten.*shrink=True.*, or `co": correlated(D),
    "all samples are alike": np.full((30, D), 0.3),
    "not finite": np.where(np.eye(30, D), np.nan, 1.0),
}


@pytest.mark.parametrize("message", BAD)
def test_inputs_without_a_covariance_are_refused_in_one_line(message):
    with one_line((UsageError, DivergedError), match=message):
        numbers_of(BAD[message])


def started(trainer, batches=None):
    """A trainer whose numbers have been found, before its first step."""
    batches = batches or batches_of(trainer)
    trainer.begin(batches)
    trainer.renew(batches)
    return trainer


def assert_white(trainer, place, count):
    """The output of the layers up to this one, of the images of the first steps with noise of
    their own."""
    ops = trainer.ops
    keys = [RandomKey(0, WHITENING_NOISE, step) for step in range(count)]
    encode = trainer.flow.encode
    z = [encode(ops, images_of(trainer, k.step), k, float)[0] for k in keys]
    z = np.concatenate(z)
    for name, layer in trainer.flow.layers[: place + 1]:
        z = layer.forward(ops, trainer.params[name], z)[0]
    assert_allclose(z.mean(axis=0), 0, atol=1e-10)
    assert_allclose(np.cov(z.T, bias=True), np.eye(64), atol=1e-9)


def test_inputs_of_whitened_layers_are_white(ops):
    """The first layer's of the images of the first epoch, all together; the second's of five
    images a feature, in the first steps."""
    trainer = started(make_trainer(ops, **WHITE))
    assert_white(trainer, 0, trainer.steps_per_epoch)
    assert_white(trainer, 3, math.ceil(5 * 64 / BATCH))


def test_a_layer_behind_one_that_starts_from_data_gets_its_statistics_after_it():
    layers = (("norm", ActNorm()), ("white", Whiten(64)), ("dense", Linear(Dense(64))))
    trainer = make_trainer(OPS, flow=Flow((64,), layers), dtype="float64")
    trainer.begin(batches_of(trainer))
    assert trainer.params["norm"]["t"].any()
    assert_white(trainer, 1, trainer.steps_per_epoch)


def test_steps_change_no_whitening_and_take_no_gradient_below_it(monkeypatch):
    trainer = take_steps(make_trainer(OPS, **WHITE), [0])
    before = trainer.p.copy()
    learned = trainer.layout.fixed
    assert trainer.flow.first_trainable == 1 and trainer.grads["whiten1"] == {}
    original = Whiten.backward
    called = []
    monkeypatch.setattr(
        Whiten,
        "backward",
        lambda layer, *args: called.append(layer) or original(layer, *args),
    )
    take_steps(trainer, range(1, 4))
    # nobody needs a gradient below dense1
    assert called == [Whiten(64, renewed=True)] * 3
    assert_array_equal(trainer.p[learned:], before[learned:])
    # all but the padding
    assert np.mean(trainer.p[:learned] != before[:learned]) > 0.99
    first = trainer.layout.views(trainer.start(batches_of(trainer)))
    for name, same in (("whiten1", True), ("dense1", False), ("whiten2", False)):
        found = {
            k: np.array_equal(first[name][k], trainer.params[name][k])
            for k in first[name]
        }
        assert set(found.values()) == {same}


def test_the_start_of_a_run_is_found_again_after_a_renewal():
    """Its deeper statistics, too: the first W with later U is a model that never was."""
    trainer = make_trainer(OPS, **WHITE)
    batches = batches_of(trainer)
    trainer.begin(batches)
    first = trainer.p.copy()
    trainer.training_step(batches)
    moved = (
        trainer.params["whiten2"]["U"] != trainer.layout.views(first)["whiten2"]["U"]
    )
    assert moved.all()
    assert_array_equal(trainer.start(batches), first)


@pytest.mark.parametrize("forgotten", [None, "W", "b", "R"])
def test_a_renewal_leaves_the_function_as_it_is(monkeypatch, forgotten):
    """To rounding, in sums of 64 terms: log-densities, and the linear part of what dense2 and its
    whitening make of latents. A forgotten W or b changes the one, R the other."""
    trainer = take_steps(make_trainer(OPS, **WHITE), range(5))
    white = trainer.params["whiten2"]
    dense = trainer.params["dense2"]

    def computed():
        log_prob = trainer.likelihood().log_prob(images_of(trainer, 9))
        return log_prob, linalg.solve(white["U"], dense["R"])

    def changed(ops, new, old, p, m, v):
        after, *moments = change_coordinates(ops, new, old, p, m, v)
        return after | {name: p[name] for name in p if name == forgotten}, *moments

    monkeypatch.setattr(coordinates, "change_coordinates", changed)
    trainer.step = 20
    numbers = white["U"].copy()
    before = computed()
    trainer.renew(Given(partial(images_of, trainer)))
    assert np.abs(white["U"] - numbers).max() > 1e-3
    for now, then, by in zip(computed(), before, (("W", "b"), ("R",)), strict=True):
        error = np.abs(now - then).max() / np.abs(then).max()
        assert error > 1e-5 if forgotten in by else error < 1e-12


def test_a_renewal_estimates_from_the_images_of_the_next_steps():
    trainer = take_steps(make_trainer(OPS, **WHITE), range(2))
    steps = []
    trainer.step = 100
    trainer.renew(Given(lambda step: steps.append(step) or images_of(trainer, step)))
    assert steps == list(range(100, 100 + math.ceil(5 * 64 / BATCH)))


def test_in_single_precision_a_renewal_is_to_the_statistics_that_are_stored():
    """W, b and R change from the old to the new ones as they are rounded, in double precision."""
    trainer = take_steps(make_trainer(OPS, **WHITE | {"dtype": "float32"}), range(5))

    white = cast(trainer.params["whiten2"], np.float64)
    dense = cast(trainer.params["dense2"], np.float64)
    trainer.step = 20
    trainer.renew(Given(partial(images_of, trainer)))
    renewed = cast(trainer.params["whiten2"], np.float64)
    expected = change_coordinates(OPS, renewed, white, dense, dense, dense)[0]
    for name, values in trainer.params["dense2"].items():
        assert values.dtype == np.float32
        assert_array_equal(values, expected[name].astype(np.float32))


def test_statistics_of_the_first_layer_are_found_in_double_precision():
    single, double = (
        started(make_trainer(OPS, **WHITE | {"dtype": dtype})).params["whiten1"]
        for dtype in ("float32", "float64")
    )
    for name, values in double.items():
        assert_array_equal(single[name], values.astype(np.float32))


def test_moments_follow_the_chain_rule(monkeypatch):
    """Of the exact gradient before a renewal, m is the exact gradient after it; and v of a gradient
    with one entry is its square."""
    trainer = take_steps(make_trainer(OPS, **WHITE, gradient="exact"), range(5))
    images = images_of(trainer, 9)
    views = trainer.layout.optimised.views
    trainer.step = 20
    trainer.m[...] = gradient_of(trainer, images)[: trainer.layout.fixed]
    trainer.renew(Given(partial(images_of, trainer)))
    expected = views(gradient_of(trainer, images))["dense2"]
    for name, found in views(trainer.m)["dense2"].items():
        assert_near(found, expected[name], 1e-11)

    rng = default_rng(5)
    old, new = (
        {"U": np.eye(3) + rng.uniform(0, 0.5, (3, 3)), "b": rng.standard_normal(3)}
        for _ in "on"
    )
    for name in ("W", "b", "R"):
        m = {"W": np.zeros((3, 3)), "b": np.zeros(3), "R": np.zeros((3, 3))}
        m[name].flat[1] = 2.0
        v = {k: a**2 for k, a in m.items()}
        p, first, second = change_coordinates(OPS, new, old, m, m, v)
        assert np.vdot(first["R"], p["R"]) == pytest.approx(np.vdot(m["R"], m["R"]))
        for each in m:
            assert_allclose(second[each], first[each] ** 2, rtol=1e-12, atol=1e-15)


def test_renewals_come_early_and_then_every_500_steps():
    trainer = make_trainer(OPS)
    due = []
    trainer.states = [
        SimpleNamespace(renew=lambda trainer, _: due.append(trainer.step))
    ]
    for trainer.step in range(1700):
        trainer.renew(None)
    assert due == [0, 20, 100, 500, 1000, 1500]


def test_a_covariance_is_shrunk_by_as_much_as_its_rows_deserve():
    rng = default_rng(0)
    turn = orthogonal(rng, 20)
    true = (turn * np.geomspace(0.1, 10, 20)) @ turn.T
    for rows in (15, 40, 4000):
        x = rng.multivariate_normal(np.zeros(20), true, rows)
        found = x.T @ x / rows
        shrunk = _shrunk(found, rows)
        assert linalg.norm(shrunk - true) <= 1.001 * linalg.norm(found - true)
        assert np.trace(shrunk) == pytest.approx(np.trace(found))
        assert linalg.eigvalsh(shrunk).min() > 1e-3
        square = np.trace(found) ** 2
        squares = np.trace(found @ found)
        share = (
            1 - 2 / 20
        ) * squares + square  # Eq. 23 of Chen et al. 2010, as printed
        share = min(1, share / ((rows + 1 - 2 / 20) * (squares - square / 20)))
        expected = (1 - share) * found + share * np.trace(found) / 20 * np.eye(20)
        assert_allclose(shrunk, expected, rtol=1e-12, atol=1e-14)
    few = rng.normal(size=(10, 50))
    assert np.abs(_shrunk(few.T @ few / 10, 10) - np.eye(50)).max() < 0.6
    assert_allclose(_shrunk(np.eye(5), 3), np.eye(5))
