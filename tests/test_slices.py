"""A batch in slices: their gradients add up, whoever computes them; and how processes meet."""

from contextlib import nullcontext
from itertools import product

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from support.ranks import on_ranks
from support.trainers import (
    Given,
    at_step,
    batches_of,
    host,
    images_of,
    make_trainer,
    small_config,
    small_dataset,
)

from snfnp.errors import DivergedError
from snfnp.likelihood import Likelihood
from snfnp.ops import SINGLE_PROCESS, get_ops
from snfnp.processes import terminal
from snfnp.step.batches import Batches, batch_of, cut
from snfnp.training.loop import train_session
from snfnp.training.monitors import Monitors
from snfnp.training.runs.folder import RunFolder
from snfnp.training.session import resumed, started

OPS = get_ops("numpy")
BATCH = 12
# What a step of a layer may look like: every rule, and every option that adds to the step.
STEPS = {
    "fc": {"model": "fc"},
    "forward": {"model": "fc", "objective": "forward"},
    "exact": {"model": "fc", "gradient": "exact"},
    "relative": {"model": "fc", "gradient": "relative"},
    "Eq. 31": {"model": "conv", "jvp_weight": 0.3},
    "variational": {
        "model": "conv",
        "objective": "variational",
        "lam": 50.0,
        "noise_vectors": 5,
    },
    "conv": {"model": "conv"},
    "whitened": {"model": "fc", "coordinates": "white"},
    "5x5": {"model": "conv", "inverse_kernel": 5},
    "conv exact": {"model": "conv", "gradient": "exact"},
    "white": {"model": "conv", "coordinates": "white"},
    "emerging": {"model": "emerging"},
    "exponential": {"model": "conv-exponential"},
    "glow": {"model": "glow"},
    "glow exact": {"model": "glow", "gradient": "exact"},
    "controlled": {"model": "conv", "lambda_control": "geco"},
    "clipped": {"model": "fc", "clip_norm": 1.0},
    "recomputed": {"model": "glow", "recompute": True},
}
# Sums of a few thousand terms, in another order, through some dozens of layers.
ROUNDING = 1e-12


def slices_of(trainer):
    """This rank's slices of the batches of `images_of`."""
    part = cut(BATCH, trainer.world.size)[trainer.world.rank]

    def step_images(step):
        return images_of(trainer, step, BATCH)[part.first : part.first + part.count]

    return Given(step_images, batches_of(trainer, BATCH).whole)


def trainer_of(step, world=SINGLE_PROCESS):
    result = make_trainer(
        OPS, **STEPS[step], dtype="float64", batch_size=BATCH, world=world
    )
    result.begin(slices_of(result))
    result.scalars.set(0, 1e-3)
    return result


def assert_close(result, expected, tolerance=ROUNDING):
    assert np.abs(result - expected).max() <= tolerance * np.abs(expected).max()


@pytest.mark.parametrize(
    ("total", "parts"), [*product((1, 5, 12, 100), (1, 2, 3, 4, 5))]
)
def test_slices_cover_a_batch_in_order(total, parts):
    result = cut(total, parts)
    assert [part.index for part in result] == list(range(parts))
    assert all((part.total, part.parts) == (total, parts) for part in result)
    ends = [0, *(part.first + part.count for part in result)]
    assert [part.first for part in result] == ends[:-1] and ends[-1] == total
    counts = [part.count for part in result]
    assert max(counts) - min(counts) <= 1


def steps_on_ranks(step, size, count):
    """(p, m, state, the log) of every rank after some steps.

    Noise from the sequence's start, or log-determinants, in every slice would be wrong.
    """

    def take(world):
        trainer = trainer_of(step, world)
        for _ in range(count):
            trainer.training_step(slices_of(trainer))
        metrics = [
            *vars(trainer.metrics()).values(),
            *vars(trainer.averages()).values(),
        ]
        figures = [*metrics, *trainer.figures().values()]
        return (
            host(trainer, "p"),
            host(trainer, "m"),
            host(trainer, "state"),
            np.array(figures),
        )

    return on_ranks(size, take)


@pytest.mark.parametrize("step", STEPS)
def test_a_few_steps_on_ranks_are_those_of_one_process(step):
    (expected,) = steps_on_ranks(step, 1, 4)
    for size in (2, 3):
        ranks = steps_on_ranks(step, size, 4)
        for name, a, b in zip(
            ("p", "m", "state", "log"), ranks[0], expected, strict=True
        ):
            if b.size:  # a step divides by a square root of sums whose digits cancel
                assert_close(a, b, 1e3 * ROUNDING), name
        for other in ranks[1:]:  # the same bits on all of them
            for a, b in zip(other, ranks[0], strict=True):
                assert_array_equal(a, b)


@pytest.fixture(autouse=True)
def no_signals(monkeypatch):
    """Python handles signals in the main thread alone."""
    monkeypatch.setattr(terminal, "handled", lambda handler, *names: nullcontext())


def run_on_ranks(path, size, resume=False, epochs=2, **changes):
    """A small run on ranks: its folder and the summaries of all."""
    changes |= {"epochs": epochs, "dtype": "float64", "backend": "numpy"}
    lines = []

    def take(world):
        if resume:
            run = resumed(path, changes, dataset=small_dataset(), world=world)
        else:
            run = started(small_config(out=path, **changes), small_dataset(), world)
        with run as session:
            return train_session(
                session, lines.append if world.rank == 0 else pytest.fail
            )

    return RunFolder(path), on_ranks(size, take), lines


def parameters_of(run):
    from safetensors.numpy import load_file

    return load_file(run.last)


def test_a_run_on_ranks_is_that_of_one_process(tmp_path):
    one, (expected,), _ = run_on_ranks(tmp_path / "one", 1)
    run, summaries, lines = run_on_ranks(tmp_path / "two", 2)
    assert lines[0].splitlines()[0].endswith(", float64, numpy backend, 2 processes")
    for summary in summaries:
        for key in ("validation_nll_nats", "test_nll_nats", "reconstruction"):
            assert summary[key] == pytest.approx(expected[key], rel=1e-10)
    a = parameters_of(run)
    b = parameters_of(one)
    for name in b:
        assert_close(a[name], b[name], 1e3 * ROUNDING)
    for record, other in zip(run.read_metrics(), one.read_metrics(), strict=True):
        assert record["layers"].keys() == other["layers"].keys()
        for figure in ("validation_nll_nats", "surrogate", "gradient_norm", "lam"):
            assert record[figure] == pytest.approx(other[figure], rel=1e-10)
        for layer, figures in other["layers"].items():
            # power iterations
            assert record["layers"][layer] == pytest.approx(figures, rel=1e-6)
    assert run.open(run.path)[1]["processes"] == 2


def test_a_run_goes_on_with_another_number_of_ranks(tmp_path):
    one, _, _ = run_on_ranks(tmp_path / "one", 1)
    run, _, _ = run_on_ranks(tmp_path / "other", 4, epochs=1)
    run_on_ranks(tmp_path / "other", 2, resume=True)
    for name, expected in parameters_of(one).items():
        assert_close(parameters_of(run)[name], expected, 1e3 * ROUNDING)
    (event,) = run.open(run.path)[1]["history"]
    assert event["changed"] == {"epochs": [1, 2], "processes": [4, 2]}
    assert run.open(run.path)[1]["processes"] == 2


def test_a_nan_in_one_ranks_slice_stops_all_and_names_the_layer(tmp_path, monkeypatch):
    def spoil(trainer):
        if trainer.world.rank == 1:  # as a fault of one machine would
            trainer.params["dense2"]["b"][3] = np.nan

    at_step(monkeypatch, 7, spoil)
    with pytest.raises(
        DivergedError, match="diverged at step 8: the output of layer dense2 "
    ):
        run_on_ranks(tmp_path / "run", 2)


@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
def test_ranks_share_an_evaluation(ranks):
    trainer = trainer_of("fc")
    likelihood = Likelihood(OPS, trainer.flow, trainer.p)
    images = np.concatenate([images_of(trainer, step, BATCH) for step in range(4)])
    seen = []

    def take(world):
        def watch(layer, x, first):
            seen.append((layer, first, len(x)))

        result = likelihood.evaluate(images, 3, 5, watch=watch, world=world)
        return result

    for result in on_ranks(ranks, take):
        expected = likelihood.evaluate(images, 3, 5)
        assert result.terms == pytest.approx(expected.terms, rel=1e-13)
    # 10 parts of three layers, each of which one rank watches
    layers = [name for name, _ in trainer.flow.layers]
    parts = [(first, min(5, len(images) - first)) for first in range(0, len(images), 5)]
    assert sorted(seen) == sorted((name, *part) for name in layers for part in parts)


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_share_a_monitor(ranks):
    trainer = trainer_of("fc")
    likelihood = Likelihood(OPS, trainer.flow, trainer.p)
    images = np.concatenate([images_of(trainer, step, BATCH) for step in range(24)])

    def margins(world):
        monitors = Monitors(trainer, lambda step: images_of(trainer, step, BATCH))
        likelihood.evaluate(
            images, 3, 5, watch=monitors.watch(len(images)), world=world
        )
        monitors.share(world)
        figures = monitors.figures(likelihood)["layers"]
        return [layer["margin"] for layer in figures.values()]

    (alone,) = on_ranks(1, margins)
    assert len(alone) == 2
    for result in on_ranks(ranks, margins):
        assert result == pytest.approx(alone, rel=1e-12)


def test_batches_of_ranks_are_slices_of_the_whole(tmp_path):
    config = small_config(batch_size=20, augment=True)
    images = small_dataset().train

    def taken(world):
        return batch_of(Batches(OPS, images, config, (25,), world), 3).copy()

    (whole,) = on_ranks(1, taken)
    slices = on_ranks(4, taken)
    assert_array_equal(np.concatenate(slices), whole)
    everything = on_ranks(
        2, lambda world: Batches(OPS, images, config, (25,), world).whole(3)
    )
    for result in everything:
        assert_array_equal(result, whole)
