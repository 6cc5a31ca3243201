"""What a training step needs beside its layers: dials, the log, batches; on every CPU backend."""

import math

import numpy as np
import pytest

from snfnp.batches import Batches, epoch_order
from snfnp.config import TrainConfig
from snfnp.likelihood import AUGMENTATION
from snfnp.ops import RandomKey
from snfnp.ops.augment import augment
from snfnp.ops.numpy_steps import COUNT, DENSITY, FAILED, LOG_SIZE, SUMS, new_log


def test_dials_say_what_they_were_set_to(ops):
    dials = ops.dials()
    dials.set(6, 0.25, 3.0)
    assert [float(number) for number in (dials.step, dials.number, dials.lr, dials.lam)] == [
        *(6.0, 7.0),
        *(0.25, 3.0),
    ]


def test_the_log_keeps_the_last_step_and_adds_up_all(ops):
    log = new_log()
    steps = [(np.array([-1.0, -3.0]), 0.5, 9.0), (np.array([-5.0, -5.0]), 0.25, 16.0)]
    for number, (densities, reconstruction, squares) in enumerate(steps, start=1):
        ops.watch(log, densities, number)
        ops.record(log, reconstruction, squares, 2.0, number)
    assert log[:SUMS].tolist() == [-5.0 - 2.0 * 0.25, 0.25, 4.0]
    assert log[SUMS:COUNT].tolist() == [-3.0 - 5.5, 0.75, 7.0]
    assert (log[COUNT], log[DENSITY], log[FAILED], log.size) == (2.0, -5.0, 0.0, LOG_SIZE)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["density", "gradient"])
def test_the_first_failure_stays_in_the_log(ops, where, value):
    log = new_log()
    ops.watch(log, np.array([-1.0]), 1)
    ops.record(log, 0.5, 4.0, 1.0, 1)
    before = log.copy()
    for number in (2, 3):
        ops.watch(log, np.array([value if where == "density" else -1.0]), number)
        ops.record(log, 0.5, abs(value) if where == "gradient" else 4.0, 1.0, number)
    assert log[FAILED] == 2.0
    assert math.isfinite(log[DENSITY]) == (where == "gradient")
    np.testing.assert_array_equal(log[:DENSITY], before[:DENSITY])
    ops.watch(log, np.array([-9.0]), 4)  # a later step that would be fine changes nothing
    ops.record(log, 0.5, 4.0, 1.0, 4)
    np.testing.assert_array_equal(log[:DENSITY], before[:DENSITY])


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("change", [True, False])
def test_batches_are_a_function_of_the_step(ops, shuffle, change):
    images = np.random.default_rng(0).integers(0, 256, (23, 4, 6, 3)).astype(np.uint8)
    config = TrainConfig(
        model="glow", batch_size=5, shuffle=shuffle, augment=change, seed=3, epochs=1
    )
    config.resolve(len(images))
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
    config = TrainConfig(model="fc", batch_size=10, epochs=1)
    config.resolve(100)
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
    assert abs(ops.sum_squares(g) - expected) <= bound
    g[size // 2] = np.nan
    assert math.isnan(ops.sum_squares(g))
