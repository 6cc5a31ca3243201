"""Flows and the presets of the tables: structure, starts, round trips, latents, named failures."""

import sys
from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.gradients import flow_backward, moved
from support.messages import one_line
from support.processes import python
from support.trainers import make_trainer as trainer_on
from test_rules import random_params, two_layers

from snfnp import layers
from snfnp.errors import SingularMatrixError, UsageError
from snfnp.flow import Flow
from snfnp.maps import Conv2d
from snfnp.models import PRESETS, Choices
from snfnp.ops import RandomKey, get_ops
from snfnp.parameters import Layout
from snfnp.rules import Exact, SelfNormalizing

D, N = 5, 5
RNG = np.random.default_rng


@pytest.fixture
def x():
    return np.random.default_rng(1).standard_normal((N, D))


def test_a_flow_without_a_learned_inverse_says_so(ops, x):
    flow = two_layers(Exact())
    assert not flow.has_learned_inverse
    assert two_layers(SelfNormalizing()).has_learned_inverse
    with one_line(UsageError, match="learned no inverse"):
        flow.inverse(ops, random_params(flow, RNG(0)), (x,))


@pytest.mark.parametrize("name", ["a", "preprocess", "scale", "logit", "base density", "z"])
def test_a_name_that_is_taken_cannot_name_a_layer(name):
    with one_line(UsageError, f"a layer is called {name!r}, as another or a term of the"):
        Flow((D,), tuple((each, layers.SmoothLeakyReLU()) for each in ("a", name)))


def test_initial_parameters_depend_on_the_seed_alone():
    flow = two_layers(SelfNormalizing())
    first, again, other = (flow.init(seed)["dense2"]["W"] for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert np.any(first != other)
    assert np.any(first != flow.init(3)["dense1"]["W"])  # layers draw one after the other


def test_parameter_shapes_are_those_of_the_initial_parameters():
    for flow in (two_layers(SelfNormalizing()), two_layers(Exact()), split_flow()):
        shapes = flow.parameter_shapes()
        initial = flow.init(0)
        assert list(shapes) == list(initial)
        for layer, named in initial.items():
            found = {name: tuple(shape) for name, shape in shapes[layer].items()}
            assert list(found.items()) == [(name, value.shape) for name, value in named.items()]


def split_flow():
    """Two splits: latents of (2, 2, 4), (1, 1, 8) and (1, 1, 8) values."""
    return Flow(
        (4, 4, 2),
        (
            ("squeeze1", layers.Squeeze()),
            ("mix1", layers.Linear(Conv2d((1, 1), 8), Exact(), init_kind="orthogonal")),
            ("split1", layers.SplitPrior(layers.AffineCoupling(8, 3))),
            ("squeeze2", layers.Squeeze()),
            (
                "mix2",
                layers.Linear(Conv2d((1, 1), 16), Exact(), bias=False, init_kind="orthogonal"),
            ),
            ("split2", layers.SplitPrior(layers.ActNorm())),
            ("activation", layers.SmoothLeakyReLU(0.3)),
        ),
        layers.Preprocess(alpha=0.05),
    )


def split_case():
    flow, rng = split_flow(), np.random.default_rng(3)
    params = moved(flow.init(0), rng)
    return flow, params, rng.standard_normal((N, *flow.shape))


@pytest.mark.parametrize("recompute", [False, True])
def test_latents_come_in_the_order_of_the_splits_then_z(ops, recompute):
    flow, params, x = split_case()
    assert list(flow.latent_shapes) == ["split1", "split2", "z"]
    assert list(flow.latent_shapes.values()) == [(2, 2, 4), (1, 1, 8), (1, 1, 8)]
    found, ldj, _ = flow.forward(ops, params, x, recompute)
    assert isinstance(found, tuple)
    expected, volume = [], 0
    for name, layer in flow.layers:
        x, layer_ldj, cache = layer.forward(ops, params[name], x)
        volume = volume + layer_ldj
        if name.startswith("split"):
            expected.append(cache["latent"])
    for latent, value in zip(found, (*expected, x), strict=True):
        np.testing.assert_array_equal(latent, value)
    np.testing.assert_allclose(ldj, volume, rtol=1e-13)  # and no density of a latent in it


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_first_nonfinite_checks_the_latents_of_splits(ops, bad):
    """The last channel is in split2's latent, and in no later layer's input."""
    flow, params, x = split_case()
    assert flow.first_nonfinite(ops, params, x) is None
    params["split2"]["t"][-1] = bad
    latents, _, _ = flow.forward(ops, params, x)
    assert [bool(np.isfinite(latent).all()) for latent in latents] == [True, False, True]
    assert flow.first_nonfinite(ops, params, x) == "split2"


@pytest.mark.parametrize("layer", ["dense1", "dense2"])
def test_a_singular_layer_is_named(ops, x, layer):
    flow = two_layers(Exact())
    params = random_params(flow, RNG(0))
    params[layer]["W"] = np.zeros((D, D))
    for call in (
        lambda: flow.log_dets(ops, params),
        lambda: flow.inverse(ops, params, (x,), exact=True),
        lambda: flow_backward(ops, flow, params, x),
    ):
        with one_line(SingularMatrixError, match=f"^layer {layer}: .*singular"):
            call()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_first_nonfinite_names_the_layer(ops, x, bad):
    flow = two_layers(SelfNormalizing())
    assert flow.first_nonfinite(ops, random_params(flow, RNG(0)), x) is None
    for layer in ("dense1", "dense2"):
        params = random_params(flow, RNG(0))
        params[layer]["b"][2] = bad
        assert flow.first_nonfinite(ops, params, x) == layer
    x[3, 1] = bad
    assert flow.first_nonfinite(ops, random_params(flow, RNG(0)), x) == "input"


@dataclass(frozen=True)
class BadVolume(layers.Layer):
    """The identity with a log-determinant that is not finite."""

    def forward(self, ops, p, x):
        return x, ops.xp.full(len(x), -np.inf), {}


def test_first_nonfinite_checks_log_determinants(ops, x):
    flow = Flow(shape=(D,), layers=(("good", layers.SmoothLeakyReLU()), ("bad", BadVolume())))
    assert flow.first_nonfinite(ops, flow.init(0), x) == "bad"


def test_first_nonfinite_gradient_names_layer_and_parameter(ops):
    flow = two_layers(SelfNormalizing())
    layout = Layout.of(flow.parameter_shapes())
    grads = layout.views(np.zeros(layout.size))
    assert flow.first_nonfinite_gradient(ops, grads) is None
    grads["dense1"]["R"][1, 1] = np.inf
    assert flow.first_nonfinite_gradient(ops, grads) == "dense1.R"
    grads["dense2"]["b"][0] = np.nan  # nearer to the output, where the backward pass starts
    assert flow.first_nonfinite_gradient(ops, grads) == "dense2.b"


@settings(max_examples=50, derandomize=True, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from("abcde"),
        st.dictionaries(
            st.sampled_from("WRbx"), st.lists(st.integers(0, 4), max_size=3).map(tuple), max_size=4
        ),
        max_size=4,
    )
)
def test_parameters_of_any_shapes_survive_packing(shapes):
    layout, count = Layout.of(shapes), 0
    numbers = {layer: {} for layer in shapes}
    for layer, named in shapes.items():
        for name, shape in named.items():
            size = int(np.prod(shape))
            numbers[layer][name] = np.arange(count, count + size, dtype=float).reshape(shape) + 1
            count += size
    assert layout.count == count
    keys = {f"{layer}.{name}" for layer, named in shapes.items() for name in named}
    assert {entry.key for entry in layout.entries} == keys
    flat = layout.pack(numbers, np.float64)
    single = layout.pack(numbers, np.float32)  # whole numbers: nothing is rounded
    assert single.dtype == np.float32 and np.array_equal(single, flat)
    assert flat.size == layout.size and flat.sum() == count * (count + 1) / 2  # padding is 0
    for layer, named in layout.views(flat).items():
        assert list(named) == list(shapes[layer])
        for name, view in named.items():
            np.testing.assert_array_equal(view, numbers[layer][name])
            assert np.shares_memory(view, flat) or view.size == 0
            transposed = name == "R" and view.ndim == 2
            assert (view.T if transposed else view).flags.c_contiguous
    assert all(entry.start % 16 == 0 for entry in layout.entries)  # 64 bytes in single precision


make_trainer = partial(trainer_on, get_ops("numpy"))
CASES = [(model, gradient) for model, preset in PRESETS.items() for gradient in preset.gradients]


@pytest.mark.parametrize("init", ["paper", "identity"])
@pytest.mark.parametrize("model, gradient", CASES)
def test_a_new_model_reconstructs_its_input(model, gradient, init):
    trainer = make_trainer(model, gradient, init=init, dtype="float64")
    flow, ops = trainer.flow, trainer.ops
    x = 4 * ops.random.uniform(RandomKey(5, 0), (3, *flow.shape), np.float64)
    latents, _, _ = flow.forward(ops, trainer.params, x)
    back = flow.inverse(ops, trainer.params, latents, exact=True)
    assert np.abs(back - x).max() < 1e-9
    if trainer.flow.has_learned_inverse and init == "identity":
        learned = flow.inverse(ops, trainer.params, latents)
        assert np.abs(learned - x).max() < 1e-9


@pytest.mark.parametrize(
    "model, init, changes, centre, noisy",
    [
        ("fc", "paper", {}, "identity", True),
        ("fc", "authors", {}, "identity", False),
        ("fc", "identity", {}, "identity", False),
        ("conv", "paper", {}, "identity", True),
        ("conv", "identity", {}, "identity", False),
        ("glow-2l-4k", "paper", {}, "orthogonal", False),
        ("glow-2l-4k", "paper", {"kernel": 5}, "orthogonal", True),
        ("glow-2l-4k", "authors", {"kernel": 5}, "identity", True),
        ("glow-2l-4k", "identity", {"kernel": 5}, "identity", False),
    ],
)
def test_where_weights_start(model, init, changes, centre, noisy):
    """At the centre tap the identity or a rotation; noise of gain 0.01, far below 0.1, or none."""
    trainer = make_trainer(model, "self-normalizing", init=init, dtype="float64", **changes)
    learning = [p["W"] for p in trainer.params.values() if "R" in p]
    assert learning
    for w in learning:
        tap = w if w.ndim == 2 else w[w.shape[0] // 2, w.shape[1] // 2]
        assert np.abs(tap.T @ tap - np.eye(len(tap))).max() < (0.1 if noisy else 1e-12)
        assert (np.abs(tap - np.eye(len(tap))).max() < 0.1) == (centre == "identity")
        flat = w if w.ndim == 4 else w[None, None]
        beside = np.delete(flat.reshape(-1, flat[0, 0].size), flat[..., 0, 0].size // 2, axis=0)
        rest = beside if w.ndim == 4 else tap - np.diag(np.diag(tap))
        assert bool(np.any(rest)) == noisy
        assert np.abs(rest).max(initial=0.0) < 0.1


def test_the_convolutional_flow_is_the_papers():
    flow = PRESETS["conv"].build(Choices(), (28, 28, 1))
    kinds = [type(layer) for _, layer in flow.layers]
    known = (layers.Linear, layers.RationalQuadraticSpline, layers.Squeeze)
    assert [kinds.count(kind) for kind in known] == [9, 8, 2]
    shape, seen, names = flow.shape, [], []
    for name, layer in flow.layers:
        if isinstance(layer, layers.Linear):
            assert layer.bias and layer.map.kernel == (3, 3)
            seen.append(shape)
            names.append(name)
        shape = layer.output_shape(shape)
    assert seen == [(28, 28, 1)] * 3 + [(14, 14, 4)] * 3 + [(7, 7, 16)] * 3
    assert names == [f"conv{block}.{index}" for block in (1, 2, 3) for index in (1, 2, 3)]
    # three kernels of 9 C² and three biases per block, twice the kernels for R; 14 per spline pixel
    kernels = sum(3 * 2 * 9 * c * c + 3 * c for c in (1, 4, 16))
    assert Layout.of(flow.parameter_shapes()).count == kernels + 8 * 784 * 14


def test_the_glow_of_table_1():
    preset = PRESETS["glow"]
    flow = preset.build(Choices(rule=Exact(), **preset.size), (28, 28, 1))
    kinds = [type(layer).__name__ for _, layer in flow.layers]
    assert kinds[:4] == ["Squeeze", "ActNorm", "Linear", "AffineCoupling"]
    counts = {"Squeeze": 2, "ActNorm": 32, "Linear": 32, "AffineCoupling": 32}
    assert {kind: kinds.count(kind) for kind in counts} == counts
    assert kinds[1 + 3 * 16] == "SplitPrior" and kinds.count("SplitPrior") == 1
    assert flow.latent_shapes == {"split1": (14, 14, 2), "z": (7, 7, 8)}
    mixing = [layer for _, layer in flow.layers if isinstance(layer, layers.Linear)]
    assert not any(layer.bias for layer in mixing)  # Glow's own has none
    learned = preset.build(Choices(**preset.size), (28, 28, 1))
    assert all(layer.bias for _, layer in learned.layers if isinstance(layer, layers.Linear))


@pytest.mark.parametrize("side", [6, 9, 30])
def test_image_sizes_that_do_not_survive_two_squeezes(side):
    with one_line(UsageError, "even"):
        PRESETS["conv"].build(Choices(), (side, side, 1)).init(0)


_PEAK = """
import numpy as np
import snfnp
from snfnp.ops import get_ops
from snfnp.training.options import TrainConfig
from snfnp.training.batches import Repeated
from snfnp.training.trainer import Trainer

def memory(entry):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) / 1024 for line in file if line.startswith(entry))

def step(side, batch):
    config = TrainConfig(model="conv", batch_size=batch).resolve(50_000)
    trainer = Trainer(get_ops(), config.build_flow((side, side, 1)), config, 500)
    images = np.zeros((batch, side, side, 1), np.uint8)
    for _ in range(2):
        trainer.training_step(Repeated(images))

step(8, 2)  # compiles or loads every kernel: that is the interpreter's part
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # resets the peak to the current use
before = memory("VmRSS")
step(28, 100)
print(memory("VmHWM") - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
def test_a_convolutional_step_stays_under_300_megabytes():
    done = python(_PEAK)
    # a dense T(w) of 784 × 784 alone would be 2.5 MB for each of 18 kernels: far from the bound,
    # so the lower one holds the patches of a batch, which are larger
    assert 5 < float(done.stdout) < 300
