"""A step beside its layers: Adam, rates, batches, the log, λ's controllers; its number of calls."""

import gc
import math
import re
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from numpy.random import default_rng
from numpy.testing import assert_allclose, assert_array_equal
from support.arrays import normal, pixels
from support.messages import one_line
from support.trainers import (
    BATCH,
    ReferenceAdam,
    batches_of,
    host,
    images_of,
    make_trainer,
    run_training,
    small_config,
    take_steps,
)

import snfnp
from snfnp.context import BackwardContext
from snfnp.errors import CheckpointError, UsageError
from snfnp.likelihood import AUGMENTATION
from snfnp.ops import RandomKey, get_ops
from snfnp.ops.gpu import source
from snfnp.ops.images.definition import augment
from snfnp.ops.step.definition import (
    Controller,
    ControllerRow,
    LogEntry,
    Reading,
    StepLog,
    clip_scale,
)
from snfnp.step.batches import Batches, Repeated, batch_of, epoch_order
from snfnp.step.update import Adam, learning_rate, warmed_up
from snfnp.training.options import TrainConfig
from snfnp.training.runs.checkpoint import Checkpoint
from snfnp.training.runs.load import load_run

BEFORE_DENSITY = slice(0, LogEntry.DENSITY)
PACKAGE = str(Path(snfnp.__file__).parent)
# calls, and files of the functions that are called
BUDGET = {"fc": (110, 15), "conv": (650, 17)}
STEPS = 60
LAYERS = 3
SAMPLES = 7
FAST = {"lambda_rate": 20.0}


def test_scalars_say_what_they_were_set_to(ops):
    scalars = ops.step.scalars()
    scalars.set(6, 0.25, 3)
    found = (scalars.step, scalars.number, scalars.lr, scalars.first)
    assert [float(number) for number in found] == [6.0, 7.0, 0.25, 3.0]


def test_the_log_keeps_the_last_step_and_averages_all(ops):
    log = StepLog(ops.device)
    assert log.array.size == len(LogEntry) and not log.failed
    assert log.read().failed == 0 and np.isnan(log.read().averages).all()
    steps = [(np.array([-1.0, -3.0]), 0.5, 9.0), (np.array([-5.0, -5.0]), 0.25, 16.0)]
    for number, (densities, reconstruction, squares) in enumerate(steps, start=1):
        ops.step.log_density(densities, number, log.array)
        ops.step.log_step([reconstruction], squares, 2.0, number, log.array)
    last = (-5.0 - 2.0 * 0.25, 0.25, 4.0)
    assert log.read() == Reading(last, ((-3.0 - 5.5) / 2, 0.75 / 2, 7.0 / 2), 0, -5.0)
    assert log.array[LogEntry.COUNT] == 2.0 and log.array[LogEntry.DENSITY] == -5.0
    log.clear_averages()
    assert log.read().last == last and np.isnan(log.read().averages).all()
    ops.step.log_step([1.0], 4.0, 2.0, 3, log.array)
    assert log.read().averages == log.read().last == (-7.0, 1.0, 2.0)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["density", "gradient"])
def test_the_first_failure_stays_in_the_log(ops, where, value):
    log = StepLog(ops.device)
    failed = log.failed  # a view: it follows the log
    ops.step.log_density(np.array([-1.0]), 1, log.array)
    ops.step.log_step([0.5], 4.0, 1.0, 1, log.array)
    before = log.array.copy()
    for number in (2, 3):
        assert bool(failed) == (number == 3)
        ops.step.log_density(
            np.array([value if where == "density" else -1.0]), number, log.array
        )
        ops.step.log_step(
            [0.5], abs(value) if where == "gradient" else 4.0, 1.0, number, log.array
        )
    assert log.read().failed == failed == 2
    assert math.isfinite(log.read().density) == (where == "gradient")
    assert_array_equal(log.array[BEFORE_DENSITY], before[BEFORE_DENSITY])
    # a later step that would be fine changes nothing
    ops.step.log_density(np.array([-9.0]), 4, log.array)
    ops.step.log_step([0.5], 4.0, 1.0, 4, log.array)
    assert_array_equal(log.array[BEFORE_DENSITY], before[BEFORE_DENSITY])


def test_kernels_have_the_entries_of_the_log():
    text = source.source("step")
    found = re.findall(r"^  ([A-Z_]+) = (\d+)", text, re.MULTILINE)
    expected = [(entry.name, entry.value) for entry in LogEntry]
    assert [(name, int(value)) for name, value in found] == expected
    assert sorted(LogEntry) == list(range(len(LogEntry)))


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("change", [True, False])
def test_batches_are_a_function_of_the_step(ops, shuffle, change):
    images = pixels(23, 4, 6, 3)
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
        assert_array_equal(batch_of(batches, step), expected)


def buffers(size):
    p = normal(size)
    return p, np.zeros_like(p), np.zeros_like(p)


@pytest.mark.parametrize("settings", [(0.9, 0.999, 1e-8), (0.5, 0.75, 0.1)])
def test_adam_matches_reference(ops, settings):
    """With the sign of ascent."""
    reference = ReferenceAdam(*settings)
    p, m, v = buffers(37)
    expected = p.copy()
    rng = default_rng(1)
    for t in range(1, 51):
        g = rng.standard_normal(37) * np.logspace(-9, 3, 37)
        expected += 1e-2 * reference.direction(g)
        squares = Adam(*settings).update(ops, g, 1e-2, t, clip_norm=None, out=(p, m, v))
        assert_allclose(squares, np.linalg.norm(g) ** 2, rtol=2e-13)
    for found, of in ((p, expected), (m, reference.m), (v, reference.v)):
        assert_allclose(found, of, rtol=1e-11, atol=0)


def test_gradients_beyond_the_norm_are_clipped(ops):
    """A gradient beyond the norm is scaled down to it; what is returned is of the unclipped one."""
    g = normal(50, seed=3)
    norm = float(np.linalg.norm(g))
    for clip_norm, scale in ((norm / 4, 0.25), (2 * norm, 1.0), (None, 1.0)):
        p, m, v = buffers(50)
        before = g.copy()
        returned = Adam().update(ops, g, 1e-3, 1, clip_norm, out=(p, m, v))
        assert_allclose(returned, norm**2, rtol=2e-13)
        assert_array_equal(g, before)
        rtol = 2e-6 / norm  # the 1e-6 in the denominator of the scale
        assert_allclose(m, 0.1 * scale * g, rtol=rtol + 1e-14)
        assert_allclose(v, 0.001 * (scale * g) ** 2, rtol=2 * rtol + 1e-13)
    assert clip_scale(0.0, 10.0) == 1.0
    assert clip_scale(1600.0, 10.0) * 40.0 <= 10.0


@pytest.mark.parametrize("clip_norm", [None, 1.0])
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_gradient_that_is_not_finite_moves_nothing(ops, clip_norm, dtype, value):
    """Also far from it, in a buffer of many tasks: the step can be examined as it was."""
    for size in (20, 40_000):
        moved = [np.full(size, number, dtype) for number in (1.0, 3.0, 4.0)]
        g = np.ones(size, dtype)
        g[7] = value
        squares = Adam().update(ops, g, 1e-3, 1, clip_norm, out=moved)
        assert not math.isfinite(squares)
        for buffer, number in zip(moved, (1.0, 3.0, 4.0), strict=True):
            assert (buffer == number).all()


def test_nothing_moves_once_a_step_has_failed(ops):
    g, *buffers_ = [np.full(20, value) for value in (2.0, 1.0, 3.0, 4.0)]
    squares = Adam().update(ops, g, 1e-3, 1, None, failed=7.0, out=buffers_)
    assert squares == 20 * 2.0**2
    for buffer, value in zip((g, *buffers_), (2.0, 1.0, 3.0, 4.0), strict=True):
        assert (buffer == value).all()


def test_the_rate_rises_linearly_during_warm_up():
    """lr · ((b+1) + (e-1) B) / (E B) in batch b = 0, 1, … of epoch e = 1, 2, … of E (A.3)."""
    lr = 1e-4
    per_epoch = 7
    epochs = 10
    for step in range(12 * per_epoch):
        epoch = step // per_epoch + 1
        batch = step % per_epoch
        formula = lr * ((batch + 1) + (epoch - 1) * per_epoch) / (epochs * per_epoch)
        found = warmed_up(lr, step, per_epoch, epochs)
        assert_allclose(found, min(lr, formula), rtol=1e-15)
    assert warmed_up(lr, epochs * per_epoch - 1, per_epoch, epochs) == lr
    for epochs, step, fraction in ((0, 0, 1.0), (0.5, 0, 0.2), (0.5, 4, 1.0)):
        assert_allclose(warmed_up(2.0, step, 10, epochs), 2.0 * fraction, rtol=1e-15)


COSINE = [(1 + math.cos(math.pi * k / 6)) / 2 for k in range(1, 7)]
RATES = [  # schedule, final fraction, rates of the six steps after warm-up, for --lr 1
    ("constant", None, 6 * [1]),
    ("linear", 0.0, [5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6, 0]),
    ("linear", 0.4, [0.9, 0.8, 0.7, 0.6, 0.5, 0.4]),
    ("cosine", 0.0, COSINE),
    ("cosine", 0.2, [0.2 + 0.8 * rate for rate in COSINE]),
]


@pytest.mark.parametrize("schedule, final, rates", RATES)
def test_the_rate_falls_from_warm_up_to_the_last_step(schedule, final, rates):
    options = {"lr_schedule": schedule, "final_lr_fraction": final}
    config = TrainConfig(lr=2.0, warmup_epochs=1, epochs=4, **options).resolve(1000)
    found = [learning_rate(config, step, steps_per_epoch=2) for step in range(9)]
    assert_allclose(
        found, 2 * np.array([0.5, 1, *rates, rates[-1]]), rtol=1e-14, atol=1e-15
    )


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize(
    "warmup, per_epoch, first", [(0.5, 1, 2.0), (0, 1, 2.0), (0.5, 4, 1.0)]
)
def test_the_first_step_of_a_run_has_a_rate(schedule, warmup, per_epoch, first):
    options = {
        "lr_schedule": schedule,
        "final_lr_fraction": 0.0,
        "warmup_epochs": warmup,
    }
    config = TrainConfig(lr=2.0, epochs=1, **options).resolve(1000)
    assert learning_rate(config, 0, per_epoch) == first


def calls_of(function) -> Counter:
    """(file, function) of every call of the package's functions, and how often."""
    counted = Counter()
    gc.collect()  # what other tests left may call the package when it goes

    def count(frame, event, argument):
        file = frame.f_code.co_filename
        if event == "call" and file.startswith(PACKAGE):
            counted[file.removeprefix(PACKAGE), frame.f_code.co_name] += 1

    sys.setprofile(count)
    try:
        function()
    finally:
        sys.setprofile(None)
    return counted


@pytest.mark.parametrize("model", BUDGET)
def test_a_step_makes_few_calls_in_few_files(model):
    trainer = make_trainer(get_ops("numpy"), model)
    take_steps(trainer, range(2))  # the first renews states and makes constants
    batches = batches_of(trainer)
    counted = calls_of(lambda: trainer.training_step(batches))
    calls = sum(counted.values())
    files = len({file for file, _ in counted})
    most_calls, most_files = BUDGET[model]
    assert calls <= most_calls and files <= most_files, (calls, files, counted)


# ---------------------------------------------------------------- λ's controllers


def controller(**changes):
    defaults = {
        "relative": False,
        "tolerance": 0.3,
        "rate": 0.1,
        "highest": 5.0,
        "lowest": 1e-3,
    }
    return Controller(**{**defaults, "smoothing": 0.9, **changes})


def geco(constraints, lam, own):
    """Rezende & Viola 2018, algorithm 1, lines 7 to 11: Ĉ of C − κ, started at its first value."""
    average = None
    found = []
    for c in constraints:
        e = c - own.tolerance
        average = (
            e if average is None else own.smoothing * average + (1 - own.smoothing) * e
        )
        lam = min(max(lam * math.exp(own.rate * average), own.lowest), own.highest)
        found.append(lam)
    return found


def run_control(ops, own, found):
    """λ after each step (steps, L), and what the steps returned."""
    state = ops.asarray(own.new_state(found.shape[1], 0.9))
    lams = []
    totals = []
    for each in found:
        each = ops.asarray(each)
        results = ops.step.control(each, SAMPLES, own, 1.0, 0.0, out=state)
        totals.append([float(ops.to_host(result)) for result in results])
        lams.append(ops.to_host(state)[ControllerRow.LAM].copy())
    return np.array(lams), np.array(totals), ops.to_host(state)


@pytest.mark.parametrize("relative", [False, True])
def test_controllers_follow_their_formulas_over_many_steps(ops, relative):
    rng = default_rng(3)
    errors = (
        rng.uniform(0, 0.8, (STEPS, LAYERS)) * np.linspace(1.6, 0.2, STEPS)[:, None]
    )
    inputs = rng.uniform(0.5, 2.0, (STEPS, LAYERS)) * SAMPLES
    own = controller(relative=relative)
    found = np.stack([errors, inputs], axis=2)
    lams, totals, state = run_control(ops, own, found)
    constraints = errors * SAMPLES / inputs if relative else errors
    expected = np.stack([geco(c, 0.9, own) for c in constraints.T], axis=1)
    assert_allclose(lams, expected, rtol=1e-12)
    assert len(np.unique(expected)) > STEPS / 2  # most steps are between the bounds
    used = np.vstack([np.full((1, expected.shape[1]), 0.9), expected[:-1]])
    assert_allclose(totals[:, 0], errors.sum(axis=1), rtol=1e-12)
    weighted = (used * errors).sum(axis=1)
    assert_allclose(totals[:, 1] * totals[:, 0], weighted, rtol=1e-12)
    assert_allclose(
        state[ControllerRow.CONSTRAINT_SUM], constraints.sum(axis=0), rtol=1e-12
    )
    assert (state[ControllerRow.COUNTED] == STEPS).all()


def test_lambda_stays_within_its_bounds(ops):
    for size, bound in ((1e300, 5.0), (0.0, 1e-3)):
        found = np.full((200, 1, 2), size)
        own = controller(rate=100.0)
        lams, _, state = run_control(ops, own, found)
        assert lams[-1] == bound and np.isfinite(state).all()


@pytest.mark.parametrize("what", ["error", "inputs", "squares", "failed"])
def test_what_is_not_finite_moves_nothing(ops, what):
    """Neither λ nor an average moves; another layer, whose C is finite, goes on."""
    own = controller(relative=what == "inputs")
    state = ops.asarray(own.new_state(2, 0.9))
    found = np.ones((2, 2))
    ops.step.control(ops.asarray(found), SAMPLES, own, 1.0, 0.0, out=state)
    before = ops.to_host(state).copy()
    if what in ("error", "inputs"):
        found[0, 0 if what == "error" else 1] = math.nan if what == "error" else 0.0
    squares = math.inf if what == "squares" else 1.0
    failed = 3.0 if what == "failed" else 0.0
    ops.step.control(ops.asarray(found), SAMPLES, own, squares, failed, out=state)
    after = ops.to_host(state)
    assert_array_equal(after[:, 0], before[:, 0])
    moved = what in ("error", "inputs")
    assert (
        after[ControllerRow.COUNTED, 1] == before[ControllerRow.COUNTED, 1] + 1
    ) == moved


def test_a_lambda_that_cannot_fall_is_a_fixed_one(ops):
    """Bit for bit, in single precision too: λ does not go below its start."""
    for dtype in ("float32", "float64"):
        held = {"lambda_control": "geco", "lam": 0.7, "tolerance": 1e6}
        controlled = take_steps(make_trainer(ops, dtype=dtype, **held), range(3))
        fixed = take_steps(make_trainer(ops, dtype=dtype, lam=0.7), range(3))
        assert_array_equal(controlled.p, fixed.p)
        a = controlled.metrics()
        b = fixed.metrics()
        assert_allclose(list(a), list(b), rtol=1e-14)


@pytest.mark.parametrize("model", ["fc", "conv", "glow-2l-4k"])
@pytest.mark.parametrize("constraint", ["relative", "absolute"])
def test_a_step_sees_each_layers_constraint(ops, model, constraint):
    """E and ‖h‖² from the layers themselves, one by one."""
    changes = {"lambda_control": "geco", "constraint": constraint, "tolerance": 1e-3}
    trainer = make_trainer(ops, model, dtype="float64", **changes)
    trainer.begin(Repeated(images_of(trainer, 0)))
    images = images_of(trainer, 0)
    params = trainer.layout.views(host(trainer, "p").copy())
    trainer.training_step(Repeated(images))
    x, _ = trainer.encode(images, 0)
    expected = []
    for name, layer in trainer.flow.layers:
        z = layer.forward(ops, params[name], x)[0]
        if layer.learns_inverse:
            error = np.sum((layer.inverse(ops, params[name], z) - x) ** 2) / BATCH
            size = np.sum(x**2) / BATCH if constraint == "relative" else 1.0
            expected.append(error / size)
        x = z
    found = ops.to_host(trainer.multipliers.values)[ControllerRow.CONSTRAINT]
    assert_allclose(found, expected, rtol=1e-8, atol=1e-25)


def test_a_step_uses_the_lambdas_that_the_step_before_left(ops):
    """The next gradient is that of these λ given by hand."""
    changes = {"lambda_control": "geco", "tolerance": 1e-6, **FAST}
    trainer = take_steps(make_trainer(ops, dtype="float64", **changes), range(2))
    lams = trainer.multipliers.lam
    p = host(trainer, "p").copy()
    assert len(set(lams.values())) == len(lams)
    trainer.training_step(Repeated(images_of(trainer, 2)))
    found = trainer.gradient.copy()
    assert trainer.multipliers.lam != lams
    for given, same in ((lams, True), (trainer.multipliers.lam, False)):
        by_hand = make_trainer(ops, dtype="float64")
        by_hand.p[...] = p
        params = by_hand.params
        flow = by_hand.flow
        x, _ = trainer.encode(images_of(trainer, 2), 2)
        latents, _, caches = flow.forward(ops, params, x)
        ctx = BackwardContext.of(ops, np.full(BATCH, 1 / BATCH))
        factors = {}
        for layer, lam in given.items():
            factors[layer] = -2 * lam / BATCH
        deltas = flow.latent_gradients(latents)
        flow.backward(ctx, params, caches, deltas, by_hand.grads, factors)
        assert (np.abs(by_hand.gradient - found).max() <= 1e-12) == same


def test_a_run_has_lambda_and_constraint_in_its_metrics(tmp_path):

    make = {"lambda_control": "geco", "tolerance": 1e-5, **FAST}
    whole, _ = run_training(tmp_path / "whole", **make)
    records = whole.read_metrics()
    for record in records:
        for name in ("lam", "constraint"):
            assert record[f"{name}_min"] <= record[name] <= record[f"{name}_max"]
    loaded = load_run(whole.path, "last")
    assert np.mean(list(loaded.lam.values())) == pytest.approx(
        records[-1]["lam"], rel=1e-12
    )


def test_a_resumed_runs_lambda_is_the_controllers(tmp_path):
    config = small_config(lambda_control="geco")
    with pytest.raises(UsageError, match="its λ is in the checkpoint; leave `lam` out"):
        config.resumed({"lam": 3.0}, tmp_path)
    assert config.resumed({"lam": 1.0}, tmp_path) == config
    with pytest.raises(
        UsageError, match="lambda_control = geco: it cannot be resumed with fixed"
    ):
        config.resumed({"lambda_control": "fixed"}, tmp_path)
    assert small_config().resumed({"lam": 3.0}, tmp_path).lam == 3.0


@pytest.mark.parametrize(
    "change", [{}, {"other": np.ones((6, 2))}, {"control.rows": np.ones(2)}]
)
def test_states_of_other_names_or_shapes_are_refused(change):
    trainer = make_trainer(get_ops("numpy"), lambda_control="geco")
    checkpoint = Checkpoint.of(trainer, {})
    checkpoint.state = change
    with one_line(CheckpointError, "from another version or other options"):
        checkpoint.restore(trainer)


def test_defaults_follow_where_lambda_starts():
    """At first ln λ moves by C − κ in each step, for every λ."""
    for model in ("fc", "glow"):
        assert (
            TrainConfig(model=model, lambda_control="geco").resolve(1000).lambda_rate
            == 1.0
        )
