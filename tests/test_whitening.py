"""Whitening layers: their numbers, what training with them is, and what is refused."""

import numpy as np
import pytest
from support import trainers
from support.messages import one_line
from support.ranks import on_ranks
from support.runs import assert_same_run, state
from support.trainers import gradient_of, images_of, make_trainer, take_steps

from snfnp.beyond.second_moment import stable_above
from snfnp.errors import DivergedError, UsageError
from snfnp.layers import Whiten
from snfnp.layers.whiten import Moments
from snfnp.likelihood import WHITENING_NOISE
from snfnp.ops import RandomKey, get_ops
from snfnp.rules import SelfNormalizing
from snfnp.training import whitening as whitening_module
from snfnp.training.whitening import change_coordinates, renew, whiten_data

OPS = get_ops("numpy")
D = 12
WHITE = {"model": "fc", "whiten": "first", "dtype": "float64"}
ALL = WHITE | {"whiten": "all"}


def correlated(rows=400):
    """Rows of variances from 1/400 to 9, turned, with a mean."""
    rng = np.random.default_rng(3)
    turn, _ = np.linalg.qr(rng.standard_normal((D, D)))
    return 5 + rng.standard_normal((rows, D)) * np.geomspace(0.05, 3, D) @ turn


def whitening(*parts, ops=OPS, whole=True):
    moments = Moments(ops, Whiten(D, whole))
    for part in parts:
        moments.add(ops.asarray(part))
    return moments.whitening()


# ---------------------------------------------------------------- the numbers


def test_the_root_its_inverse_and_its_determinant_have_their_closed_forms():
    """C is a difference of mean squares, 300 in all, that are 1e5 times its least eigenvalue."""
    x = correlated()
    layer, p = Whiten(D), whitening(x)
    values, vectors = np.linalg.eigh(np.cov(x.T, bias=True))
    np.testing.assert_array_equal(p["U"], p["U"].T)
    z, ldj, _ = layer.forward(OPS, p, x)
    assert ldj == 0
    assert abs(layer.log_det(OPS, p, (D,)) + np.log(values).sum() / 2) < 1e-10
    np.testing.assert_allclose(layer.inverse(OPS, p, z), x, atol=1e-11)
    root = (vectors * values**0.5) @ vectors.T
    np.testing.assert_allclose(layer.inverse(OPS, p, np.eye(D) + p["b"]), root.T, atol=1e-11)
    np.testing.assert_allclose(z.mean(axis=0), 0, atol=1e-11)
    np.testing.assert_allclose(np.cov(z.T, bias=True), np.eye(D), atol=1e-10)


def test_by_features_each_has_mean_0_and_variance_1():
    x = correlated()
    layer, p = Whiten(D, whole=False), whitening(x, whole=False)
    z, _, _ = layer.forward(OPS, p, x)
    np.testing.assert_allclose(z, (x - x.mean(axis=0)) / x.std(axis=0), atol=1e-11)
    assert abs(layer.log_det(OPS, p, (D,)) + np.log(x.std(axis=0)).sum()) < 1e-11


@pytest.mark.parametrize("whole", [True, False])
def test_parts_of_any_size_and_every_backend_give_the_same_numbers(ops, whole):
    x = correlated()
    expected = whitening(x, whole=whole)
    found = whitening(x[:1], x[1:300], x[300:], ops=ops, whole=whole)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-9, atol=1e-9)


def test_a_direction_without_variance_has_the_floors():
    """A constant feature, and one that another determines: what they come to is bounded."""
    x = correlated()
    x[:, 0], x[:, 1] = 7.0, 2 * x[:, 2]
    u = whitening(x)["U"]
    largest = np.linalg.eigvalsh(np.cov(x.T, bias=True))[-1]
    np.testing.assert_allclose(np.linalg.eigvalsh(u)[-2:] * (1e-6 * largest) ** 0.5, 1, rtol=1e-9)


BAD = {
    f"{D} images have no covariance in {D} dimensions: give more": correlated(D),
    "all images are alike": np.full((30, D), 0.3),
    "not finite": np.where(np.eye(30, D), np.nan, 1.0),
}


@pytest.mark.parametrize("message", BAD)
def test_inputs_without_a_covariance_are_refused_in_one_line(message):
    with one_line((UsageError, DivergedError), match=message):
        whitening(BAD[message])


@pytest.mark.parametrize("options", [{"model": "conv"}, {"model": "fc", "gradient": "relative"}])
def test_where_whitening_makes_no_sense_it_is_refused(options):
    with one_line(UsageError, match="--whiten only has an effect with --"):
        trainers.small_config(whiten="first", **options)


def test_the_margin_of_stability_is_lambdas_own():
    """λ σ²_min, which has to be above 1/8 (derivations/24-stability.md), before and after."""
    x = correlated()
    z = Whiten(D).forward(OPS, whitening(x), x)[0]
    before, after = (np.linalg.eigvalsh(rows.T @ rows / len(rows))[0] for rows in (x, z))
    assert before < 0.01 < stable_above(SelfNormalizing()) and abs(after - 1) < 1e-10


# ---------------------------------------------------------------- training


def test_the_first_layers_input_is_white():
    """Of the images of the first epoch, all together, with noise of their own."""
    trainer = take_steps(make_trainer(OPS, **WHITE), [0])
    keys = [RandomKey(0, WHITENING_NOISE, step) for step in range(trainer.steps_per_epoch)]
    images = (images_of(trainer, key.step) for key in keys)
    x = [trainer.flow.encode(OPS, *each, float)[0] for each in zip(images, keys, strict=True)]
    z, _, _ = Whiten(64).forward(OPS, trainer.params["whiten1"], np.concatenate(x))
    np.testing.assert_allclose(z.mean(axis=0), 0, atol=1e-10)
    np.testing.assert_allclose(np.cov(z.T, bias=True), np.eye(len(z.T)), atol=1e-9)


def test_the_likelihood_is_that_of_the_model_without_it():
    """Whose first matrix is W U, and whose first bias b + W b_U."""
    trainer = take_steps(make_trainer(OPS, **WHITE), range(3))
    plain = make_trainer(OPS, **WHITE | {"whiten": "none"})
    assert plain.layout.count == trainer.layout.count  # numbers that are not learned do not count
    size, white, first = plain.layout.size, trainer.params["whiten1"], plain.params["dense1"]
    plain.p[...] = trainer.p[:size]
    first["b"] += first["W"] @ white["b"]
    first["W"][...] = first["W"] @ white["U"]
    found, expected = (
        each.likelihood().log_prob(images_of(trainer, 9)) for each in (trainer, plain)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-11)


def test_training_moves_no_number_of_it_and_takes_no_gradient_below_it(monkeypatch):
    trainer = take_steps(make_trainer(OPS, **WHITE), [0])
    before, learned = trainer.p.copy(), trainer.layout.fixed
    assert trainer.flow.learns_from == 1 and trainer.grads["whiten1"] == {}
    monkeypatch.setattr(Whiten, "backward", None)  # nobody needs a gradient below dense1
    take_steps(trainer, range(1, 4))
    np.testing.assert_array_equal(trainer.p[learned:], before[learned:])
    assert np.mean(trainer.p[:learned] != before[:learned]) > 0.99  # all but the padding
    start, now = trainer.start(images_of(trainer, 0)).log_dets, trainer.likelihood().log_dets
    assert start["whiten1"] == now["whiten1"] != 0 and start["dense1"] != now["dense1"]


def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(tmp_path):
    """Step 20 is where the deeper layer's numbers are renewed, and where a part ends."""
    for name, epochs in (("whole", (5,)), ("parts", (1, 4, 5))):
        for done, count in enumerate(epochs):
            settings = {"backend": "numpy", "whiten": "all", "resume": done > 0}
            trainers.run_training(tmp_path / name, epochs=count, **settings)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    saved = state(tmp_path / "whole")
    assert np.count_nonzero(saved.p[saved.layout.fixed :]) == 25 * 25 + 3 * 25


def test_ranks_find_the_numbers_of_one():
    def numbers(world):
        trainer = make_trainer(OPS, world=world, **ALL)
        mine = lambda step: np.split(images_of(trainer, step), world.size)[world.rank]  # noqa: E731
        whiten_data(trainer, mine)
        trainer.m += 1
        renew(trainer, mine)
        return np.concatenate([trainer.p, trainer.m, trainer.v])

    (alone,), several = on_ranks(1, numbers), on_ranks(2, numbers)
    np.testing.assert_array_equal(*several)
    np.testing.assert_allclose(several[0], alone, rtol=1e-9, atol=1e-9)


def test_too_few_images_are_said_before_a_run_begins(tmp_path):
    with pytest.raises(UsageError, match="20 images have no covariance in 25 dimensions"):
        trainers.run_training(
            tmp_path / "run", trainers.small_dataset(20), backend="numpy", whiten="first"
        )
    assert not (tmp_path / "run" / "config.json").exists()


# ---------------------------------------------------------------- new coordinates


@pytest.mark.parametrize("forgotten", [None, "W", "b", "R"])
def test_a_renewal_leaves_the_function_as_it_is(monkeypatch, forgotten):
    """To rounding, in sums of 64 terms: log-densities, and the linear part of what dense2 and its
    whitening make of latents. Who forgets W or b changes the one, who forgets R the other."""
    trainer = take_steps(make_trainer(OPS, **ALL), range(5))
    white, dense = trainer.params["whiten2"], trainer.params["dense2"]

    def computed():
        log_prob = trainer.likelihood().log_prob(images_of(trainer, 9))
        return log_prob, dense["R"] / white["U"][:, None]

    def changed(new, old, p, m, v):
        after, *moments = change_coordinates(new, old, p, m, v)
        return after | {name: p[name] for name in p if name == forgotten}, *moments

    monkeypatch.setattr(whitening_module, "change_coordinates", changed)
    trainer.step, numbers, before = 20, white["U"].copy(), computed()
    renew(trainer, lambda step: images_of(trainer, step))
    assert np.abs(white["U"] - numbers).max() > 1e-3
    for now, then, by in zip(computed(), before, (("W", "b"), ("R",)), strict=True):
        error = np.abs(now - then).max() / np.abs(then).max()
        assert error > 1e-5 if forgotten in by else error < 1e-12


def test_moments_follow_the_chain_rule(monkeypatch):
    """Of the exact gradient before a renewal, m is the exact gradient after it; and v of a gradient
    with one entry is its square."""
    trainer = take_steps(make_trainer(OPS, **ALL, gradient="exact"), range(5))
    images, views = images_of(trainer, 9), trainer.layout.optimised.views
    trainer.step, trainer.m[...] = 20, gradient_of(trainer, images)[: trainer.layout.fixed]
    renew(trainer, lambda step: images_of(trainer, step))
    expected = views(gradient_of(trainer, images))["dense2"]
    for name, found in views(trainer.m)["dense2"].items():
        np.testing.assert_allclose(found, expected[name], rtol=0, atol=1e-11)

    rng = np.random.default_rng(5)
    old, new = (dict(zip("Ub", rng.uniform(0.5, 2, (2, 3)), strict=True)) for _ in range(2))
    for name in ("W", "b", "R"):
        m = {"W": np.zeros((3, 3)), "b": np.zeros(3), "R": np.zeros((3, 3))}
        m[name].flat[1] = 2.0
        p, first, second = change_coordinates(new, old, m, m, {k: a**2 for k, a in m.items()})
        assert np.vdot(first["R"], p["R"]) == pytest.approx(np.vdot(m["R"], m["R"]))
        for each in m:
            np.testing.assert_allclose(second[each], first[each] ** 2, rtol=1e-12, atol=1e-15)


def test_renewals_come_early_and_then_every_500_steps(monkeypatch):
    trainer, due = make_trainer(OPS, **ALL), []
    monkeypatch.setattr(whitening_module, "_numbers", lambda *_: due.append(trainer.step) or {})
    monkeypatch.setattr(whitening_module, "change_coordinates", lambda *_: ({}, {}, {}))
    for trainer.step in range(1700):
        renew(trainer, None)
    assert due == [0, 20, 100, 500, 1000, 1500]
