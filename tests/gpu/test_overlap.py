"""Gradients of weights on a second stream (`--overlap`): the same numbers, and a graph's branch."""

from __future__ import annotations

import numpy as np
import pytest
from support.trainers import host, make_trainer

from gpu import standin as devices
from gpu.test_training import SELF_NORMALIZING, take_steps
from snfnp.ops import get_ops


@pytest.fixture(scope="module")
def beside():
    """The device's operations with a second stream."""
    return get_ops("cupy", overlap=True)


@pytest.mark.parametrize("model, gradient", [*SELF_NORMALIZING, ("fc", "probe"), ("conv", "probe")])
@pytest.mark.parametrize("graph", [False, True])
def test_the_numbers_are_those_of_one_stream(ops, beside, model, gradient, graph):
    """Bit for bit, with arrays made and dropped between the steps."""
    said = []
    expected = take_steps(make_trainer(ops, model, gradient, graph=False), range(6))
    found = make_trainer(beside, model, gradient, graph=graph, overlap=True, report=said.append)
    for step in range(6):
        take_steps(found, [step])
        beside.asarray(np.full(50_000, np.nan))
    for name in ("p", "m", "v", "gradient"):
        np.testing.assert_array_equal(host(found, name), host(expected, name))
    assert found.metrics() == expected.metrics()
    if graph and devices.device().kind == devices.GPU:
        assert found._ascend.recorded and not said
    elif graph:  # the stand-in records one stream only, and that does not go unnoticed
        assert "a second stream does not take part in a recording" in said[0]


def test_what_is_aside_has_products_and_a_counter_of_its_own(beside):
    device, seen = beside.device, []

    def look():
        seen.append((device.products, device.counter(), beside.xp.cuda.get_current_stream()))

    with beside.joining():
        beside.aside(look)
        look()
    beside.aside(look)
    aside, plain, outside = seen
    assert all(one is not other for one, other in zip(aside, plain, strict=True))
    assert plain[:2] == outside[:2] and plain[2] == outside[2]


def test_gradients_are_computed_on_the_second_stream(beside, monkeypatch):
    """And nothing else is: every linear layer's, once in a step."""
    streams = []
    launch = type(beside.device.launch).__call__

    def noted(self, name, *arguments, **more):
        streams.append((name, beside.xp.cuda.get_current_stream().ptr))
        return launch(self, name, *arguments, **more)

    trainer = take_steps(make_trainer(beside, "conv", graph=False, overlap=True), range(2))
    monkeypatch.setattr(type(beside.device.launch), "__call__", noted)
    take_steps(trainer, [2])
    main = beside.xp.cuda.get_current_stream().ptr
    aside = [name for name, stream in streams if stream != main]
    linear = sum("W" in named for named in trainer.grads.values())
    assert aside == ["conv_weight_grad", "conv_weight_grad_sum"] * linear
