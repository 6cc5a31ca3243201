"""The training loop: what it evaluates and keeps, its images and noise, and how it goes on."""

import itertools
import json
import math
import os
import re
import signal
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import tqdm.auto
from numpy.testing import assert_allclose, assert_array_equal
from support.messages import one_line
from support.own_layer import RULES, own
from support.runs import around, assert_same_run, state, stopped_at
from support.trainers import (
    SMALL_GLOW,
    at_step,
    images_of,
    make_trainer,
    run_training,
    small_dataset,
)

from snfnp.cli import evaluate, shared
from snfnp.data import Dataset
from snfnp.errors import DivergedError, UsageError
from snfnp.layers import Preprocess
from snfnp.likelihood import EVALUATION_NOISE
from snfnp.ops import get_ops
from snfnp.ops.random import definition as philox
from snfnp.step.batches import batch_of
from snfnp.step.trainer import Trainer
from snfnp.training import progress
from snfnp.training.evaluation import Evaluator
from snfnp.training.monitors import Monitors
from snfnp.training.options import TrainConfig
from snfnp.training.progress import Record
from snfnp.training.runs.folder import RunFolder
from snfnp.training.runs.load import load_run

pytestmark = pytest.mark.usefixtures("here")

OPS = get_ops("numpy")
SIDE = 4
BATCH = 10
CHOICES = {
    "lr": 3e-3,
    "warmup_epochs": 0,
    "dtype": "float64",
    "batch_size": BATCH,
    "threads": 1,
}


def dataset(*splits):
    return Dataset("mnist", *(np.asarray(images, np.uint8) for images in splits))


def pixels(low, high, seed=0):
    return np.random.default_rng(seed).integers(low, high, (40, SIDE, SIDE, 1))


@pytest.fixture(scope="module")
def disagreeing(tmp_path_factory):
    """A run in which the best epoch by the validation images is neither the first nor the last, and
    the best by the test images, which are like those that it trains on, the last."""
    data = dataset(pixels(100, 150), pixels(80, 170, seed=1), pixels(100, 150, seed=2))
    folder = tmp_path_factory.mktemp("runs") / "disagreeing"
    return data, *run_training(folder, data, **CHOICES | {"epochs": 9, "lr": 0.02})


def test_which_images_and_which_epoch_the_figures_are_of(disagreeing):
    """The validation images choose the epoch; the final figure is of the test images there."""
    data, run, summary = disagreeing
    validation = [record["validation_nll_nats"] for record in run.read_metrics()]
    best = int(np.argmin(validation))
    steps = len(data.train) // BATCH
    assert 0 < best < 8 == len(validation) - 1
    assert (summary["best_epoch"], summary["validation_nll_nats"]) == (
        best + 1,
        validation[best],
    )
    test = {}
    for name, epoch in (("best", best), ("last", 8)):
        loaded = load_run(run.path, name)
        assert loaded.checkpoint.step == (epoch + 1) * steps
        found = loaded.likelihood.evaluate(data.validation, 0).nll
        assert found == pytest.approx(validation[epoch], rel=1e-12)
        test[name] = loaded.likelihood.evaluate(data.test, 0).nll
    assert test["last"] < test["best"] - 0.1  # they can be told apart
    assert summary["test_nll_nats"] == pytest.approx(test["best"], rel=1e-12)
    bits = test["best"] / (SIDE * SIDE * math.log(2))
    assert summary["test_bits_per_dimension"] == pytest.approx(bits, rel=1e-12)
    assert (
        json.loads(run.summary_file.read_text())["test_nll_nats"]
        == summary["test_nll_nats"]
    )


@pytest.mark.parametrize(
    "epochs, every, expected",
    [(3, 1, [1, 2, 3]), (3, 2, [2, 3]), (4, 2, [2, 4]), (2, 5, [2])],
)
def test_the_last_epoch_is_always_evaluated(epochs, every, expected):
    how = CHOICES | {"epochs": epochs, "eval_every": every}
    run, _ = run_training("run", dataset(*3 * [pixels(0, 256)]), **how)
    steps = [(record["epoch"], record["step"]) for record in run.read_metrics()]
    assert steps == [(epoch, 4 * epoch) for epoch in expected]
    assert state(run.path).step == 4 * epochs


def orders(folder, monkeypatch, **changes):
    """Per epoch, the numbers of the training images in the order in which steps saw them."""
    numbered = np.arange(45).reshape(-1, 1, 1, 1) * np.ones((1, SIDE, SIDE, 1))
    seen = []

    def note(trainer, batches):
        images = OPS.to_host(batch_of(batches, trainer.step))
        seen.append(images.reshape(BATCH, -1)[:, 0].tolist())

    with monkeypatch.context() as patched:
        around(patched, Trainer, "training_step", note)
        data = dataset(numbered, *2 * [pixels(0, 256)])
        run_training(folder, data, **CHOICES | {"epochs": 3} | changes)
    per_epoch = len(seen) // 3
    return [sum(seen[i : i + per_epoch], []) for i in range(0, len(seen), per_epoch)]


def test_every_epoch_has_an_order_of_its_own(monkeypatch):
    epochs = orders("run", monkeypatch)
    for order in epochs:
        assert len(order) == len(set(order)) == 40  # 45 images: a rest of 5 is left out
        assert order != sorted(order)
    for one, other in itertools.combinations(epochs, 2):
        assert sum(a == b for a, b in zip(one, other, strict=True)) < 10
    assert set().union(*epochs) == set(range(45))  # not always the same rest
    again = orders("again", monkeypatch)
    other = orders("other", monkeypatch, seed=1)
    assert again == epochs and other[0] != epochs[0]


def test_without_a_shuffle_the_order_stays(monkeypatch):
    assert orders("run", monkeypatch, shuffle=False) == 3 * [list(range(40))]


@pytest.fixture(scope="module", params=[0, 3])
def encodings(request, tmp_path_factory):
    """Every x that a run of some seed made of images, in training and in evaluations: all pixels
    are alike, so that the noise alone tells them apart."""
    made = []
    original = Preprocess.forward

    def noting(preprocess, ops, images, key, dtype):
        x, ldj = original(preprocess, ops, images, key, dtype)
        made.append(np.array(x))
        return x, ldj

    grey = dataset(*3 * [np.full((40, SIDE, SIDE, 1), 100)])
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Preprocess, "forward", noting)
        # the monitors look at the batch of the next step just as that will see it
        patched.setattr(Monitors, "figures", lambda *_: {})
        how = CHOICES | {"epochs": 2, "seed": request.param}
        run_training(tmp_path_factory.mktemp("runs") / "run", grey, **how)
    training, evaluation = (
        [x for x in made if len(x) == count] for count in (BATCH, 40)
    )
    first, *training = (
        training  # biases and the like may start from the first step's batch
    )
    assert_array_equal(first, training[0])
    # two epochs, and the test images
    assert len(training) == 8 and len(evaluation) == 3
    return training, evaluation


def test_every_step_has_noise_of_its_own_and_every_evaluation_the_same(encodings):
    training, evaluation = encodings
    values = np.concatenate(training).ravel()
    assert len(np.unique(values)) == len(values)
    for x in evaluation:
        assert_array_equal(x, evaluation[0])
    assert not np.isin(evaluation[0], np.concatenate(training)).any()
    u = philox.uniform(np, philox.RandomKey(0, EVALUATION_NOISE, 0), (40, SIDE * SIDE))
    v = 1e-6 + (1 - 2e-6) * (100 + u) / 256
    # the same for every seed of a run, so that runs compare
    assert_allclose(evaluation[0], np.log(v / (1 - v)), rtol=1e-12)


def test_every_step_has_smoothing_noise_of_its_own_of_the_deviation_asked_for():
    """Correlations and deviations of n numbers are estimated to 1/√n and 1/√(2n)."""
    deviation = 0.5
    drawn = []
    plain, noisy = (make_trainer(OPS, noise=noise) for noise in (0.0, deviation))
    images = images_of(plain, 0, 300)
    for step in (0, 1):
        x, smoothed = (each.encode(images, step)[0] for each in (plain, noisy))
        drawn.append((smoothed - x).ravel())
    count = drawn[0].size
    for noise in drawn:
        assert abs(noise.std() / deviation - 1) < 5 / math.sqrt(2 * count)
        assert abs(noise.mean()) < 5 * deviation / math.sqrt(count)
    assert abs(np.corrcoef(*drawn)[0, 1]) < 5 / math.sqrt(count)


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_likelihood_terms_are_in_nats_and_in_bits_per_dimension(
    disagreeing, monkeypatch, capsys, split
):
    data, run, _ = disagreeing
    monkeypatch.setattr(shared, "load_dataset", lambda *where: data)
    evaluate.main([str(run.path), "--split", split, "--seed", "5"])
    out = capsys.readouterr().out
    rows = re.findall(r"(?m)^(.+?) {2,}(-?[\d.]+) +(-?[\d.]+)$", out)
    expected = load_run(run.path).likelihood.evaluate(getattr(data, split), 5)
    nats = {**expected.terms, "log p(x)": -expected.nll}
    assert [name for name, _, _ in rows] == list(nats)
    for name, in_nats, in_bits in rows:
        assert float(in_nats) == pytest.approx(nats[name], abs=6e-4)
        assert float(in_bits) == pytest.approx(
            nats[name] / (16 * 0.6931471805599453), abs=6e-5
        )
    assert (
        f"NLL {expected.nll:.3f} nats = {expected.nll / 11.090354888959125:.4f} bits/dim"
        in out
    )


CONTROLLED = {"tolerance": 1e-5, "lambda_rate": 20.0}
compiled = partial(pytest.param, marks=pytest.mark.slow)
RESUMED = [
    {},
    compiled({"clip_norm": 5.0, "backend": "numba"}),
    {"gradient": "exact"},
    compiled({"model": "conv", "bias_init": "data", "backend": "numba"}),
    {"bias_init": "data"},
    {"lambda_control": "geco", **CONTROLLED},
    {"lambda_control": "geco", "jvp_weight": 0.2, **CONTROLLED},
    {"objective": "variational", "lam": 2.0},
    {"coordinates": "white"},
    {"model": "conv", "coordinates": "white"},
    {"track_angle": 2},
    {"model": "glow-2l-4k", **SMALL_GLOW},
]


@pytest.mark.parametrize("changes", RESUMED, ids=str)
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(monkeypatch, changes):
    """After an epoch, and after a kill in the next, metrics (averages of whole epochs) included.

    White coordinates are estimated again at step 8, and there is no summary of an unfinished run.
    """
    monkeypatch.setattr("snfnp.step.trainer._EVERY", 4)
    make = {**changes, "dataset": small_dataset(side=4 if "model" in changes else 5)}
    said = []
    run_training("whole", **make)
    run_training("part", epochs=1, **make)
    with stopped_at(monkeypatch, 8):
        run_training("part", resume=True, checkpoint_every="2", **make)
    assert state("part").step == 7 and not Path("part/summary.json").exists()
    run_training("part", resume=True, report=said.append, **make)
    assert said.count("resumed from step 7 (epoch 1)") == 1
    assert_same_run("whole", "part")


@pytest.mark.parametrize("number, signals", [(signal.SIGINT, 1), (signal.SIGTERM, 2)])
def test_an_interruption_in_mid_epoch_loses_nothing(
    finished, monkeypatch, number, signals
):
    """A second SIGTERM does not cut off the checkpoint."""
    said = []

    def interrupt(trainer):
        for _ in range(signals):
            os.kill(os.getpid(), number)

    with stopped_at(monkeypatch, 7, interrupt, KeyboardInterrupt):
        run_training("part", report=said.append)
    assert "`resume`" in said[-1] and "part" in said[-1]
    assert state("part").step == 8  # the step in progress was finished
    run_training("part", resume=True)
    assert_same_run(finished, "part")


def test_a_run_outside_the_main_thread_is_the_same(finished):
    """Where Python lets nobody handle signals."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(run_training, "thread").result()
    assert_same_run(finished, "thread")


def test_a_clock_that_stands_still_stops_no_run(monkeypatch):
    monkeypatch.setattr(progress.time, "perf_counter", lambda: 5.0)
    run, summary = run_training("run", epochs=1)
    assert summary["training_seconds"] == 0
    assert run.read_metrics()[0]["samples_per_second"] > 0


def test_a_log_file_gets_a_line_every_so_often(monkeypatch):
    """None within a minute of another line; in a terminal or a notebook the bar moves instead."""
    said = []
    run_training("short", report=said.append)
    assert not any("minutes left" in line for line in said)
    monkeypatch.setattr(progress, "_LINE_EVERY", 0.0)
    said.clear()
    run_training("run", report=said.append)
    lines = [line for line in said if "minutes left" in line]
    assert len(lines) == 15
    assert lines[6].startswith("step 7 of 15, 0.0 minutes left at ")
    assert "error" in lines[6] and progress.tqdm is tqdm.auto.tqdm
    # the lines of a run fit a terminal, and its head explains their words
    every = [line for text in said for line in text.split("\n")]
    assert max(len(line) for line in every) <= 100
    assert sum("* the best so far; error: Σ" in line for line in every) == 1


def test_the_longest_line_of_an_evaluation_fits_a_terminal():
    record = Record(
        *(500_000, 500_000, 1000, 1.0),
        *(-1e5, 1.23e-10, 1e9),
        nll=12345.678,
        bits_per_dimension=12.34567,
        best=True,
        figures={"samples_per_second": 123456.0},
    )
    evaluator = object.__new__(Evaluator)
    evaluator._of_images = True
    evaluator._config = TrainConfig(epochs=1000)
    line = evaluator.describe(record)
    assert len(line) <= 100 and "*  error 1.2e-10  123456 img/s" in line
    evaluator._of_images = False
    unlearned = replace(record, reconstruction=0.0, nll=1.04056)
    assert "NLL   1.0406 nats *  123456 row/s" in evaluator.describe(unlearned)


def test_an_optimiser_of_ones_own_goes_on_with_its_own_state():
    settings = {"optimiser": own("Momentum", RULES)(), "lr": 1e-5}
    _, adams = run_training("adam")
    _, summary = run_training("whole", **settings)
    assert summary["validation_nll_nats"] != adams["validation_nll_nats"]
    run_training("part", epochs=1, **settings)
    run_training("part", resume=True, **settings)
    assert_same_run("whole", "part")
    assert RunFolder.open("part")[1]["optimiser"] == "Momentum"
    with one_line(
        UsageError, "was trained by the optimiser Momentum, not by Adam", "resume("
    ):
        run_training("part", resume=True, epochs=4, lr=1e-5)


def poison(monkeypatch, step, layer, parameter, value):
    """Spoil a parameter right before a step."""
    at_step(
        monkeypatch,
        step,
        lambda t: t.params[layer][parameter].flat.__setitem__(0, value),
    )


@pytest.mark.parametrize("layer, parameter", [("dense1", "W"), ("dense2", "b")])
def test_a_nan_stops_the_run_and_names_layer_and_step(monkeypatch, layer, parameter):
    poison(monkeypatch, 6, layer, parameter, np.nan)
    with pytest.raises(
        DivergedError, match=f"step 7: the output of layer {layer} is not finite"
    ):
        run_training("run")
    checkpoint = state("run")
    assert checkpoint.step == 5 and np.isfinite(checkpoint.p).all()


def test_latents_whose_squares_overflow_are_the_base_density_and_no_layer(monkeypatch):
    # finite in single precision, unlike its square
    poison(monkeypatch, 4, "dense2", "b", 1e30)
    with pytest.raises(
        DivergedError, match="at step 5: the base density is not finite;"
    ):
        run_training("run", dtype="float32")


@pytest.mark.parametrize("clip_norm", [None, 1.0])
def test_a_nan_in_a_gradient_names_the_parameter(monkeypatch, clip_norm):
    """And the buffers that it would have moved are as they were before that step."""
    trainers = []
    at_step(monkeypatch, 2, trainers.append)
    poison(monkeypatch, 3, "dense1", "R", np.inf)  # R is not in the forward pass
    with pytest.raises(
        DivergedError, match=r"step 4: the gradient of dense1\.[WR] is not finite"
    ):
        run_training("run", clip_norm=clip_norm)
    (trainer,) = trainers
    assert np.isfinite(trainer.m).all() and np.isfinite(trainer.v).all()
    assert np.count_nonzero(~np.isfinite(trainer.p)) == 1


@pytest.mark.parametrize("name", ["last.safetensors", "best.safetensors", "thesis.tex"])
def test_a_folder_that_holds_anything_is_refused(tmp_path, name):
    (tmp_path / name).touch()
    with pytest.raises(UsageError, match=f"holds {name}: choose another folder"):
        RunFolder.create(tmp_path)


def test_config_json_records_what_a_repetition_needs():
    run, _ = run_training("run", epochs=1, bias_init="data", backend="numba")
    _, record = RunFolder.open(run.path)
    assert record["backend"] == "numba" and record["config"]["seed"] == 0
    assert record["data"]["source"] == "random images"
    assert record["device"] == get_ops("numba").device.describe()
    assert {"numpy", "numba", "snfnp", "python"} <= set(record["versions"])
    assert record["threads"]["numba_layer"] and record["threads"]["blas"]
    assert (record["config"]["init"], record["config"]["bias_init"]) == (
        "paper",
        "data",
    )


def test_nothing_is_saved_that_loading_refuses(monkeypatch):
    """The square of a finite gradient may be infinite: then so is Adam's v."""
    at_step(monkeypatch, 7, lambda trainer: trainer.v.__setitem__(3, np.inf))
    with one_line(
        DivergedError, "`rollback`", match="diverged by step 10: .* moment of Adam's"
    ):
        run_training("run")
    assert state("run").step == state("run", "best").step == 5
