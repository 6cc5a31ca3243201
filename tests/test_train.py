"""The training loop: resume, interruption, divergence, metrics."""

import io
import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tqdm.auto
from support.messages import one_line
from support.own_layer import RULES, own
from support.runs import Killed, assert_same_run, kill, state
from support.trainers import at_step, run_training, small_dataset

from snfnp.errors import DivergedError, UsageError
from snfnp.training import progress
from snfnp.training.runs.folder import RunFolder


@pytest.mark.parametrize("gradient", ["self-normalizing", "exact", "relative"])
def test_the_surrogate_and_the_likelihood_improve(tmp_path, gradient):
    run, summary = run_training(tmp_path / "run", gradient=gradient, epochs=8)
    records = run.read_metrics()
    assert [record["epoch"] for record in records] == list(range(1, 9))
    assert records[-1]["validation_nll_nats"] < records[0]["validation_nll_nats"] - 1
    assert records[-1]["surrogate"] > records[0]["surrogate"]
    assert summary["best_epoch"] in range(1, 9)
    assert (records[-1]["reconstruction"] > 0) == (gradient == "self-normalizing")


CONTROLLED = {"tolerance": 1e-5, "lambda_rate": 20.0}
RESUMED = [
    {},
    {"clip_norm": 5.0, "backend": "numba"},
    {"gradient": "exact"},
    {"model": "conv", "bias_init": "data", "backend": "numba"},
    {"bias_init": "data"},
    {"lambda_control": "geco", **CONTROLLED},
    {"lambda_control": "geco", "jvp_weight": 0.2, **CONTROLLED},
    {"objective": "variational", "sigma": 0.5},
    {"coordinates": "white"},
    {"model": "conv", "coordinates": "white"},
    {"track_angle": 2},
]


@pytest.mark.parametrize("changes", RESUMED, ids=str)
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(tmp_path, monkeypatch, changes):
    """After an epoch, and after a kill in the next, metrics (averages of whole epochs) included.

    White coordinates are estimated again at step 8, and there is no summary of an unfinished run.
    """
    monkeypatch.setattr("snfnp.training.trainer._EVERY", 4)
    make = {**changes, "dataset": small_dataset(side=8 if "model" in changes else 5)}
    said = []
    run_training(tmp_path / "whole", **make)
    run_training(tmp_path / "part", epochs=1, **make)
    with monkeypatch.context() as patched, pytest.raises(Killed):
        at_step(patched, 8, kill)
        run_training(tmp_path / "part", resume=True, checkpoint_every="2", **make)
    assert state(tmp_path / "part").step == 7 and not (tmp_path / "part/summary.json").exists()
    run_training(tmp_path / "part", resume=True, report=said.append, **make)
    assert said.count("resumed from step 7 (epoch 1)") == 1
    assert_same_run(tmp_path / "whole", tmp_path / "part")


@pytest.mark.parametrize("number, signals", [(signal.SIGINT, 1), (signal.SIGTERM, 2)])
def test_an_interruption_in_mid_epoch_loses_nothing(
    finished, tmp_path, monkeypatch, number, signals
):
    """A second SIGTERM does not cut off the checkpoint."""
    said = []
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        at_step(patched, 7, lambda trainer: [os.kill(os.getpid(), number) for _ in range(signals)])
        run_training(tmp_path / "part", report=said.append)
    assert "`resume`" in said[-1] and str(tmp_path / "part") in said[-1]
    assert state(tmp_path / "part").step == 8  # the step in progress was finished
    run_training(tmp_path / "part", resume=True)
    assert_same_run(finished, tmp_path / "part")


def test_a_run_outside_the_main_thread_is_the_same(finished, tmp_path):
    """Where Python lets nobody handle signals."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(run_training, tmp_path / "thread").result()
    assert_same_run(finished, tmp_path / "thread")


def test_a_clock_that_stands_still_stops_no_run(tmp_path, monkeypatch):
    monkeypatch.setattr(progress.time, "perf_counter", lambda: 5.0)
    run, summary = run_training(tmp_path / "run", epochs=1)
    assert summary["training_seconds"] == 0 and run.read_metrics()[0]["samples_per_second"] > 0


def test_the_lines_of_a_run_survive_an_output_without_greek(tmp_path, monkeypatch):
    output = io.TextIOWrapper(io.BytesIO(), encoding="cp1252", write_through=True)
    monkeypatch.setattr(sys, "stdout", output)
    run_training(tmp_path / "run", epochs=1, report=print)
    assert b"\\u03bb = 1" in output.buffer.getvalue() and output.errors == "strict"


def test_a_log_file_gets_a_line_every_so_often(tmp_path, monkeypatch):
    """None within a minute of another line; in a terminal or a notebook the bar moves instead."""
    said = []
    run_training(tmp_path / "short", report=said.append)
    assert not any("steps left" in line for line in said)
    monkeypatch.setattr(progress, "_LINE_EVERY", 0.0)
    run_training(tmp_path / "run", report=said.append)
    lines = [line for line in said if "steps left" in line]
    assert len(lines) == 15 and lines[6].startswith("step 7 of 15, 0.0 minutes of steps left at ")
    assert "surrogate" in lines[6] and progress.tqdm is tqdm.auto.tqdm


def test_an_optimiser_of_ones_own_goes_on_with_its_own_state(tmp_path):
    settings = {"optimiser": own("Momentum", RULES)(), "lr": 1e-5}
    _, adams = run_training(tmp_path / "adam")
    _, summary = run_training(tmp_path / "whole", **settings)
    assert summary["validation_nll_nats"] != adams["validation_nll_nats"]
    run_training(tmp_path / "part", epochs=1, **settings)
    run_training(tmp_path / "part", resume=True, **settings)
    assert_same_run(tmp_path / "whole", tmp_path / "part")
    assert RunFolder.open(tmp_path / "part")[1]["optimiser"] == "Momentum"
    with one_line(UsageError, "was trained by the optimiser Momentum, not by Adam", "resume("):
        run_training(tmp_path / "part", resume=True, epochs=4, lr=1e-5)


def poison(monkeypatch, step, layer, parameter, value):
    """Spoil a parameter right before a step."""
    at_step(monkeypatch, step, lambda t: t.params[layer][parameter].flat.__setitem__(0, value))


@pytest.mark.parametrize("layer, parameter", [("dense1", "W"), ("dense2", "b")])
def test_a_nan_stops_the_run_and_names_layer_and_step(tmp_path, monkeypatch, layer, parameter):
    poison(monkeypatch, 6, layer, parameter, np.nan)
    with pytest.raises(DivergedError, match=f"step 7: the output of layer {layer} is not finite"):
        run_training(tmp_path / "run")
    checkpoint = state(tmp_path / "run")
    assert checkpoint.step == 5 and np.isfinite(checkpoint.p).all()


@pytest.mark.parametrize("clip_norm", [None, 1.0])
def test_a_nan_in_a_gradient_names_the_parameter(tmp_path, monkeypatch, clip_norm):
    poison(monkeypatch, 3, "dense1", "R", np.inf)  # R is not in the forward pass
    with pytest.raises(DivergedError, match=r"step 4: the gradient of dense1\.[WR] is not finite"):
        run_training(tmp_path / "run", clip_norm=clip_norm)


# ---------------------------------------------------------------- configuration and folders


@pytest.mark.parametrize("name", ["last.safetensors", "best.safetensors", "thesis.tex"])
def test_a_folder_that_holds_anything_is_refused(tmp_path, name):
    (tmp_path / name).touch()
    with pytest.raises(UsageError, match=f"holds {name}: choose another folder"):
        RunFolder.create(tmp_path)


def test_config_json_records_what_a_repetition_needs(tmp_path):
    run, _ = run_training(tmp_path / "run", epochs=1, bias_init="data", backend="numba")
    _, record = RunFolder.open(run.path)
    assert record["backend"] == "numba" and record["config"]["seed"] == 0
    assert record["data"]["source"] == "random images"
    assert {"numpy", "numba", "snfnp", "python"} <= set(record["versions"])
    assert record["threads"]["numba_layer"] and record["threads"]["blas"]
    start = "paper, NumPy default_rng(0); R = flip(W); b from the first batch"
    assert record["model"]["initialisation"] == start


def test_nothing_is_saved_that_loading_refuses(tmp_path, monkeypatch):
    """The square of a finite gradient may be infinite: then so is Adam's v."""
    at_step(monkeypatch, 7, lambda trainer: trainer.v.__setitem__(3, np.inf))
    with one_line(DivergedError, "`rollback`", match="diverged by step 10: .* moment of Adam's"):
        run_training(tmp_path / "run")
    assert state(tmp_path / "run").step == state(tmp_path / "run", "best").step == 5
