"""Runs on a device that works asynchronously, and the checks of layers there."""

import math
import pickle

import numpy as np
import pytest
from support.beyond_checks import ALL_CHECKS
from support.own_layer import RULES, own
from support.runs import assert_same_run, stopped_at
from support.trainers import at_step, run_training, small_dataset

from snfnp.errors import DivergedError
from snfnp.gradcheck import check_layer, check_map, check_rule
from snfnp.maps import Dense
from snfnp.training import progress
from snfnp.training.runs.load import load_run

pytestmark = pytest.mark.slow


def test_a_kill_in_mid_epoch_changes_no_number(ops, tmp_path, monkeypatch):
    """Checkpoints between evaluations, the averages since the last one, the step as a graph."""
    how = {"backend": "cupy", "epochs": 2}
    whole, _ = run_training(tmp_path / "whole", **how)
    with stopped_at(monkeypatch, 8):
        run_training(tmp_path / "part", checkpoint_every="2", **how)
    part, _ = run_training(tmp_path / "part", resume=True, **how)
    assert_same_run(whole.path, part.path)


def test_a_run_of_the_device_is_rolled_back_on_another(ops, tmp_path):
    run, _ = run_training(tmp_path / "run", backend="cupy", dtype="float64")
    run_training(
        tmp_path / "run", resume="best", backend="numpy", dtype="float64", lr=1e-4
    )
    loaded = load_run(run.path, "last")
    assert loaded.config.backend == "numpy" and loaded.checkpoint.step == 15


def test_a_step_that_failed_is_in_no_checkpoint(ops, tmp_path, monkeypatch):
    """The host learns of it late: it has to ask before it saves."""

    def poison(trainer):
        trainer.params["dense1"]["W"][0, 0] = np.nan

    # a look at the figures waits as well
    monkeypatch.setattr(progress, "_SHOW_EVERY", math.inf)
    at_step(monkeypatch, 7, poison)
    with pytest.raises(
        DivergedError, match="step 8: the output of layer dense1 is not finite"
    ):
        run_training(tmp_path / "run", backend="cupy", checkpoint_every="1")
    assert load_run(tmp_path / "run", "last", ops=ops).checkpoint.step == 7


def test_a_run_of_the_device_can_be_pickled(ops, tmp_path):
    run, _ = run_training(tmp_path / "run", backend="cupy", epochs=1)
    loaded = load_run(run.path)
    images = small_dataset().test
    expected = loaded.likelihood.log_prob(images)
    found = pickle.loads(pickle.dumps(loaded))
    np.testing.assert_array_equal(found.likelihood.log_prob(images), expected)
    assert found.ops.name == "cupy" and found.ops.device is not loaded.ops.device


def test_the_pages_layer_passes_its_check(ops):
    check_layer(own("Planar")(), shape=(4,), ops=ops)
    check_map(own("Diagonal")(4), shape=(4,), ops=ops)


def test_the_pages_optimiser_and_rule_do_the_same_in_a_recorded_step(ops, tmp_path):
    runs = []
    said = []
    for graph in (True, False):
        settings = {"optimiser": own("Momentum", RULES)(), "lr": 1e-5, "graph": graph}
        settings |= {"report": said.append, "epochs": 1}
        runs.append(
            run_training(tmp_path / str(graph), backend="cupy", **settings)[0].path
        )
    assert_same_run(*runs)
    assert not any("graph" in line for line in said), said
    check_rule(own("Newton", RULES)(), Dense(4), (4,), ops=ops)


@pytest.mark.parametrize(
    "check",
    [check for check in ALL_CHECKS if check.kind == "layer"],
    ids=lambda check: check.name,
)
def test_every_layer_passes_its_check(ops, check):
    """With its map and rule. In single precision, test_ops.py has the operations, and
    test_methods.py what widens it."""
    check.run(ops=ops)
