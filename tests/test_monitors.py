"""What every evaluation says of the learned inverses: ρ, the margin, the ratio of two gradients."""

import json
import math

import numpy as np
import pytest
from support.gradients import moved
from support.strict_ops import strict_ops
from support.trainers import make_trainer, run_training, small_dataset

from snfnp.diagnostics import SmallestVariance, gradient_ratios
from snfnp.errors import DivergedError
from snfnp.flow import Flow
from snfnp.layers import Linear
from snfnp.maps import Conv2d, Dense, contraction
from snfnp.ops import get_ops
from snfnp.rules import Exact, Relative, SelfNormalizing
from snfnp.training.inspection import Inspection, stable_above
from snfnp.training.runs.load import load_run

OPS = get_ops("numpy")


# ---------------------------------------------------------------- the smallest variance


def correlated(rng, count, size, smallest):
    """Gaussian rows with variances from `smallest` to 10 along random directions, far from 0."""
    scales = np.geomspace(smallest, 10, size) ** 0.5
    turn = np.linalg.qr(rng.standard_normal((size, size)))[0]
    return (rng.standard_normal((count, size)) * scales) @ turn + 7.0


def test_the_smallest_variance_is_held_out():
    """Where a sample's own smallest eigenvalue is a third of the true one, this is above it."""
    rng = np.random.default_rng(1)
    size, images, smallest = 100, 400, 0.02
    x = correlated(rng, images, size, smallest)
    found = SmallestVariance(OPS, Dense(size), images)
    for start in range(0, images, 70):  # as they come
        found.add(x[start : start + 70])
    own = np.linalg.eigvalsh(np.cov(x[:200].T))[0]
    assert own < 0.5 * smallest
    assert 0.95 * smallest < found.value < 2 * smallest


def test_what_a_sample_has_least_of_by_chance_is_not_taken_for_it():
    """One variance in all directions: held-out images know, those that chose do not."""
    rng = np.random.default_rng(2)
    x = rng.standard_normal((1000, 100))
    found = SmallestVariance(OPS, Dense(100), 1000)
    found.add(x)
    assert np.linalg.eigvalsh(np.cov(x[:500].T))[0] < 0.4
    assert 0.75 < found.value < 1.0  # the smallest of 8 directions on 500 images


def test_the_parts_in_which_images_come_do_not_matter():
    rng = np.random.default_rng(3)
    x = rng.standard_normal((30, 4, 5, 2))
    values = []
    for step in (30, 7, 1):
        found = SmallestVariance(OPS, Conv2d((3, 3), 2), 30)
        for start in range(0, 30, step):
            found.add(x[start : start + step])
        values.append(found.value)
    np.testing.assert_allclose(values, values[0], rtol=1e-12)


def test_too_few_images_have_none_and_nan_is_not_hidden():
    found = SmallestVariance(OPS, Dense(3), 1)
    found.add(np.ones((1, 3)))
    assert found.value is None
    for count, known in ((8, False), (10, True)):  # half of them choose among 4 directions
        found = SmallestVariance(OPS, Dense(4), count)
        found.add(np.random.default_rng(3).standard_normal((count, 4)))
        assert (found.value is not None) == known
    found = SmallestVariance(OPS, Dense(3), 8)
    found.add(np.full((8, 3), np.nan))
    assert math.isnan(found.value)


# ---------------------------------------------------------------- the two gradients


def test_the_ratio_by_its_definition():
    rng = np.random.default_rng(4)
    flow = Flow((5,), (("dense", Linear(Dense(5), SelfNormalizing())),))
    params = moved(flow.init(0), rng)
    x, lam = rng.standard_normal((20, 5)), 0.3
    w, r, b = (params["dense"][name] for name in ("W", "R", "b"))
    error = x @ w.T @ r.T - x
    of_error = -2 * lam / 20 * (error @ r).T @ x  # Eq. 17
    of_likelihood = 0.5 * (-(x @ w.T + b).T @ x / 20 + r.T)  # Eq. 10
    expected = np.linalg.norm(of_error) / np.linalg.norm(of_likelihood)
    assert gradient_ratios(OPS, flow, params, x, lam)["dense"] == pytest.approx(expected, rel=1e-12)
    assert gradient_ratios(OPS, flow, params, x, {"dense": 2 * lam})["dense"] == pytest.approx(
        2 * expected, rel=1e-12
    )
    assert gradient_ratios(OPS, flow, params, x, 0.0) == {"dense": 0.0}


def test_eq_31_holds_r_too():
    """Its weight adds to the margin, and its gradient to the reconstruction's."""
    figures = []
    for weight in (0.0, 0.5):
        inspection, likelihood = inspected(make_trainer(OPS, "fc", jvp_weight=weight))
        figures.append(inspection.figures(likelihood)["layers"])
    for name, own in figures[0].items():
        assert figures[1][name]["margin"] == pytest.approx(own["margin"] + 0.5, rel=1e-12)
        assert figures[1][name]["gradient_ratio"] != own["gradient_ratio"]


# ---------------------------------------------------------------- in a run


def test_a_run_records_them_for_every_layer(tmp_path):
    data = small_dataset(side=3)
    whole, _ = run_training(tmp_path / "whole", data)
    records = whole.read_metrics()
    loaded = load_run(whole.path, "last")
    for name in ("dense1", "dense2"):
        own = records[-1]["layers"][name]
        assert list(own) == ["rho", "margin", "gradient_ratio"]
        w, r = (loaded.params[name][p] for p in ("W", "R"))
        exact = np.linalg.norm(np.eye(len(w)) - r @ w, 2)
        assert 0.99 * exact < own["rho"] <= exact * (1 + 1e-12)
        assert own["margin"] > 0 and own["gradient_ratio"] > 0
    assert records[0]["layers"] != records[1]["layers"]


def test_what_a_rule_does_not_have_is_left_out(tmp_path):
    data = small_dataset(side=3)
    forward, _ = run_training(tmp_path / "forward", data, objective="forward", epochs=1)
    (record,) = forward.read_metrics()
    assert list(record["layers"]["dense1"]) == ["rho", "gradient_ratio"]
    free, _ = run_training(tmp_path / "free", data, lam=0.0, epochs=1)
    (record,) = free.read_metrics()
    assert list(record["layers"]["dense1"]) == ["rho", "margin"]
    exact, _ = run_training(tmp_path / "exact", gradient="exact", epochs=1)
    assert "layers" not in exact.read_metrics()[0]


def test_where_rules_are_stable():
    assert stable_above(SelfNormalizing("mixture")) == 0.125  # derivations/04: λσ² > 1/8
    for rule in (SelfNormalizing("forward"), Exact(), Relative()):
        assert stable_above(rule) is None


def inspected(trainer):
    rng = np.random.default_rng(6)
    images = rng.integers(0, 256, (200, *trainer.flow.shape)).astype(np.uint8)
    inspection = Inspection(trainer, lambda step: trainer.ops.asarray(images[:6]))
    likelihood = trainer.likelihood()
    likelihood.evaluate(images, 0, at_once=70, watch=inspection.watch(len(images)))
    return inspection, likelihood


@pytest.mark.parametrize("model", ["fc", "conv", "glow"])
def test_the_same_on_another_device(model):
    """Strict arrays: as on a GPU, nothing of the host's meets what is on the device."""
    figures = []
    for ops in (OPS, strict_ops()):
        trainer = make_trainer(ops, model, dtype="float64")
        inspection, likelihood = inspected(trainer)
        figures.append(inspection.figures(likelihood)["layers"])
    expected, found = figures
    assert found.keys() == expected.keys() and len(found) >= 2
    for name, own in expected.items():
        assert found[name] == pytest.approx(own, rel=1e-6, abs=1e-12)


def test_figures_leave_the_training_as_it_is():
    trainer = make_trainer(OPS, "fc", lambda_control="geco", tolerance=1e-3)
    before = [array.copy() for array in (trainer.p, trainer.gradient, trainer.state)]
    inspection, likelihood = inspected(trainer)
    inspection.figures(likelihood)
    for array, then in zip((trainer.p, trainer.gradient, trainer.state), before, strict=True):
        assert np.array_equal(array, then)


def test_a_controlled_lambda_is_each_layers_own():
    trainer = make_trainer(OPS, "fc", lambda_control="geco", tolerance=1e-3)
    lams = trainer.multipliers.lam
    inspection, likelihood = inspected(trainer)
    before = inspection.figures(likelihood)["layers"]
    trainer.multipliers._rows[0, 1] *= 2  # λ of the second layer
    assert trainer.multipliers.lam["dense2"] == 2 * lams["dense2"]
    after = inspection.figures(likelihood)["layers"]
    assert after["dense1"] == before["dense1"]
    for name in ("margin", "gradient_ratio"):
        assert after["dense2"][name] == pytest.approx(2 * before["dense2"][name], rel=1e-12)


def test_a_figure_that_is_not_finite_stops_the_run_and_names_the_layer(monkeypatch):
    trainer = make_trainer(OPS, "fc")
    inspection, likelihood = inspected(trainer)
    monkeypatch.setattr(contraction, "rho", lambda *arguments: math.nan)
    with pytest.raises(DivergedError, match="^layer dense1: rho "):
        inspection.figures(likelihood)


# ---------------------------------------------------------------- warnings


def test_a_warning_names_layer_and_cause_once():
    inspection, _ = inspected(make_trainer(OPS, "fc"))
    fine = {"rho": 0.999, "margin": 0.126}

    def say(**layers):
        return inspection.warnings({"layers": layers})

    assert say(dense1=fine, dense2=fine) == []
    (line,) = say(dense1=fine, dense2={"rho": 1.0, "margin": 0.126})
    assert line == "early warning, not a verdict: ρ = ‖I − RW‖₂ has reached 1: 1 in dense2"
    (line,) = say(dense1=fine, dense2={"rho": 1.5, "margin": 0.12})
    assert line == (
        "early warning, not a verdict: λσ²_min is not above 1/8, where the update is stable: "
        "0.12 in dense2"
    )
    rho, margin = say(dense1={"rho": 2.0, "margin": 0.01}, dense2={"rho": 1.5, "margin": 0.12})
    assert rho.endswith(": 2 in dense1") and margin.endswith(": 0.01 in dense1")
    assert say(dense1={"rho": 2.0, "margin": 0.01}) == []
    assert inspection.warnings({}) == []


def test_a_run_reports_its_warnings(tmp_path):
    said = []
    run_training(tmp_path / "run", lam=1e-3, report=said.append, dataset=small_dataset(side=3))
    warned = [line for line in said if line.startswith("early warning")]
    assert len(warned) == 1 and "λσ²_min is not above 1/8" in warned[0]
    assert "in dense1" in warned[0] and "in dense2" in warned[0]


def test_differences_between_runs_reach_into_layers():
    import sys
    from pathlib import Path

    sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
    from compare_checkouts import flat

    record = json.loads('{"epoch": 1, "layers": {"a": {"rho": 0.5}, "b": {"rho": 0.25}}}')
    assert dict(flat(record)) == {"epoch": 1, "layers a rho": 0.5, "layers b rho": 0.25}
