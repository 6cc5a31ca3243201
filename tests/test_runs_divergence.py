"""Runs whose numbers go wrong: they stop, and the ways on that they name can be gone."""

import dataclasses
import math
import re
import shlex
import shutil

import numpy as np
import pytest
from support.messages import assert_one_line
from support.runs import START, around, state
from support.trainers import at_step, run_training

from snfnp.errors import CheckpointError, DivergedError, in_flags
from snfnp.flow import Flow
from snfnp.likelihood import Likelihood
from snfnp.training import checkpointer
from snfnp.training.runs.folder import RunFolder
from snfnp.training.runs.load import load_run
from snfnp.training.trainer import Trainer


def ways_on(error):
    """The options that an error's advice names."""
    message = in_flags(str(error))
    return [shlex.split(found) for found in re.findall(r"--r\w+ --out .*? --lr \S+", message)]


@pytest.mark.parametrize("step, where", [(2, "the start"), (8, r"the best evaluation \(step 5\)")])
def test_every_way_on_after_a_nan_can_be_gone(
    snfnp_train, tmp_path, monkeypatch, capsys, step, where
):
    path = tmp_path / "a run"  # a shell needs quotes

    with monkeypatch.context() as patched, pytest.raises(DivergedError, match=where) as caught:
        at_step(patched, step, lambda trainer: trainer.params["dense1"]["W"].fill(np.nan))
        snfnp_train(*START, "--lr", 0.01, "--out", path)
    assert_one_line(caught.value, f"diverged at step {step + 1}", "`clip_norm`", "`lam`")
    ways = ways_on(caught.value)
    assert [way[0] for way in ways] == ["--resume", "--rollback"]
    kept = shutil.copytree(path, tmp_path / "kept")
    for way in ways:
        shutil.rmtree(path)
        shutil.copytree(kept, path)
        snfnp_train(*way)
        assert state(path).step == 15 and load_run(path, "last").config.lr == 0.001


def test_worse_than_twice_the_best_and_the_pixels_is_an_explosion(tmp_path, monkeypatch):
    at_step(monkeypatch, 12, lambda trainer: trainer.params["dense1"]["W"].__imul__(100))
    with pytest.raises(DivergedError, match="epoch 3 has exploded") as caught:
        run_training(tmp_path / "run", lr=1e-6)
    assert "best evaluation (step" in str(caught.value)
    assert [way[0] for way in ways_on(caught.value)] == ["--rollback"]
    assert not (tmp_path / "run" / "summary.json").exists()  # it is never called done


def test_a_start_far_from_the_images_is_no_explosion(tmp_path, monkeypatch):
    original = Flow.init

    def far(flow, seed):
        drawn = original(flow, seed)
        drawn["dense1"]["W"] *= 10
        return drawn

    monkeypatch.setattr(Flow, "init", far)
    run, _ = run_training(tmp_path / "run", lr=1e-7, epochs=1)
    assert run.read_metrics()[0]["validation_bits_per_dimension"] > 32


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_what_overflows_is_one_line_without_warnings(snfnp_train, tmp_path, backend):
    """With NumPy in the first epoch's Adam, whose best checkpoint nothing was saved of."""
    options = ("--backend", backend, "--lambda", 1e30, "--out", tmp_path / "run")
    with pytest.raises(DivergedError, match="from the start with .*a smaller `lam`") as caught:
        snfnp_train(*START, *options)
    assert_one_line(caught.value)
    for way in ways_on(caught.value):
        with pytest.raises(DivergedError):  # again, λ being the same
            snfnp_train(*way)


@pytest.mark.parametrize("name", ["surrogate", "reconstruction", "gradient_norm"])
def test_figures_that_are_not_finite_stop_a_run(tmp_path, monkeypatch, name):
    original, nan = Trainer.averages, {name: math.nan}
    spoiled = lambda trainer: dataclasses.replace(original(trainer), **nan)  # noqa: E731
    monkeypatch.setattr(Trainer, "averages", spoiled)
    with pytest.raises(DivergedError, match=f"{name.replace('_', ' ')} after epoch 1 is not fin"):
        run_training(tmp_path / "run")
    assert not RunFolder(tmp_path / "run").metrics_file.exists()


def test_a_test_likelihood_that_is_not_finite_is_never_called_done(tmp_path, monkeypatch):
    original, calls = Likelihood.evaluate, []  # three epochs, the test images

    def evaluate(*args, **options):
        calls.append(original(*args, **options))
        spoiled = dataclasses.replace(calls[-1], terms={"x": math.nan})
        return spoiled if len(calls) == 4 else calls[-1]

    monkeypatch.setattr(Likelihood, "evaluate", evaluate)
    with pytest.raises(DivergedError, match="exact test likelihood at the best epoch is not fin"):
        run_training(tmp_path / "run")
    assert len(calls) == 4 and not RunFolder(tmp_path / "run").summary_file.exists()


def test_the_test_figure_is_never_that_of_another_epoch_than_the_best(tmp_path, monkeypatch):
    run, _ = run_training(tmp_path / "run", epochs=1)
    older = run.best.read_bytes()

    def swap(path, *_):
        if path.name == "best.safetensors":
            path.write_bytes(older)

    around(monkeypatch, checkpointer, "save_checkpoint", after=swap)
    with pytest.raises(CheckpointError, match="is of step 5, but the best evaluation was at"):
        run_training(tmp_path / "run", resume=True)
