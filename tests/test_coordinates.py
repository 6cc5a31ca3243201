"""Adam in white coordinates: the same as Adam on V with W = U V, and what U is."""

from contextlib import nullcontext

import numpy as np
import pytest
import threadpoolctl
from support.messages import one_line
from support.trainers import (
    batches_of,
    gradient_of,
    images_of,
    make_trainer,
    take_steps,
)

from snfnp.context import BackwardContext
from snfnp.errors import UsageError
from snfnp.flow import Flow
from snfnp.layers import Linear, SplitPrior, Whiten
from snfnp.maps import Dense
from snfnp.models import PRESETS
from snfnp.ops import get_ops
from snfnp.training import coordinates
from snfnp.training.batches import Repeated
from snfnp.training.coordinates import inputs, whitening
from snfnp.training.options import TrainConfig

OPS = get_ops("numpy")
MODELS = {  # its kernels with a U, per layer: small models of 8×8 images
    "conv": [("conv", "W"), ("conv", "R")],
    "emerging": [("mix", "W"), ("causal", "W"), ("anticausal", "W")],
    "conv-exponential": [("mix", "W"), ("exp", "W")],
    "glow": [("mix", "W"), ("mix", "R"), ("coupling", "w1"), ("split", "w1")],
}


def trainer_of(model, chosen="white", **changes):
    changes |= {"dtype": "float64", "warmup_epochs": 0, "coordinates": chosen}
    found = make_trainer(OPS, model, **changes)
    found.begin(Repeated(images_of(found, 0)))
    return found


def matrices(trainer):
    """{(layer, kernel): U} of a trainer."""
    u = trainer.coordinates.values
    found = {key: u[place] for key, place in trainer.coordinates._places.items()}
    return {key: a.reshape((round(a.size**0.5),) * 2).copy() for key, a in found.items()}


def flat(views):
    return {(layer, name): a for layer, named in views.items() for name, a in named.items()}


def turned(arrays, u, by):
    """Arrays by (layer, name), kernels as matrices multiplied by what `by` makes of their U."""
    return {
        key: (by(u[key]) @ a.reshape(len(u[key]), -1)).reshape(a.shape) if key in u else a.copy()
        for key, a in arrays.items()
    }


def adam_in_v(model, entering=True, leaving=True):
    """Parameters after steps of Adam on V = U⁻¹ W and on what has no U, from gradients at W = U V.

    Wrong without `entering`, the gradient of W as it is, or `leaving`, a step of W as it is.
    """
    white, plain = trainer_of(model), trainer_of(model, "plain")
    white.renew(lambda step: images_of(white, step))
    u, (b1, b2, eps), lr = matrices(white), (0.9, 0.999, 1e-8), plain.config.lr
    own = turned(flat(plain.params), u, np.linalg.inv)
    m, v = ({key: np.zeros_like(a) for key, a in own.items()} for _ in range(2))
    for t in range(1, 5):
        plain.scalars.set(t - 1, lr, plain.lam)
        gradient_of(plain, images_of(plain, t - 1))
        g = turned(flat(plain.grads), u, lambda u: u.T if entering else np.eye(len(u)))
        for key in own:
            m[key] = b1 * m[key] + (1 - b1) * g[key]
            v[key] = b2 * v[key] + (1 - b2) * g[key] ** 2
        step = {key: lr * m[key] / (1 - b1**t) for key in own}
        step = {key: s / (np.sqrt(v[key] / (1 - b2**t)) + eps) for key, s in step.items()}
        for key, s in (step if leaving else turned(step, u, np.linalg.inv)).items():
            own[key] += s
        for key, value in turned(own, u, lambda u: u).items():
            flat(plain.params)[key][...] = value
    return plain.p


@pytest.mark.parametrize("model", MODELS)
def test_it_is_adam_in_v(model):
    """To rounding, which Adam's division by the size of small gradients makes larger."""
    found = take_steps(trainer_of(model), range(4))
    assert np.abs(found.p - adam_in_v(model)).max() / found.config.lr < 1e-8
    for wrong in ({"entering": False}, {"leaving": False}):
        assert np.abs(found.p - adam_in_v(model, **wrong)).max() / found.config.lr > 0.5


@pytest.mark.parametrize("model", MODELS)
def test_a_kernel_multiplies_the_rows_that_its_u_is_of(model):
    """On fewer rows than a kernel has inputs, its gradient is a combination of them."""
    trainer, kernels, rng = trainer_of(model), set(), np.random.default_rng(0)
    for place, (name, layer) in enumerate(trainer.flow.layers):
        p = {k: a + 0.1 * rng.standard_normal(a.shape) for k, a in trainer.params[name].items()}
        if "exp" in name:
            p["W"][...] = 0  # of the series z = x + K x + …, its second term alone
        channels = [*trainer.flow.with_shapes()][place][2][-1]
        x = rng.standard_normal((1, 1, 3, channels))
        for kernel, images in inputs(layer).items():
            kernels.add((name.split("_")[-1].rstrip("0123456789."), kernel))
            z, _, cache = layer.forward(OPS, p, x)
            deltas = [
                rng.standard_normal(z.shape) for _ in range(1 + isinstance(layer, SplitPrior))
            ]
            grads = {key: np.zeros_like(value) for key, value in p.items()}
            context = BackwardContext.of(OPS, np.zeros(1), lam=0.3)
            layer.backward(context, p, cache, deltas[0], grads, *deltas[1:])
            *taps, outputs = p[kernel].shape
            by_output = grads[kernel].reshape(-1, outputs).T  # a causal kernel's last sees all
            gradient = by_output[-1] if "causal" in name else max(by_output, key=np.linalg.norm)
            rows = OPS.conv.patches(images(cache), taps[:2])
            if rows.any(axis=0).sum() <= 3:
                continue
            for seen, right in ((rows, True), (rows[:, ::-1], False)):
                rest = gradient - seen.T @ np.linalg.lstsq(seen.T, gradient, rcond=None)[0]
                relative = np.abs(rest).max() / np.abs(gradient).max()
                assert relative < 1e-12 if right else relative > 1e-3, (name, kernel)
    assert kernels == set(MODELS[model])


def test_u_whitens_the_rows_of_a_batch():
    trainer = trainer_of("conv")
    images, before = images_of(trainer, 0), trainer.p.copy()
    x, _ = trainer.encode(images, 0, trainer.slice_of(len(images))[0])
    padded = np.pad(x[..., 0], ((0, 0), (1, 1), (1, 1)))
    rows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2)).reshape(-1, 9)
    trainer.renew(lambda step: images)
    u = matrices(trainer)["conv1.1", "W"]
    np.testing.assert_allclose(u, whitening(rows.T @ rows / len(rows)), rtol=1e-9, atol=1e-9)
    np.testing.assert_array_equal(trainer.p, before)


def test_whitening():
    """U M U = m I for eigenvalues above the floor; and of moments that have no root."""
    basis = np.linalg.qr(np.random.default_rng(0).standard_normal((4, 4)))[0]
    for values, expected in (
        ([0.5, 2.0, 3.0, 10.5], [4.0, 4.0, 4.0, 4.0]),
        ([0.0, 0.0, 1e-5, 4 - 1e-5], [0.0, 0.0, 1e-5 / 1e-2, 1.0]),  # a constant, and its noise
    ):
        second = (basis * values) @ basis.T
        u = whitening(second)
        np.testing.assert_allclose(u, u.T, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(u @ second @ u, (basis * expected) @ basis.T, atol=1e-9)
    for nothing in (np.zeros((3, 3)), np.full((3, 3), np.nan)):
        np.testing.assert_array_equal(whitening(nothing), np.eye(3))


def test_blas_has_one_thread_for_roots_of_small_matrices(monkeypatch):
    """On every backend: they are found on the host, where more threads only wait."""
    trainer, counts = trainer_of("conv"), []

    def noting(second):
        pools = threadpoolctl.threadpool_info()
        counts.extend(pool["num_threads"] for pool in pools if pool["user_api"] == "blas")
        return np.eye(len(second))

    monkeypatch.setattr(coordinates, "whitening", noting)
    monkeypatch.setattr(trainer.ops.linalg, "chain_of_products", lambda size: nullcontext())
    with threadpoolctl.threadpool_limits(2, "blas"):
        trainer.renew(batches_of(trainer))
    assert set(counts) == {1}


# ---------------------------------------------------------------- options


@pytest.mark.parametrize("model", PRESETS)
def test_the_recipe_sets_what_is_not_given(model):
    def chosen(**options):
        config = TrainConfig(model=model, recipe="white", epochs=9, **options).resolve(1000)
        return {name: getattr(config, name) for name in ("bias_init", "objective", *given)}

    given = {"lr": 0.1, "coordinates": "plain", "lr_schedule": "constant", "warmup_epochs": 2.5}
    sets = {"bias_init": "zero", "lr": PRESETS[model].lr} | PRESETS[model].white
    white = {"coordinates": "white", "lr_schedule": "cosine", "warmup_epochs": 1}
    assert chosen() == chosen(gradient="exact") == sets == sets | white
    for name, value in given.items():
        assert chosen(**{name: value}) == sets | {name: value}


def test_a_flow_of_ones_own_is_whitened_by_its_layers():
    flow = Flow((64,), (("white", Whiten(64)), ("dense", Linear(Dense(64)))))
    trainer = take_steps(make_trainer(OPS, flow=flow), [0])
    assert trainer.params["white"]["b"].all() and not trainer.coordinates


DENSE, UNBIASED = Linear(Dense(4)), Linear(Dense(4), bias=False)
OWN = {
    "neither convolutions nor Whiten layers: leave it out": (DENSE,),
    "Whiten layer b is not the first, and needs a Linear": (DENSE, Whiten(4, whole=False)),
    "b is not .* with a bias behind it": (DENSE, Whiten(4, whole=False), UNBIASED),
}


@pytest.mark.parametrize("message", OWN)
def test_a_flow_of_ones_own_that_has_no_such_coordinates_is_refused(message):
    flow = Flow((4,), tuple(zip("abc", OWN[message], strict=False)))
    with one_line(UsageError, match=message):
        make_trainer(OPS, flow=flow, coordinates="white")
