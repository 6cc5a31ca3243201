"""What evaluations say of learned inverses: ρ, the margin, the ratio and the angle of gradients."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from compare_checkouts import flat
from numpy import linalg
from numpy.random import default_rng
from support.arrays import normal, orthogonal, pixels
from support.gradients import invert, moved
from support.runs import around
from support.trainers import make_trainer, run_training, small_dataset

from snfnp import diagnostics
from snfnp.diagnostics import _angle, gradient_angles
from snfnp.errors import DivergedError, UsageError
from snfnp.flow import Flow
from snfnp.gradcheck import as_matrix, check_gradient
from snfnp.layers import Linear
from snfnp.maps import Conv2d, Dense, contraction
from snfnp.models import PRESETS, Choices
from snfnp.ops import get_ops
from snfnp.rules import Exact, SelfNormalizing
from snfnp.training.monitors import Monitors, SmallestSecondMoment
from snfnp.training.runs.load import load_run

pytestmark = pytest.mark.usefixtures("here")

OPS = get_ops("numpy")


def correlated(rng, count, size, smallest, mean=0.0):
    """Gaussian rows with variances from `smallest` to 10 along random directions."""
    scales = np.geomspace(smallest, 10, size) ** 0.5
    turn = orthogonal(rng, size)
    return (rng.standard_normal((count, size)) * scales) @ turn + mean, turn


def smallest(x, f=None, step=None):
    """σ²_min of the inputs x of a map, which come `step` at a time."""
    found = SmallestSecondMoment(OPS, f or Dense(x.shape[1]), len(x))
    for start in range(0, len(x), step or len(x)):
        found.add(x[start : start + (step or len(x))], start)
    return found.value


def test_the_smallest_second_moment_is_held_out():
    """Where a sample's own smallest eigenvalue is a third of the true one, this is above it."""
    x, _ = correlated(default_rng(1), 400, 100, 0.02, mean=7.0)
    assert linalg.eigvalsh(np.cov(x[:200].T))[0] < 0.5 * 0.02
    assert 0.95 * 0.02 < smallest(x, step=70) < 2 * 0.02


def test_means_are_included():
    """A mean along the direction of the least variance: the second moment there is no longer it."""
    x, turn = correlated(default_rng(2), 4000, 10, 0.02)
    second = np.geomspace(0.02, 10, 10)[1]  # 0.04
    assert smallest(x + np.sqrt(3.0) * turn[0]) == pytest.approx(second, rel=0.15)


def test_the_parts_in_which_images_come_do_not_matter():
    x = normal(30, 4, 5, 2, seed=3)
    f = Conv2d((3, 3), 2)
    values = [smallest(x, f, step) for step in (30, 7, 1)]
    np.testing.assert_allclose(values, values[0], rtol=1e-12)
    # receptive fields: a corner tap meets (1 − 1/4)(1 − 1/5) of the pixels
    assert values[0] < 0.6


def test_the_order_of_the_images_does_not_matter_much():
    """Of two classes one after the other, each without variance in a direction of the other: the
    first images alone would have σ²_min = 0."""
    rng = default_rng(5)
    x = rng.standard_normal((2000, 6))
    x[:1000, 0] = x[1000:, 1] = 0.0
    values = smallest(x), smallest(rng.permutation(x))
    assert values == pytest.approx((0.5, 0.5), rel=0.2)


def test_too_few_images_have_none_and_nan_is_not_hidden():
    rng = default_rng(3)
    assert smallest(np.ones((1, 3))) is None
    # half of them choose among 4 directions
    assert smallest(rng.standard_normal((8, 4))) is None
    assert smallest(rng.standard_normal((10, 4))) is not None
    assert math.isnan(smallest(np.full((8, 3), np.nan)))


def test_eq_31_adds_its_weight_to_the_margin():
    without, pulled = (
        inspected(make_trainer(OPS, "fc", jvp_weight=weight))[1]()
        for weight in (0.0, 0.5)
    )
    for name, own in without.items():
        assert pulled[name]["margin"] == pytest.approx(own["margin"] + 0.5, rel=1e-12)


def test_a_run_records_them_for_every_layer():
    data = small_dataset(side=3)
    whole, _ = run_training("whole", data)
    records = whole.read_metrics()
    loaded = load_run(whole.path, "last")
    for name in ("dense1", "dense2"):
        own = records[-1]["layers"][name]
        assert list(own) == ["rho", "margin"]
        w, r = (loaded.params[name][p] for p in ("W", "R"))
        exact = linalg.norm(np.eye(len(w)) - r @ w, 2)
        assert 0.99 * exact < own["rho"] <= exact * (1 + 1e-12)
        assert own["margin"] > 0
    assert records[0]["layers"] != records[1]["layers"]


@pytest.mark.parametrize(
    "changes, names",
    [
        ({"objective": "forward"}, ["rho"]),
        ({"lam": 0.0}, ["rho", "margin"]),
        ({"gradient": "exact"}, None),
    ],
)
def test_what_a_rule_does_not_have_is_left_out(changes, names):
    run, _ = run_training("run", small_dataset(side=3), epochs=1, **changes)
    layers = run.read_metrics()[0].get("layers", {})
    assert layers.keys() == ({"dense1", "dense2"} if names else set())
    assert all(list(own) == names for own in layers.values())


def inspected(trainer):
    images = pixels(200, *trainer.flow.shape, seed=6)
    tracked = trainer.config.track_angle
    inspection = Monitors(
        trainer, lambda step: trainer.ops.asarray(images[:6]), tracked
    )
    likelihood = trainer.likelihood()
    likelihood.evaluate(images, 0, at_once=70, watch=inspection.watch(len(images)))
    return inspection, lambda: inspection.figures()["layers"]


@pytest.mark.parametrize("model", ["fc", "conv", "glow"])
def test_figures_are_in_double_precision_if_evaluations_are_not(model, monkeypatch):
    """Kernels of a GPU refuse inputs and parameters of two types."""

    def note(ops, flow, params, x, *rest):
        types.update(
            {x.dtype, *(a.dtype for each in params.values() for a in each.values())}
        )

    types = set()
    around(monkeypatch, diagnostics, "gradients", note)
    single, double = (
        inspected(make_trainer(OPS, model, eval_dtype=dtype, track_angle=1))
        for dtype in ("float32", "float64")
    )
    found = single[1]()
    expected = double[1]()
    assert types == {np.dtype("float64")}
    for name, own in expected.items():
        assert found[name] == pytest.approx(own, rel=1e-3)


def test_figures_leave_the_training_as_it_is():
    trainer = make_trainer(OPS, "fc", lambda_control="geco", tolerance=1e-3)
    arrays = (trainer.p, trainer.gradient, *trainer.state.values())
    before = [array.copy() for array in arrays]
    inspected(trainer)[1]()
    for array, then in zip(arrays, before, strict=True):
        assert np.array_equal(array, then)


def test_a_controlled_lambda_is_each_layers_own():
    trainer = make_trainer(OPS, "fc", lambda_control="geco", tolerance=1e-3)
    lams = trainer.multipliers.lam
    _, figures = inspected(trainer)
    before = figures()
    trainer.multipliers.values[0, 1] *= 2  # λ of the second layer
    assert trainer.multipliers.lam["dense2"] == 2 * lams["dense2"]
    after = figures()
    assert after["dense1"] == before["dense1"]
    assert after["dense2"]["margin"] == pytest.approx(
        2 * before["dense2"]["margin"], rel=1e-12
    )


def test_a_figure_that_is_not_finite_stops_the_run_and_names_the_layer(monkeypatch):
    _, figures = inspected(make_trainer(OPS, "fc"))
    monkeypatch.setattr(contraction, "rho", lambda *arguments: math.nan)
    with pytest.raises(DivergedError, match="^layer dense1: rho "):
        figures()


FAR = ("ρ = ‖I − RW‖₂ is at least 1", "derivations/23-monitors-and-certificates.md")
UNSTABLE = (
    "λσ²_min is not above 1/8, where the update is stable, and ρ is at least 1/2",
    "derivations/22-stability.md",
)


def test_a_warning_names_layer_cause_action_and_page_once():
    inspection, _ = inspected(make_trainer(OPS, "fc"))
    for first, second, *expected in (  # (ρ, margin) of both layers, what is said
        ((0.999, 0.126), (0.999, 0.126)),
        ((0.499, 0.01), (0.0, 0.126)),  # no error has grown
        ((0.999, 0.126), (1.0, 0.126), (*FAR, "1 in dense2")),
        ((0.999, 0.126), (0.5, 0.125), (*UNSTABLE, "0.125 in dense2")),
        (
            (2.0, 0.01),
            (1.5, 0.12),
            (*FAR, "2 in dense1"),
            (*UNSTABLE, "0.01 in dense1"),
        ),
        ((2.0, 0.01), (1.5, 0.12)),
    ):
        figures = [
            dict(zip(("rho", "margin"), own, strict=True)) for own in (first, second)
        ]
        said = inspection.warnings(
            {"layers": {"dense1": figures[0], "dense2": figures[1]}}
        )
        assert said == [
            f"early warning, not a verdict: {cause}: {where}; if the likelihood suffers, raise "
            f"`lam` ({page})"
            for cause, page, where in expected
        ]
    assert inspection.warnings({}) == []
    assert all(
        (Path(__file__).parents[1] / page).is_file() for _, page in (FAR, UNSTABLE)
    )


def test_a_run_reports_its_warnings(monkeypatch):
    said = []
    monkeypatch.setattr(contraction, "rho", lambda *arguments: 0.5)
    run_training("run", lam=1e-3, report=said.append, dataset=small_dataset(side=3))
    warned = [line for line in said if line.startswith("early warning")]
    assert len(warned) == 1 and "λσ²_min is not above 1/8" in warned[0]
    assert "in dense1" in warned[0] and "in dense2" in warned[0]


def test_differences_between_runs_reach_into_layers():
    record = json.loads(
        '{"epoch": 1, "layers": {"a": {"rho": 0.5}, "b": {"rho": 0.25}}}'
    )
    assert dict(flat(record)) == {"epoch": 1, "layers a rho": 0.5, "layers b rho": 0.25}


def setting(rule=None):
    flow = PRESETS["fc"].build(Choices(**({"rule": rule} if rule else {})), (4, 4, 1))
    rng = default_rng(0)
    params = moved(flow.init(0), rng)
    return OPS, flow, params, rng.standard_normal((20, *flow.shape))


def test_no_angle_where_the_inverses_are_exact():
    ops, flow, params, x = setting()
    invert(params)
    for found in gradient_angles(ops, flow, params, x, lam=1.0).values():
        assert found["angle"] < 1e-5 and found["inverse_angle"] < 1e-5
        assert found["reconstruction"] < 1e-9 < found["likelihood"]
    params["dense1"]["R"] *= 1.5
    assert (
        gradient_angles(ops, flow, params, x, lam=1.0)["dense1"]["inverse_angle"] > 0.1
    )


@pytest.mark.parametrize("bad", [0.0, math.nan, math.inf])
def test_what_has_no_direction_has_no_angle(bad):
    a = np.array([[1.0, 2.0]])
    b = np.array([[-2.0, -4.0]])
    assert _angle(a, b) == pytest.approx(180.0)
    for pair in ((a * bad, b), (b, np.full_like(a, bad))):
        assert math.isnan(_angle(*pair))


def test_the_norms_of_both_gradients_by_their_definitions():
    """And the angle of the likelihood's with the exact gradient."""
    ops, flow, params, x = setting()
    h = flow.layers[0][1].forward(ops, params["dense1"], x)[0]
    h = flow.layers[1][1].forward(ops, {}, h)[0]
    w, r, b = (params["dense2"][name] for name in ("W", "R", "b"))
    data = -(h @ w.T + b).T @ h / len(x)
    learned = data + r.T  # twice Eq. 10
    exact = data + linalg.inv(w).T
    cosine = np.sum(learned * exact) / linalg.norm(learned) / linalg.norm(exact)
    of_error = -2 / len(x) * ((h @ w.T @ r.T - h) @ r).T @ h  # Eq. 17
    for lam, own in ((0.3, 0.3), ({"dense1": 0.0, "dense2": 0.6}, 0.6), (0.0, 0.0)):
        found = gradient_angles(ops, flow, params, x, lam)["dense2"]
        assert abs(found["angle"] - np.degrees(np.arccos(cosine))) < 1e-6
        assert found["likelihood"] == pytest.approx(linalg.norm(learned) / 2, rel=1e-12)
        expected = own * linalg.norm(of_error)
        assert found["reconstruction"] == pytest.approx(expected, rel=1e-12)


def test_without_learned_inverses_there_is_none():
    with pytest.raises(UsageError, match="no angle"):
        gradient_angles(*setting(rule=Exact()), lam=0.0)


def log_p_g(ops, flow, params, x):
    """The mean log-density of x under the generative direction, from inverses written out."""
    h = x.reshape(len(x), -1)
    log_det = 0.0
    for name, layer in flow.layers:
        if layer.learns_inverse:
            shape = flow.shape if len(flow.shape) == 3 else (h.shape[1],)
            r = as_matrix(layer.maps[1], ops, params[name]["R"], shape)
            h = linalg.solve(r, h.T).T
            h = (h.reshape(len(x), *shape) + params[name]["b"]).reshape(len(x), -1)
            log_det = log_det - linalg.slogdet(r)[1]
        else:
            h, ldj, _ = layer.forward(ops, {}, h)
            log_det = log_det + ldj
    return float((ops.channels.gaussian_log_density(h) + log_det).mean())


@pytest.mark.parametrize("kind", ["fc", "conv"])
def test_the_exact_gradient_of_r_by_central_differences(kind):
    ops = get_ops("numpy")
    rng = default_rng(3)
    if kind == "fc":
        flow = PRESETS["fc"].build(Choices(), (2, 2, 1))
    else:
        linear = Linear(Conv2d((3, 3), 2), inverse_map=Conv2d((5, 5), 2))
        flow = Flow((3, 4, 2), (("dense1", linear), ("dense2", linear)))
    params = moved(flow.init(0), rng, 0.05)
    x = rng.standard_normal((5, *flow.shape))
    exact = diagnostics._exact_of_r(ops, flow, params, x)
    for name in ("dense1", "dense2"):

        def of_r(r, name=name):
            return log_p_g(ops, flow, {**params, name: {**params[name], "R": r}}, x)

        check_gradient(of_r, params[name]["R"], exact[name]["R"], rng=rng)


def test_r_has_an_angle_only_where_it_climbs_a_likelihood_that_it_has():
    ops, flow, params, x = setting(rule=SelfNormalizing("forward"))
    assert "inverse_angle" not in gradient_angles(ops, flow, params, x, 1.0)["dense1"]
    ops, flow, params, x = setting()
    params["dense1"]["R"][0] = 0
    assert "inverse_angle" not in gradient_angles(ops, flow, params, x, 1.0)["dense2"]


def test_a_run_records_angles_where_it_is_asked_to():
    whole, _ = run_training("whole", track_angle=2)
    for record in whole.read_metrics():
        for own in record["layers"].values():
            assert 0 < own["angle"] < 60 and 0 < own["inverse_angle"] < 60
    plain, _ = run_training("plain", epochs=1)
    assert "angle" not in plain.read_metrics()[0]["layers"]["dense1"]


def test_the_batches_are_those_of_the_next_steps():
    """Their mean gradient is what the angle is of."""
    trainer = make_trainer(get_ops("numpy"), "fc", dtype="float64")
    batches = [pixels(6, *trainer.flow.shape, seed=step) for step in range(3)]
    inspection = Monitors(trainer, batches.__getitem__, 2)
    params = trainer.params
    trainer.step = 1
    found = inspection.figures()["layers"]
    x = np.concatenate([trainer.encode(batches[step], step)[0] for step in (1, 2)])
    for layer, own in gradient_angles(
        trainer.ops, trainer.flow, params, x, 1.0
    ).items():
        for figure in ("angle", "inverse_angle"):
            assert found[layer][figure] == pytest.approx(own[figure], rel=1e-9)
