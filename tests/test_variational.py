"""The variational objective (A.4): closed forms of a linear map, the bound, options and runs."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
from support.beyond_checks import check_variational
from support.gradients import layer_backward, moved
from support.trainers import gradient_of, make_trainer
from test_rules import RTOL, check_flow, log_normal, two_layers

from snfnp.beyond.variational import Drawn, Noise, Variational
from snfnp.context import BackwardContext
from snfnp.errors import UsageError
from snfnp.gradcheck import GradientError, check_gradient
from snfnp.layers import Linear
from snfnp.maps import Conv2d, Dense
from snfnp.ops import RandomKey
from snfnp.rules import SelfNormalizing
from snfnp.training.batches import Repeated
from snfnp.training.options import TrainConfig

D, SIGMA = 4, 0.6
KEY = RandomKey(3, 16, 5)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


# ---------------------------------------------------------------- expectations, exactly


class EveryDirection(Variational):
    """P = D vectors ν = √D e_i: of second moments they have the mean that Gaussian ones have, and
    with both signs of every one so do the samples' gradients, which are quadratic in ε."""

    def perturb(self, ops, *, f, p, z, cache, key):
        nu = np.sqrt(D) * np.eye(D)
        n = np.arange(len(z))
        signs = self.sigma * (-1.0) ** n
        cache["noise"] = Drawn(nu, nu @ p["W"].T)
        return z + signs[:, None] * cache["noise"].moved[n // 2 % D]


def expected_gradients(ops, p, x):
    """The gradients for the rows x and a Gaussian base density, averaged over all noise."""
    layer = Linear(Dense(D), EveryDirection(SIGMA, D))
    every = np.repeat(x, 2 * D, axis=0)  # each row with every vector and either sign
    z, _, cache = layer.forward(ops, p, every)
    z = layer.rule.perturb(ops, f=layer.map, p=p, z=z, cache=cache, key=KEY)
    dx, grads, _ = layer_backward(ops, layer, p, cache, -z / len(z), lam=layer.rule.lam)
    return grads


def test_a_linear_map_has_lambda_and_one_more_term(ops, rng):
    """The forward objective at λ = 1/(2σ²), the term −½‖RW‖²_F of the decoder, and −½σ²‖W‖²_F,
    which is what noise does to the base density: E log N(z + σWε) = log N(z) − ½σ²‖W‖²_F."""
    x, w, r = rng.standard_normal((5, D)), *rng.standard_normal((2, D, D))
    p = {"W": w, "R": r, "b": x[0]}
    found = expected_gradients(ops, p, x)
    forward = Linear(Dense(D), SelfNormalizing("forward"))
    z, _, cache = forward.forward(ops, p, x)
    _, expected, _ = layer_backward(ops, forward, p, cache, -z / len(z), lam=1 / (2 * SIGMA**2))
    expected["W"] -= r.T @ r @ w + SIGMA**2 * w
    expected["R"] -= r @ w @ w.T
    for name, gradient in expected.items():
        scale = np.abs(gradient).max()
        np.testing.assert_allclose(found[name], gradient, rtol=0, atol=1e-13 * scale)


# ---------------------------------------------------------------- gradients


def add_noise_of_x(rule, ctx, f, dz, noise, out, sign=1):
    """out += ± δ_z ⋆ σε."""
    n = np.arange(len(dz))
    signs = (sign * rule.sigma * (-1.0) ** n).reshape(-1, *[1] * (dz.ndim - 1))
    f.weight_grad(ctx.ops, dz, signs * noise.nu[n // 2 % rule.vectors], out=out, add=True)


class WithoutItsTerm(Variational):
    """λ = 1/(2σ²) and noise, but no ½‖T(R)T(W)‖²."""

    def backward(self, ctx, *, cache, **given):
        silent = {name: array for name, array in cache.items() if name != "noise"}
        result = super().backward(ctx, cache=silent, **given)
        noise, out = cache["noise"], given["grads"]["W"]
        add_noise_of_x(self, ctx, given["f"], given["dz"], noise, out)
        return result


class WithoutTheNoiseOfX(Variational):
    """δ_z ⋆ x where δ_z ⋆ (x + σε) belongs."""

    def backward(self, ctx, *, cache, **given):
        result = super().backward(ctx, cache=cache, **given)
        noise, out = cache["noise"], given["grads"]["W"]
        add_noise_of_x(self, ctx, given["f"], given["dz"], noise, out, -1)
        return result


@pytest.mark.parametrize("linear_map, shape", [(Dense(D), (D,)), (Conv2d((3, 3), 2), (3, 4, 2))])
@pytest.mark.parametrize(
    "wrong, message",
    [(WithoutItsTerm(SIGMA, 2), "^W, direction"), (WithoutTheNoiseOfX(SIGMA, 2), "^W, direction")],
    ids=["term", "noise"],
)
def test_a_wrong_rule_is_caught(ops, wrong, message, linear_map, shape):
    check_variational(Variational(SIGMA, 2), linear_map, shape, ops=ops)
    with pytest.raises(GradientError, match=message):
        check_variational(wrong, linear_map, shape, ops=ops)


class NoNoise(Variational):
    def perturb(self, ops, *, z, **given):
        super().perturb(ops, z=z, **given)
        return z


def test_noise_missing_from_the_output_is_caught(ops):
    with pytest.raises(GradientError, match="^z is off"):
        check_variational(NoNoise(SIGMA), Dense(D), (D,), ops=ops)


def test_noise_does_not_widen_single_precision(ops):
    layer, x = Linear(Dense(D), Variational(SIGMA)), np.ones((3, D), np.float32)
    p = {name: value.astype(np.float32) for name, value in layer.init(np.random, (D,)).items()}
    z, _, cache = layer.forward(ops, p, x)
    z = layer.rule.perturb(ops, f=layer.map, p=p, z=z, cache=cache, key=KEY)
    arrays = (z, *cache["noise"][:2])
    assert {array.dtype for array in arrays} == {np.dtype(np.float32)}


@pytest.mark.parametrize("cut", [3, 4, 5])
def test_slices_of_a_batch_have_its_noise(ops, rng, cut):
    """z to the last bit. And G_W adds up: where R = 0 all of it are sums over samples."""
    layer, x, dz = Linear(Dense(D), Variational(SIGMA, 2)), *rng.standard_normal((2, 7, D))
    p = {"W": rng.standard_normal((D, D)), "R": np.zeros((D, D)), "b": x[0]}
    z, _, cache = layer.forward(ops, p, x)

    def of(part, first):
        own = {name: array[part] for name, array in cache.items()}
        given = {"f": layer.map, "p": p, "z": z[part], "cache": own}
        noisy = layer.rule.perturb(ops, **given, key=KEY, first=first)
        return noisy, layer_backward(ops, layer, p, own, dz[part], lam=layer.rule.lam)[1]["W"]

    noisy, grad = of(slice(None), 0)
    before, of_before = of(slice(cut), 0)
    after, of_after = of(slice(cut, None), cut)
    np.testing.assert_array_equal(np.concatenate((before, after)), noisy)
    np.testing.assert_allclose(of_before + of_after, grad, rtol=0, atol=1e-14 * np.abs(grad).max())
    if cut != 4:  # of two vectors and two signs: the fifth sample's noise is the first one's
        elsewhere, of_elsewhere = of(slice(cut, None), 0)
        assert (elsewhere != after).all()
        assert np.abs(of_before + of_elsewhere - grad).max() > 0.01 * np.abs(grad).max()


def test_a_slice_of_a_batch_has_its_noise_in_a_flow(ops, rng):
    flow, params = variational_flow(rng)
    x = rng.standard_normal((7, D))

    def outputs(part, first):
        noise = Noise(ops, flow, params, KEY._replace(first=first))
        latents, ldj, caches = flow.forward(ops, params, x[part], noise=noise)
        return np.column_stack((*latents, ldj)), [caches[k]["noise"].nu for k in (0, 2)]

    whole, drawn = outputs(slice(None), 0)
    found, again = outputs(slice(3, None), 3)
    np.testing.assert_array_equal(again, drawn)  # layers draw what is the step's
    np.testing.assert_allclose(found, whole[3:], rtol=0, atol=1e-14 * np.abs(whole).max())
    assert np.abs(outputs(slice(3, None), 0)[0] - whole[3:]).max() > 0.1


def variational_flow(rng, sigma=SIGMA, inverted=False):
    flow = two_layers(Variational(sigma, 2), D)
    params = moved(flow.init(0), rng, 0.2)
    if inverted:
        for name in ("dense1", "dense2"):
            params[name]["R"] = np.linalg.inv(params[name]["W"])
    return flow, params


def noise_of(ops, place, step=KEY.step):
    """The vectors that a layer of `variational_flow` draws. Of the generator's streams 16 are for
    what there is once in a step, and then 16 for each layer."""
    return ops.random.normal(KEY._replace(stream=16 + 16 * place, step=step), (2, D), np.float64)


def plain_bound(ops, params, x):
    """The mean of the bound over x, sample by sample."""
    total, h = 0.0, x
    for place, name in ((0, "dense1"), (2, "dense2")):
        w, r, nu = params[name]["W"], params[name]["R"], noise_of(ops, place)
        total += np.linalg.slogdet(w)[1] + D / 2
        total -= np.mean([np.sum((r @ w @ row - row) ** 2) for row in h]) / (2 * SIGMA**2)
        total -= np.mean([np.sum((r @ w @ each) ** 2) for each in nu]) / 2
        noisy = [row + SIGMA * (-1) ** n * nu[n // 2 % 2] for n, row in enumerate(h)]
        h = np.array([w @ row + params[name]["b"] for row in noisy])
        if place == 0:
            total += np.mean(np.sum(np.log(0.3 + 0.7 / (1 + np.exp(-h))), axis=1))
            h = 0.3 * h + 0.7 * np.log(1 + np.exp(h))
    return float(total + np.mean(log_normal(h)))


def unwritten(params):
    """Buffers for the gradients of all parameters, full of NaN."""
    return {
        layer: {name: np.full_like(value, np.nan) for name, value in named.items()}
        for layer, named in params.items()
    }


def trained_gradients(ops, flow, params, x, lam):
    """What a training step computes for the rows x."""
    latents, _, caches = flow.forward(ops, params, x, noise=Noise(ops, flow, params, KEY))
    grads = unwritten(params)
    ctx = BackwardContext.of(ops, np.full(len(x), 1 / len(x)), lam)
    dx, _ = flow.backward(ctx, params, caches, flow.latent_gradients(latents), grads)
    return dx, grads


def test_a_flow_with_exact_inverses_ascends_the_bound(ops, rng):
    """Where R = W⁻¹, R stands for nothing else, and what holding h loses is 0: the gradient of the
    bound, end to end."""
    flow, params = variational_flow(rng, inverted=True)
    x = rng.standard_normal((6, D))
    dx, grads = trained_gradients(ops, flow, params, x, 1 / (2 * SIGMA**2))
    check_flow(lambda p: plain_bound(ops, p, x), params, grads, rng)
    check_gradient(lambda v: plain_bound(ops, params, v), x, dx, rng=rng, rtol=RTOL)


# ---------------------------------------------------------------- options


def test_lambda_follows_from_sigma():
    given = TrainConfig(objective="variational", sigma=0.1).resolve(1000)
    assert given.lam == pytest.approx(50, rel=1e-15) and given.noise_vectors == 8
    assert given.rule == Variational(0.1, 8)
    for model, lam in (("fc", 1), ("glow", 100)):
        assert TrainConfig(model=model, objective="variational").resolve(1000).lam == (
            pytest.approx(lam, rel=1e-15)
        )


# ---------------------------------------------------------------- steps and runs

VARIATIONAL = {"objective": "variational", "sigma": 0.5}
make_trainer = partial(make_trainer, **VARIATIONAL)


def test_evaluation_has_no_noise(ops):
    trainer = make_trainer(ops, dtype="float64")
    plain = make_trainer(ops, dtype="float64", objective="forward", sigma=None)
    images = np.random.default_rng(0).integers(0, 256, (9, 64)).astype(np.uint8)
    found, expected = (each.likelihood().evaluate(images, 0).nll for each in (trainer, plain))
    assert found == expected


def test_every_step_has_noise_of_its_own(ops):
    """The same images, seed and parameters at another step: another gradient."""
    trainer = make_trainer(ops, dtype="float64")
    images = np.random.default_rng(0).integers(0, 256, (6, 64)).astype(np.uint8)
    gradients = []
    for step in (0, 0, 1):
        trainer.scalars.set(step, 0.0, trainer.lam)
        gradients.append(gradient_of(trainer, images))
    np.testing.assert_array_equal(gradients[0], gradients[1])
    assert np.abs(gradients[2] - gradients[0]).max() > 1e-3


def test_recomputed_inputs_have_the_same_noise(ops):
    """A step of Glow with recomputed activations: the same gradient, but for rounding."""
    images = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 1)).astype(np.uint8)
    gradients = []
    for recompute in (False, True):
        trainer = make_trainer(ops, "glow-2l-4k", dtype="float64", recompute=recompute)
        trainer.begin(Repeated(images))
        gradients.append(gradient_of(trainer, images))
    scale = np.abs(gradients[0]).max()
    assert 0 < np.abs(gradients[1] - gradients[0]).max() < 1e-11 * scale


def test_a_resumed_run_keeps_its_sigma():
    config = TrainConfig(**VARIATIONAL).resolve(100)
    assert (config.objective, config.sigma, config.lam) == ("variational", 0.5, 2.0)
    with pytest.raises(UsageError, match=r"sigma = 0\.5: it cannot be resumed with 0\.25"):
        config.resumed({"sigma": 0.25}, Path("run"))
    with pytest.raises(UsageError, match="`lam` only has an effect with"):
        config.resumed({"lam": 3.0}, Path("run")).resolve(100)
