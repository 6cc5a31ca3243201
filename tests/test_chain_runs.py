"""Runs with a learned inverse of several layers: resumed, opened again, sampled, measured."""

import json

import numpy as np
import pytest
from support.trainers import run_training, small_dataset

from snfnp.diagnostics import gradient_angles
from snfnp.ops import RandomKey
from snfnp.training.runs.folder import RunFolder
from snfnp.training.runs.load import load_run

CHAIN = {"model": "conv", "inverse_depth": 2}
DATASET = small_dataset(side=8)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chain") / "run"
    return run_training(folder, DATASET, **CHAIN)[0].path


def test_what_a_run_records(finished):
    for record in RunFolder(finished).read_metrics():
        figures = record["layers"].values()
        assert len(figures) == 9 and all(0 < each["rho"] < 1 for each in figures)
    record = json.loads((finished / "config.json").read_text())
    assert record["config"]["inverse_depth"] == 2
    assert "R = flip(W), then identities; b = 0" in record["model"]["initialisation"]
    assert "Chain(" in record["model"]["layers"]["conv2.1"]


def test_an_opened_run_inverts_samples_and_measures(finished):
    run = load_run(finished)
    assert run.params["conv3.2"]["R"].shape == (2, 3, 3, 16, 16)
    learned, exact, other = (
        run.likelihood.sample(4, seed, exact=flag).astype(float)
        for seed, flag in ((0, False), (0, True), (1, True))
    )
    distance, chance = np.abs(learned - exact).mean(), np.abs(other - exact).mean()
    assert 0 < distance < chance / 3
    key = RandomKey(0, 0)
    x, _ = run.flow.encode(run.ops, DATASET.train[:50], key, np.float64)
    angles = gradient_angles(run.ops, run.flow, run.params, x, run.lam)
    assert len(angles) == 9 and all(0 < found.angle < 30 for found in angles)
