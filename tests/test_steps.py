"""What a training step needs beside its layers: scalars, the log, batches; on CPU backends."""

import math
import re

import numpy as np
import pytest

from snfnp.likelihood import AUGMENTATION
from snfnp.ops import RandomKey
from snfnp.ops.gpu import source
from snfnp.ops.images.definition import augment
from snfnp.ops.step.control import LARGEST_EXPONENT, Row
from snfnp.ops.step.log import SIZE, Entry, Reading, StepLog
from snfnp.training.batches import Batches, epoch_order
from snfnp.training.options import TrainConfig

BEFORE_DENSITY = slice(0, Entry.DENSITY)


def test_scalars_say_what_they_were_set_to(ops):
    scalars = ops.step.scalars()
    scalars.set(6, 0.25, 3.0)
    found = (scalars.step, scalars.number, scalars.lr, scalars.lam)
    assert [float(number) for number in found] == [6.0, 7.0, 0.25, 3.0]


def test_the_log_keeps_the_last_step_and_averages_all(ops):
    log = StepLog(ops.step)
    assert log.array.size == SIZE and not log.failed
    assert log.read().failed == 0 and np.isnan(log.read().averages).all()
    steps = [(np.array([-1.0, -3.0]), 0.5, 9.0), (np.array([-5.0, -5.0]), 0.25, 16.0)]
    for number, (densities, reconstruction, squares) in enumerate(steps, start=1):
        log.density([densities], number)
        log.step([reconstruction], squares, 2.0, number)
    last = (-5.0 - 2.0 * 0.25, 0.25, 4.0)
    assert log.read() == Reading(last, ((-3.0 - 5.5) / 2, 0.75 / 2, 7.0 / 2), 0, -5.0)
    assert log.array[Entry.COUNT] == 2.0 and log.array[Entry.DENSITY] == -5.0
    log.clear_averages()
    assert log.read().last == last and np.isnan(log.read().averages).all()
    log.step([1.0], 4.0, 2.0, 3)
    assert log.read().averages == log.read().last == (-7.0, 1.0, 2.0)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["density", "gradient"])
def test_the_first_failure_stays_in_the_log(ops, where, value):
    log = StepLog(ops.step)
    failed = log.failed  # a view: it follows the log
    log.density([np.array([-1.0])], 1)
    log.step([0.5], 4.0, 1.0, 1)
    before = log.array.copy()
    for number in (2, 3):
        assert bool(failed) == (number == 3)
        log.density([np.array([value if where == "density" else -1.0])], number)
        log.step([0.5], abs(value) if where == "gradient" else 4.0, 1.0, number)
    assert log.read().failed == failed == 2
    assert math.isfinite(log.read().density) == (where == "gradient")
    np.testing.assert_array_equal(log.array[BEFORE_DENSITY], before[BEFORE_DENSITY])
    log.density([np.array([-9.0])], 4)  # a later step that would be fine changes nothing
    log.step([0.5], 4.0, 1.0, 4)
    np.testing.assert_array_equal(log.array[BEFORE_DENSITY], before[BEFORE_DENSITY])


def test_kernels_have_the_entries_of_the_log_and_the_rows_of_a_controller():
    text = source.source("step")
    found = re.findall(r"^  ([A-Z_]+) = (\d+)", text, re.MULTILINE)
    expected = [(entry.name, entry.value) for entry in (*Entry, *Row)]
    assert [(name, int(value)) for name, value in found] == expected
    assert sorted(Entry) == list(range(SIZE))
    assert f"constexpr double LARGEST_EXPONENT = {LARGEST_EXPONENT};" in text


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("change", [True, False])
def test_batches_are_a_function_of_the_step(ops, shuffle, change):
    images = np.random.default_rng(0).integers(0, 256, (23, 4, 6, 3)).astype(np.uint8)
    config = TrainConfig(
        model="glow", batch_size=5, shuffle=shuffle, augment=change, seed=3, epochs=1
    ).resolve(len(images))
    batches = Batches(ops, images, config, (4, 6, 3))
    assert batches.steps_per_epoch == 4
    for step in (0, 1, 3, 4, 9, 2):  # also backwards
        epoch, index = divmod(step, 4)
        expected = images[epoch_order(23, epoch, config)[5 * index : 5 * index + 5]]
        if change:
            expected = augment(expected, RandomKey(3, AUGMENTATION, step))
        np.testing.assert_array_equal(batches(step), expected)


def test_batches_read_no_more_of_the_images_than_they_give(ops):
    """A data set may be larger than the memory."""

    class Watched:
        shape, nbytes, read = (100, 4, 4, 1), 1600, 0

        def __len__(self):
            return 100

        def __getitem__(self, rows):
            self.read += len(rows)
            return np.zeros((len(rows), 4, 4, 1), np.uint8)

    images = Watched()
    config = TrainConfig(model="fc", batch_size=10, epochs=1).resolve(100)
    batches = Batches(ops, images, config, (16,))
    assert batches(0).shape == (10, 16)
    assert images.read == 10


@pytest.mark.parametrize("size", [1, 16_385, (1 << 17) - 1, 1 << 17, (1 << 17) + 1, 400_003])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_squares_are_summed_whatever_the_size(ops, size, dtype):
    """On one thread or many, in runs of 1024 squares of the array's own precision."""
    g = np.random.default_rng(size).standard_normal(size).astype(dtype)
    expected = math.fsum(value * value for value in g.astype(float).tolist())
    bound = 1026 * float(np.finfo(dtype).eps) * expected
    assert abs(ops.linalg.sum_squares(g) - expected) <= bound
    g[size // 2] = np.nan
    assert math.isnan(ops.linalg.sum_squares(g))
