"""Runs with a learned inverse of several layers: resumed, opened again, sampled, measured."""

import numpy as np
from support.trainers import run_training, small_dataset

from snfnp.diagnostics import gradient_angles
from snfnp.ops import RandomKey
from snfnp.training.runs.load import load_run

DATASET = small_dataset(side=8)


def test_an_opened_run_records_inverts_samples_and_measures(tmp_path):
    run_training(tmp_path / "run", DATASET, model="conv", inverse_depth=2)
    run = load_run(tmp_path / "run")
    for record in run.folder.read_metrics():
        figures = record["layers"].values()
        assert len(figures) == 9 and all(0 < each["rho"] < 1 for each in figures)
    assert "R = flip(W), then identities; b = 0" in run.record["model"]["initialisation"]
    assert "Chain(" in run.record["model"]["layers"]["conv2.1"]
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
