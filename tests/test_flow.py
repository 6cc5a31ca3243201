"""Flows: starts, latents, copies, and failures that name a layer."""

import copy
import math
import pickle
from dataclasses import FrozenInstanceError, dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.random import default_rng
from numpy.testing import assert_array_equal
from support.messages import one_line
from test_rules import random_params, two_layers

from snfnp import layers
from snfnp.errors import UsageError
from snfnp.flow import Flow
from snfnp.parameters import Layout
from snfnp.rules import Exact, SelfNormalizing

D = 5
N = 5


@pytest.fixture
def x():
    return default_rng(1).standard_normal((N, D))


def test_a_flow_without_a_learned_inverse_says_so(ops, x):
    flow = two_layers(Exact())
    assert not flow.has_learned_inverse
    assert two_layers(SelfNormalizing()).has_learned_inverse
    with one_line(UsageError, match="learned no inverse"):
        flow.inverse(ops, random_params(flow, default_rng(0)), (x,))


def test_copies_of_a_flow_have_their_own_layout():
    flow = two_layers(SelfNormalizing())
    count = flow.layout.count
    assert flow.layout is flow.layout and flow.first_trainable == 0
    for again in (
        pickle.loads(pickle.dumps(flow)),
        copy.copy(flow),
        copy.deepcopy(flow),
    ):
        assert again == flow and again.layout == flow.layout
        assert [*again.layout.views(np.zeros(flow.layout.size))] == [
            name for name, _ in flow.layers
        ]
    shorter = replace(flow, layers=flow.layers[1:])
    assert shorter.layout.layers == ("activation1", "dense2")
    assert 2 * shorter.layout.count == count and shorter.first_trainable == 1
    with one_line(UsageError, "are not of this flow: give"):
        shorter.layout.views(np.zeros(flow.layout.size))


def test_a_flow_and_its_layers_stay_as_they_were_made():
    """The shapes were checked then, and the layout is kept."""
    flow = two_layers(SelfNormalizing())
    for each, name in ((flow, "layers"), (flow, "shape"), (flow.layers[0][1], "rule")):
        with pytest.raises(FrozenInstanceError):
            setattr(each, name, getattr(each, name))
    assert len({flow, two_layers(SelfNormalizing())}) == 1


def test_a_flow_asks_each_layer_a_few_times_for_its_parameters(monkeypatch):
    """However many layers there are: what is quadratic costs seconds in Glow with L = 3, K = 48."""
    asked = []
    original = layers.ActNorm.parameter_shapes
    spy = lambda layer, shape: asked.append(layer) or original(layer, shape)  # noqa: E731
    monkeypatch.setattr(layers.ActNorm, "parameter_shapes", spy)
    flow = Flow((4,), tuple((f"layer{index}", layers.ActNorm()) for index in range(50)))
    assert flow.first_trainable == 0 and flow.layout.count == 400
    assert len(asked) == 2 * 50  # when the flow is made, and for its layout


def test_initial_parameters_depend_on_the_seed_alone():
    flow = two_layers(SelfNormalizing())
    first, again, other = (flow.init(seed)["dense2"]["W"] for seed in (3, 3, 4))
    assert_array_equal(first, again)
    assert np.any(first != other)
    # layers draw one after the other
    assert np.any(first != flow.init(3)["dense1"]["W"])


class Exponential(layers.Split):
    """A split of one's own, whose latent may be the only output that is not finite."""

    def forward(self, ops, p, x):
        z, ldj, cache = super().forward(ops, p, x)
        return z, ldj, {"latent": ops.xp.exp(cache["latent"])}


@pytest.mark.parametrize("bad", [np.nan, 1e3])
def test_first_nonfinite_checks_latents(ops, bad):
    flow = Flow((1, 1, 2), (("split", Exponential()),))
    params = flow.init(0)
    x = np.zeros((3, 1, 1, 2))
    assert flow.first_nonfinite(ops, params, x) is None
    x[..., 1] = bad
    with np.errstate(over="ignore"):
        failure = flow.first_nonfinite(ops, params, x)
    assert failure == ("the input" if np.isnan(bad) else "the output of layer split")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_first_nonfinite_names_the_layer(ops, x, bad):
    flow = two_layers(SelfNormalizing())
    assert flow.first_nonfinite(ops, random_params(flow, default_rng(0)), x) is None
    for layer in ("dense1", "dense2"):
        params = random_params(flow, default_rng(0))
        params[layer]["b"][2] = bad
        assert flow.first_nonfinite(ops, params, x) == f"the output of layer {layer}"
    x[3, 1] = bad
    assert (
        flow.first_nonfinite(ops, random_params(flow, default_rng(0)), x) == "the input"
    )


@dataclass(frozen=True)
class BadVolume(layers.Layer):
    """The identity with a log-determinant that is not finite."""

    def forward(self, ops, p, x):
        return x, ops.xp.full(len(x), -np.inf), {}


def test_first_nonfinite_checks_log_determinants(ops, x):
    flow = Flow(
        shape=(D,), layers=(("good", layers.SmoothLeakyReLU()), ("bad", BadVolume()))
    )
    assert flow.first_nonfinite(ops, flow.init(0), x) == "the output of layer bad"


def test_first_nonfinite_gradient_names_layer_and_parameter(ops):
    flow = two_layers(SelfNormalizing())
    layout = Layout.of(flow.parameter_shapes())
    grads = layout.views(np.zeros(layout.size))
    assert flow.first_nonfinite_gradient(ops, grads) is None
    grads["dense1"]["R"][1, 1] = np.inf
    assert flow.first_nonfinite_gradient(ops, grads) == "dense1.R"
    # nearer to the output, where the backward pass starts
    grads["dense2"]["b"][0] = np.nan
    assert flow.first_nonfinite_gradient(ops, grads) == "dense2.b"


@settings(max_examples=50, derandomize=True, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from("abcde"),
        st.dictionaries(
            st.sampled_from("WRbx"),
            st.lists(st.integers(0, 4), max_size=3).map(tuple),
            max_size=4,
        ),
        max_size=4,
    )
)
def test_parameters_of_any_shapes_survive_packing(shapes):
    layout = Layout.of(shapes)
    count = sum(math.prod(size) for named in shapes.values() for size in named.values())
    values = iter(range(1, count + 1))
    numbers = {
        layer: {
            name: np.fromiter(values, float, math.prod(shape)).reshape(shape)
            for name, shape in named.items()
        }
        for layer, named in shapes.items()
    }
    assert layout.count == count
    keys = {f"{layer}.{name}" for layer, named in shapes.items() for name in named}
    assert {entry.key for entry in layout.entries} == keys
    flat = layout.pack(numbers, np.float64)
    single = layout.pack(numbers, np.float32)  # whole numbers: nothing is rounded
    assert single.dtype == np.float32 and np.array_equal(single, flat)
    # padding is 0
    assert flat.size == layout.size and flat.sum() == count * (count + 1) / 2
    for layer, named in layout.views(flat).items():
        assert list(named) == list(shapes[layer])
        for name, view in named.items():
            assert_array_equal(view, numbers[layer][name])
            assert np.shares_memory(view, flat) or view.size == 0
            transposed = name == "R" and view.ndim == 2
            assert (view.T if transposed else view).flags.c_contiguous
    # 64 bytes in single precision
    assert all(entry.start % 16 == 0 for entry in layout.entries)
