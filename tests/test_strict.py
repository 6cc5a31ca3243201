"""Host code on strict arrays: no mix of host and device arrays, and no wait in a step.

Training steps of every model, exact likelihoods, inverses and sampling, on operations that are
NumPy's definitions wherever these claim to be in array terms (`support.strict_ops`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import product

import numpy as np
import pytest
from support import strict_arrays
from support.operation_calls import FLOATS, TWO_SIZES, assert_as_defined, every_second
from support.operation_cases import OVERRIDES
from support.strict_arrays import NotInAStep, no_waiting, traffic
from support.strict_ops import strict_ops
from support.trainers import BATCH, SIDE, host, images_of, make_trainer, take_steps

from snfnp.beyond.conv_exponential import ConvExponential
from snfnp.beyond.emerging import CausalConv2d
from snfnp.context import BackwardContext
from snfnp.errors import DivergedError, SingularMatrixError
from snfnp.flow import Flow
from snfnp.layers import Linear, SmoothLeakyReLU
from snfnp.maps import Dense
from snfnp.models import PRESETS
from snfnp.ops import RandomKey, get_ops
from snfnp.rules import Relative
from snfnp.training.batches import Batches
from snfnp.training.options import TrainConfig

make_trainer = partial(make_trainer, dtype="float64")


@pytest.mark.parametrize("name", OVERRIDES)
def test_definitions_are_in_array_terms(name):
    for size, dtype in product(TWO_SIZES, FLOATS):
        call = OVERRIDES[name](np.random.default_rng(1), dtype, size)
        for layout in (None, every_second):
            assert_as_defined(strict_ops(), name, call, strict_arrays.xp.asarray, layout)


# ---------------------------------------------------------------- training steps


def assert_same_steps(found, expected):
    """A few steps that both have taken had the same results, in the parameters and in the log.

    A gradient's entry is a sum of at most a few thousand products, through some dozens of layers;
    a parameter's step is a ratio of such, in which 1 - β2 loses three digits.
    """
    found.check(lambda step: images_of(found, step))
    for name in ("gradient", "m", "v", "p"):
        a, b = host(found, name), host(expected, name)
        assert np.abs(a - b).max() <= 1e-10 * np.abs(b).max(), name
    for a, b in ((found.metrics(), expected.metrics()), (found.averages(), expected.averages())):
        np.testing.assert_allclose(list(vars(a).values()), list(vars(b).values()), rtol=1e-10)


LEARNING = [
    (model, "self-normalizing", changes)
    for model, preset in PRESETS.items()
    if "self-normalizing" in preset.gradients
    for changes in (
        {},
        {"objective": "forward", "recompute": model != "fc", "clip_norm": 0.5},
        *[{"objective": "variational"}] * (model in ("fc", "conv")),
        *[{"inverse_kernel": 5}] * (model == "conv"),
    )
]
PROBING = [
    (model, "self-normalizing", {"jvp_weight": 0.3, "jvp_probes": 2})
    for model in ("fc", "conv", "glow-2l-4k")
] + [("fc", "self-normalizing", {"jvp_weight": 0.3, "lambda_control": "geco"})]
RELATIVE = [("fc", "relative", {"relative_bias": bias}) for bias in ("plain", "full", "gresele")]
EXACT = [
    (model, gradient, {})
    for model, preset in PRESETS.items()
    for gradient in preset.gradients
    if gradient.startswith("exact")
]


@pytest.mark.parametrize("model, gradient, changes", LEARNING + PROBING + RELATIVE)
def test_a_step_neither_mixes_nor_waits(model, gradient, changes):
    found, expected = (
        make_trainer(ops, model, gradient, **changes) for ops in (strict_ops(), get_ops("numpy"))
    )
    images = [images_of(found, step) for step in range(3)]
    take_steps(expected, range(3))
    for follower in found.followers:
        follower.start(found, partial(images_of, found))
    waits = traffic.waits
    found.initialise_from_data(images[0])
    found.training_step(images[0])
    assert traffic.waits == waits
    with no_waiting():
        for later in images[1:]:
            found.training_step(later)
    assert_same_steps(found, expected)


@pytest.mark.parametrize("model, gradient, changes", LEARNING + PROBING + RELATIVE + EXACT)
def test_numbers_on_the_device_do_not_widen_single_precision(model, gradient, changes):
    """A 0-d array of doubles, as λ is, makes doubles of what a plain number leaves as it is."""
    ops = strict_ops()
    trainer = make_trainer(ops, model, gradient, dtype="float32", **changes)
    flow, params = trainer.flow, trainer.params
    x, ldj = flow.encode(ops, images_of(trainer, 0), RandomKey(0, 0), np.float32)
    latents, flow_ldj, caches = flow.forward(ops, params, x, trainer.config.recompute)
    key = RandomKey(0, 0)
    ctx = BackwardContext.of(ops, ops.xp.ones_like(ldj), ops.xp.ones(()), key=key)
    dx, _ = flow.backward(ctx, params, caches, latents, trainer.grads)
    arrays = (x, ldj, *latents, flow_ldj, flow.log_density(ops, latents), dx)
    assert {array.dtype for array in arrays} == {np.dtype(np.float32)}


@pytest.mark.parametrize("model, gradient, changes", EXACT)
def test_an_exact_step_does_not_mix(model, gradient, changes):
    """It asks whether a matrix is singular, and may wait for the answer."""
    found, expected = (
        take_steps(make_trainer(ops, model, gradient, **changes), range(2))
        for ops in (strict_ops(), get_ops("numpy"))
    )
    assert_same_steps(found, expected)


@pytest.mark.parametrize(
    "layer", [CausalConv2d(2), ConvExponential(2), ConvExponential(2, gain=4)], ids=str
)
def test_a_baselines_own_layer_does_not_wait(layer):
    """The host may not look at a diagonal that could be 0, nor at a norm above its bound."""
    shape, rng = (4, 3, 2), np.random.default_rng(0)
    params, x, dldj = layer.init(rng, shape), rng.standard_normal((5, *shape)), np.ones(5)
    found = []
    for each in (get_ops("numpy"), strict_ops()):
        p = {name: each.asarray(array) for name, array in params.items()}
        grads = {name: each.xp.empty_like(array) for name, array in p.items()}
        x_, ctx = each.asarray(x), BackwardContext.of(each, each.asarray(dldj))
        layer.forward(each, p, x_)  # what depends on shapes alone goes over once
        with no_waiting():
            z, _, cache = layer.forward(each, p, x_)
            dx = layer.backward(ctx, p, cache, z, grads)
        found.append([each.to_host(array) for array in (z, dx, *grads.values())])
    for a, b in zip(*found, strict=True):  # sums of at most a few hundred products
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-12 * np.abs(b).max())


@pytest.mark.parametrize(
    "model, layer", [("fc", "dense1"), ("conv", "conv2.3"), ("glow", "mix1.1")]
)
def test_a_singular_matrix_raises_on_a_device_that_does_not_say_so(model, layer):
    trainer = make_trainer(strict_ops(), model, "exact")
    trainer.params[layer]["W"][...] = 0
    with pytest.raises(SingularMatrixError, match=f"layer {layer}: "):
        trainer.training_step(images_of(trainer, 0))
    with pytest.raises(SingularMatrixError, match=f"layer {layer}: "):
        trainer.likelihood()


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # 0 · ∞ in a product
@pytest.mark.parametrize("value, parameter", [(np.nan, "b"), (np.inf, "R")])
def test_a_failure_is_noted_without_waiting_and_traced_afterwards(value, parameter):
    trainer = take_steps(make_trainer(strict_ops()), range(2))
    trainer.params["dense2"][parameter][...] = value
    images, before = images_of(trainer, 2), host(trainer, "p")
    with no_waiting():
        trainer.training_step(images)
        trainer.training_step(images)
    with pytest.raises(DivergedError, match="at step 3: the (output|gradient) of (layer )?dense2"):
        trainer.check(lambda step: images)
    np.testing.assert_array_equal(host(trainer, "p"), before)


# ---------------------------------------------------------------- evaluation


TRAINED = [(model, preset.gradients[0]) for model, preset in PRESETS.items()]


def trained(model, gradient):
    """Likelihoods of the same parameters, on strict arrays and on NumPy's."""
    trainer = take_steps(make_trainer(get_ops("numpy"), model, gradient), range(2))
    strict_trainer = make_trainer(strict_ops(), model, gradient)
    strict_trainer.restore(trainer.checkpoint({}))
    return strict_trainer.likelihood(), trainer.likelihood()


@pytest.mark.parametrize("model, gradient", TRAINED)
def test_likelihoods_and_inverses_do_not_mix(model, gradient):
    """Images come back as they were, up to values on the edge of two integers."""
    found, expected = trained(model, gradient)
    images = np.random.default_rng(1).integers(0, 256, (BATCH, SIDE, SIDE, 1)).astype(np.uint8)
    ledger, of_numpy = (each.evaluate(images, 0, 4).ledger for each in (found, expected))
    assert ledger == pytest.approx(of_numpy, rel=1e-10, abs=1e-10)
    for exact in (True, False) if gradient == "self-normalizing" else (True,):
        samples = found.sample(4, seed=1, exact=exact)
        assert isinstance(samples, np.ndarray)
        assert np.mean(samples != expected.sample(4, seed=1, exact=exact)) < 0.01
    images = images[:4].reshape(samples.shape)
    latents = found.latents(images, seed=0)
    again = found.sample(4, seed=0, exact=True, latents=latents)
    assert np.mean(again != images) < 0.01


@pytest.mark.parametrize("change", [False, True])
def test_batches_are_put_on_the_device(change):
    images = np.random.default_rng(0).integers(0, 256, (23, 4, 6, 3)).astype(np.uint8)
    config = TrainConfig(model="glow", batch_size=5, augment=change, seed=3, epochs=1)
    config = config.resolve(len(images))
    found, expected = (
        Batches(ops, images, config, (4, 6, 3)) for ops in (strict_ops(), get_ops("numpy"))
    )
    for step in (0, 3, 4):
        np.testing.assert_array_equal(found(step).get(), expected(step))


# ---------------------------------------------------------------- layers that break a rule


@dataclass(frozen=True)
class Meddler(SmoothLeakyReLU):
    """A layer that does to its input, or to its delta, what no layer should."""

    meddle: Callable = None
    in_backward: bool = False

    def forward(self, ops, p, x):
        return super().forward(ops, p, x if self.in_backward else self.meddle(ops, x))

    def backward(self, ctx, p, cache, dz, grads):
        dx = super().backward(ctx, p, cache, dz, grads)
        return self.meddle(ctx.ops, dx) if self.in_backward else dx


OFFENCES = {
    "NumPy's function": (lambda ops, x: np.tanh(x), "np.tanh met a device array"),
    "a host array": (lambda ops, x: x * np.ones(x.shape[1:]), "mul met a host array"),
    "host array on the left": (lambda ops, x: np.ones(x.shape[1:]) * x, "np.multiply met a device"),
    "a number read back": (lambda ops, x: x / float(abs(x).max()), r"float\(\) makes the host"),
    "a decision on the host": (lambda ops, x: x if x.max() < 9 else 0 * x, r"bool\(\) makes the"),
    "an upload": (lambda ops, x: x + ops.asarray(np.ones(x.shape[1:])), r"asarray\(\) .* copies"),
    "a product of CuPy's": (lambda ops, x: x @ ops.xp.eye(x.shape[1]), "matmul cannot be captured"),
}


def trainer_with(ops, meddle, in_backward):
    dense = Linear(Dense(SIDE * SIDE), Relative())
    layers = (("dense1", dense), ("meddler", Meddler(0.3, meddle, in_backward)), ("dense2", dense))
    return make_trainer(ops, "fc", "relative", flow=Flow((SIDE * SIDE,), layers))


@pytest.mark.parametrize("in_backward", [False, True])
@pytest.mark.parametrize("offence", OFFENCES)
def test_a_layer_that_breaks_a_rule_fails_the_step_by_name(offence, in_backward):
    meddle, message = OFFENCES[offence]
    take_steps(trainer_with(get_ops("numpy"), meddle, in_backward), [0])  # NumPy allows it
    trainer = trainer_with(strict_ops(), meddle, in_backward)
    images = images_of(trainer, 0)
    with pytest.raises((TypeError, NotInAStep), match=message), no_waiting():
        trainer.training_step(images)


def test_a_delta_that_was_not_written_fails_the_step():
    trainer = trainer_with(strict_ops(), lambda ops, x: ops.xp.empty_like(x), in_backward=True)
    trainer.training_step(images_of(trainer, 0))
    with pytest.raises(DivergedError, match=r"the gradient of dense1\.[Wb] is not finite"):
        trainer.check(lambda step: images_of(trainer, step))
