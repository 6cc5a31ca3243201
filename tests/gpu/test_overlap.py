"""Gradients of weights on a second stream (`--overlap`): the same numbers, and a graph's branch."""

from __future__ import annotations

import numpy as np
import pytest
from support.late import PutOff
from support.trainers import host, make_trainer

from gpu import standin as devices
from gpu.test_training import SELF_NORMALIZING, take_steps
from snfnp.ops import get_ops


@pytest.fixture(scope="module")
def beside():
    """The device's operations with a second stream."""
    return get_ops("cupy", overlap=True)


@pytest.mark.parametrize("model, gradient", SELF_NORMALIZING)
def test_the_numbers_are_those_of_one_stream(ops, beside, model, gradient):
    """Bit for bit, with arrays made and dropped between the steps."""
    expected = take_steps(make_trainer(ops, model, gradient, graph=False), range(2))
    found = make_trainer(beside, model, gradient, graph=False, overlap=True)
    for step in range(2):
        take_steps(found, [step])
        beside.asarray(np.full(50_000, np.nan))
    assert_alike(found, expected)


def assert_alike(found, expected):
    for name in ("p", "m", "v", "gradient"):
        np.testing.assert_array_equal(host(found, name), host(expected, name))
    assert found.metrics() == expected.metrics()


def test_a_recorded_step_has_two_branches_or_says_why_not(ops, beside):
    """The stand-in's recording has one stream: what ran on the second would be in no replay."""
    gpu = devices.device().kind == devices.GPU
    for model, gradient in SELF_NORMALIZING if gpu else SELF_NORMALIZING[:1]:
        said = []
        expected = take_steps(make_trainer(ops, model, gradient, graph=False), range(4))
        found = make_trainer(beside, model, gradient, overlap=True, report=said.append)
        take_steps(found, range(4))
        if gpu:
            assert found._ascend.recorded and not said
        else:
            assert "a second stream does not take part in a recording" in said[0]
        assert_alike(found, expected)


@pytest.mark.parametrize("model, gradient", SELF_NORMALIZING)
def test_no_kernel_minds_when_they_are_computed(ops, monkeypatch, model, gradient):
    """At the end of the pass as well as at once: the kernels that work in place are the GPU's."""
    expected = take_steps(make_trainer(ops, model, gradient, graph=False), [0])
    late = PutOff()
    monkeypatch.setattr(ops.device, "run_async", late.run_async)
    monkeypatch.setattr(ops.device, "side_stream", late.side_stream)
    found = take_steps(make_trainer(ops, model, gradient, graph=False), [0])
    assert late.done
    np.testing.assert_array_equal(host(found, "p"), host(expected, "p"))


_SPIN = """
extern "C" __global__ void spin(long long cycles) {
  const long long start = clock64();
  while (clock64() - start < cycles) {}
}
"""


@pytest.mark.real_gpu
@pytest.mark.parametrize("model, gradient", SELF_NORMALIZING)
@pytest.mark.parametrize("late", ["the second stream", "the first"])
def test_it_may_be_late_on_either_stream(ops, beside, monkeypatch, model, gradient, late):
    """Half a millisecond before every gradient, or before all that they wait for: whatever is read
    or overwritten too early then is."""
    spin = ops.xp.RawKernel(_SPIN, "spin")
    run_async = beside.device.run_async

    def slowly(function, *arguments, **named):
        spin((1,), (1,), (np.int64(1_000_000),))
        function(*arguments, **named)

    def called(function, *arguments, **named):
        if late == "the first":
            spin((1,), (1,), (np.int64(1_000_000),))
            run_async(function, *arguments, **named)
        else:
            run_async(slowly, function, *arguments, **named)

    expected = take_steps(make_trainer(ops, model, gradient, graph=False), range(6))
    monkeypatch.setattr(beside.device, "run_async", called)
    for graph in (False, True):
        found = make_trainer(beside, model, gradient, graph=graph, overlap=True)
        take_steps(found, range(6))
        np.testing.assert_array_equal(host(found, "p"), host(expected, "p"))


def test_what_is_aside_has_products_and_a_counter_of_its_own(beside):
    device, seen = beside.device, []

    def look():
        seen.append((device.cublas, device.counter(), beside.xp.cuda.get_current_stream()))

    with beside.side_stream():
        beside.run_async(look)
        look()
    beside.run_async(look)
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

    trainer = take_steps(make_trainer(beside, "conv", graph=False, overlap=True), [0])
    monkeypatch.setattr(type(beside.device.launch), "__call__", noted)
    take_steps(trainer, [1])
    main = beside.xp.cuda.get_current_stream().ptr
    aside = [name for name, stream in streams if stream != main]
    linear = sum("W" in named for named in trainer.grads.values())
    assert aside == ["conv_weight_grad", "conv_weight_grad_sum"] * linear
