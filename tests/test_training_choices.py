"""Which images, which noise and which epoch the figures of a run come from."""

import itertools
import json
import math
import re

import numpy as np
import pytest

from snfnp.cli import evaluate, shared
from snfnp.data import Dataset
from snfnp.layers import Preprocess
from snfnp.likelihood import Likelihood
from snfnp.ops import get_ops
from snfnp.ops.random import philox
from snfnp.training.loop import train
from snfnp.training.monitors import Monitors
from snfnp.training.options import TrainConfig
from snfnp.training.runs.checkpoint import load_checkpoint
from snfnp.training.runs.folder import RunFolder
from snfnp.training.trainer import Trainer

OPS = get_ops("numpy")
SIDE, BATCH = 4, 10
EVALUATION_STREAM = 1


def dataset(training, validation, test):
    splits = [np.asarray(images, np.uint8) for images in (training, validation, test)]
    return Dataset("mnist", *splits, source="made for a test", is_sample=False)


def pixels(low, high, count=40, seed=0):
    return np.random.default_rng(seed).integers(low, high, (count, SIDE, SIDE, 1))


def run_training(folder, data, **changes):
    """The run's folder, its summary, and its configuration."""
    settings = {"lr": 3e-3, "warmup_epochs": 0, "dtype": "float64", "threads": 1, **changes}
    config = TrainConfig(batch_size=BATCH, backend="numpy", **settings).resolve(len(data.train))
    run = RunFolder.create(folder)
    return run, train(config, data, OPS, run, report=lambda line: None), config


def likelihood_at(checkpoint, config):
    flow = config.build_flow((SIDE, SIDE, 1))
    layout = Trainer(OPS, flow, config, 1).layout
    read = load_checkpoint(checkpoint, layout)
    return read.step, Likelihood(OPS, flow, layout, read.p)


# ---------------------------------------------------------------- which epoch, which images


@pytest.fixture(scope="module")
def disagreeing(tmp_path_factory):
    """A run in which the best epoch by the validation images is neither the first nor the last, and
    the best by the test images, which are like those that it trains on, the last."""
    data = dataset(pixels(100, 150), pixels(80, 170, seed=1), pixels(100, 150, seed=2))
    folder = tmp_path_factory.mktemp("runs") / "disagreeing"
    run, summary, config = run_training(folder, data, epochs=9, lr=0.02)
    return data, run, summary, config


def test_which_images_and_which_epoch_the_figures_are_of(disagreeing):
    """The best epoch is that of the validation images; the final figure, the test images there."""
    data, run, summary, config = disagreeing
    validation = [record["validation_nll_nats"] for record in run.read_metrics()]
    best, steps = int(np.argmin(validation)), len(data.train) // BATCH
    assert 0 < best < 8 == len(validation) - 1
    assert (summary["best_epoch"], summary["validation_nll_nats"]) == (best + 1, validation[best])
    test = {}
    for path, epoch in ((run.best, best), (run.last, 8)):
        step, likelihood = likelihood_at(path, config)
        assert step == (epoch + 1) * steps
        found = likelihood.evaluate(data.validation, 0).nll
        assert found == pytest.approx(validation[epoch], rel=1e-12)
        test[path] = likelihood.evaluate(data.test, 0).nll
    assert test[run.last] < test[run.best] - 0.1  # they can be told apart
    assert summary["test_nll_nats"] == pytest.approx(test[run.best], rel=1e-12)
    bits = test[run.best] / (SIDE * SIDE * math.log(2))
    assert summary["test_bits_per_dimension"] == pytest.approx(bits, rel=1e-12)
    assert json.loads(run.summary_file.read_text())["test_nll_nats"] == summary["test_nll_nats"]


@pytest.mark.parametrize(
    "epochs, every, expected",
    [(3, 1, [1, 2, 3]), (3, 2, [2, 3]), (4, 2, [2, 4]), (2, 5, [2]), (5, 3, [3, 5])],
)
def test_the_last_epoch_is_always_evaluated(tmp_path, epochs, every, expected):
    data = dataset(pixels(0, 256), pixels(0, 256), pixels(0, 256))
    run, summary, config = run_training(tmp_path / "run", data, epochs=epochs, eval_every=every)
    records = run.read_metrics()
    assert [record["epoch"] for record in records] == expected
    assert [record["step"] for record in records] == [4 * epoch for epoch in expected]
    best = min(records, key=lambda record: record["validation_nll_nats"])
    assert summary["best_epoch"] == best["epoch"]
    assert likelihood_at(run.last, config)[0] == 4 * epochs


# ---------------------------------------------------------------- in which order, with which noise


def orders(folder, monkeypatch, epochs=3, **changes):
    """Per epoch, the numbers of the training images in the order in which steps saw them."""
    numbered = np.arange(45).reshape(-1, 1, 1, 1) * np.ones((1, SIDE, SIDE, 1))
    seen, original = [], Trainer.training_step

    def noting(trainer, batches):
        images = OPS.to_host(batches(trainer.step))
        seen.append(images.reshape(BATCH, -1)[:, 0].tolist())
        return original(trainer, batches)

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "training_step", noting)
        run_training(folder, dataset(numbered, *2 * [pixels(0, 256)]), epochs=epochs, **changes)
    per_epoch = len(seen) // epochs
    return [sum(seen[i : i + per_epoch], []) for i in range(0, len(seen), per_epoch)]


def test_every_epoch_has_an_order_of_its_own(tmp_path, monkeypatch):
    epochs = orders(tmp_path / "run", monkeypatch)
    for order in epochs:
        assert len(order) == len(set(order)) == 40  # 45 images: a rest of 5 is left out
        assert order != sorted(order)
    for one, other in itertools.combinations(epochs, 2):
        assert sum(a == b for a, b in zip(one, other, strict=True)) < 10
    assert set().union(*epochs) == set(range(45))  # not always the same rest
    again = orders(tmp_path / "again", monkeypatch)
    other = orders(tmp_path / "other", monkeypatch, seed=1)
    assert again == epochs and other[0] != epochs[0]


def test_without_a_shuffle_the_order_stays(tmp_path, monkeypatch):
    assert orders(tmp_path / "run", monkeypatch, shuffle=False) == 3 * [list(range(40))]


@pytest.fixture(scope="module", params=[0, 3])
def encodings(request, tmp_path_factory):
    """Every x that a run of some seed made of images, in training and in evaluations: all pixels
    are alike, so that the noise alone tells them apart."""
    made, original = [], Preprocess.forward

    def noting(preprocess, ops, images, key, dtype):
        x, ldj = original(preprocess, ops, images, key, dtype)
        made.append(np.array(x))
        return x, ldj

    grey = dataset(*3 * [np.full((40, SIDE, SIDE, 1), 100)])
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Preprocess, "forward", noting)
        # the monitors look at the batch of the next step just as that will see it
        patched.setattr(Monitors, "figures", lambda *_: {})
        run_training(tmp_path_factory.mktemp("runs") / "run", grey, epochs=2, seed=request.param)
    training, evaluation = ([x for x in made if len(x) == count] for count in (BATCH, 40))
    first, *training = training  # biases and the like may start from the first step's batch
    np.testing.assert_array_equal(first, training[0])
    assert len(training) == 8 and len(evaluation) == 3  # two epochs, and the test images
    return training, evaluation


def test_every_step_has_noise_of_its_own_and_every_evaluation_the_same(encodings):
    training, evaluation = encodings
    values = np.concatenate(training).ravel()
    assert len(np.unique(values)) == len(values)
    for x in evaluation:
        np.testing.assert_array_equal(x, evaluation[0])
    assert not np.isin(evaluation[0], np.concatenate(training)).any()
    u = philox.uniform(np, philox.RandomKey(0, EVALUATION_STREAM, 0), (40, SIDE * SIDE))
    v = 1e-6 + (1 - 2e-6) * (100 + u) / 256
    # whatever the run's seed, so that runs compare
    np.testing.assert_allclose(evaluation[0], np.log(v / (1 - v)), rtol=1e-12)


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_the_ledger_is_in_nats_and_in_bits_per_dimension(disagreeing, monkeypatch, capsys, split):
    data, run, _, config = disagreeing
    monkeypatch.setattr(shared, "load_dataset", lambda *where: data)
    evaluate.main([str(run.path), "--split", split, "--seed", "5"])
    out = capsys.readouterr().out
    rows = re.findall(r"^(.+?) {2,}(-?[\d.]+) +(-?[\d.]+)$", out, re.M)
    expected = likelihood_at(run.best, config)[1].evaluate(getattr(data, split), 5)
    nats = {**expected.terms, "log p(x)": -expected.nll}
    assert [name for name, _, _ in rows] == list(nats)
    for name, in_nats, in_bits in rows:
        assert float(in_nats) == pytest.approx(nats[name], abs=6e-4)
        assert float(in_bits) == pytest.approx(nats[name] / (16 * 0.6931471805599453), abs=6e-5)
    assert f"NLL {expected.nll:.3f} nats = {expected.nll / 11.090354888959125:.4f} bits/dim" in out
