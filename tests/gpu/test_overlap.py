"""Gradients of weights on a second stream (`--overlap`): the same numbers, a branch of the graph.

The stand-in runs the second stream as early as its dependencies allow, or as late (FAKE_POLICY 2
and 3): an array that is read or overwritten too early has other values then.
"""

from __future__ import annotations

import gc
import os
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
from support import trainers
from support.trainers import BATCH, gradient_of, host, images_of, make_trainer

from gpu.test_methods import WAYS, assert_alike
from gpu.test_training import SELF_NORMALIZING, take_steps
from snfnp.ops import get_ops
from snfnp.ops.gpu.side_stream import SideStream
from snfnp.training.batches import Repeated, cut

LEARNED = [way for way, (changes, _) in WAYS.items() if "gradient" not in changes]


@pytest.fixture
def beside():
    """The device's operations with a second stream."""
    return get_ops("cupy", overlap=True)


def assert_numbers_of_one_stream(ops, beside, **changes):
    """Bit for bit, in plain and recorded steps, with arrays made and dropped between them. Returns
    the trainer with two streams, and what it reported."""
    said = []
    expected = take_steps(make_trainer(ops, graph=False, **changes), range(5))
    found = make_trainer(beside, overlap=True, report=said.append, **changes)
    for step in range(5):
        trainers.take_steps(found, [step])
        beside.asarray(np.full(50_000, np.nan))
    found.check(pytest.fail)
    assert_alike(found, expected)
    return found, said


@pytest.mark.parametrize("way", LEARNED)
def test_the_numbers_are_those_of_one_stream(ops, beside, way):
    found, said = assert_numbers_of_one_stream(ops, beside, **WAYS[way][0])
    assert found._ascend.recorded and not said


@pytest.mark.parametrize("way", LEARNED)
def test_a_slice_of_a_batch_has_the_gradient_of_one_stream(ops, beside, way):
    """A slice that does not lead leaves out terms."""
    gradients = []
    for each in (ops, beside):
        trainer = make_trainer(each, graph=False, overlap=each is beside, **WAYS[way][0])
        images = images_of(trainer, 0)
        trainer.begin(Repeated(images))
        slices = ((images[part.first :][: part.count], part) for part in cut(BATCH, 2))
        gradients.append([each.to_host(gradient_of(trainer, *of)) for of in slices])
    np.testing.assert_array_equal(*gradients)


def test_reading_an_overwritten_array_is_detected(beside, standin):
    """The control of these tests."""
    source, target = beside.xp.ones(3), beside.xp.zeros(3)
    with beside.side_stream():
        beside.run_async(beside.xp.copyto, target, source)
        source[:] = 5
    late = os.environ.get("FAKE_POLICY") == "3"
    assert (beside.to_host(target) == (5 if late else 1)).all()


class Deaf:
    """A stream that takes no part in a recording."""

    def __init__(self, stream, cuda):
        self._stream, self._cuda, self.ptr = stream, cuda, stream.ptr

    def __enter__(self):
        return self._stream.__enter__()

    def __exit__(self, *error):
        return self._stream.__exit__(*error)

    def is_capturing(self):
        return False

    def wait_event(self, event):
        if not self._cuda.get_current_stream().is_capturing():
            self._stream.wait_event(event)


def test_without_a_second_branch_a_step_is_recorded_all_the_same(ops, beside):
    """What ran on the second stream would be missing from every replay."""
    side = beside.device._side
    side._stream = Deaf(side._stream, ops.xp.cuda)
    found, (line,) = assert_numbers_of_one_stream(ops, beside)
    assert found._ascend.recorded and "a second stream does not take part in a recording" in line
    assert line.endswith(": it runs without a second stream")


def test_arguments_are_kept_until_the_join(ops):
    """CuPy would hand its memory to the next array of the caller's stream."""
    side, delta = SideStream(ops.xp, tf32=False), ops.xp.zeros(3)
    alive = weakref.ref(delta)
    with side.side_stream():
        side.run_async(lambda delta: None, delta)
        del delta
        gc.collect()
        assert alive() is not None
    gc.collect()
    assert alive() is None


def test_a_failure_leaves_nothing_behind_and_the_first_error_is_raised(ops):
    """A spoiled recording lets no event be recorded, and its memory is to be given back."""
    side, cuda_error = SideStream(ops.xp, tf32=False), ops.xp.cuda.runtime.CUDARuntimeError

    def refuse(stream):
        raise cuda_error(901)

    with pytest.raises(ZeroDivisionError), side.side_stream():
        side.run_async(lambda: 1 / 0)
    assert not side.active and not side._held
    side._done = SimpleNamespace(record=refuse)
    with pytest.raises(ZeroDivisionError), side.side_stream():
        side.run_async(print)
        raise ZeroDivisionError
    with pytest.raises(cuda_error), side.side_stream():
        side.run_async(print)
    assert not side._held


_SPIN = """
extern "C" __global__ void spin(long long cycles) {
  const long long start = clock64();
  while (clock64() - start < cycles) {}
}
"""


@pytest.mark.real_gpu
@pytest.mark.parametrize("model, gradient", SELF_NORMALIZING)
@pytest.mark.parametrize("late", ["the second stream", "the first"])
def test_either_stream_may_be_late(ops, beside, monkeypatch, model, gradient, late):
    """A delay before every gradient, or before all that they wait for, shows what is read or
    overwritten too early."""
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


def test_the_second_stream_has_a_handle_and_a_counter_of_its_own(beside):
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
    assert aside.count("conv_weight_grad") == aside.count("scaled_kernel") == 2 * linear  # W and R
    assert set(aside) == {
        "conv_weight_grad",
        "conv_weight_grad_sum",
        "scaled_kernel",
        "channel_sum",
    }
