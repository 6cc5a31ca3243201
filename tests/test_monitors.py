"""What every evaluation says of the learned inverses: ρ, the margin, the ratio of two gradients."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from support.gradients import moved
from support.strict_ops import strict_ops
from support.trainers import make_trainer, run_training, small_dataset, without_time

from snfnp.data.mnist import SPECS
from snfnp.diagnostics import SmallestSecondMoment, gradient_ratios
from snfnp.diagnostics.second_moment import stable_above
from snfnp.errors import DivergedError
from snfnp.flow import Flow
from snfnp.layers import Linear
from snfnp.maps import Conv2d, Dense, contraction
from snfnp.ops import get_ops
from snfnp.rules import Exact, Relative, SelfNormalizing
from snfnp.training.inspection import Inspection
from snfnp.training.runs.load import load_run

OPS = get_ops("numpy")


# ---------------------------------------------------------------- the smallest second moment


def correlated(rng, count, size, smallest, mean=0.0):
    """Gaussian rows with variances from `smallest` to 10 along random directions."""
    scales = np.geomspace(smallest, 10, size) ** 0.5
    turn = np.linalg.qr(rng.standard_normal((size, size)))[0]
    return (rng.standard_normal((count, size)) * scales) @ turn + mean, turn


def test_the_smallest_second_moment_is_held_out():
    """Where a sample's own smallest eigenvalue is a third of the true one, this is above it."""
    rng = np.random.default_rng(1)
    size, images, smallest = 100, 400, 0.02
    x, _ = correlated(rng, images, size, smallest, mean=7.0)
    found = SmallestSecondMoment(OPS, Dense(size), images)
    for start in range(0, images, 70):  # as they come
        found.add(x[start : start + 70])
    own = np.linalg.eigvalsh(np.cov(x[:200].T))[0]
    assert own < 0.5 * smallest
    assert 0.95 * smallest < found.value < 2 * smallest


def test_means_are_included():
    """A mean along the direction of the least variance: the second moment there is no longer it."""
    rng = np.random.default_rng(2)
    x, turn = correlated(rng, 4000, 10, 0.02)
    scales = np.geomspace(0.02, 10, 10)
    x += np.sqrt(3.0) * turn[0]
    found = SmallestSecondMoment(OPS, Dense(10), 4000)
    found.add(x)
    assert found.value == pytest.approx(scales[1], rel=0.15)  # 0.04; of the covariance 0.02


def test_what_a_sample_has_least_of_by_chance_is_not_taken_for_it():
    """One second moment in all directions: held-out images know, those that chose do not."""
    rng = np.random.default_rng(2)
    x = rng.standard_normal((1000, 100))
    found = SmallestSecondMoment(OPS, Dense(100), 1000)
    found.add(x)
    assert np.linalg.eigvalsh(np.cov(x[:500].T))[0] < 0.4
    assert 0.75 < found.value < 1.0  # the smallest of 8 directions on 500 images


def linearised(covariance, mean, lam, step=1e-5):
    """The Jacobian of the mixture's ascent of (W, R, b) at rest, W = S^(−1/2), R = S^(1/2),
    b = −W m, by differences of the averages of Eqs. 10, 11, 17 and 20 (derivations/24)."""
    size, second = len(mean), covariance + np.outer(mean, mean)
    values, turn = np.linalg.eigh(covariance)
    root = turn * np.sqrt(values) @ turn.T
    w = np.linalg.inv(root)
    rest = np.concatenate([w.ravel(), root.ravel(), -w @ mean])

    def ascent(point):
        w, r = point[:-size].reshape(2, size, size)
        mean_z = w @ mean + point[-size:]
        z_x = w @ covariance + np.outer(mean_z, mean)  # E[z xᵀ]
        error = r @ w - np.eye(size)
        of_w = 0.5 * (r.T - z_x) - 2 * lam * r.T @ error @ second
        of_r = 0.5 * (w.T @ z_x @ w.T - w.T) - 2 * lam * error @ second @ w.T
        return np.concatenate([of_w.ravel(), of_r.ravel(), -mean_z])

    assert np.abs(ascent(rest)).max() < 1e-9
    ends = step * np.eye(len(rest))
    return np.stack([(ascent(rest + e) - ascent(rest - e)) / (2 * step) for e in ends], axis=1)


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("biased", [True, False])
def test_the_monitor_finds_where_the_linearised_update_turns_stable(size, biased):
    """λ from what the monitor says of inputs with a mean: 2% below 1/8 errors grow, above they do
    not. Without a bias the mean is a part of what the likelihood sees."""
    rng = np.random.default_rng(size)
    factor, mean = rng.standard_normal((size, size)), rng.standard_normal(size)
    x = rng.standard_normal((8000, size)) @ factor + mean
    x = np.concatenate([x, x])  # the held-out half is the other half again
    found = SmallestSecondMoment(OPS, Dense(size), len(x))
    found._to_fit, found._to_hold = 8000, 8000
    found.add(x)
    mean, second = x.mean(axis=0), x.T @ x / len(x)
    own = (second - np.outer(mean, mean), mean) if biased else (second, np.zeros(size))
    rotations = size * (size - 1) // 2
    for margin, stable in ((0.98 / 8, False), (1.02 / 8, True)):
        real = np.linalg.eigvals(linearised(*own, margin / found.value)).real
        growth = np.delete(real, np.argsort(np.abs(real))[:rotations]).max()
        assert (growth < 0) == stable
        assert (margin > stable_above(SelfNormalizing())) == stable


def test_the_parts_in_which_images_come_do_not_matter():
    rng = np.random.default_rng(3)
    x = rng.standard_normal((30, 4, 5, 2))
    values = []
    for step in (30, 7, 1):
        found = SmallestSecondMoment(OPS, Conv2d((3, 3), 2), 30)
        for start in range(0, 30, step):
            found.add(x[start : start + step])
        values.append(found.value)
    np.testing.assert_allclose(values, values[0], rtol=1e-12)


def test_too_few_images_have_none_and_nan_is_not_hidden():
    found = SmallestSecondMoment(OPS, Dense(3), 1)
    found.add(np.ones((1, 3)))
    assert found.value is None
    for count, known in ((8, False), (10, True)):  # half of them choose among 4 directions
        found = SmallestSecondMoment(OPS, Dense(4), count)
        found.add(np.random.default_rng(3).standard_normal((count, 4)))
        assert (found.value is not None) == known
    found = SmallestSecondMoment(OPS, Dense(3), 8)
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


def test_a_run_records_them_for_every_layer_and_goes_on_alike(tmp_path):
    data = small_dataset(side=3)
    whole, _ = run_training(tmp_path / "whole", data)
    part, _ = run_training(tmp_path / "part", data, epochs=2)
    run_training(tmp_path / "part", data, resume=True)
    records = whole.read_metrics()
    assert without_time(part.read_metrics()) == without_time(records)
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


RHO = "if the likelihood suffers, raise --lambda (derivations/23-monitors-and-certificates.md)"


def test_a_warning_names_layer_cause_action_and_page_once():
    inspection, _ = inspected(make_trainer(OPS, "fc"))
    fine = {"rho": 0.999, "margin": 0.126}

    def say(**layers):
        return inspection.warnings({"layers": layers})

    assert say(dense1=fine, dense2=fine) == []
    assert say(dense1={"rho": 0.499, "margin": 0.01}) == []  # no error has grown
    (line,) = say(dense1=fine, dense2={"rho": 1.0, "margin": 0.126})
    assert line == f"early warning, not a verdict: ρ = ‖I − RW‖₂ is at least 1: 1 in dense2; {RHO}"
    (line,) = say(dense1=fine, dense2={"rho": 0.5, "margin": 0.125})
    assert line == (
        "early warning, not a verdict: λσ²_min is not above 1/8, where the update is stable, and ρ "
        "is at least 1/2: 0.125 in dense2; if the likelihood suffers, raise --lambda "
        "(derivations/24-stability.md)"
    )
    rho, margin = say(dense1={"rho": 2.0, "margin": 0.01}, dense2={"rho": 1.5, "margin": 0.12})
    assert "at least 1: 2 in dense1;" in rho and "1/2: 0.01 in dense1;" in margin
    assert say(dense1={"rho": 2.0, "margin": 0.01}) == []
    assert inspection.warnings({}) == []
    for line in (rho, margin):
        (page,) = re.findall(r"\((derivations/\S+)\)", line)
        assert (Path(__file__).parents[1] / page).is_file()


def test_where_lambda_weighs_nothing_the_action_is_another():
    inspection, _ = inspected(make_trainer(OPS, "conv", inverse_update="least-squares"))
    name = next(iter(inspection._layers))
    (line,) = inspection.warnings({"layers": {name: {"rho": 1.5}}})
    assert "if the likelihood suffers, sample with --inverse exact (" in line


def test_a_run_reports_its_warnings(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(contraction, "rho", lambda *arguments: 0.5)
    run_training(tmp_path / "run", lam=1e-3, report=said.append, dataset=small_dataset(side=3))
    warned = [line for line in said if line.startswith("early warning")]
    assert len(warned) == 1 and "λσ²_min is not above 1/8" in warned[0]
    assert "in dense1" in warned[0] and "in dense2" in warned[0]


def test_the_default_run_on_the_sample_warns_of_nothing(tmp_path):
    """At its first epoch the second layer's margin is at the threshold (0.126, as the 1000 images
    have it), and ρ is 0.03."""
    said = []
    default = {"epochs": 1, "batch_size": 100, "lr": 1e-4, "warmup_epochs": 10}
    sample = SPECS["mnist"].without_download("offline", lambda line: None)
    run, _ = run_training(tmp_path, sample, report=said.append, **default)
    (record,) = run.read_metrics()
    assert record["layers"]["dense2"]["margin"] < 0.14
    assert not [line for line in said if "warning" in line]


def test_differences_between_runs_reach_into_layers():
    import sys

    sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
    from compare_checkouts import flat

    record = json.loads('{"epoch": 1, "layers": {"a": {"rho": 0.5}, "b": {"rho": 0.25}}}')
    assert dict(flat(record)) == {"epoch": 1, "layers a rho": 0.5, "layers b rho": 0.25}
